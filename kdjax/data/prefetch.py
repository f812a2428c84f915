"""Puts what streams read on the devices, ahead of the steps that need it."""

import collections
from collections.abc import Iterator
from typing import Self

import jax
import numpy as np

from kdjax.data import Split, Stream, stream
from kdjax.evaluation import predict as predict_lib
from kdjax.models.network import Network
from kdjax.system import devices

# Batches on the devices beside the one in use.
_AHEAD = 2


class Feed:
  """The batches of a run's steps, on the devices.

  Args:
    split: the training split.
    key: key of the run's data.
    steps: numbers of the steps, without gaps.
    batch_size: examples in a step, a multiple of the number of devices.
    random_resized_crop: as `kdjax.data.stream.train_batches` has it.
    workers: the same.

  Attributes:
    next_step: number of the step that the next batch is for.
  """

  def __init__(
    self,
    split: Stream,
    key: jax.Array,
    steps: range,
    batch_size: int,
    random_resized_crop: float,
    workers: int,
  ):
    self.next_step = steps.start
    self._batches = stream.train_batches(
      split,
      key,
      batch_size=batch_size,
      steps=steps,
      rows=devices.local_rows(batch_size),
      random_resized_crop=random_resized_crop,
      workers=workers,
    )
    self._batch_size = batch_size
    self._ahead: collections.deque[tuple[jax.Array, jax.Array]] = (
      collections.deque()
    )

  def __iter__(self) -> Iterator[tuple[jax.Array, jax.Array]]:
    return self

  def __next__(self) -> tuple[jax.Array, jax.Array]:
    """Gives the images and labels of a step, divided over the devices."""
    while len(self._ahead) <= _AHEAD:
      batch = next(self._batches, None)
      if batch is None:
        break
      self._ahead.append(
        devices.assemble((batch.images, batch.labels), self._batch_size)
      )
    if not self._ahead:
      raise StopIteration
    self.next_step += 1
    return self._ahead.popleft()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Stops the threads or processes that read."""
    self._batches.close()


def on_devices(split: Split | Stream) -> Split | Stream:
  """Puts the images of a split on the devices, if it is in memory."""
  if isinstance(split, Stream):
    return split
  return split._replace(images=devices.replicate(split.images))


def predict(
  network: Network, split: Split | Stream, batch_size: int
) -> tuple[jax.Array, np.ndarray]:
  """Computes the logits of a split in evaluation mode, each exactly once.

  A stream is read by the threads of this process: worker processes would start
  for longer than they read.

  Args:
    network: the model and its variables.
    split: the split, best as `on_devices` gives it.
    batch_size: how many images to compute at once.

  Returns:
    Logits, float32 `[size, classes]`, in the split's order, and labels, int32
    `[size]`. Images that cannot be read are left out.

  Raises:
    ValueError: an image cannot be read, or none can.
  """
  if isinstance(split, Split):
    return predict_lib.predict(network, split.images, batch_size), split.labels
  # The last batch is filled up, so every one can be divided.
  count = jax.device_count()
  batch_size = -(-min(batch_size, split.size) // count) * count
  network = network._replace(variables=devices.replicate(network.variables))
  logits, labels = [], []
  with stream.eval_batches(
    split, batch_size=batch_size, rows=devices.local_rows(batch_size)
  ) as batches:
    for batch in batches:
      images, batch_labels = devices.assemble(
        (batch.images, batch.labels), batch_size
      )
      found = jax.device_get(devices.gather(batch_labels))
      present = np.flatnonzero(found >= 0)
      logits.append(predict_lib.predict_batch(network, images)[present])
      labels.append(found[present])
  if not sum(map(len, labels)):
    raise ValueError(f'none of {split.size} images can be read')
  return jax.numpy.concatenate(logits), np.concatenate(labels)
