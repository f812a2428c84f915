import atexit
import gc
import logging
import os
import pathlib
import shutil
import tempfile

# Tests compile far more than they compute, and often the same. Set before JAX
# is imported, and inherited by the processes that tests start.
_CACHE = tempfile.mkdtemp(prefix='kdjax-tests-')
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
# Where the processes that tests start find the networks of tests.
os.environ['PYTHONPATH'] = os.pathsep.join(
  (str(pathlib.Path(__file__).parent), os.environ.get('PYTHONPATH', ''))
)

import jax
import jaxlib
import pytest

from kdjax.system import xla

# Tracing makes very many objects, and hardly any that refer to themselves.
gc.set_threshold(100_000, 50, 100)


def pytest_addoption(parser):
  parser.addoption(
    '--slow', action='store_true', help='also run the tests marked slow'
  )
  parser.addoption(
    '--faults',
    type=int,
    default=2,
    metavar='N',
    help='how often tests/training/test_faults.py kills a run; half as often '
    'it damages the newest checkpoint (default 2)',
  )
  parser.addoption(
    '--fuzz',
    type=int,
    default=1500,
    metavar='N',
    help='how many damaged files tests/storage/weights/test_hostile.py reads '
    '(default 1500)',
  )
  parser.addoption(
    '--golden',
    metavar='DIRECTORY',
    help='files of reference values for tests/test_golden.py instead of '
    'those in third_party/golden',
  )
  parser.addoption(
    '--shapes',
    type=int,
    default=3,
    metavar='N',
    help='how many random shapes tests/system/test_compiler.py compares of '
    'each computation (default 3)',
  )
  parser.addoption(
    '--damages',
    type=int,
    default=60,
    metavar='N',
    help='how often tests/storage/test_damage.py damages a file of a run '
    '(default 60)',
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption('--slow'):
    return
  skip = pytest.mark.skip(reason='slow: run with --slow')
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(skip)


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
  """Keeps the user's cache out of the tests, and the tests out of it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


# Files whose subject is what compiled programs compute. For the others jaxlib
# 0.10.2 uses its older code generator, which takes two thirds of the time.
_NUMBERS = {
  'test_compiler.py',
  'test_devices.py',
  # Streams and data in memory come to the same bits, which a compiler need not
  # promise.
  'test_streams.py',
  'test_losses.py',
  'test_metrics.py',
  'test_optimizer.py',
  'test_logits_file.py',
  'test_teacher_logits.py',
  'test_xla.py',
  'test_step.py',
  'test_sums.py',
}


@pytest.fixture(autouse=True, scope='module')
def fast_compilation(request):
  """Compiles what kdjax compiles in this process fast, not for speed."""
  file = request.path
  if (
    jaxlib.__version__ != '0.10.2'
    or file.name in _NUMBERS
    or file.parent.name == 'models'
  ):
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(xla._CPU_OPTIONS, 'xla_cpu_use_fusion_emitters', 'False')
    xla.compiler_options.cache_clear()
    yield
  xla.compiler_options.cache_clear()


@pytest.fixture(autouse=True)
def own_logger():
  """Restores the logger after each test; commands set it up."""
  logger = logging.getLogger('kdjax')
  before = logger.level, logger.propagate, logger.handlers[:]
  yield
  logger.level, logger.propagate, logger.handlers[:] = before


@pytest.fixture
def no_promotion():
  """Makes JAX refuse to mix dtypes or ranks by itself.

  For code that touches arrays only: Flax and optax mix dtypes inside.
  """
  with (
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    yield
