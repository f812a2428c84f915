"""Data sets by name, in memory or as files that are read on demand.

A new data set is one new file here, or none. The file `name.py` defines
`load(data_dir)`, which returns a `Source`. Every other name is looked up in
TensorFlow Datasets (TFDS), which is read without TensorFlow; so a data set that
TFDS knows, or that TFDS has prepared on disk, needs no file.
"""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kdjax.system import plugins

__all__ = ['Files', 'Source', 'Split', 'load', 'names']


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

  @property
  def image_shape(self) -> tuple[int, ...]:
    """Height, width and channels of an image."""
    return self.images.shape[1:]


class Files(Protocol):
  """Encoded images with their classes, in random access.

  Worker processes get a copy: it must be cheap to pickle, and holds no images.
  """

  @property
  def channels(self) -> int:
    """Channels that images are to have: 1, 3 or 4."""

  @property
  def shape(self) -> tuple[int, int] | None:
    """Height and width that all images are declared to have, or None."""

  def __len__(self) -> int: ...

  def read(
    self, indices: Sequence[int]
  ) -> Iterator[tuple[str | io.BytesIO, int]]:
    """Yields for each example what Pillow can open, and its label."""

  def name(self, index: int) -> str:
    """Says which example that is, for messages."""

  def paths(self) -> tuple[str, Sequence[str]]:
    """Gives a folder, and the paths in it of all files that hold examples."""


class Source(NamedTuple):
  """A data set for image classification.

  Attributes:
    train: the examples to learn from.
    validation: the examples to choose settings by; None where the data set has
      none, and the caller splits it off `train`.
    test: the examples to report.
    class_names: the name of each class, in the order of the labels.
  """

  train: Split | Files
  validation: Split | Files | None
  test: Split | Files
  class_names: tuple[str, ...]


def names() -> tuple[str, ...]:
  """Lists the data sets that have a file of their own here.

  Returns:
    Their names, sorted. `load` knows those of TFDS as well.
  """
  return tuple(name for name in plugins.names(__name__) if name != 'tfds')


def load(name: str, data_dir: str | None) -> Source:
  """Finds a data set.

  Args:
    name: one of `names()`, or a data set of TFDS as TFDS writes it:
      `name[/config][:version]`.
    data_dir: folder of the data set, or of those that TFDS has prepared; None
      is TFDS's own, `~/tensorflow_datasets`. A data set that comes with a
      library ignores it.

  Returns:
    The data set. Nothing is decoded yet of one that lies in files.

  Raises:
    ValueError: the name is unknown, or the data set is of a kind that kdjax
      cannot use; the message says why and what to do.
    FileNotFoundError: the data set is not in `data_dir`, and could not be
      fetched or prepared; the message says how to do it by hand.
  """
  # Imported here: a source may need a library that the others do without.
  if name in names():
    return plugins.module(__name__, name).load(data_dir)
  return plugins.module(__name__, 'tfds').load(name, data_dir)
