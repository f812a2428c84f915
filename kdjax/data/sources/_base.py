"""What a data set is made of."""

import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Self

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

  def take(self, rows: np.ndarray) -> 'Split':
    """Returns some of the examples, in the order of their indices."""
    return Split(self.images[rows], self.labels[rows])


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

  @property
  def labels(self) -> np.ndarray | None:
    """Class of each example, int32 `[size]`; None if it must be read."""

  @property
  def identity(self) -> bytes:
    """What tells the examples apart beside names and sizes of their files."""

  def __len__(self) -> int: ...

  def read(
    self, indices: Sequence[int]
  ) -> Iterator[tuple[str | io.BytesIO, int]]:
    """Yields for each example what Pillow can open, and its label."""

  def name(self, index: int) -> str:
    """Says which example that is, for messages."""

  def paths(self) -> tuple[str, Sequence[str]]:
    """Returns a folder, and the paths in it of all files that hold examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
  """Images with a file each, as `Files` has them.

  Attributes:
    root: a folder that holds all of them.
    files: path of each image in it, as the bytes of the file system: a million
      strings would take more memory than all else.
    labels: class of each image, int32 `[size]`.
    paths_tell: whether the path of an image tells its class.
    channels: channels that they become.
    shape: None, for they may have any sizes.
  """

  root: str
  files: np.ndarray
  labels: np.ndarray
  paths_tell: bool = True
  channels: int = 3
  shape: None = None

  def __len__(self) -> int:
    return len(self.files)

  @property
  def identity(self) -> bytes:
    """The labels, where the paths do not tell them."""
    return b'' if self.paths_tell else self.labels.astype('<i4').tobytes()

  def read(self, indices: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yields path and label of each example."""
    for index in indices:
      yield self.name(index), int(self.labels[index])

  def name(self, index: int) -> str:
    """Returns the path of an image."""
    return os.path.join(self.root, os.fsdecode(self.files[index]))

  def paths(self) -> tuple[str, Sequence[str]]:
    """Returns the folder and the path of each image in it."""
    return self.root, [os.fsdecode(file) for file in self.files]

  def take(self, rows: np.ndarray) -> Self:
    """Returns some of the examples, in the order of their indices."""
    return dataclasses.replace(
      self, files=self.files[rows], labels=self.labels[rows]
    )


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
