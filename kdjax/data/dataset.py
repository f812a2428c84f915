"""Data sets, split and ready to be put on the device."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from kdjax.data import cache, sources, stratify
from kdjax.data import images as images_lib
from kdjax.data.sources import Files, Split
from kdjax.data.stream import (
  Arrays,
  Stream,
  check_not_in_worker,
  open_split,
)
from kdjax.system import memory
from kdjax.system.logs import logger

# So many tell mean and standard deviation well enough.
_MOMENT_IMAGES = 10_000
# Such a share of images that occur twice is normal.
_FEW_COPIES = 0.01
_KEY_BYTES = 256
# So many times the images of another class are many.
_UNEQUAL = 10
# Examples whose labels are read at once.
_CHUNK = 1024
# What a seed is followed by, so that no two uses draw the same numbers.
_FRACTION_STREAM, _LABEL_STREAM, _NOISE_STREAM = range(3)


class Dataset(NamedTuple):
  """A data set for training and measuring a classifier.

  Its splits are in memory, or streams that are read while a run needs them.

  Attributes:
    name: its name.
    train: what is trained on.
    validation: what epochs and hyperparameters are chosen on; may be empty.
    test: what is measured once, at the end.
    class_names: name of each class.
    mean: mean of the training pixels scaled to 0 … 1, float32 `[channels]`.
    std: their standard deviation, float32 `[channels]`.
    digest: SHA-256 of all images and labels in their order.
    train_ids: for each example of `train` its index in the source's training
      split, before any is split off or left out, int64 `[size]`. In memory one
      that stands in for another has its own.
    test_ids: the same of `test` in the source's test split.
    num_train: examples in the source's training split, before a validation
      split is taken off.
    num_test: examples in the source's test split.
    label_changes: for each example of `train` what is added to its label,
      modulo the number of classes, before it is trained on, or -1 if it is
      trained on without its label, int32 `[size]`; None where all labels are
      used as they are. The digest does not tell.

  A set whose images are resized may be too large to be read for that. Then its
  digest is that of the names and sizes of its files and of which examples are
  in each split; its moments are those of at most 10,000 training images, evenly
  spaced and centre-cropped. All three are the same for streams.
  """

  name: str
  train: Split | Stream
  validation: Split | Stream
  test: Split | Stream
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray
  digest: str
  train_ids: np.ndarray
  test_ids: np.ndarray
  num_train: int
  num_test: int
  label_changes: np.ndarray | None = None

  @property
  def image_shape(self) -> tuple[int, ...]:
    """Height, width and channels of an image."""
    return self.train.image_shape


def load(config: ml_collections.ConfigDict) -> Dataset:
  """Loads and splits a data set.

  A set without a validation split has one taken from its training images, the
  same for every seed, so that runs can be compared.

  Args:
    config: the section `data` of a run's configuration.

  Returns:
    The data set, in host memory unless it is streamed.

  Raises:
    ValueError: the data set is unknown or unsuitable, or an image cannot be
      read, or the splits that the configuration asks for leave nothing to train
      on.
    FileNotFoundError: it is not on this machine and could not be fetched.
    RuntimeError: a worker process runs the script that started it.
  """
  check_not_in_worker()
  source = sources.load(
    config.name, config.data_dir or None, config.label_column
  )
  train, validation = _divide(config, source)
  held_out = source.train if source.validation is None else source.validation

  def stream(
    split: Split | Files, indices: np.ndarray, unreadable: str
  ) -> Stream:
    return open_split(
      split,
      indices,
      like=source.train,
      image_size=config.image_size,
      unreadable='error' if config.corrupt == 'error' else unreadable,
    )

  streams = (
    stream(source.train, train, 'replace'),
    stream(held_out, validation, 'omit'),
    stream(source.test, np.arange(_size(source.test)), 'omit'),
  )
  origins = [_origin(split) for split in streams]
  indices = [split.indices for split in streams]
  if config.streaming:
    splits: Sequence[Split | Stream] = streams
    summary = _keep('summary', origins, lambda: _summarise(streams, origins))
  else:
    splits, indices = zip(*map(_decode, streams, origins), strict=True)
    summary = _summarise(splits, origins)
  train_split, validation_split, test_split = splits
  if isinstance(train_split, Split) and isinstance(test_split, Split):
    _warn_of_copies(config.name, train_split, test_split)
  dataset = Dataset(
    config.name,
    train_split,
    validation_split,
    test_split,
    source.class_names,
    summary['mean'],
    summary['std'],
    str(summary['digest']),
    train_ids=indices[0],
    test_ids=indices[2],
    num_train=_size(source.train),
    num_test=_size(source.test),
    label_changes=_label_changes(config, source, indices[0]),
  )
  _warn_of_unequal_classes(dataset)
  return dataset


def _divide(
  config: ml_collections.ConfigDict, source: sources.Source
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses the examples to train on, and those to validate on.

  Returns:
    Indices of the former in `source.train`, and of the latter in
    `source.validation` or, where there is none, in `source.train`.
  """
  train = np.arange(_size(source.train))
  if source.validation is not None:
    validation = np.arange(_size(source.validation))
  elif config.stratify and config.validation_fraction:
    validation = stratify.choose(
      _labels(source.train, train), config.validation_fraction, [0], leave=1
    )
  else:
    count = round(len(train) * config.validation_fraction)
    validation = np.random.default_rng(0).permutation(len(train))[:count]
  if source.validation is None:
    # Sorted: the files' order is kept within each split.
    validation, train = np.sort(validation), np.setdiff1d(train, validation)
  train = _subset(config, source, train)
  if not train.size:
    raise ValueError(
      f'{config.name} has {_size(source.train)} training images, and '
      f'data.validation_fraction={config.validation_fraction} leaves none'
    )
  return train, validation


def _subset(
  config: ml_collections.ConfigDict, source: sources.Source, train: np.ndarray
) -> np.ndarray:
  """Chooses the training examples that are used, in their order."""
  if config.train_fraction < 1:
    labels = _labels(source.train, train)
    chosen = stratify.choose(
      labels, config.train_fraction, [config.subset_seed, _FRACTION_STREAM]
    )
    train = train[chosen]
  if config.train_limit:
    order = np.random.default_rng(0).permutation(len(train))
    train = train[np.sort(order[: config.train_limit])]
  return train


def _label_changes(
  config: ml_collections.ConfigDict, source: sources.Source, ids: np.ndarray
) -> np.ndarray | None:
  """Draws which labels are lost or wrong, as `Dataset.label_changes`."""
  if config.label_fraction == 1 and not config.label_noise:
    return None
  labels = _labels(source.train, ids)
  changes = np.zeros(len(ids), np.int32)
  seed = config.subset_seed
  if config.label_noise:
    rng = np.random.default_rng([seed, _NOISE_STREAM])
    wrong = rng.random(len(ids)) < config.label_noise
    # Another class, each as likely.
    others = rng.integers(1, len(source.class_names), len(ids))
    changes[wrong] = others[wrong]
  if config.label_fraction < 1:
    known = stratify.choose(
      labels, config.label_fraction, [seed, _LABEL_STREAM]
    )
    changes[np.setdiff1d(np.arange(len(ids)), known)] = -1
  return changes


def _labels(split: Split | Files | Arrays, indices: np.ndarray) -> np.ndarray:
  """Reads the labels of some examples of a source, without decoding images."""
  if split.labels is not None:
    return split.labels[indices]
  found: list[int] = []
  for first in range(0, len(indices), _CHUNK):
    chunk = [int(index) for index in indices[first : first + _CHUNK]]
    found += [label for _, label in split.read(chunk)]
  return np.array(found, np.int32)


def _size(split: Split | Files) -> int:
  return split.size if isinstance(split, Split) else len(split)


class _Origin(NamedTuple):
  """What a split is read from, known without reading it.

  Attributes:
    content: digest of names and sizes of the files, and which examples they are
      read for; the same wherever the files are.
    copy: digest of that, of where the files are and when they were changed.
    resized: whether the images are resized.
  """

  content: str
  copy: str
  resized: bool


def _origin(stream: Stream) -> _Origin | None:
  """Looks at the files of a split; None where it has none."""
  if isinstance(stream.files, Arrays):
    return None
  folder, names = stream.files.paths()
  content, copy = hashlib.sha256(), hashlib.sha256()
  for name in names:
    size = changed = -1
    # A broken link is an image that cannot be read.
    with contextlib.suppress(OSError):
      status = os.stat(os.path.join(folder, name))
      size, changed = status.st_size, status.st_mtime_ns
    # Names may be in any encoding.
    content.update(os.fsencode(name) + f'\0{size}\0'.encode())
    copy.update(f'{changed}\0'.encode())
  content.update(f'{stream.image_shape} {stream.resize}'.encode())
  content.update(stream.indices.astype('<i8').tobytes())
  content.update(stream.files.identity)
  copy.update(os.fsencode(folder))
  copy.update(f'{content.hexdigest()} {stream.unreadable}'.encode())
  return _Origin(content.hexdigest(), copy.hexdigest(), stream.resize)


def _keep(
  kind: str,
  origins: Sequence[_Origin | None],
  make: Callable[[], dict[str, np.ndarray]],
) -> Mapping[str, np.ndarray]:
  """Makes something of splits, or reads what was made of the same files."""
  copies = [origin.copy for origin in origins if origin]
  if len(copies) < len(origins):
    return make()
  return cache.load_or_make(
    [kind, f'reading {images_lib.READING}', *copies], make
  )


def in_memory(split: Split | Stream) -> Split:
  """Reads a split into memory, if it is not there.

  Args:
    split: the split.

  Returns:
    Its examples, without those that cannot be read.
  """
  if isinstance(split, Split):
    return split
  return _decode(split, _origin(split))[0]


def class_counts(dataset: Dataset, *, read: bool = True) -> np.ndarray | None:
  """Counts the training images of each class, those with a label.

  Args:
    dataset: the data set; labels are counted as they are trained on, the wrong
      ones too.
    read: whether to read the examples of a stream where nothing else tells
      their labels.

  Returns:
    The number of images, int64 `[classes]`; None where they would be read.
  """
  train = dataset.train
  if isinstance(train, Split):
    labels = train.labels
  elif read or train.files.labels is not None:
    labels = _labels(train.files, train.indices)
  else:
    return None
  classes, changes = len(dataset.class_names), dataset.label_changes
  if changes is not None:
    labels = ((labels + changes) % classes)[changes >= 0]
  return np.bincount(labels, minlength=classes)


def labels_of(split: Split | Stream, rows: np.ndarray) -> np.ndarray:
  """Returns the labels of some rows of a split; a few, for a stream is read."""
  return (
    split.labels[rows] if isinstance(split, Split) else split.batch(rows).labels
  )


def read(split: Split | Stream, rows: np.ndarray) -> Split:
  """Reads some rows of a split into memory, without those that are unreadable.

  Args:
    split: the split.
    rows: which ones of it; a few, for nothing is cached.

  Returns:
    Their images and labels.
  """
  images, labels = zip(*_examples(split, rows), strict=True)
  return Split(np.concatenate(images), np.concatenate(labels))


def _decode(stream: Stream, origin: _Origin | None) -> tuple[Split, np.ndarray]:
  """Reads a stream into memory; returns it and the indices of its examples."""
  if isinstance(stream.files, Arrays) and not stream.resize:
    split = stream.files.split
    rows = stream.indices
    return Split(split.images[rows], split.labels[rows]), rows

  def decode() -> dict[str, np.ndarray]:
    memory.check(
      stream.size * math.prod(stream.image_shape),
      f'{stream.size:,} images of {stream.image_shape[:2]} pixels in memory',
      'Set config.data.streaming=True, or lower config.data.image_size',
      host=True,
    )
    images = np.empty((stream.size, *stream.image_shape), np.uint8)
    labels = np.empty(stream.size, np.int32)
    rows = np.empty(stream.size, np.int64)
    unreadable: list[str] = []
    notes: images_lib.Notes = {}
    first = 0
    for batch in stream.batches():
      here = slice(first, first + len(batch.labels))
      images[here], labels[here] = batch.images, batch.labels
      rows[here] = batch.rows
      unreadable += batch.unreadable
      notes = {**batch.notes, **notes}
      first = here.stop
    return {
      'images': images,
      'labels': labels,
      'rows': rows,
      'unreadable': np.array(unreadable, np.str_),
      'notes': np.array([*notes.items()], np.str_).reshape(-1, 2),
    }

  arrays = _keep('decoded with rows', [origin], decode)
  stream.warn(arrays['unreadable'].tolist(), dict(arrays['notes'].tolist()))
  images, labels = arrays['images'], arrays['labels']
  ids = stream.indices[arrays['rows']]
  present = labels >= 0
  if present.all():
    return Split(images, labels), ids
  if not present.any():
    raise ValueError(
      f'none of {stream.size} images can be read: {arrays["unreadable"][0]}'
    )
  return Split(images[present], labels[present]), ids[present]


def _warn_of_copies(name: str, train: Split, test: Split) -> None:
  """Warns of test images that are trained on, and of two labels for one image.

  Pixel by pixel the same, and more of them than one in a hundred: well-known
  data sets have a few. Of splits in memory.
  """
  first: dict[bytes, int] = {}
  differing = copies = 0
  for index, key in enumerate(_keys(train.images)):
    other = first.setdefault(key, index)
    if (
      train.labels[other] != train.labels[index]
      and (train.images[other] == train.images[index]).all()
    ):
      differing += 1
  for index, key in enumerate(_keys(test.images)):
    copied = first.get(key)
    if copied is not None and (
      (train.images[copied] == test.images[index]).all()
    ):
      copies += 1
  if copies > _FEW_COPIES * test.size:
    logger.warning(
      '%d of %d test images of %s are training images, pixel by pixel: what is '
      'measured on them says little of others',
      copies,
      test.size,
      name,
    )
  if differing > _FEW_COPIES * train.size:
    logger.warning(
      '%d of %d training images of %s have the same pixels as another one of '
      'another class: are the labels those of the images?',
      differing,
      train.size,
      name,
    )


def _warn_of_unequal_classes(dataset: Dataset) -> None:
  """Warns where accuracy says little of the classes that have few images."""
  counts = class_counts(dataset, read=False)
  if counts is None or counts.max() < _UNEQUAL * counts.min():
    return
  logger.warning(
    'classes of %s are very unequal: %s has %d training images, %s %d. '
    'Accuracy says little of small classes: look at balanced accuracy and '
    "macro F1 too. config.train.class_weights='balanced' weighs classes alike",
    dataset.name,
    dataset.class_names[counts.argmax()],
    counts.max(),
    dataset.class_names[counts.argmin()],
    counts.min(),
  )


def _keys(images: np.ndarray) -> Iterator[bytes]:
  """Yields some pixels of each image, the same ones, to compare images by."""
  pixels = images.reshape(len(images), -1)
  for row in pixels[:, :: max(1, pixels.shape[1] // _KEY_BYTES)]:
    yield row.tobytes()


def _summarise(
  splits: Sequence[Split | Stream], origins: Sequence[_Origin | None]
) -> dict[str, np.ndarray]:
  """Computes mean, standard deviation and digest of a data set."""
  train, *_ = splits
  # Where the digest does not need all of them either.
  sampled = any(origin and origin.resized for origin in origins)
  count = min(_MOMENT_IMAGES, train.size) if sampled else train.size
  mean, std = _moments(train, np.arange(count) * train.size // count)
  return {
    'mean': mean,
    'std': std,
    'digest': np.array(_digest(splits, origins)),
  }


def _examples(
  split: Split | Stream, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields images and labels of some rows of a split, by default all."""
  if isinstance(split, Split):
    yield (split if rows is None else (split.images[rows], split.labels[rows]))
  else:
    for batch in split.batches(rows):
      present = batch.labels >= 0
      yield batch.images[present], batch.labels[present]


def _moments(
  split: Split | Stream, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, from exact integer sums."""
  channels = split.image_shape[-1]
  # Python's integers have no end.
  size, total, squares = 0, *np.zeros((2, channels), object)
  for images, _ in _examples(split, rows):
    pixels = images.reshape(-1, images.shape[-1])
    size += len(pixels)
    total += pixels.sum(axis=0, dtype=np.uint64).astype(object)
    squared = np.square(pixels, dtype=np.uint16)
    squares += squared.sum(axis=0, dtype=np.uint64).astype(object)
  # The variance, times the square of the number of pixels, exactly.
  spread = size * squares - total**2
  # A constant channel is only centred.
  std = [math.sqrt(value) / (255 * size) if value else 1.0 for value in spread]
  return (total / (255 * size)).astype(np.float32), np.array(std, np.float32)


def _digest(
  splits: Sequence[Split | Stream], origins: Sequence[_Origin | None]
) -> str:
  contents = [origin.content for origin in origins if origin and origin.resized]
  if contents:
    return hashlib.sha256(' '.join(contents).encode()).hexdigest()
  digest = hashlib.sha256()
  for split in splits:
    labels = []
    for images, batch_labels in _examples(split):
      digest.update(np.ascontiguousarray(images).data)
      labels.append(batch_labels)
    if labels:
      digest.update(np.concatenate(labels).data)
  return digest.hexdigest()
