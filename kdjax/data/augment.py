"""The replayable order of examples, and their augmentation.

Which example stands where in an epoch, and how it is cropped and flipped, are
pure functions of (seed, epoch, position), computed on the device from
counter-based keys. So a batch depends neither on the batches before it nor on
how positions are divided into batches.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.system import xla


class Augmentation(NamedTuple):
  """What is done to a training image.

  Attributes:
    crop_padding: black pixels added on each side before a crop of the image's
      size is taken at random; 0 for no crop.
    flip: whether half of the images are mirrored left to right.
  """

  crop_padding: int = 0
  flip: bool = False


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


def augment(
  key: jax.Array,
  epoch: jax.typing.ArrayLike,
  positions: jax.Array,
  images: jax.Array,
  augmentation: Augmentation,
) -> jax.Array:
  """Crops and flips images at random.

  Args:
    key: key of the run's data.
    epoch: number of the epoch, from 0.
    positions: position of each image in the epoch, `[batch]`.
    images: `[batch, height, width, channels]`.
    augmentation: what to do.

  Returns:
    Images of the same shape and dtype.
  """
  _, image_key = jax.random.split(jax.random.fold_in(key, epoch))

  def augment_one(position: jax.Array, image: jax.Array) -> jax.Array:
    crop_key, flip_key = jax.random.split(
      jax.random.fold_in(image_key, position)
    )
    pad = augmentation.crop_padding
    if pad:
      padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
      top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
      image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if augmentation.flip:
      mirrored = jax.random.bernoulli(flip_key)
      image = jnp.where(mirrored, image[:, ::-1], image)
    return image

  return jax.vmap(augment_one)(positions, images)


def train_batch(
  key: jax.Array,
  step: jax.Array,
  order: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  batch_size: int,
  augmentation: Augmentation,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Takes the batch of a training step from a data set on the device.

  The last `size mod batch_size` positions of an epoch are not used, so that
  every batch is full.

  Args:
    key: key of the run's data.
    step: number of the step in the run, from 0.
    order: `epoch_order` of the step's epoch, `[size]`.
    images: all training images, uint8 `[size, height, width, channels]`.
    labels: their labels, `[size]`.
    batch_size: examples in the batch, at most `size`.
    augmentation: what is done to each image.

  Returns:
    Images, uint8 `[batch_size, height, width, channels]`, labels `[batch_size]`
    and the index of each example, `[batch_size]`.
  """
  steps_per_epoch = order.shape[0] // batch_size
  indices = batch_indices(step, order, batch_size)
  batch = augment_batch(
    key,
    step,
    images[indices],
    steps_per_epoch=steps_per_epoch,
    augmentation=augmentation,
  )
  return batch, labels[indices], indices


def batch_indices(
  step: jax.Array, order: jax.Array, batch_size: int
) -> jax.Array:
  """Takes the indices of a step's examples from the order of its epoch.

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
  images: jax.Array,
  *,
  steps_per_epoch: int,
  augmentation: Augmentation,
) -> jax.Array:
  """Crops and flips the batch of a training step at random.

  Args:
    key: key of the run's data.
    step: number of the step in the run, from 0.
    images: its images, `[batch, height, width, channels]`.
    steps_per_epoch: steps in an epoch.
    augmentation: what is done to each image.

  Returns:
    Images of the same shape and dtype.
  """
  batch_size = images.shape[0]
  first = step % steps_per_epoch * batch_size
  positions = first + jnp.arange(batch_size)
  return augment(key, step // steps_per_epoch, positions, images, augmentation)
