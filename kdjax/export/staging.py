"""Files and directories that take their places together, or not at all."""

import contextlib
import ctypes
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import filelock

from kdjax.system import signals

# The directory that all is written in first, and who writes in it.
_PREFIX, _LOCK = '.export-', '.lock'
# What is moved away where the system cannot exchange it.
_OLD = '.old'

# From Linux's <fcntl.h> and <stdio.h>.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a directory to write into, which is removed with all that is in it.

  Those that processes left there when they were killed are removed as well.

  Args:
    folder: where it is, made if need be; removed again where it was made and
      the code inside fails.

  Yields:
    The directory.

  Raises:
    OSError: it cannot be made.
  """
  existed = folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    _remove_leftovers(folder)
    with (
      tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as name,
      # It ends with the process, however that ends.
      filelock.FileLock(pathlib.Path(name, _LOCK)),
    ):
      yield pathlib.Path(name)
  except BaseException:
    if not existed:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise


def move_into_place(
  staged: pathlib.Path, places: Sequence[pathlib.Path]
) -> None:
  """Moves files and directories to their places; signals wait until it is done.

  Killed at any moment, each place has what was there or what is new.

  Args:
    staged: the directory of `beside`, in which they have the names that their
      places have. What was at these is moved there.
    places: where they go, in this order.

  Raises:
    OSError: one cannot be moved. What was at each place is there again.
  """
  # Once all are in place, there is nothing left that a signal could stop.
  with (
    contextlib.suppress(signals.Interrupted),
    signals.held_back(),
    contextlib.ExitStack() as undo,
  ):
    for place in places:
      new = staged / place.name
      if place.exists():
        _exchange(new, place)
        undo.callback(_exchange, new, place)
      else:
        new.rename(place)
        undo.callback(place.rename, new)
    undo.pop_all()


def _exchange(new: pathlib.Path, place: pathlib.Path) -> None:
  """Exchanges two files or directories, in one step if the system can."""
  if _exchange_in_one_step(new, place):
    return
  old = new.with_name(new.name + _OLD)
  if new.is_file() and place.is_file():
    shutil.copy2(place, old)
    new.replace(place)
  else:
    # Killed between these two, the next export moves it back.
    place.rename(old)
    new.rename(place)
  old.rename(new)


def _exchange_in_one_step(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Exchanges two paths; False where the system or file system cannot."""
  try:
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
  except (AttributeError, OSError):  # Not Linux, or another C library.
    return False
  paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
  if renameat2(*paths, _RENAME_EXCHANGE) == 0:
    return True
  code = ctypes.get_errno()
  if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
    return False
  raise OSError(code, os.strerror(code), str(one), None, str(other))


def _remove_leftovers(folder: pathlib.Path) -> None:
  """Removes what processes left when they were killed."""
  for leftover in folder.glob(f'{_PREFIX}*'):
    # Another process may be at work there, or it is another user's.
    with (
      contextlib.suppress(OSError),
      filelock.FileLock(leftover / _LOCK, blocking=False),
    ):
      for old in leftover.glob(f'*{_OLD}'):
        place = folder / old.name.removesuffix(_OLD)
        if not place.exists():
          old.rename(place)
      shutil.rmtree(leftover, ignore_errors=True)
