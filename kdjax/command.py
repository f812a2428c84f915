"""What all commands have in common."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import app

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
