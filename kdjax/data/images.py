"""Images of any size and mode, as pixels of one size.

All of it happens on the host, where images are decoded, and is exact: the same
image and the same numbers give the same pixels in any process.
"""

import errno
import logging
import math
import warnings
from collections.abc import MutableMapping
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

logger = logging.getLogger('kdjax')

# Of an image twice as large as those Pillow makes an error.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)

# What names of image files end with, in lower case.
EXTENSIONS = (
  '.jpg',
  '.jpeg',
  '.jpe',
  '.jfif',
  '.png',
  '.webp',
  '.bmp',
  '.gif',
  '.tif',
  '.tiff',
  '.ppm',
  '.pgm',
  '.pbm',
  '.pnm',
)

# Version of how files become pixels, for caches of the pixels.
READING = 2

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

# What makes an image upright, by its EXIF orientation.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS_PER_SAMPLE = 258

# Errors of the system that say something about one file: a broken link, a
# folder, or a file that this user may not read.
_OF_ONE_FILE = (
  errno.ENOENT,
  errno.EACCES,
  errno.EPERM,
  errno.EISDIR,
  errno.ENOTDIR,
  errno.ELOOP,
)

# Brightest of 8 bits in an image of 16 that uses less than 14 of them.
_DARK = 63

Notes = MutableMapping[str, str]
"""What users should know of images that were read, a message of each kind."""


class UnreadableError(ValueError):
  """An image that cannot be read."""


def read(
  file: str | IO[bytes],
  channels: int,
  name: str | None = None,
  notes: Notes | None = None,
) -> Image.Image:
  """Reads an image of any mode, upright as its EXIF data says.

  Of an image of several frames or pages, the first is read.

  Args:
    file: a path, or a file that is open.
    channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).
    name: what errors call it; the path by default.
    notes: receives what users should know of the image.

  Returns:
    The image, with all its pixels decoded, as `with_channels` converts it.

  Raises:
    UnreadableError: it is no image, a damaged one, or cannot be opened.
    OSError: the machine failed, not the image.
  """
  name = name or str(file)
  notes = {} if notes is None else notes
  # Pillow's decoders raise errors of many kinds.
  try:
    with Image.open(file) as image:
      # A photo with a preview is MPO.
      if getattr(image, 'is_animated', False) and image.format != 'MPO':
        notes.setdefault(
          'frames',
          f'{name} has several frames or pages: of such images only the first '
          'is read',
        )
      sixteen_bits = _has_sixteen_bits(image)
      image.load()
      converted = with_channels(_upright(image), channels)
  except Exception as error:
    raise_if_of_machine(error)
    reason = getattr(error, 'strerror', None) or error
    if isinstance(error, UnidentifiedImageError):
      reason = 'it is empty, or no image that Pillow knows'
    raise UnreadableError(f'cannot read {name}: {reason}') from error
  if sixteen_bits and np.asarray(converted.convert('RGB')).max() <= _DARK:
    notes.setdefault(
      'dark',
      f'{name} has 16 bits a channel and hardly uses them: divided by 256, as '
      'all images of 16 bits are, it is nearly black. Where images hold fewer '
      'bits, such as 12, multiply them first so that they fill the 16',
    )
  return converted


def warn(notes: Notes, warned: set[str]) -> None:
  """Warns of what users should know of images, of each kind once.

  Args:
    notes: as `read` fills them.
    warned: kinds that were warned of already; receives the others.
  """
  for kind, message in notes.items():
    if kind not in warned:
      warned.add(kind)
      logger.warning('%s (said once)', message)


def raise_if_of_machine(error: Exception) -> None:
  """Raises what says nothing about an image, such as that memory is full."""
  # Pillow's own OSErrors have no number.
  number = getattr(error, 'errno', None)
  if isinstance(error, MemoryError) or (number and number not in _OF_ONE_FILE):
    raise error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
  """Converts an image of any mode to 8 bits and a number of channels.

  Grey becomes three equal channels, a palette its colours, and CMYK is
  converted to RGB. What is transparent becomes white, unless there is a channel
  for it. Of 16 bits the upper eight are kept, of floating-point numbers 0 is
  black and 1 white: no scale depends on what an image holds.

  Args:
    image: the image.
    channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).

  Returns:
    The image, with all its pixels decoded.

  Raises:
    ValueError: it has numbers that are beyond such a scale.
  """
  mode = MODES[channels]
  if image.mode.startswith(('I', 'F')):
    image = _with_eight_bits(image)
  if image.has_transparency_data and channels != 4:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  image.load()
  return image if image.mode == mode else image.convert(mode)


def _with_eight_bits(image: Image.Image) -> Image.Image:
  """Converts grey values that have more bits."""
  # Pillow's own conversion makes everything above 255 white.
  values = np.asarray(image)
  floating = image.mode.startswith('F')
  bits = _declared_bits(image)
  largest = 1 if floating else 2**bits - 1
  # Not a number is in no range.
  if not (values.min() >= 0 and values.max() <= largest):
    raise ValueError(
      f'its values go from {values.min()} to {values.max()}, and only 0 to '
      f'{largest} are known to be black to white: save it with 8 or 16 bits'
    )
  values = np.rint(values * 255) if floating else values >> (bits - 8)
  return Image.fromarray(values.astype(np.uint8))


def _declared_bits(image: Image.Image) -> int:
  """Returns the bits of a grey value that Pillow holds in 16 or 32."""
  bits = getattr(image, 'tag_v2', {}).get(_TIFF_BITS_PER_SAMPLE, (16,))[0]
  return bits if 8 < bits < 16 else 16


def _has_sixteen_bits(image: Image.Image) -> bool:
  """Whether each channel has 16 bits in the file, before it is decoded."""
  if image.mode.startswith('I'):
    return _declared_bits(image) == 16
  # Pillow keeps the upper eight of colours, and says so nowhere else.
  arguments = [tile[3] for tile in getattr(image, 'tile', ())]
  return any(
    ';16' in str(each[0] if isinstance(each, tuple) else each)
    for each in arguments
  )


def _upright(image: Image.Image) -> Image.Image:
  """Turns an image, which is decoded, as its EXIF data says."""
  # ImageOps.exif_transpose also writes the data again, and fails where they are
  # damaged. An image without sound data is taken as it is.
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception as error:
    raise_if_of_machine(error)
    return image
  method = _UPRIGHT.get(orientation)
  return image if method is None else image.transpose(method)


def centre_crop(
  image: Image.Image, size: int | tuple[int, int], share: float = CENTRE
) -> Image.Image:
  """Crops the middle of an image.

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
  """Crops a random part of an image (Szegedy et al., 2015).

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
    key: the key of the run's data, as `jax.random.key_data` returns it.
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
