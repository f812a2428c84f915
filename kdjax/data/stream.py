"""Splits that are read and decoded while a run needs them, by grain.

What a batch holds is a function of (seed, step) and of nothing else: a run goes
on from its step alone, with any number of worker processes, and each process of
a run reads the rows of the batch that it feeds.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from kdjax.data import augment, images
from kdjax.data.images import UnreadableError
from kdjax.data.sources import Files, Split

logger = logging.getLogger('kdjax')

# Pillow decodes outside the interpreter's lock, but opens and copies inside it.
# Below this many pixels an image the threads wait for each other for longer
# than they decode: at 32×32 two threads took 1.3 times as long as one, from
# 64×64 on PNG (128×128 on JPEG) half as long.
_THREADED_PIXELS = 64 * 64
# More would hold many batches in memory; `workers` scale better.
_MOST_THREADS = 8
# Examples that a thread reads at once, where no batch says how many.
_CHUNK = 256
# Batches that a worker process has ready, beside the one it works at.
_READY = 2
# Orders of an epoch that a process remembers: threads may work at two epochs.
_EPOCHS = 2

_MAIN_GUARD = (
  'A script of your own that sets config.data.workers is imported again by '
  'each worker process: it must do its work under if __name__ == "__main__"'
)

# They reach all processes of a terminal or a job: the parent decides.
_PARENTS = signal.SIGINT, signal.SIGTERM


class Batch(NamedTuple):
  """Some examples.

  Attributes:
    images: uint8 `[batch, height, width, channels]`.
    labels: int32 `[batch]`; -1 where there is no example, because its image
      cannot be read or the split has no more.
    rows: which of the split's each one is, int64 `[batch]`; of one that stands
      in for another, its own.
    unreadable: of each image that cannot be read, which one and why.
    notes: what users should know of the images, as `kdjax.data.images.Notes`.
  """

  images: np.ndarray
  labels: np.ndarray
  rows: np.ndarray
  unreadable: tuple[str, ...]
  notes: images.Notes


class Arrays:
  """Images in memory, read as if they were files.

  Attributes:
    split: the images.
    labels: class of each.
    channels: channels of each.
    shape: height and width of each.
  """

  def __init__(self, split: Split):
    self.split = split
    self.labels = split.labels
    height, width, self.channels = split.image_shape
    self.shape = height, width

  def __len__(self) -> int:
    return self.split.size

  def read(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields images and labels."""
    for index in indices:
      yield self.split.images[index], int(self.split.labels[index])

  def name(self, index: int) -> str:
    """Says which image that is."""
    return f'image {index}'


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """A split whose examples are read when they are needed.

  Worker processes get a copy; it holds no images.

  Attributes:
    files: where the examples are.
    indices: which of them are in this split, and in which order, `[size]`.
    image_shape: height, width and channels of an image, once decoded.
    resize: whether images of any size are resized to that; otherwise they must
      have it.
    unreadable: what an image that cannot be read leads to: 'error'; 'replace'
      it by the next of the split that can; or 'omit' it.
  """

  files: Files | Arrays
  indices: np.ndarray
  image_shape: tuple[int, ...]
  resize: bool
  unreadable: str
  _named: set[str] = dataclasses.field(default_factory=set)
  _noted: set[str] = dataclasses.field(default_factory=set)

  @property
  def size(self) -> int:
    """Number of examples, with those that cannot be read."""
    return len(self.indices)

  @property
  def threads(self) -> int:
    """Number of threads that decode fastest."""
    height, width, _ = self.image_shape
    if height * width < _THREADED_PIXELS:
      return 1
    return min(os.cpu_count() or 1, _MOST_THREADS)

  def batch(
    self,
    rows: np.ndarray,
    crop: Callable[[int, Image.Image], Image.Image] | None = None,
  ) -> Batch:
    """Reads some examples.

    Args:
      rows: which ones of the split, `[batch]`.
      crop: resizes the image of a place in the batch; by default its centre is
        taken.

    Returns:
      The examples.

    Raises:
      ValueError: an image cannot be read, or none can, or one has another size
        than expected.
    """
    pixels = np.zeros((len(rows), *self.image_shape), np.uint8)
    labels = np.full(len(rows), -1, np.int32)
    found = np.array(rows, np.int64)
    unreadable: list[str] = []
    notes: images.Notes = {}

    def read(place: int, row: int, file: Any, label: int) -> bool:
      name = self.files.name(int(self.indices[row]))
      try:
        pixels[place] = self._decode(
          name, file, notes, crop and functools.partial(crop, place)
        )
      except UnreadableError as error:
        if self.unreadable == 'error':
          raise _with_remedy(error) from error
        unreadable.append(str(error))
        return False
      labels[place], found[place] = label, row
      return True

    examples = self.files.read([int(index) for index in self.indices[rows]])
    for place, (row, example) in enumerate(zip(rows, examples, strict=True)):
      if read(place, row, *example) or self.unreadable == 'omit':
        continue
      for other in (row + np.arange(1, self.size)) % self.size:
        (example,) = self.files.read([int(self.indices[other])])
        if read(place, other, *example):
          break
      else:
        raise UnreadableError(
          f'no image of the {self.size} can be read: {unreadable[0]}'
        )
    return Batch(pixels, labels, found, tuple(dict.fromkeys(unreadable)), notes)

  def batches(self, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """Reads many examples with the threads of this process.

    Args:
      rows: which ones of the split, `[N]`; all by default.

    Yields:
      The examples in their order, some hundred at once. Those that cannot be
      read are in a warning.
    """
    rows = np.arange(self.size) if rows is None else rows
    waiting = (
      rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)
    )
    with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:

      def submit(
        count: int,
      ) -> Iterator[concurrent.futures.Future[Batch]]:
        for part in itertools.islice(waiting, count):
          yield pool.submit(self.batch, part)

      # One more than there are threads keeps all of them busy. Not all parts at
      # once: a slow caller would have the whole split in memory.
      ahead = collections.deque(submit(self.threads + 1))
      try:
        while ahead:
          batch = ahead.popleft().result()
          ahead.extend(submit(1))
          self.warn(batch.unreadable, batch.notes)
          yield batch
      finally:
        pool.shutdown(cancel_futures=True)

  def warn(self, unreadable: Sequence[str], notes: images.Notes) -> None:
    """Names images that cannot be read, and says notes, each once."""
    images.warn(notes, self._noted)
    for message in unreadable:
      if message not in self._named:
        self._named.add(message)
        logger.warning(
          '%s (%d of %d images so far)', message, len(self._named), self.size
        )

  def _decode(
    self,
    name: str,
    file: Any,
    notes: images.Notes,
    crop: Callable[[Image.Image], Image.Image] | None,
  ) -> np.ndarray:
    """Returns one image, `[height, width, channels]`."""
    height, width, channels = self.image_shape
    if isinstance(file, np.ndarray):
      if not self.resize:
        return file
      image = Image.fromarray(file[..., 0] if channels == 1 else file)
    else:
      image = images.read(file, channels, name, notes)
    if self.resize:
      crop = crop or functools.partial(images.centre_crop, size=height)
      image = crop(image)
    elif image.size != (width, height):
      raise ValueError(
        f'{name} is {image.height} pixels high and {image.width} wide, '
        f'expected {height} and {width}, as declared or as the first image: '
        'images have several sizes. Set config.data.image_size'
      )
    return np.asarray(image).reshape(self.image_shape)


def open_split(
  split: Split | Files,
  indices: np.ndarray,
  *,
  like: Split | Files,
  image_size: int,
  unreadable: str,
) -> Stream:
  """Makes a stream of a split of a data set, or of a part of it.

  Args:
    split: the split.
    indices: which examples of it, in their order, `[size]`.
    like: the data set's training split, whose first image has the size of all.
    image_size: height and width to resize images to; 0 leaves them as they are.
    unreadable: as `Stream` has it.

  Returns:
    The stream.

  Raises:
    ValueError: no image tells the size.
  """
  files = Arrays(split) if isinstance(split, Split) else split
  if image_size:
    height = width = image_size
  elif isinstance(like, Split):
    height, width, _ = like.image_shape
  else:
    height, width = like.shape or _first_size(like, unreadable != 'error')
  shape = height, width, files.channels
  return Stream(files, indices, shape, image_size > 0, unreadable)


def _first_size(files: Files, skip: bool) -> tuple[int, int]:
  """Returns height and width of the first image that can be read."""
  for index in range(len(files)):
    ((file, _),) = files.read([index])
    try:
      image = images.read(file, files.channels, files.name(index))
      return image.height, image.width
    except UnreadableError as error:
      if not skip:
        raise _with_remedy(error) from error
  raise UnreadableError('no image can be read')


def _with_remedy(error: UnreadableError) -> UnreadableError:
  return UnreadableError(
    f"{error}. Remove or replace it, or set config.data.corrupt='skip'"
  )


def check_not_in_worker() -> None:
  """Checks that this is no worker process that imports the user's script.

  Raises:
    RuntimeError: it is.
  """
  # As multiprocessing itself finds it out, but only when a process is started.
  if getattr(multiprocessing.current_process(), '_inheriting', False):
    raise RuntimeError(
      f'a worker process has begun the whole script again. {_MAIN_GUARD}'
    )


class Batches:
  """Batches in their order, made ahead of time; a context manager.

  Nothing that it started is left once it is closed or collected, or the process
  ends. Where a worker process has ended by itself, it raises OSError.
  """

  def __init__(
    self,
    stream: Stream,
    load: Callable[[int], Batch],
    numbers: range,
    workers: int,
  ):
    self._stream = stream
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
    workers = min(workers, len(numbers))
    if workers:
      # grain has flags, which no command line set where kdjax is a library.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      batches = dataset.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(workers, per_worker_buffer_size=_READY),
        worker_init_fn=_begin_worker,
      )
    else:
      options = grain.ReadOptions(
        num_threads=stream.threads, prefetch_buffer_size=stream.threads + 1
      )
      batches = dataset.to_iter_dataset(options)
    # Its only reference: see `_close`.
    self._batches = [iter(batches)]
    # The first batch starts the workers.
    self._starts_workers = workers > 0
    self._close = weakref.finalize(self, _close, self._batches, workers)

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> Batch:
    if not self._batches:
      raise StopIteration
    start: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if self._starts_workers:
      start = _from_signals()
    self._starts_workers = False
    try:
      with start:
        batch = next(self._batches[0])
    except RuntimeError as error:
      # grain tells it from other errors by words only.
      if 'terminated unexpectedly' not in str(error):
        raise
      # An exception in Python, as when the user's script is run again.
      reason = (
        _MAIN_GUARD
        if str(error).partition('exit code ')[2].startswith('1.')
        else 'If nobody killed it, memory (exit code -9) or /dev/shm (-7) is '
        'full: lower config.data.workers'
      )
      raise OSError(
        f'a process that reads images has ended: {error} {reason}'
      ) from error
    self._stream.warn(batch.unreadable, batch.notes)
    # A worker's arrays lie in shared memory that goes with them.
    return batch._replace(
      images=np.array(batch.images),
      labels=np.array(batch.labels),
      rows=np.array(batch.rows),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Stops the threads or processes that make batches."""
    self._close()


def _close(batches: list[grain.DatasetIterator], workers: int) -> None:
  # Nothing of it may be left for the end of the interpreter, which grain's own
  # clean-up does not survive.
  batches.pop().close()
  if workers:
    # grain leaves their last arrays in cycles, and with them shared memory.
    gc.collect()


def train_batches(
  stream: Stream,
  key: jax.Array,
  *,
  batch_size: int,
  steps: range,
  rows: np.ndarray | None = None,
  random_resized_crop: float = 0.0,
  workers: int = 0,
) -> Batches:
  """Reads the batches of training steps, before padded crops and flips.

  They hold what `kdjax.data.augment.train_batch` takes from a split in memory.

  Args:
    stream: the training split.
    key: key of the run's data.
    batch_size: examples in the batch of a step, at most `stream.size`.
    steps: numbers of the steps in the run, without gaps.
    rows: which rows of each batch to give; all by default.
    random_resized_crop: smallest share of an image's area in a random crop; 0
      for the centre crop.
    workers: processes that read and decode; 0 for threads of this one.

  Returns:
    A batch for each step.
  """
  return Batches(
    stream,
    _TrainBatch(
      stream,
      np.asarray(jax.random.key_data(key)),
      batch_size,
      np.arange(batch_size) if rows is None else rows,
      random_resized_crop,
    ),
    steps,
    workers,
  )


def eval_batches(
  stream: Stream,
  *,
  batch_size: int,
  rows: np.ndarray | None = None,
) -> Batches:
  """Reads every example of a split once, in order.

  Args:
    stream: the split.
    batch_size: examples in a batch.
    rows: which rows of each batch to give; all by default.

  Returns:
    The batches. All are full: what the last one lacks has the label -1.
  """
  rows = np.arange(batch_size) if rows is None else rows
  return Batches(
    stream,
    _EvalBatch(stream, batch_size, rows),
    range(-(-stream.size // batch_size)),
    workers=0,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainBatch:
  """Makes the batch of a training step; worker processes get a copy."""

  stream: Stream
  key: np.ndarray
  batch_size: int
  rows: np.ndarray
  random_resized_crop: float

  def __call__(self, step: int) -> Batch:
    epoch, within = divmod(step, self.stream.size // self.batch_size)
    order = _epoch_order(self.key.tobytes(), epoch, self.stream.size)
    positions = within * self.batch_size + self.rows

    def crop(place: int, image: Image.Image) -> Image.Image:
      return images.random_resized_crop(
        image,
        self.stream.image_shape[0],
        self.random_resized_crop,
        images.crop_draws(self.key, epoch, int(positions[place])),
      )

    return self.stream.batch(
      order[positions], crop if self.random_resized_crop else None
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalBatch:
  """Makes a batch in the order of the split."""

  stream: Stream
  batch_size: int
  rows: np.ndarray

  def __call__(self, number: int) -> Batch:
    positions = number * self.batch_size + self.rows
    present = positions < self.stream.size
    # The last batch is filled with its last example, which no label counts.
    batch = self.stream.batch(np.minimum(positions, self.stream.size - 1))
    return batch._replace(
      labels=np.where(present, batch.labels, -1).astype(np.int32)
    )


@functools.lru_cache(maxsize=_EPOCHS)
def _epoch_order(key: bytes, epoch: int, size: int) -> np.ndarray:
  data_key = jax.random.wrap_key_data(jnp.array(np.frombuffer(key, np.uint32)))
  return np.asarray(augment.epoch_order(data_key, epoch, size))


@contextlib.contextmanager
def _from_signals() -> Iterator[None]:
  """Keeps signals from processes that start, until they ignore them.

  They would end those that are not yet up. The caller has them afterwards.
  """
  # It lets them through in the thread that starts it first.
  multiprocessing.resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
  """Makes a worker process one that serves its parent and nobody else."""
  del index, count
  # The accelerator is the parent's.
  jax.config.update('jax_platforms', 'cpu')
  for number in _PARENTS:
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  # After all others: what they have queued is on its way then.
  multiprocessing.util.Finalize(None, _end_at_once, exitpriority=-100)


def _end_at_once() -> None:
  """Ends this process when its work has ended without an error.

  The end of an interpreter with JAX in it may take forever, and its parent
  would wait for half a minute.
  """
  if sys.exc_info()[0] is None:
    os._exit(0)


def _end_with_parent() -> None:
  """Ends this process when its parent has ended, however that came about."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)
