"""The replayable order of examples, and their augmentation.

Which example stands where in an epoch, and all that is done to it, are pure
functions of (seed, epoch, position), computed on the device from counter-based
keys. So a batch does not depend on the batches before it; nor on how positions
are divided into batches, but for mixed images: each is mixed with the next one
of its batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.data import trivial_augment
from kdjax.system import xla


class Augmentation(NamedTuple):
  """What is done to training images; most fields are those of `config.data`.

  Attributes:
    crop_padding: black pixels added on each side before a crop of the image's
      size is taken at random; 0 for no crop.
    flip: whether half of the images are mirrored left to right.
    trivial_augment: whether each image is changed by a random operation, see
      `kdjax.data.trivial_augment`.
    cutout: height and width in pixels of a square that is made black, its
      centre anywhere in the image (DeVries and Taylor, 2017,
      https://arxiv.org/abs/1708.04552); 0 for none.
    mixup: α of the Beta(α, α) distribution of the share that an image keeps
      when it is averaged with another (Zhang et al., 2017,
      https://arxiv.org/abs/1710.09412); 0 for none.
    cutmix: α of the same distribution of the share of an image that is left
      when a rectangle is replaced by that of another (Yun et al., 2019,
      https://arxiv.org/abs/1905.04899); 0 for none. With `mixup` too, each
      image has one of both, each as likely.
    views: how often each example is in a batch.
  """

  crop_padding: int = 0
  flip: bool = False
  trivial_augment: bool = False
  cutout: int = 0
  mixup: float = 0.0
  cutmix: float = 0.0
  views: int = 1

  @property
  def mixes(self) -> bool:
    """Whether images are mixed, and with them their labels."""
    return self.mixup > 0 or self.cutmix > 0


# What the key of a position is folded with, beside 0 and 1 for crop and flip.
_TRIVIAL_KEY, _CUTOUT_KEY, _MIX_KEY, _VIEW_KEY = range(2, 6)


@functools.partial(xla.jit, static_argnames='size')
def epoch_order(
  key: jax.Array, epoch: jax.typing.ArrayLike, size: int
) -> jax.Array:
  """Shuffles the examples of an epoch.

  Args:
    key: key of the run's data.
    epoch: number of the epoch, from 0.
    size: number of examples.

  Returns:
    Index of the example at each position, int32 `[size]`, a permutation.
  """
  order_key, _ = jax.random.split(jax.random.fold_in(key, epoch))
  return jax.random.permutation(order_key, size)


def position_keys(
  key: jax.Array, epoch: jax.typing.ArrayLike, positions: jax.Array
) -> jax.Array:
  """Derives the keys that images of an epoch are augmented with.

  Args:
    key: key of the run's data.
    epoch: number of the epoch, from 0.
    positions: position of each image in the epoch, `[batch]`.

  Returns:
    A key for each, `[batch]`.
  """
  _, image_key = jax.random.split(jax.random.fold_in(key, epoch))
  return jax.vmap(functools.partial(jax.random.fold_in, image_key))(positions)


def augment(
  keys: jax.Array,
  images: jax.Array,
  augmentation: Augmentation,
  view: int = 0,
) -> jax.Array:
  """Augments images at random, each by itself.

  Args:
    keys: `position_keys` of the images, `[batch]`.
    images: `[batch, height, width, channels]`.
    augmentation: what to do; images are not mixed here.
    view: number of the view; each draws by itself.

  Returns:
    Images of the same shape and dtype.
  """
  if view:
    keys = _fold_in(keys, _VIEW_KEY + view)
  return jax.vmap(functools.partial(_augment_one, augmentation))(keys, images)


def _fold_in(keys: jax.Array, number: int) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _augment_one(
  augmentation: Augmentation, key: jax.Array, image: jax.Array
) -> jax.Array:
  crop_key, flip_key = jax.random.split(key)
  pad = augmentation.crop_padding
  if pad:
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corner = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
    image = crop(padded, corner, (image.shape[0], image.shape[1]))
  if augmentation.flip:
    mirrored = jax.random.bernoulli(flip_key)
    image = jnp.where(mirrored, image[:, ::-1], image)
  if augmentation.trivial_augment:
    image = trivial_augment.trivial_augment(
      jax.random.fold_in(key, _TRIVIAL_KEY), image
    )
  if augmentation.cutout:
    centre = _draw_pixel(jax.random.fold_in(key, _CUTOUT_KEY), image)
    side = augmentation.cutout
    image = jnp.where(_rectangle(image, centre, (side, side)), 0, image)
  return image


def crop(
  image: jax.Array, corner: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Cuts a rectangle out of an image.

  Args:
    image: `[height, width, channels]`.
    corner: its first row and column, int32 `[2]`; it must lie within the image.
    size: its height and width.

  Returns:
    The same pixels on every platform, `[*size, channels]`.
  """

  def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
    start = corner[0], corner[1], 0
    return jax.lax.dynamic_slice(image, start, (*size, image.shape[-1]))

  if image.dtype != jnp.uint8:
    return cut(image, corner)
  return jax.lax.platform_dependent(
    image,
    corner,
    tpu=functools.partial(crop_by_products, size=size),
    default=cut,
  )


def crop_by_products(
  image: jax.Array, corner: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Computes `crop` of an uint8 image by matrix products.

  A TPU would cut the images of a batch one after the other. Each sum has one
  term that is not zero, and bfloat16 has every number up to 256: it is exact.
  """
  rows, columns = (
    jax.nn.one_hot(first + jnp.arange(extent), total, dtype=jnp.bfloat16)
    for first, extent, total in zip(corner, size, image.shape, strict=False)
  )
  pixels = jnp.einsum('hH,HWc->hWc', rows, image.astype(jnp.bfloat16))
  pixels = jnp.einsum('wW,hWc->hwc', columns, pixels)
  return pixels.astype(image.dtype)


def _draw_pixel(key: jax.Array, image: jax.Array) -> jax.Array:
  """Draws a row and a column, each as likely."""
  return jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))


def _rectangle(
  image: jax.Array,
  centre: jax.Array,
  size: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike],
) -> jax.Array:
  """Whether each pixel is in a rectangle, bool `[height, width, 1]`."""
  height, width, _ = image.shape
  top, left = (
    middle - jnp.asarray(extent) // 2
    for middle, extent in zip(centre, size, strict=True)
  )
  rows = (jnp.arange(height) >= top) & (jnp.arange(height) < top + size[0])
  columns = (jnp.arange(width) >= left) & (jnp.arange(width) < left + size[1])
  return (rows[:, None] & columns)[..., None]


def mix(
  keys: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  augmentation: Augmentation,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image of a batch with the one after it, by mixup or cutmix.

  The last is mixed with the first. Teacher and student see the same mixed
  pixels, which are rounded to whole numbers.

  Args:
    keys: `position_keys` of the images, `[batch]`.
    images: uint8 `[batch, height, width, channels]`.
    labels: probabilities `[batch, classes]`.
    augmentation: what to do.

  Returns:
    Images of the same shape and dtype, and the labels mixed in the same shares.
  """
  keys = _fold_in(keys, _MIX_KEY)

  def mix_one(
    key: jax.Array, image: jax.Array, other: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    share_key, pixel_key, choice_key = jax.random.split(key, 3)
    mixed = []
    if augmentation.mixup:
      # In 256 parts, so that sums are exact in every program.
      parts = jnp.round(256 * _beta(share_key, augmentation.mixup))
      both = parts * image + (256 - parts) * other.astype(jnp.float32)
      pixels = jnp.floor((both + 128) / 256).astype(image.dtype)
      mixed.append((pixels, parts / 256))
    if augmentation.cutmix:
      side = jnp.sqrt(1 - _beta(share_key, augmentation.cutmix))
      size = [jnp.round(side * extent) for extent in image.shape[:2]]
      inside = _rectangle(
        image, _draw_pixel(pixel_key, image), (size[0], size[1])
      )
      left = (~inside).sum() / inside.size
      mixed.append((jnp.where(inside, other, image), left))
    if len(mixed) == 1:
      return mixed[0]
    first = jax.random.bernoulli(choice_key)
    return jax.tree.map(functools.partial(jnp.where, first), *mixed)

  mixed, kept = jax.vmap(mix_one)(keys, images, jnp.roll(images, -1, axis=0))
  kept = kept[:, None]
  return mixed, kept * labels + (1 - kept) * jnp.roll(labels, -1, axis=0)


def _beta(key: jax.Array, alpha: float) -> jax.Array:
  return jax.random.beta(key, alpha, alpha)


class TrainBatch(NamedTuple):
  """What the examples of a training step are.

  Attributes:
    images: uint8 `[views · batch, height, width, channels]`, the second view of
      all examples after the first.
    labels: class indices, int32 `[batch]`, -1 where there is none; or
      probabilities, float32 `[batch, classes]`, with zeros where there is none.
    ids: index of each example in the training split, int32 `[batch]`.
  """

  images: jax.Array
  labels: jax.Array
  ids: jax.Array


def batch_indices(
  step: jax.Array, order: jax.Array, batch_size: int
) -> jax.Array:
  """Returns the indices of a step's examples in the order of its epoch.

  The last `size mod batch_size` positions of an epoch are not used, so that
  every batch is full.

  Args:
    step: number of the step in the run, from 0.
    order: `epoch_order` of the step's epoch, `[size]`.
    batch_size: examples in the batch, at most `size`.

  Returns:
    Index of each example, int32 `[batch_size]`.
  """
  first = step % (order.shape[0] // batch_size) * batch_size
  return jax.lax.dynamic_slice(order, (first,), (batch_size,))


def augment_batch(
  key: jax.Array,
  step: jax.Array,
  batch: TrainBatch,
  steps_per_epoch: int,
  augmentation: Augmentation,
) -> TrainBatch:
  """Augments the batch of a training step at random.

  Args:
    key: key of the run's data.
    step: number of the step in the run, from 0.
    batch: its examples, of one view; the labels probabilities where images are
      to be mixed.
    steps_per_epoch: steps in an epoch.
    augmentation: what is done to each image. Views after the first draw other
      crops and flips, and are changed by `trivial_augment`.

  Returns:
    The batch.
  """
  size = len(batch.ids)
  positions = step % steps_per_epoch * size + jnp.arange(size)
  keys = position_keys(key, step // steps_per_epoch, positions)
  seen, labels = [], batch.labels
  for view in range(augmentation.views):
    changes = augmentation
    if view:
      changes = changes._replace(trivial_augment=True)
    images = augment(keys, batch.images, changes, view)
    if changes.mixes:
      # All views are mixed in the same shares: they have the same labels.
      images, labels = mix(keys, images, batch.labels, changes)
    seen.append(images)
  return TrainBatch(jnp.concatenate(seen), labels, batch.ids)
