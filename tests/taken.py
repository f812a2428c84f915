"""What a training step takes from a data set in memory."""

import jax

from kdjax.data import augment


def batch(
  key, step, order, images, labels, size, augmentation=None, classes=10
):
  """A `kdjax.data.augment.TrainBatch`, as the compiled step makes it."""
  augmentation = augmentation or augment.Augmentation()
  ids = augment.batch_indices(step, order, size)
  labels = labels[ids]
  if augmentation.mixes:
    labels = jax.nn.one_hot(labels, classes)
  return augment.augment_batch(
    key,
    step,
    augment.TrainBatch(images[ids], labels, ids),
    order.shape[0] // size,
    augmentation,
  )
