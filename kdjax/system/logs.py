"""What a run shows and writes while it goes on.

Lines of text go to the logger `kdjax`; numbers go to `metrics.jsonl` and to
TensorBoard; on a terminal a progress bar shows the last of them.
"""

import contextlib
import io
import logging
import pathlib
import sys
from collections.abc import Iterator

import tqdm
from absl import flags
from absl import logging as absl_logging

from kdjax.system import escape

logger = logging.getLogger('kdjax')


class _Handler(logging.Handler):
  """Writes lines to standard error without breaking a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.tqdm.write(escape.lines(self.format(record)), file=sys.stderr)


def quiet() -> None:
  """Shows warnings only, from now on; for all processes but the first."""
  logger.setLevel(logging.WARNING)


@contextlib.contextmanager
def shown(verbose: bool) -> Iterator[None]:
  """Shows what a run logs while it goes on; for calls from Python.

  Args:
    verbose: whether to show progress; else warnings only.

  Yields:
    Nothing; the run goes inside.
  """
  setup()
  level = logger.level
  if not verbose:
    quiet()
  try:
    yield
  finally:
    logger.setLevel(level)


def shows_bar() -> bool:
  """Whether progress bars are shown: in a terminal or a notebook."""
  return logger.isEnabledFor(logging.INFO) and (
    sys.stderr.isatty() or _in_notebook()
  )


def _in_notebook() -> bool:
  """Whether this process is the kernel of a notebook."""
  if 'IPython' not in sys.modules:
    return False
  shell = sys.modules['IPython'].get_ipython()
  return getattr(shell, 'kernel', None) is not None


def setup() -> None:
  """Shows the lines of the logger `kdjax` on standard error; for commands.

  What libraries say below a warning is left out, unless absl's flag
  `--verbosity` asks for it; `--verbosity=1` also shows where an error arose.
  Characters that the terminal does not know are escaped.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  verbosity = flags.FLAGS['verbosity']
  if not verbosity.present:
    absl_logging.set_verbosity(absl_logging.WARNING)
    # What fails in the threads of Orbax is raised in ours, and told there; what
    # it warns of is how it is called.
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  if not logger.handlers:
    handler = _Handler()
    handler.setFormatter(
      logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S')
    )
    logger.addHandler(handler)
  verbose = verbosity.present and (verbosity.value or 0) > 0
  logger.setLevel(logging.DEBUG if verbose else logging.INFO)
  logger.propagate = False


def _is_news(record: logging.LogRecord) -> bool:
  return 'orbax' not in pathlib.Path(record.pathname).parts


def progress(total: int, unit: str) -> tqdm.tqdm:
  """Returns a progress bar on standard error, where one is shown."""
  return tqdm.tqdm(
    total=total,
    unit=unit,
    dynamic_ncols=True,
    disable=not shows_bar(),
    leave=False,
  )
