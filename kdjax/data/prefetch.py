"""Puts what streams read on the devices, ahead of the steps that need it."""

import collections
from collections.abc import Iterator
from typing import Self

import jax

from kdjax.data import Stream, stream
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
    """Returns the images and labels of a step, divided over the devices."""
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
