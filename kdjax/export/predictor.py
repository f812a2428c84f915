"""A trained network as a function of images, wherever it is kept."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import IO, Any

import jax
import numpy as np

from kdjax import models
from kdjax.data import images as images_lib
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import networks, program_files
from kdjax.system import xla

# Images that are computed at once.
_BATCH_SIZE = 128


class Student:
  """A network as a function of images.

  `student(images)` returns the probabilities of the classes, float32
  `[size, classes]`, of any number of images, pixels from 0 to 255, uint8
  `[size, height, width, channels]`. For each height and width no more than
  eight programs are compiled, whatever the numbers of images are.

  Args:
    classify: computes them of some images.
    card: what is known of the network, as `kdjax.storage.networks` has it.

  Attributes:
    card: the same.
    class_names: name of each class; None if they are unknown.
    image_shape: height, width and channels of an image; None if any height and
      width will do.
  """

  def __init__(
    self, classify: Callable[[np.ndarray], Any], card: Mapping[str, Any]
  ):
    self._classify = classify
    preprocessing = card['preprocessing']
    self.card = card
    self.class_names = card['class_names'] and tuple(card['class_names'])
    shape = preprocessing['image_shape']
    self.image_shape: tuple[int, int, int] | None = shape and tuple(shape)
    self._channels = preprocessing['channels']
    self._crop = preprocessing['crop']
    self._warned: set[str] = set()

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Computes the probabilities of the classes.

    Args:
      images: pixels from 0 to 255, uint8 `[size, height, width, channels]`.

    Returns:
      Probabilities, float32 `[size, classes]`.

    Raises:
      ValueError: the images have another dtype or shape.
    """
    images = np.asarray(images)
    height, width, channels = self.image_shape or (None, None, self._channels)
    if (
      images.dtype != np.uint8
      or images.ndim != 4
      or images.shape[3] != channels
      or (height and images.shape[1:3] != (height, width))
    ):
      raise ValueError(
        f'expected images as uint8 [size, {height or "height"}, '
        f'{width or "width"}, {channels}], found {images.dtype} '
        f'{list(images.shape)}; student.read(file) returns one image of those'
      )
    parts = [
      self._classify_some(images[first : first + _BATCH_SIZE])
      for first in range(0, len(images), _BATCH_SIZE)
    ]
    classes = self.card['model']['num_classes']
    return np.concatenate([np.zeros((0, classes), np.float32), *parts])

  def _classify_some(self, images: np.ndarray) -> np.ndarray:
    # Each number of images is another program: up to the next power of two.
    size = 1 << (len(images) - 1).bit_length()
    padded = np.zeros((size, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    return np.asarray(self._classify(padded))[: len(images)]

  def read(self, file: str | os.PathLike[str] | IO[bytes]) -> np.ndarray:
    """Reads an image as those were that the network was evaluated on.

    Args:
      file: a path, or a file that is open; an image of any mode and size.

    Returns:
      Pixels from 0 to 255, uint8 `[height, width, channels]`. Where the image
      has another size than the network's, it is the middle of it, resized.

    Raises:
      ValueError: it is no image, a damaged one, or cannot be opened.
      OSError: the machine failed, not the image.
    """
    path = os.fspath(file) if isinstance(file, os.PathLike) else file
    notes: images_lib.Notes = {}
    image = images_lib.read(path, self._channels, notes=notes)
    images_lib.warn(notes, self._warned)
    if self.image_shape:
      image = images_lib.centre_crop(image, self.image_shape[:2], self._crop)
    return np.asarray(image).reshape(image.height, image.width, -1)


def load_student(
  path: str | os.PathLike[str], checkpoint: str = 'best', ema: bool = False
) -> Student:
  """Loads a trained network as a function of images.

  Args:
    path: a run directory, one checkpoint in it, or what `kdjax.export` or
      `kdjax.convert` made of it.
    checkpoint: of a run directory, 'best' (by validation accuracy) or 'last'.
    ema: of a run or a checkpoint, whether to take the moving averages of its
      variables.

  Returns:
    The network; `student(images)` returns probabilities.

  Raises:
    FileNotFoundError: there is none.
    OSError: it cannot be read now.
    ValueError: it is damaged, says nothing of how images are normalised, or is
      not what is asked for.
  """
  path = pathlib.Path(path).expanduser()
  # Whether it is there or not.
  if path.suffix in program_files.SUFFIXES and not path.is_dir():
    classify, card = program_files.load(path)
    card_lib.check_asked(card, path, checkpoint, ema)
    return Student(classify, card)
  network, card, _ = networks.load(path, checkpoint, ema)
  check_normalized(network)
  return of_network(network, card)


def of_network(network: Network, card: Mapping[str, Any]) -> Student:
  """Makes a function of a network, folded (see `kdjax.models.fold`).

  Args:
    network: model and variables; without `normalization` it takes pixels.
    card: what is known of it (see `kdjax.storage.networks.Pretrained`).
  """
  model, variables = models.fold(*network)
  compiled = xla.jit(functools.partial(classify, model))
  return Student(functools.partial(compiled, jax.device_put(variables)), card)


def check_normalized(network: Network) -> None:
  """Raises a ValueError if it is unknown how images are normalised."""
  if 'normalization' not in network.variables:
    raise ValueError(
      'these weights do not say how images are normalised: give them the mean '
      'and standard deviation that they were trained with, with python -m '
      'kdjax.convert --mean=… --std=…'
    )


def image_shape(card: Mapping[str, Any]) -> tuple[int, int, int]:
  """Returns height, width and channels of a network's images.

  Raises:
    ValueError: they are unknown.
  """
  shape = card['preprocessing']['image_shape']
  if shape is None:
    raise ValueError(
      'it is not known what size the images of this network have: give it with '
      'python -m kdjax.convert --image_size=…'
    )
  height, width, channels = shape
  return height, width, channels


def classify(
  model: Any, variables: features.Variables, images: jax.Array
) -> jax.Array:
  """Computes the probabilities of the classes from pixels; a pure function."""
  outputs, _ = features.forward(model, variables, images, train=False)
  return jax.nn.softmax(outputs.logits)
