"""What a training step takes from a data set in memory."""

from kdjax.data import augment


def batch(
  key, step, order, images, labels, size, augmentation=None, classes=10, views=1
):
  """A `kdjax.data.augment.TrainBatch`, as the compiled step makes it."""
  ids = augment.batch_indices(step, order, size)
  return augment.augment_batch(
    key,
    step,
    augment.TrainBatch(images[ids], labels[ids], ids),
    steps_per_epoch=order.shape[0] // size,
    augmentation=augmentation or augment.Augmentation(),
    num_classes=classes,
    views=views,
  )
