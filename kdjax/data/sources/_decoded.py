"""Decoded copies of splits, so that a run need not decode them again."""

import contextlib
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from kdjax import files as files_lib
from kdjax import runtime
from kdjax.data.sources import Split

# Of all that is kept, the least recently used goes first.
_BYTES = 4 * 2**30


def keep(files: Sequence[os.PathLike[str]], read: Callable[[], Split]) -> Split:
  """Reads a split, or the copy of it that an earlier run left.

  Copies lie in the user's cache directory (see `kdjax.runtime`), 4 GiB in all.
  One that cannot be read is made again; where none can be written, none is.

  Args:
    files: the files that the split is read from. A copy is valid as long as
      their paths, sizes and times of change are the same.
    read: reads and decodes them.

  Returns:
    The split.
  """
  directory = runtime.cache_directory('data')
  if directory is None:
    return read()
  facts = [(str(file), *_size_and_time(file)) for file in files]
  key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
  path = directory / f'{key}.npz'
  try:
    # Reading checks the checksums in it.
    with path.open('rb') as file, np.load(file) as arrays:
      split = Split(arrays['images'], arrays['labels'])
    path.touch()
    return split
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    split = read()
  _write(path, split)
  return split


def _size_and_time(file: os.PathLike[str]) -> tuple[int, int]:
  status = pathlib.Path(file).stat()
  return status.st_size, status.st_mtime_ns


def _write(path: pathlib.Path, split: Split) -> None:
  if split.images.nbytes > _BYTES:
    return
  # The disk may be full, or read-only.
  with contextlib.suppress(OSError):
    with files_lib.replacing(path) as file:
      np.savez(file, images=split.images, labels=split.labels)
    _shrink(path.parent)


def _shrink(directory: pathlib.Path) -> None:
  """Removes the copies used longest ago, as long as there are too many."""
  copies = [(copy.stat(), copy) for copy in directory.glob('*.npz')]
  copies.sort(key=lambda item: item[0].st_mtime_ns, reverse=True)
  total = 0
  for status, copy in copies:
    total += status.st_size
    if total > _BYTES:
      copy.unlink(missing_ok=True)
