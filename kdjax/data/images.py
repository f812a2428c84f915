"""Images of any size and mode, as pixels of one size.

All of it happens on the host, where images are decoded, and is exact: the same
image and the same numbers give the same pixels in any process.
"""

import math
import warnings
from typing import IO

import numpy as np
from PIL import Image

# Of an image twice as large as those Pillow makes an error.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)

# Pillow's mode for a number of channels.
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

# The share of the shorter side that a centre crop keeps: 224 of 256 pixels, as
# is usual on ImageNet.
CENTRE = 0.875
_ASPECT = (3 / 4, 4 / 3)
# Draws of a random crop before one that always fits.
_ATTEMPTS = 10
# Of each draw: area, aspect, and where the crop lies.
_NUMBERS = 4


class UnreadableError(ValueError):
  """An image that cannot be read."""


def read(
  file: str | IO[bytes], channels: int, name: str | None = None
) -> Image.Image:
  """Reads an image of any mode, as `with_channels` gives it.

  Args:
    file: a path, or a file that is open.
    channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).
    name: what errors call it; the path by default.

  Returns:
    The image, with all its pixels decoded.

  Raises:
    UnreadableError: it is no image, or a damaged one.
    OSError: the machine failed, not the image.
  """
  # Pillow's decoders raise errors of many kinds.
  try:
    with Image.open(file) as image:
      return with_channels(image, channels)
  except Exception as error:
    raise_if_of_machine(error)
    raise UnreadableError(f'cannot read {name or file}: {error}') from error


def raise_if_of_machine(error: Exception) -> None:
  """Raises what says nothing about an image, such as that memory is full."""
  # Pillow's own OSErrors have no number.
  if isinstance(error, MemoryError) or getattr(error, 'errno', None):
    raise error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
  """Converts an image of any mode to 8 bits and a number of channels.

  Grey becomes three equal channels, a palette its colours, and CMYK is
  converted to RGB. What is transparent becomes white, unless there is a channel
  for it. Of 16 bits the upper eight are kept.

  Args:
    image: the image.
    channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).

  Returns:
    The image, with all its pixels decoded.
  """
  mode = MODES[channels]
  if image.mode.startswith('I'):
    # Pillow's own conversion makes everything above 255 white.
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data and channels != 4:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  image.load()
  return image if image.mode == mode else image.convert(mode)


def centre_crop(
  image: Image.Image, size: int | tuple[int, int], share: float = CENTRE
) -> Image.Image:
  """Takes the middle of an image.

  The same as resizing the shorter side to `size / share` pixels and cutting out
  the middle, in one step.

  Args:
    image: the image.
    size: height and width of the result in pixels; one number if they are
      equal.
    share: how much is kept of the side that limits the crop. 1 leaves an image
      that has the size already as it is.

  Returns:
    An image of that size, resized with an antialiasing bilinear filter.
  """
  height, width = (size, size) if isinstance(size, int) else size
  crop_width = share * min(image.width, image.height * (width / height))
  crop_height = share * min(image.height, image.width * (height / width))
  left = (image.width - crop_width) / 2
  top = (image.height - crop_height) / 2
  box = left, top, left + crop_width, top + crop_height
  return _resize(image, (width, height), box)


def random_resized_crop(
  image: Image.Image, size: int, smallest_area: float, draws: np.ndarray
) -> Image.Image:
  """Takes a random part of an image (Szegedy et al., 2015).

  Its area is uniform from `smallest_area` of the image's to all of it, the
  logarithm of its width over its height uniform from that of 3/4 to that of
  4/3. See https://arxiv.org/abs/1409.4842.

  Args:
    image: the image.
    size: height and width of the result in pixels.
    smallest_area: smallest share of the image's area, more than 0, at most 1.
    draws: `crop_draws` of this image's place in the run.

  Returns:
    An image of `size` × `size` pixels, resized as by `centre_crop`.
  """
  box = _random_box(*image.size, smallest_area, draws)
  return _resize(image, (size, size), box)


def crop_draws(key: np.ndarray, epoch: int, position: int) -> np.ndarray:
  """Draws the numbers that decide a random crop.

  Args:
    key: the key of the run's data, as `jax.random.key_data` gives it.
    epoch: number of the epoch, from 0.
    position: position of the image in the epoch.

  Returns:
    Numbers from 0 to less than 1, float64 `[attempts, 4]`; a pure function of
    the arguments, the same in every process and with every version of NumPy.
  """
  philox = np.random.Philox(
    key=np.resize(key, 4).astype(np.uint32).view(np.uint64),
    # The lowest word counts the draws.
    counter=np.array([0, 0, position, epoch], np.uint64),
  )
  raw = philox.random_raw(_ATTEMPTS * _NUMBERS)
  return ((raw >> np.uint64(11)) * 2.0**-53).reshape(_ATTEMPTS, _NUMBERS)


def _random_box(
  width: int, height: int, smallest_area: float, draws: np.ndarray
) -> tuple[float, float, float, float]:
  """Chooses left, top, right and bottom of a random crop."""
  least, most = np.log(_ASPECT)
  for area, aspect, x, y in draws:
    pixels = (smallest_area + area * (1 - smallest_area)) * width * height
    ratio = math.exp(least + aspect * (most - least))
    crop_width = round(math.sqrt(pixels * ratio))
    crop_height = round(math.sqrt(pixels / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left = int(x * (width - crop_width + 1))
      top = int(y * (height - crop_height + 1))
      return left, top, left + crop_width, top + crop_height
  # Very long or tiny: the most of its middle that such a shape can have.
  crop_width = min(width, max(1, round(height * _ASPECT[1])))
  crop_height = min(height, max(1, round(width / _ASPECT[0])))
  left, top = (width - crop_width) // 2, (height - crop_height) // 2
  return left, top, left + crop_width, top + crop_height


def _resize(
  image: Image.Image,
  size: tuple[int, int],
  box: tuple[float, float, float, float],
) -> Image.Image:
  return image.resize(size, Image.Resampling.BILINEAR, box)
