"""Arrays in a file whose shape and dtype are known before they are read."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
  np.dtype(kind).name: np.dtype(kind)
  for kind in (
    *(np.bool_, np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
    *(ml_dtypes.bfloat16, np.float16, np.float32, np.float64),
  )
}
"""Dtypes that an array may have, by name."""


def count_common(one: Sequence[str], other: Sequence[str]) -> int:
  """Counts the words with which two names both begin."""
  same = map(operator.eq, one, other)
  return sum(itertools.takewhile(bool, same))


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An array in a file.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    read: reads it; the result may be a view of the file, which cannot be
      written to. Raises ValueError if it is damaged.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

  @property
  def nbytes(self) -> int:
    """Bytes of its elements, one after the other."""
    return math.prod(self.shape) * self.dtype.itemsize


class Stored(NamedTuple):
  """What is in a file of weights.

  Attributes:
    tensors: arrays by name; names of nested dictionaries are joined by dots.
    metadata: the header of a safetensors file, else empty.
    others: names of what else is there, such as an epoch.
    format: what kind of file it is, for a person.
    classes: names of the classes and functions of a pickle that were passed
      over.
    size: bytes of the file, or of all files.
  """

  tensors: Mapping[str, Tensor]
  metadata: Mapping[str, str]
  others: tuple[str, ...]
  format: str
  classes: tuple[str, ...] = ()
  size: int = 0
