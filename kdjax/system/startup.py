"""What a signal does to a command while its modules are still imported.

Imported before all else; it imports nothing that takes long.
"""

import os
import signal
import sys
from typing import Any

STOPPING = signal.SIGTERM, signal.SIGINT
"""Signals that ask a process to stop."""

INTERRUPTED = os.EX_TEMPFAIL
"""Exit status of a command that a signal stopped: try again."""


def end(number: int, _: Any) -> None:
  """Ends the process at once: there is nothing yet, or no more, to be saved."""
  name = signal.Signals(number).name
  os.write(2, f'stopped by {name}\n'.encode())
  os._exit(INTERRUPTED)


# So Python says it while it imports the package of `python -m kdjax.main`.
if sys.argv[:1] == ['-m'] and any(
  name.partition('.')[0] == 'kdjax' for name in sys.orig_argv
):
  for _number in STOPPING:
    signal.signal(_number, end)
