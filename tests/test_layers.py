"""The arrows between kdjax's modules point one way, and stay few."""

import ast
import graphlib
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Which modules of kdjax each one may import; `.*` stands for the modules
# directly inside a package that have no row of their own. A new module needs a
# row; a new method, model or data set has one already.
ALLOWED = {
  'kdjax': (
    'checkpoint',
    'features',
    'losses',
    'methods',
    'models',
    'startup',
    'student',
    'version',
  ),
  # Commands. Nothing imports them.
  'kdjax.main': (
    'command',
    'devices',
    'escape',
    'files',
    'methods',
    'results',
    'train',
  ),
  'kdjax.evaluate': (
    'checkpoint',
    'command',
    'escape',
    'files',
    'measure',
    'predictions',
    'results',
  ),
  'kdjax.sweep': ('sweep.plan',),
  'kdjax.sweep.__main__': (
    'command',
    'devices',
    'files',
    'report.write',
    'sweep.execute',
  ),
  'kdjax.sweep.run': (
    'config',
    'devices',
    'files',
    'lock',
    'logs',
    'program',
    'results',
    'session',
    'sweep.plan',
    'train',
  ),
  'kdjax.sweep.plan': ('config', 'float32'),
  'kdjax.report': (),
  'kdjax.report.__main__': (
    'command',
    'files',
    'report.write',
  ),
  'kdjax.report.write': (
    'escape',
    'files',
    'report.collect',
    'report.gallery',
    'report.page',
    'report.statistics',
    'report.tables',
  ),
  'kdjax.report.collect': ('config', 'logs', 'results'),
  'kdjax.report.significance': ('metrics', 'report.collect', 'results'),
  'kdjax.report.tables': (
    'config',
    'escape',
    'report.collect',
    'report.statistics',
    'results',
  ),
  'kdjax.report.figures': ('escape',),
  'kdjax.report.feature_maps': (
    'checkpoint',
    'data',
    'features',
    'methods.feature',
    'report.collect',
    'results',
    'runtime',
    'teacher',
  ),
  'kdjax.report.gallery': (
    'config',
    'report.collect',
    'report.figures',
    'report.inspect',
    'report.statistics',
  ),
  'kdjax.report.page': (
    'escape',
    'report.collect',
    'report.gallery',
    'report.statistics',
    'report.tables',
  ),
  'kdjax.export': (),
  'kdjax.export.__main__': (
    'command',
    'export.execute',
    'export.stablehlo',
    'files',
  ),
  'kdjax.export.run': (
    'checkpoint',
    'data',
    'export.onnx',
    'export.orbax',
    'export.safetensors',
    'export.stablehlo',
    'export.staging',
    'export.verify',
    'features',
    'logs',
    'pretrained',
    'programs',
    'results',
    'step',
    'student',
    'teacher',
  ),
  'kdjax.export.staging': ('signals',),
  'kdjax.export.verify': ('step', 'student'),
  'kdjax.export.to_onnx': ('models', 'programs', 'step', 'student'),
  'kdjax.export.to_orbax': ('checkpoint', 'step'),
  'kdjax.export.to_safetensors': (
    'card',
    'digests',
    'features',
    'pretrained',
    'step',
    'weights',
  ),
  'kdjax.export.to_stablehlo': ('models', 'programs', 'step', 'student'),
  'kdjax.convert': (
    'checkpoint',
    'class_names',
    'command',
    'digests',
    'export.orbax',
    'export.safetensors',
    'export.staging',
    'files',
    'models',
    'models.resnet',
    'normalization',
    'pretrained',
  ),
  'kdjax.predict': (),
  'kdjax.predict': (
    'command',
    'files',
    'logs',
    'predict.execute',
    'student',
  ),
  'kdjax.export.classify_files': (
    'data.images',
    'data.sources.image_folder',
    'escape',
    'logs',
    'results',
    'student',
  ),
  # A network that is used.
  'kdjax.export.predictor': (
    'card',
    'data.images',
    'features',
    'models',
    'pretrained',
    'programs',
    'runtime',
    'step',
  ),
  'kdjax.storage.program_files': ('card', 'files', 'runtime'),
  'kdjax.system.command': (
    'devices',
    'escape',
    'logs',
    'runtime',
    'signals',
    'startup',
  ),
  'kdjax.benchmark': (),
  'kdjax.benchmark.__main__': (
    'benchmark.compare',
    'command',
    'files',
    'methods',
  ),
  'kdjax.benchmark.compare': ('config', 'logs', 'methods', 'results'),
  'kdjax.benchmark.worker': (
    'config',
    'data',
    'features',
    'models',
    'program',
    'runtime',
    'step',
    'version',
  ),
  # A run, and its loop.
  'kdjax.training.train': (
    'checkpoint',
    'config',
    'data',
    'devices',
    'files',
    'initial',
    'lock',
    'logs',
    'loop',
    'measure',
    'methods',
    'models',
    'program',
    'replay',
    'results',
    'session',
    'teacher',
    'teacher_checks',
    'version',
  ),
  'kdjax.training.loop': (
    'checkpoint',
    'config',
    'data',
    'devices',
    'feed',
    'initial',
    'logs',
    'metrics',
    'program',
    'results',
    'runtime',
    'signals',
    'step',
    'teacher',
  ),
  'kdjax.training.shared': (
    'config',
    'data',
    'feed',
    'initial',
    'methods',
    'program',
    'replay',
    'results',
    'teacher',
    'teacher_checks',
  ),
  'kdjax.training.compiled': (
    'config',
    'data',
    'data.batches',
    'devices',
    'features',
    'feed',
    'memory',
    'methods',
    'models',
    'optimizer',
    'replay',
    'runtime',
    'step',
  ),
  'kdjax.data.prefetch': ('data', 'data.stream', 'devices', 'step'),
  'kdjax.storage.teacher_logits': ('files', 'results'),
  'kdjax.training.final_test': (
    'checkpoint',
    'data',
    'digests',
    'feed',
    'metrics',
    'results',
    'session',
    'step',
    'teacher',
  ),
  'kdjax.training.teacher': (
    'checkpoint',
    'config',
    'data',
    'digests',
    'features',
    'initial',
    'logs',
    'methods',
    'models',
    'models.ensemble',
    'models.resnet',
    'normalization',
    'precomputed',
    'pretrained',
    'results',
    'step',
    'teacher_outputs',
  ),
  'kdjax.training.teacher_checks': (
    'data',
    'logs',
    'models.resnet',
    'normalization',
    'step',
    'teacher',
  ),
  'kdjax.evaluation.teacher_outputs': ('features', 'logs', 'runtime', 'step'),
  'kdjax.training.initial_weights': (
    'checkpoint',
    'config',
    'data',
    'digests',
    'features',
    'logs',
    'models',
    'pretrained',
    'results',
    'variables',
  ),
  'kdjax.storage.networks': (
    'card',
    'checkpoint',
    'data.images',
    'digests',
    'features',
    'models',
    'models.resnet',
    'normalization',
    'programs',
    'results',
    'step',
    'variables',
    'version',
    'weights',
    'weights.directory',
    'weights.stored',
  ),
  'kdjax.storage.flax_variables': (
    'checkpoint',
    'features',
    'weights',
    'weights.directory',
    'weights.stored',
  ),
  'kdjax.storage.card': ('digests', 'float32'),
  'kdjax.storage.checkpoint': (
    'card',
    'devices',
    'digests',
    'features',
    'files',
    'models',
    'step',
    'version',
  ),
  'kdjax.storage.logits_file': ('digests', 'teacher_outputs'),
  'kdjax.storage.digests': (),
  # Others' files of weights.
  'kdjax.storage.weights': (
    'files',
    'weights.directory',
    'weights.msgpack_file',
    'weights.names',
    'weights.safetensors_file',
    'weights.stored',
    'weights.torch_file',
  ),
  'kdjax.storage.weights.directory': ('weights.stored',),
  'kdjax.storage.weights.msgpack_file': ('weights.stored',),
  'kdjax.storage.weights.resnet_names': ('weights.pickled', 'weights.stored'),
  'kdjax.storage.weights.unpickler': ('weights.stored',),
  'kdjax.storage.weights.safetensors_file': ('weights.stored',),
  'kdjax.storage.weights.stored_tensors': (),
  'kdjax.storage.weights.pytorch': ('weights.pickled', 'weights.stored'),
  'kdjax.system.lock': ('devices', 'files'),
  'kdjax.system.signals': ('startup',),
  'kdjax.config': ('float32', 'methods', 'normalization'),
  'kdjax.models.normalization': (),
  'kdjax.evaluation.example_files': (
    'escape',
    'files',
    'metrics',
  ),
  'kdjax.system.logs': ('escape', 'files'),
  'kdjax.evaluation.metrics': ('losses', 'runtime'),
  'kdjax.training.optimizer': (),
  'kdjax.storage.run_directory': (
    'config',
    'digests',
    'escape',
    'files',
    'logs',
    'methods',
    'schema',
    'version',
  ),
  'kdjax.system.atomic': (),
  'kdjax.data.class_names': (),
  'kdjax.system.escape': (),
  'kdjax.system.float32': (),
  'kdjax.system.memory': (),
  'kdjax.storage.schema': (),
  # Data.
  'kdjax.data': (
    'data.images',
    'data.kept',
    'data.sources',
    'data.stream',
    'memory',
  ),
  'kdjax.data.augment': ('runtime',),
  'kdjax.data.images': (),
  'kdjax.data.cache': ('files', 'runtime'),
  'kdjax.data.stream': ('data.batches', 'data.images', 'data.sources'),
  'kdjax.data.sources': ('registry',),
  'kdjax.data.sources._cifar': (),
  'kdjax.data.sources._cifar_batches': ('data.sources', 'data.sources._cifar'),
  'kdjax.data.sources.*': (
    'data.images',
    'data.sources',
    'data.sources._cifar',
    'data.sources._cifar_batches',
  ),
  # Distillation.
  'kdjax.training.step': ('devices', 'features', 'methods', 'runtime', 'sums'),
  'kdjax.methods': ('float32', 'methods._base', 'registry'),
  'kdjax.methods._base': ('features',),
  'kdjax.methods.*': (
    'features',
    'losses',
    'methods._base',
    'models.conv',
    'sums',
  ),
  'kdjax.models.features': ('runtime',),
  'kdjax.losses': (),
  # Networks.
  'kdjax.models': ('models._imported', 'registry'),
  'kdjax.models.import_path': (),
  'kdjax.models.ensemble': ('features',),
  'kdjax.models.cpu_conv': (),
  'kdjax.models.cpu_pool': (),
  'kdjax.models.norm': ('sums',),
  'kdjax.models.*': ('models.conv', 'models.norm', 'models.pool'),
  'kdjax.system.plugins': (),
  'kdjax.system.devices': ('runtime',),
  'kdjax.system.xla': (),
  'kdjax.models.sums': (),
  'kdjax.system.startup': (),
  'kdjax.version': (),
}

# Packages that few modules, or none, may import; by default any may.
ONLY = {
  'configs': (),
  'tests': (),
  'third_party': (),
  # Both make an installation large; every use of them has a lighter one.
  'tensorflow': (),
  'torch': (),
  # Optional: a command says so where they are not installed.
  'jax2onnx': ('kdjax.export.to_onnx',),
  'onnxruntime': ('kdjax.storage.program_files',),
  'clu': (),  # It imports TensorFlow.
  'orbax': ('kdjax.storage.checkpoint',),
  'tensorflow_datasets': (
    'kdjax.data.sources.tfds',
    'kdjax.data.sources._cifar',
  ),
}
# What a module may import beside the standard library; by default anything.
NEEDS_ONLY = {
  'kdjax.losses': ('jax', 'optax'),
  'kdjax.system.plugins': (),
  'kdjax.version': (),
  # A file from anywhere meets no more code than it must.
  'kdjax.storage.weights': ('numpy', 'safetensors'),
  'kdjax.storage.weights.directory': (),
  'kdjax.storage.weights.msgpack_file': ('ml_dtypes', 'numpy'),
  'kdjax.storage.weights.resnet_names': ('numpy',),
  'kdjax.storage.weights.unpickler': ('ml_dtypes', 'numpy'),
  'kdjax.storage.weights.safetensors_file': (
    'ml_dtypes',
    'numpy',
    'safetensors',
  ),
  'kdjax.storage.weights.stored_tensors': ('numpy',),
  'kdjax.storage.weights.pytorch': ('numpy',),
}
# What a module may take from another one; by default anything.
TAKES_ONLY = {('kdjax.methods.*', 'kdjax.models.features'): ('Outputs',)}

DEFINE_FLAGS = (
  'kdjax.system.command',
  'kdjax.main',
  'kdjax.evaluate',
  'kdjax.benchmark.__main__',
  'kdjax.sweep.__main__',
  'kdjax.report.__main__',
  'kdjax.convert',
  'kdjax.export.__main__',
  'kdjax.predict',
)
KNOW_INTERMEDIATES = ('kdjax.models.features',)

# An export is compiled where it is loaded.
COMPILE = ('kdjax.system.xla', 'kdjax.export.to_stablehlo')


# Reading a package


def modules_in(root: pathlib.Path) -> dict[str, ast.Module]:
  """Parses every module of the package kdjax inside a directory."""
  modules = {}
  for path in sorted((root / 'kdjax').rglob('*.py')):
    parts = path.relative_to(root).with_suffix('').parts
    name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    modules[name] = ast.parse(path.read_text(encoding='utf-8'), str(path))
  return modules


def imports(
  name: str, modules: dict[str, ast.Module]
) -> Iterator[tuple[str, str | None]]:
  """Yields what a module imports, wherever in it: a module, and a name of it.

  The name is None where the module is imported as a whole.
  """
  for node in ast.walk(modules[name]):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      assert node.module is not None
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        if whole in modules:
          yield whole, None
        else:
          yield node.module, alias.name


def row_of(name: str) -> str | None:
  """Finds a module's row in ALLOWED."""
  members = f'{name.rpartition(".")[0]}.*'
  return next((row for row in (name, members) if row in ALLOWED), None)


def is_kdjax(name: str) -> bool:
  return name.partition('.')[0] == 'kdjax'


# The rules: each gives the ways in which some modules break it


def without_a_row(modules: dict[str, ast.Module]) -> list[str]:
  return [
    f'{name} has no row in ALLOWED' for name in modules if row_of(name) is None
  ]


def wrong_arrows(modules: dict[str, ast.Module]) -> list[str]:
  wrong = []
  for name in modules:
    row = row_of(name)
    allowed = {f'kdjax.{other}' for other in ALLOWED.get(row or '', ())}
    for target, attribute in imports(name, modules):
      if not is_kdjax(target):
        continue
      if target not in allowed:
        wrong.append(f'{name} imports {target}')
      names = TAKES_ONLY.get((row or '', target))
      if names is not None and attribute not in names:
        wrong.append(f'{name} takes {attribute} from {target}')
  return wrong


def wrong_packages(modules: dict[str, ast.Module]) -> list[str]:
  wrong = []
  for name in modules:
    needed = NEEDS_ONLY.get(name)
    for target, _ in imports(name, modules):
      package = target.partition('.')[0]
      if name not in ONLY.get(package, (name,)):
        wrong.append(f'{name} imports {package}')
      if (
        needed is not None
        and package not in (*needed, 'kdjax')
        and package not in sys.stdlib_module_names
      ):
        wrong.append(f'{name} imports {package}')
  return wrong


def wrong_flags(modules: dict[str, ast.Module]) -> list[str]:
  return [
    f'{name} defines a flag'
    for name, tree in modules.items()
    if name not in DEFINE_FLAGS
    and any(
      isinstance(node, ast.Call)
      and ast.unparse(node.func).rpartition('.')[2].startswith('DEFINE_')
      for node in ast.walk(tree)
    )
  ]


def wrong_intermediates(modules: dict[str, ast.Module]) -> list[str]:
  words = {'intermediates', 'capture_intermediates', 'sow'}

  def words_of(node: ast.AST) -> str | None:
    match node:
      case ast.Constant(value=str(word)):
        return word
      case ast.keyword(arg=word) | ast.Attribute(attr=word):
        return word
    return None

  return [
    f'{name} says {words_of(node)}'
    for name, tree in modules.items()
    if name not in KNOW_INTERMEDIATES
    for node in ast.walk(tree)
    if words_of(node) in words
  ]


def wrong_compilations(modules: dict[str, ast.Module]) -> list[str]:
  """What is compiled otherwise than by kdjax.system.xla may be wrong on CPU."""
  return [
    f'{name} calls jax.jit'
    for name, tree in modules.items()
    if name not in COMPILE
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'jax.jit'
  ]


RULES = (
  without_a_row,
  wrong_arrows,
  wrong_packages,
  wrong_flags,
  wrong_intermediates,
  wrong_compilations,
)


# kdjax keeps them


@pytest.mark.parametrize('rule', RULES)
def test_kdjax_keeps_the_rule(rule):
  modules = modules_in(ROOT)
  assert 'kdjax.methods.response' in modules
  assert rule(modules) == []


def test_no_module_imports_itself_through_others():
  modules = modules_in(ROOT)
  graph = {
    name: {target for target, _ in imports(name, modules) if target in modules}
    for name in modules
  }
  # Raises an error that names the cycle.
  order = list(graphlib.TopologicalSorter(graph).static_order())
  assert order.index('kdjax.losses') < order.index('kdjax.training.train')


def test_the_table_names_modules_that_exist():
  modules = modules_in(ROOT)
  used = {row_of(name) for name in modules}
  assert set(ALLOWED) - used == set()
  targets = {f'kdjax.{name}' for names in ALLOWED.values() for name in names}
  assert targets - set(modules) == set()


# A package that breaks them is found


@pytest.mark.parametrize(
  ('rule', 'path', 'source', 'expected'),
  [
    (without_a_row, 'plots.py', '', 'kdjax.plots has no row in ALLOWED'),
    (
      without_a_row,
      'data/cache/disk.py',
      '',
      'kdjax.data.cache.disk has no row in ALLOWED',
    ),
    (
      wrong_arrows,
      'losses.py',
      'from kdjax import features',
      'kdjax.losses imports kdjax.models.features',
    ),
    (
      wrong_arrows,
      'step.py',
      'import kdjax.training.train as loop',
      'kdjax.training.step imports kdjax.training.train',
    ),
    (
      wrong_arrows,
      'step.py',
      'def late():\n  from kdjax.training.train import train_and_evaluate',
      'kdjax.training.step imports kdjax.training.train',
    ),
    (
      wrong_arrows,
      'config.py',
      'from kdjax import __version__',
      'kdjax.config imports kdjax',
    ),
    (
      wrong_arrows,
      'methods/hint.py',
      'from kdjax.methods import response',
      'kdjax.methods.hint imports kdjax.methods.response',
    ),
    (
      wrong_arrows,
      'methods/hint.py',
      'from kdjax.models.features import Outputs, forward',
      'kdjax.methods.hint takes forward from kdjax.models.features',
    ),
    (
      wrong_packages,
      'train.py',
      'import configs.quickstart',
      'kdjax.training.train imports configs',
    ),
    (
      wrong_packages,
      'train.py',
      'from orbax import checkpoint',
      'kdjax.training.train imports orbax',
    ),
    (
      wrong_packages,
      'losses.py',
      'import flax.linen as nn',
      'kdjax.losses imports flax',
    ),
    (
      wrong_flags,
      'train.py',
      'from absl import flags\nA = flags.DEFINE_string("a", None, "")',
      'kdjax.training.train defines a flag',
    ),
    (
      wrong_flags,
      'logs.py',
      'from absl.flags import DEFINE_bool\nDEFINE_bool("a", None, "")',
      'kdjax.system.logs defines a flag',
    ),
    (
      wrong_intermediates,
      'step.py',
      'model.apply(x, mutable=["intermediates"])',
      'kdjax.training.step says intermediates',
    ),
    (
      wrong_intermediates,
      'step.py',
      'model.apply(x, capture_intermediates=True)',
      'kdjax.training.step says capture_intermediates',
    ),
    (
      wrong_intermediates,
      'models/resnet.py',
      'self.sow(a, b, c)',
      'kdjax.models.resnet says sow',
    ),
    (
      wrong_compilations,
      'step.py',
      'import jax\n\nf = jax.jit(abs)\n',
      'kdjax.training.step calls jax.jit',
    ),
  ],
)
def test_a_broken_rule_is_found(tmp_path, rule, path, source, expected):
  sources = {
    'features.py': 'import flax',
    'methods/response.py': 'from kdjax.models.features import Outputs',
    'step.py': 'from kdjax import methods',
    'loop.py': 'from kdjax import step',
    path: source,
  }
  for name in ('__init__.py', 'methods/__init__.py'):
    sources.setdefault(name, '')
  for name, text in sources.items():
    file = tmp_path / 'kdjax' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding='utf-8')
  assert rule(modules_in(tmp_path)) == [expected]


def test_a_relative_import_is_found(tmp_path):
  (tmp_path / 'kdjax').mkdir()
  (tmp_path / 'kdjax/step.py').write_text('from . import train')
  with pytest.raises(AssertionError, match=r'kdjax\.step has a relative'):
    wrong_arrows(modules_in(tmp_path))
