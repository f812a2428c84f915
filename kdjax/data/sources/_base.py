"""What a data set is made of."""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np


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
    """Returns a folder, and the paths in it of all files that hold examples."""


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
