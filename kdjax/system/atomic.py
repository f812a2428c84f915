"""Files and directories that are there as a whole, or not at all."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from typing import BinaryIO

# Control characters, ends of lines, and what stands for bytes that are no text.
_UNTOLD = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
# What Orbax or TensorBoard take for the address of a bucket or of a web page.
_URL = re.compile(
  r'[a-z][a-z0-9+.-]*:(/|$)|(gs|s3|az|abfss?|hdfs|https?|ftp|file):', re.I
)


def local(path: str | os.PathLike[str]) -> pathlib.Path:
  """Checks that a path is one of this machine's file systems.

  Args:
    path: a file or a directory, as a user names it.

  Returns:
    The path; a home directory (`~`) in it is expanded.

  Raises:
    ValueError: it is a URL, or is taken for one.
  """
  found = pathlib.Path(path).expanduser()
  if _URL.match(str(path)):
    raise ValueError(
      f'{path} is a URL, expected a path of a local file or directory: mount '
      'the bucket, or copy to it what was written here'
    )
  if any(part.endswith(':') for part in found.absolute().parts):
    raise ValueError(
      f'{found.absolute()} has a directory whose name ends with a colon, which '
      'Orbax takes for a URL: choose another path'
    )
  return found


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
  # What a link names is replaced, and the link stays.
  place = path.resolve()
  temporary = _beside(place)
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(place)
  except BaseException as error:
    temporary.unlink(missing_ok=True)
    # That the disk is full does not say where; a temporary name says nothing.
    said = None, str(temporary)
    if isinstance(error, OSError) and error.errno and error.filename in said:
      error.filename = str(path)
    raise


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes the whole content of a file, as `replacing`."""
  with replacing(path) as file:
    file.write(content)


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
  """Checks that a directory to be made has a name that fits in one line.

  Raises:
    ValueError: it has an end of a line, a control character or bytes that are
      not UTF-8.
    NotADirectoryError: it is a file, or in one.
  """
  for each in (path, *path.parents):
    if each.exists() and not each.is_dir():
      raise NotADirectoryError(
        f'the run directory is {path}, and {each} is a file: choose another '
        '--workdir'
      )
  if _UNTOLD.search(str(path)):
    raise ValueError(
      f'the run directory is {str(path)!a}: choose a --workdir without '
      'ends of lines, control characters and bytes that are not UTF-8'
    )


def move_to_damaged(path: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
  """Moves a damaged file of a run to `damaged/` in the run directory."""
  directory = workdir / 'damaged'
  directory.mkdir(exist_ok=True)
  target, number = directory / path.name, 1
  while target.exists():
    number += 1
    target = target.with_name(f'{path.name}-{number}')
  return path.rename(target)


def remove_directory(path: pathlib.Path) -> None:
  """Removes a directory, of which nobody ever sees a part.

  Raises:
    OSError: it cannot be moved away; it is still there as it was.
  """
  temporary = path.rename(_beside(path))
  shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(directory: pathlib.Path, names: Iterable[str]) -> None:
  """Removes what processes that were killed left half written.

  Args:
    directory: where they wrote; no other process may write there now.
    names: names of the files and directories that they wrote.
  """
  for name in names:
    leftover = re.compile(rf'{re.escape(name)}\..+\.\d+\.tmp')
    for path in directory.iterdir():
      if leftover.fullmatch(path.name):
        if path.is_dir():
          shutil.rmtree(path, ignore_errors=True)
        else:
          path.unlink(missing_ok=True)


def _beside(path: pathlib.Path) -> pathlib.Path:
  """Names what a process writes before it takes its place."""
  # Containers on several machines may all have process 1.
  who = f'{socket.gethostname()}.{os.getpid()}'
  return path.with_name(f'{path.name}.{who}.tmp')


def cannot_write(what: str, cause: Exception | str) -> OSError:
  """Makes the error that `what` could not be written, and what to do."""
  return OSError(
    f'cannot write {what}: {cause}\nCheckpoints that were complete before are '
    'intact: make sure that there is room and that the directory can be '
    'written, then start the same command again'
  )
