"""What all commands have in common."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags
from ml_collections import config_flags

from kdjax import logs, runtime


@contextlib.contextmanager
def command(argv: Sequence[str]) -> Iterator[None]:
  """Prepares the process for a command, and ends it with one line on an error.

  Args:
    argv: what absl leaves of the command line once it has read the flags.

  Yields:
    Nothing; the command's work goes inside.

  Raises:
    app.UsageError: there are arguments left.
  """
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  logs.setup()
  runtime.setup()
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    logs.logger.debug('', exc_info=True)
    sys.exit(f'error: {error}')


def default_workdir(mode: str | None = None) -> str:
  """Names the directory of a command that was given none.

  Args:
    mode: what was chosen in place of the configuration's own method.

  Returns:
    `runs/` and the name of the file that the flag `--config` gives, with its
    variant and the mode where they are given.
  """
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, variant = file.partition(':')
  parts = [pathlib.Path(path).stem, variant, mode]
  return str(pathlib.Path('runs', '-'.join(filter(None, parts))))
