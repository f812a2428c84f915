"""Files that are there as a whole, or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


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
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with temporary.open('wb') as file:
      yield file
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
