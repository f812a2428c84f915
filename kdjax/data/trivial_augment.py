"""TrivialAugment: one random operation of a random strength for each image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Strengths that are drawn from, each as likely.
BINS = 31
# Weights of red, green and blue in the luminance (ITU-R BT.601).
_LUMINANCE = 0.299, 0.587, 0.114
# More than float32 loses, less than two values that matter differ by.
_MARGIN = 5e-4
# a to f of `_move`.
_UNCHANGED = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
  """Changes an image by one operation, drawn with its strength and direction.

  Müller and Hutter, 2021, https://arxiv.org/abs/2103.10158, in its wide form:
  one of identity, brightness, colour, contrast, sharpness, posterize, solarize,
  autocontrast, equalize, rotation (to 135°), shear in x or y (to 0.99) and
  translation in x or y (to 32 pixels). What comes from outside is black.

  Args:
    key: what is drawn with.
    image: uint8 `[height, width, channels]`, grey or with three colours first.

  Returns:
    The changed image, uint8 of the same shape.
  """
  operation_key, strength_key, sign_key = jax.random.split(key, 3)
  operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
  strength = jax.random.randint(strength_key, (), 0, BINS) / (BINS - 1)
  negative = jax.random.bernoulli(sign_key)
  return apply(image, operation, jnp.where(negative, -strength, strength))


def apply(
  image: jax.Array, operation: jax.Array, strength: jax.Array
) -> jax.Array:
  """Applies one operation to an image.

  Args:
    image: uint8 `[height, width, channels]`.
    operation: its index in `OPERATIONS`.
    strength: from -1 to 1; posterize and solarize take its absolute value.

  Returns:
    The changed image, uint8 of the same shape.
  """
  branches = [
    lambda pixels, value, change=change: change(pixels, value)
    for change in OPERATIONS.values()
  ]
  pixels = jax.lax.switch(
    operation, branches, image.astype(jnp.float32), strength
  )
  return jnp.clip(_round(pixels), 0, 255).astype(jnp.uint8)


def _round(x: jax.Array) -> jax.Array:
  """Rounds to whole numbers, and halves up however they were computed.

  A half may be a little less where operations are fused in another way, and
  the same image must come of it in every program. No other value of interest
  is so near to a half.
  """
  return jnp.floor(x + (0.5 + _MARGIN))


def _grey(image: jax.Array) -> jax.Array:
  """Luminance of each pixel, in whole numbers, `[height, width, 1]`."""
  if image.shape[-1] < 3:
    return image[..., :1]
  weights = jnp.array(_LUMINANCE)
  return _round((image[..., :3] * weights).sum(axis=-1, keepdims=True))


def _blend(
  other: jax.Array, image: jax.Array, strength: jax.Array
) -> jax.Array:
  """Moves an image from another one (-0.99) or away from it (+0.99)."""
  return jnp.clip(other + (1 + 0.99 * strength) * (image - other), 0, 255)


def _identity(image: jax.Array, strength: jax.Array) -> jax.Array:
  del strength
  return image


def _brightness(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _blend(jnp.zeros_like(image), image, strength)


def _color(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _blend(_grey(image), image, strength)


def _contrast(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _blend(_round(_grey(image).mean()), image, strength)


def _sharpness(image: jax.Array, strength: jax.Array) -> jax.Array:
  height, width, _ = image.shape
  if height < 3 or width < 3:
    return image
  rows, columns = jnp.s_[: height - 2], jnp.s_[: width - 2]
  total = 4 * image[1:-1, 1:-1]
  for top in range(3):
    for left in range(3):
      total += image[top:, left:][rows, columns]
  smooth = image.at[1:-1, 1:-1].set(jnp.round(total / 13))
  return _blend(smooth, image, strength)


def _posterize(image: jax.Array, strength: jax.Array) -> jax.Array:
  """Keeps the 8 to 2 upper bits."""
  dropped = 2.0 ** jnp.round(6 * jnp.abs(strength))
  return jnp.floor(image / dropped) * dropped


def _solarize(image: jax.Array, strength: jax.Array) -> jax.Array:
  """Inverts the pixels from a threshold on, 255 to 0."""
  threshold = 255 * (1 - jnp.abs(strength)) - _MARGIN
  return jnp.where(image >= threshold, 255 - image, image)


def _autocontrast(image: jax.Array, strength: jax.Array) -> jax.Array:
  del strength
  low = image.min(axis=(0, 1))
  high = image.max(axis=(0, 1))
  scale = 255 / jnp.maximum(high - low, 1)
  return jnp.where(
    high > low, jnp.floor((image - low) * scale + _MARGIN), image
  )


def _equalize(image: jax.Array, strength: jax.Array) -> jax.Array:
  """Spreads the values of each channel evenly, as Pillow does."""
  del strength

  def of_channel(channel: jax.Array) -> jax.Array:
    values = channel.astype(jnp.int32)
    counts = jnp.zeros(256, jnp.int32).at[values].add(1)
    # All but those of the largest value, in 255 equal steps.
    step = (values.size - counts[values.max()]) // 255
    below = jnp.cumsum(counts) - counts
    table = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, table[values], values).astype(channel.dtype)

  flat = image.reshape(-1, image.shape[-1])
  return jax.vmap(of_channel, 1, 1)(flat).reshape(image.shape)


def _move(image: jax.Array, matrix: jax.Array) -> jax.Array:
  """Reads pixel (x, y) at (a·x + b·y + c, d·x + e·y + f), the nearest there."""
  height, width, _ = image.shape
  y, x = jnp.meshgrid(
    jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing='ij'
  )
  a, b, c, d, e, f = matrix
  column = jnp.floor(a * x + b * y + c + _MARGIN).astype(jnp.int32)
  row = jnp.floor(d * x + e * y + f + _MARGIN).astype(jnp.int32)
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  moved = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
  return jnp.where(inside[..., None], moved, 0.0)


def _matrix(index: int, value: jax.Array) -> jax.Array:
  return jnp.array(_UNCHANGED).at[index].set(value)


def _rotate(image: jax.Array, strength: jax.Array) -> jax.Array:
  """Rotates counterclockwise around the centre, to 135°."""
  height, width, _ = image.shape
  angle = jnp.deg2rad(135 * strength)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  return _move(
    image,
    jnp.stack(
      [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
    ),
  )


def _shear_x(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _move(image, _matrix(1, 0.99 * strength))


def _shear_y(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _move(image, _matrix(3, 0.99 * strength))


def _translate_x(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _move(image, _matrix(2, jnp.round(32 * strength)))


def _translate_y(image: jax.Array, strength: jax.Array) -> jax.Array:
  return _move(image, _matrix(5, jnp.round(32 * strength)))


OPERATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'identity': _identity,
  'brightness': _brightness,
  'color': _color,
  'contrast': _contrast,
  'sharpness': _sharpness,
  'posterize': _posterize,
  'solarize': _solarize,
  'autocontrast': _autocontrast,
  'equalize': _equalize,
  'rotate': _rotate,
  'shear_x': _shear_x,
  'shear_y': _shear_y,
  'translate_x': _translate_x,
  'translate_y': _translate_y,
}
"""The operations, functions of pixels from 0 to 255 and a strength."""
