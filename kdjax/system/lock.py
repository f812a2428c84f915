"""One process at a time in a directory."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Iterable, Iterator

import filelock

from kdjax.system import atomic, devices

_LOCK, _HOLDER = '.lock', '.lock_holder'


@contextlib.contextmanager
def hold(
  directory: pathlib.Path, what: str, names: Iterable[str] = ()
) -> Iterator[None]:
  """Keeps other processes out of a directory; makes it if need be.

  The operating system ends the hold with the process, however it ends. Of the
  processes of one run the first does this for all.

  Args:
    directory: the directory.
    what: what is made in it, as an error calls it: 'the run'.
    names: names of the files that are written in it. Of those, what a process
      that was killed has left half written is removed.

  Yields:
    Nothing; the work goes inside.

  Raises:
    BlockingIOError: another process holds it; the message names that one.
    OSError: the directory cannot be written.
  """
  # Beside the lock, which a process that is refused may empty.
  holder = directory / _HOLDER
  lock = filelock.FileLock(directory / _LOCK, blocking=False)

  def acquire() -> None:
    if directory.is_symlink() and not directory.exists():
      raise FileNotFoundError(
        f'{directory} is a link to {directory.readlink()}, which is not there: '
        'make that directory, or remove the link'
      )
    directory.mkdir(parents=True, exist_ok=True)
    try:
      lock.acquire()
    except filelock.Timeout as error:
      raise BlockingIOError(
        f'{what} in {directory} is being made by {_describe(holder)}: wait '
        'until that has ended, then start the same command again, or choose '
        'another directory'
      ) from error
    atomic.remove_leftovers(directory, [_HOLDER, *names])
    about = {'pid': os.getpid(), 'host': socket.gethostname()}
    atomic.write(holder, json.dumps(about).encode())

  try:
    devices.run_on_first(acquire)
    yield
  finally:
    lock.release()


def _describe(holder: pathlib.Path) -> str:
  try:
    about = json.loads(holder.read_text(encoding='utf-8'))
    return f'process {about["pid"]} on {about["host"]}'
  except (OSError, ValueError, KeyError):
    return 'another process'
