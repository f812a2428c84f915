"""What the steps of each epoch are given, beside the state."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import data
from kdjax.data import augment, prefetch
from kdjax.evaluation import predict
from kdjax.models.network import Network
from kdjax.system import devices
from kdjax.training import state as state_lib
from kdjax.training.run import Run


class Epoch(NamedTuple):
  """What the steps of one epoch share.

  Attributes:
    order: index of the example at each position, int32 `[size]`.
    teacher_logits: `[steps, batch, classes]`, where they are replayed or
      precomputed.
    label_changes: int32 `[size]`, as `kdjax.data.Dataset` has them.
  """

  order: jax.Array
  teacher_logits: jax.Array | None
  label_changes: jax.Array | None


# The batch of a step, from the key of the data, the number of the step, its
# epoch and the training split, or what was read of it for the step.
MakeBatch = Callable[..., augment.TrainBatch]


class Epochs:
  """The epochs of a run, in memory or read as a stream.

  Args:
    run: the run.
    rng: its key, on every device.
    train: the training split on the devices; of a stream the shapes of a batch.
    make_batch: makes a batch of it.
    teacher: the teacher's model and variables on the devices, if there are any.
  """

  def __init__(
    self,
    run: Run,
    rng: jax.Array,
    train: tuple[Any, ...],
    make_batch: MakeBatch,
    teacher: Network | None,
  ):
    self._run = run
    self._plan = run.plan
    self._key = state_lib.data_key(rng)
    split = run.dataset.train
    self._stream = split if isinstance(split, data.Stream) else None
    self._train = train
    self._make_batch = make_batch
    self._teacher = teacher
    self._precomputed = run.precomputed_logits()
    changes = run.dataset.label_changes
    self._label_changes = (
      None if changes is None else devices.replicate(changes)
    )
    self._current: tuple[int, Epoch] | None = None
    self._reader: prefetch.Feed | None = None

  @property
  def gives_logits(self) -> bool:
    """Whether each step is given the teacher's logits."""
    return self._run.replay is not None or self._precomputed is not None

  def shapes(self) -> Epoch:
    """Describes the shapes and dtypes of an epoch, reading nothing."""
    logits: Any = None
    if self.gives_logits:
      logits = jax.ShapeDtypeStruct(
        (
          self._plan.steps_per_epoch,
          self._plan.batch_size,
          len(self._run.dataset.class_names),
        ),
        jnp.float32,
        # Else XLA might divide them as it divides the batch.
        sharding=devices.replicated(),
      )
    order: Any = jax.ShapeDtypeStruct(
      (self._run.dataset.train.size,), jnp.int32
    )
    return Epoch(order, logits, self._label_changes)

  def next(self, steps_done: int) -> tuple[Epoch, tuple[Any, ...]]:
    """Prepares the next steps.

    Args:
      steps_done: steps done.

    Returns:
      Their epoch, and the training split or, of a stream, the next batch.
    """
    number = steps_done // self._plan.steps_per_epoch
    if self._current is None or self._current[0] != number:
      self._current = number, self._begin(number)
    train = self._train
    if self._stream:
      if self._reader is None or self._reader.next_step != steps_done:
        self.close()
        self._reader = self._open(range(steps_done, self._plan.total_steps))
      train = next(self._reader)
    return self._current[1], train

  def close(self) -> None:
    """Stops what reads the stream of training images, if anything does."""
    if self._reader:
      self._reader.close()
    self._reader = None

  def _open(self, steps: range, workers: int | None = None) -> prefetch.Feed:
    """Opens the stream of the batches of some steps."""
    assert self._stream is not None
    settings = self._run.config.data
    return prefetch.Feed(
      self._stream,
      self._key,
      steps,
      self._plan.batch_size,
      settings.random_resized_crop,
      settings.workers if workers is None else workers,
    )

  def _begin(self, number: int) -> Epoch:
    order = augment.epoch_order(self._key, number, self._run.dataset.train.size)
    epoch = Epoch(order, None, self._label_changes)
    if not self.gives_logits:
      return epoch
    if self._precomputed is not None:
      shape = self._plan.steps_per_epoch, self._plan.batch_size
      rows = jax.device_get(order)[: math.prod(shape)]
      logits = self._precomputed[rows].reshape(*shape, -1)
    else:
      logits = self._cached(number, epoch)
    return epoch._replace(teacher_logits=devices.replicate(logits))

  def _cached(self, number: int, epoch: Epoch) -> np.ndarray:
    """Reads the teacher's logits of an epoch, or computes and keeps them."""
    replay, teacher = self._run.replay, self._teacher
    assert replay is not None
    assert teacher is not None
    first = number * self._plan.steps_per_epoch
    steps = min(self._plan.steps_per_epoch, self._plan.total_steps - first)

    def compute() -> np.ndarray:
      logits = [
        predict.predict_batch(teacher, batch)
        for batch in self._images(epoch, range(first, first + steps))
      ]
      return np.stack(jax.device_get(logits))

    # The order of the whole epoch and the pixels of a batch tell whether what
    # is kept was made from the same crops and flips of the same examples.
    seen = hashlib.sha256()
    images = self._images(epoch, range(first, first + 1))
    for array in jax.device_get((epoch.order, *images)):
      seen.update(np.ascontiguousarray(array).tobytes())
    kept = replay.epoch(number, steps, seen.hexdigest(), compute)
    logits = np.zeros((self._plan.steps_per_epoch, *kept.shape[1:]), np.float32)
    logits[:steps] = kept[:steps]
    return logits

  def _images(self, epoch: Epoch, steps: range) -> Iterator[jax.Array]:
    """Yields the images of some steps of an epoch."""
    if not self._stream:
      for step in steps:
        yield self._make_batch(self._key, step, epoch, *self._train).images
      return
    # Worker processes take longer to start than one batch to read.
    with self._open(steps, workers=0 if len(steps) == 1 else None) as batches:
      for step, batch in zip(steps, batches, strict=True):
        yield self._make_batch(self._key, step, epoch, *batch).images
