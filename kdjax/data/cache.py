"""What was made from files of data, kept so that no run makes it again."""

import contextlib
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.system import atomic as files_lib
from kdjax.system import xla

# Size of the cache; the least recently used entry is removed first.
_BYTES = 4 * 2**30


def load_or_make(
  about: Sequence[str], make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
  """Reads arrays from the cache, or makes them and caches them.

  Copies lie in the user's cache directory (see `kdjax.system.xla`), 4 GiB in
  all. One that cannot be read is made again; where none can be written, none
  is.

  Args:
    about: all that decides what they are, such as paths, sizes and times of
      change of the files that they are made from.
    make: makes them.

  Returns:
    The arrays by name.
  """
  directory = xla.cache_directory('data')
  if directory is None:
    return make()
  key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
  path = directory / f'{key}.npz'
  try:
    # Reading checks the checksums in it.
    with path.open('rb') as file, np.load(file) as arrays:
      kept = dict(arrays)
    path.touch()
    return kept
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    made = make()
  _write(path, made)
  return made


def _write(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  if sum(array.nbytes for array in arrays.values()) > _BYTES:
    return
  # The disk may be full, or read-only.
  with contextlib.suppress(OSError):
    with files_lib.replacing(path) as file:
      np.savez(file, **arrays)
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
