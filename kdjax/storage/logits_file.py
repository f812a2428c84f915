"""Logits that a teacher of any kind has computed before, in a file.

An `.npz` with the arrays `ids`, integers `[N]`, each the index of an example in
the data set's training split, in the order in which the source lists it and
before a validation split is taken off; `logits`, `[N, classes]`; and perhaps
`test_ids` and `test_logits`, the same for the test split, and `class_names`,
strings `[classes]`, in the order of the logits. Probabilities in place of
logits are recognised, and their logarithm is taken.
"""

import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from kdjax.evaluation import teacher_outputs
from kdjax.storage import digests

_CLASS_NAMES = 'class_names'
_NAMES = ('ids', 'logits', 'test_ids', 'test_logits', _CLASS_NAMES)
# Those of 1,000 classes take 4 kB an example.
_MAX_BYTES = 2**34
# Zeros that are compressed take a 1,030th of their size.
_MAX_RATIO = 1100
# NumPy's own of numbers have 118 characters.
_MAX_HEADER = 1000


class Table(NamedTuple):
  """The logits of some examples of a split.

  Attributes:
    what: what it is called in messages.
    ids: index of each example in the split, ascending, int64 `[N]`.
    logits: float32 `[N, classes]`.
  """

  what: str
  ids: np.ndarray
  logits: np.ndarray

  def check_ids(self, count: int) -> None:
    """Checks that each id is that of one of `count` examples of the split.

    Raises:
      ValueError: there is no such example.
    """
    wrong = self.ids[(self.ids < 0) | (self.ids >= count)]
    if wrong.size:
      from_one = self.ids[0] == 1 and wrong.tolist() == [count]
      raise ValueError(
        f"the ids of {self.what} have {wrong[0]}, and the data set's own split "
        f'has {count} examples, 0 … {count - 1}: '
        + (
          'they are counted from 1, subtract 1 from each'
          if from_one
          else 'they are of another data set or split, or shifted'
        )
      )

  def rows(self, ids: np.ndarray) -> np.ndarray:
    """Looks examples up.

    Args:
      ids: index of each of them in the split.

    Returns:
      Their logits, float32 `[len(ids), classes]`.

    Raises:
      ValueError: an example is not in the table.
    """
    missing = np.setdiff1d(ids, self.ids)
    if missing.size:
      shown = ', '.join(map(str, missing[:5]))
      raise ValueError(
        f'{self.what} lacks {missing.size} of the {len(ids)} examples that '
        f'this run needs: {shown}{", …" if missing.size > 5 else ""}. They are '
        "indices in the data set's own split, before a validation split is "
        'taken off'
      )
    return self.logits[np.searchsorted(self.ids, ids)]


class Logits(NamedTuple):
  """The logits in a file.

  Attributes:
    train: those of the training split.
    test: those of the test split, if the file has them.
    digest: SHA-256 of all of them.
    class_names: name of each class, if the file has them.
  """

  train: Table
  test: Table | None
  digest: str
  class_names: tuple[str, ...] | None = None

  def reorder(self, order: Sequence[int]) -> 'Logits':
    """Puts the logits in another order, without names.

    Args:
      order: for each class the index of its logit.
    """

    def columns(table: Table) -> Table:
      return table._replace(logits=table.logits[:, np.asarray(order)])

    return Logits(
      columns(self.train),
      self.test and columns(self.test),
      digests.of_json({'logits': self.digest, 'order': list(order)}),
    )


def read(path: str | os.PathLike[str]) -> Logits:
  """Reads the logits in an `.npz` file.

  Raises:
    ValueError: it is damaged, or not as described above.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  try:
    with zipfile.ZipFile(path) as archive:
      names = [name.removesuffix('.npy') for name in archive.namelist()]
      arrays = {
        name: _read_array(archive, f'{name}.npy', path.stat().st_size)
        for name in _NAMES
        if name in names
      }
  except OSError:
    raise
  # There is no end to what the packages raise where a file is damaged.
  except Exception as error:
    raise ValueError(
      f'{path} cannot be read ({str(error) or repr(error)}): expected what '
      'numpy.savez has written, of numbers only (ids are indices, not names)'
    ) from error
  train = _table(path, arrays, 'ids', 'logits')
  if train is None:
    raise ValueError(
      f'{path} holds {", ".join(sorted(names)) or "nothing"}: expected `ids` '
      'and `logits`, and perhaps `test_ids` and `test_logits`'
    )
  test = _table(path, arrays, 'test_ids', 'test_logits')
  if test and test.logits.shape[1] != train.logits.shape[1]:
    raise ValueError(
      f'{test.what} has {test.logits.shape[1]} classes, and logits '
      f'{train.logits.shape[1]}'
    )
  tables = {'train': train, 'test': test}
  return Logits(
    train,
    test,
    digests.digest(
      {
        name: {'ids': table.ids, 'logits': table.logits}
        for name, table in tables.items()
        if table
      }
    ),
    _class_names(path, arrays, train.logits.shape[1]),
  )


def _class_names(
  path: pathlib.Path, arrays: dict[str, np.ndarray], classes: int
) -> tuple[str, ...] | None:
  """Returns the names of the classes, if the file has them."""
  if _CLASS_NAMES not in arrays:
    return None
  names = arrays[_CLASS_NAMES]
  if names.dtype.kind != 'U' or names.shape != (classes,):
    raise ValueError(
      f'{_CLASS_NAMES} in {path} is {names.dtype}{list(names.shape)}: expected '
      f'strings [{classes}], the name of each class'
    )
  return tuple(names.tolist())


def _read_array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
  """Reads an array, once it is known to be no larger than it can be."""
  member = archive.getinfo(name)
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f'{name} is compressed otherwise than NumPy does')
  if member.compress_size > most:
    raise ValueError(f'{name} is said to take more than the file has')
  with archive.open(member) as file:
    if npy.read_magic(file) != (1, 0):
      raise ValueError(f'{name} is of another version than numbers have')
    shape, by_columns, dtype = npy.read_array_header_1_0(file, _MAX_HEADER)
    if dtype.kind not in ('U' if name == f'{_CLASS_NAMES}.npy' else 'iuf'):
      raise ValueError(f'{name} is of {dtype}')
    size = math.prod(shape) * dtype.itemsize
    if size != member.file_size - file.tell():
      raise ValueError(
        f'{name} is {dtype}{list(shape)} and has {member.file_size} bytes'
      )
    if size > min(_MAX_BYTES, _MAX_RATIO * member.compress_size):
      raise ValueError(f'{name} has {size} bytes, more than can be')
    array = np.frombuffer(file.read(), dtype)
  return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)


def _table(
  path: pathlib.Path, arrays: dict[str, np.ndarray], ids_name: str, name: str
) -> Table | None:
  if ids_name not in arrays and name not in arrays:
    return None
  what = f'{name} in {path}'
  if ids_name not in arrays or name not in arrays:
    raise ValueError(f'{path} has only one of `{ids_name}` and `{name}`')
  ids, logits = arrays[ids_name], arrays[name]
  if (
    ids.ndim != 1
    or ids.dtype.kind not in 'iu'
    or logits.ndim != 2
    or logits.dtype.kind != 'f'
    or len(ids) != len(logits)
  ):
    raise ValueError(
      f'{what} is {logits.dtype}{list(logits.shape)}, and {ids_name} '
      f'{ids.dtype}{list(ids.shape)}: expected floats [N, classes] and '
      'integers [N]'
    )
  found = teacher_outputs.kind(logits)
  teacher_outputs.log(found, what)
  if found == teacher_outputs.PROBABILITIES:
    logits = _log(logits)
  with np.errstate(over='ignore'):
    logits = logits.astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
  if bad.size:
    raise ValueError(
      f'{what} has values that are not finite, for example of id {ids[bad[0]]}'
    )
  if ids.size and ids.max() > np.iinfo(np.int64).max:
    raise ValueError(f'{ids_name} in {path} has {ids.max()}, which is no index')
  ids = ids.astype(np.int64)
  order = np.argsort(ids, kind='stable')
  ids = ids[order]
  twice = ids[1:][ids[1:] == ids[:-1]]
  if twice.size:
    raise ValueError(f'{ids_name} in {path} has {twice[0]} twice')
  return Table(what, ids, logits[order])


def _log(probabilities: np.ndarray) -> np.ndarray:
  """Computes logarithms, for 0 that of the smallest positive number.

  Of integers 0 stands for all below one half.
  """
  zero, one = probabilities.dtype.type(0), probabilities.dtype.type(1)
  smallest = np.nextafter(zero, one)
  if probabilities.max() > 1 and (probabilities == probabilities.round()).all():
    smallest = one / 2
  return np.log(
    np.maximum(probabilities, smallest),
    dtype=np.promote_types(probabilities.dtype, np.float32),
  )
