"""Data sets by name, whole and in memory.

A new data set is one new file here, or none. The file `name.py` defines
`load(data_dir)`, which returns a `Source`. Every other name is looked up in
TensorFlow Datasets (TFDS), which is read without TensorFlow; so a data set that
TFDS knows, or that TFDS has prepared on disk, needs no file.
"""

from typing import NamedTuple

import numpy as np

from kdjax import registry

__all__ = ['Source', 'Split', 'load', 'names']


class Split(NamedTuple):
  """Images with their classes.

  Attributes:
    images: uint8 `[N, H, W, C]`, from 0 to 255.
    labels: index of each image's class, int32 `[N]`.
  """

  images: np.ndarray
  labels: np.ndarray

  @property
  def size(self) -> int:
    """Number of examples."""
    return len(self.labels)


class Source(NamedTuple):
  """A data set for image classification.

  Attributes:
    train: the examples to learn from.
    validation: the examples to choose settings by; None where the data set has
      none, and the caller splits it off `train`.
    test: the examples to report.
    class_names: the name of each class, in the order of the labels.
  """

  train: Split
  validation: Split | None
  test: Split
  class_names: tuple[str, ...]


def names() -> tuple[str, ...]:
  """Lists the data sets that have a file of their own here.

  Returns:
    Their names, sorted. `load` knows those of TFDS as well.
  """
  return tuple(name for name in registry.names(__name__) if name != 'tfds')


def load(name: str, data_dir: str | None) -> Source:
  """Reads a data set into memory.

  Args:
    name: one of `names()`, or a data set of TFDS as TFDS writes it:
      `name[/config][:version]`.
    data_dir: folder of the prepared data sets; None is that of TFDS,
      `~/tensorflow_datasets`. A data set that comes with a library ignores it.

  Returns:
    The data set.

  Raises:
    ValueError: the name is unknown, or the data set is of a kind that kdjax
      cannot use; the message says why and what to do.
    FileNotFoundError: the data set is not in `data_dir`, and could not be
      fetched or prepared; the message says how to do it by hand.
  """
  # Imported here: a source may need a library that the others do without.
  if name in names():
    return registry.module(__name__, name).load(data_dir)
  return registry.module(__name__, 'tfds').load(name, data_dir)
