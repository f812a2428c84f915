"""Files and directories that are there as a whole, or not at all."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator
from typing import BinaryIO

# Control characters, ends of lines, and what stands for bytes that are no text.
_UNTOLD = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file that takes another's place once it is written.

  Nobody ever reads half of it, and two processes may write it at once.

  Args:
    path: where it will be.

  Yields:
    The file, open for writing.

  Raises:
    OSError: it cannot be written; what was at `path` is still there.
  """
  temporary = _beside(path)
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(path)
  except BaseException as error:
    temporary.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.errno and not error.filename:
      # That the disk is full does not say where.
      error.filename = str(path)
    raise


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a directory that is there once all in it is written.

  Args:
    path: where it will be; nothing may be there.

  Yields:
    An empty directory to write into, on the same file system.

  Raises:
    OSError: it cannot be written, or something is at `path`. Nothing is left.
  """
  if path.exists():
    raise FileExistsError(f'{path} exists: remove it, or choose another name')
  temporary = _beside(path)
  try:
    temporary.mkdir()
    yield temporary
    temporary.rename(path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def check_name(path: pathlib.Path) -> None:
  """Checks that a directory to be made can be told in a line.

  Args:
    path: the directory.

  Raises:
    ValueError: its name has an end of a line, a control character or bytes that
      are no text.
  """
  if _UNTOLD.search(str(path)):
    raise ValueError(
      f'the run directory is {str(path)!a}: choose a --workdir without '
      'ends of lines, control characters and bytes that are not UTF-8'
    )


def set_aside(path: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
  """Moves what is damaged out of the way, and keeps it.

  Args:
    path: a file or a directory of a run.
    workdir: the run directory.

  Returns:
    Where it is now: in `damaged/` of the run directory.
  """
  directory = workdir / 'damaged'
  directory.mkdir(exist_ok=True)
  target, number = directory / path.name, 1
  while target.exists():
    number += 1
    target = target.with_name(f'{path.name}-{number}')
  return path.rename(target)


def _beside(path: pathlib.Path) -> pathlib.Path:
  """Names what a process writes before it takes its place."""
  # Containers on several machines may all have process 1.
  who = f'{socket.gethostname()}.{os.getpid()}'
  return path.with_name(f'{path.name}.{who}.tmp')


def cannot_write(what: str, cause: Exception | str) -> OSError:
  """Makes the error of a run that can keep no more of what it does.

  Args:
    what: what could not be written.
    cause: what was raised, or what it said.

  Returns:
    An error that says what to do.
  """
  return OSError(
    f'cannot write {what}: {cause}\nCheckpoints that were complete before are '
    'intact: make sure that there is room and that the directory can be '
    'written, then start the same command again'
  )
