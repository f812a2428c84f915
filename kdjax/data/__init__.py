"""Data sets, split and ready to be put on the device."""

import hashlib
import math
from typing import NamedTuple

import ml_collections
import numpy as np

from kdjax.data import sources
from kdjax.data.sources import Split

__all__ = ['Dataset', 'Split', 'load']


class Dataset(NamedTuple):
  """A data set for training and measuring a classifier.

  Attributes:
    name: its name.
    train: what is trained on.
    validation: what epochs and hyperparameters are chosen on; may be empty.
    test: what is measured once, at the end.
    class_names: name of each class.
    mean: mean of the training pixels scaled to 0 … 1, float32 `[channels]`.
    std: their standard deviation, float32 `[channels]`.
    digest: SHA-256 of all images and labels in their order.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray
  digest: str

  @property
  def image_shape(self) -> tuple[int, ...]:
    """Height, width and channels of an image."""
    return self.train.images.shape[1:]


def load(config: ml_collections.ConfigDict) -> Dataset:
  """Loads and splits a data set.

  A set without a validation split has one taken from its training images, the
  same for every seed, so that runs can be compared.

  Args:
    config: the section `data` of a run's configuration.

  Returns:
    The data set, in host memory.

  Raises:
    ValueError: the data set is unknown or unsuitable, or the splits that the
      configuration asks for leave nothing to train on.
    FileNotFoundError: it is not on this machine and could not be fetched.
  """
  source = sources.load(config.name, config.data_dir or None)
  train, validation = source.train, source.validation
  if validation is None:
    count = round(train.size * config.validation_fraction)
    order = np.random.default_rng(0).permutation(train.size)
    # Sorted: the files' order is kept within each split.
    validation = _take(train, np.sort(order[:count]))
    train = _take(train, np.sort(order[count:]))
  if config.train_limit:
    order = np.random.default_rng(0).permutation(train.size)
    train = _take(train, np.sort(order[: config.train_limit]))
  if not train.size:
    raise ValueError(
      f'{config.name} has {source.train.size} training images, and '
      f'data.validation_fraction={config.validation_fraction} leaves none'
    )
  mean, std = _moments(train.images)
  return Dataset(
    config.name,
    train,
    validation,
    source.test,
    source.class_names,
    mean,
    std,
    _digest(train, validation, source.test),
  )


def _take(split: Split, indices: np.ndarray) -> Split:
  return Split(split.images[indices], split.labels[indices])


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, from exact integer sums."""
  mean, std = [], []
  for channel in np.moveaxis(images, -1, 0):
    pixels = channel.ravel()
    total = int(pixels.sum(dtype=np.uint64))
    squares = int(np.square(pixels, dtype=np.uint16).sum(dtype=np.uint64))
    # The variance, times the square of the number of pixels.
    spread = pixels.size * squares - total**2
    mean.append(total / (255 * pixels.size))
    # A constant channel is only centred.
    std.append(math.sqrt(spread) / (255 * pixels.size) if spread else 1.0)
  return np.array(mean, np.float32), np.array(std, np.float32)


def _digest(*splits: Split) -> str:
  digest = hashlib.sha256()
  for split in splits:
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels).data)
  return digest.hexdigest()
