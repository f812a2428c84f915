"""CIFAR-10 and CIFAR-100 as pickled batches, which torchvision leaves on disk.

    data_dir/cifar-10-batches-py/   (or cifar-10-python.tar.gz)
    data_dir/cifar-100-python/      (or cifar-100-python.tar.gz)

Examples come in the order of the files, `data_batch_1` to `data_batch_5`: the
order of torchvision, and not that of TFDS.

A pickle is a program. Of what it may call, the unpickler here knows only the
few names that arrays need, and puts plain descriptions in their place: nothing
that a file names is imported or called.
"""

import io
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.sources import Source, Split, _cifar

logger = logging.getLogger('kdjax')

_CHANNELS_ROWS_COLUMNS = (3, 32, 32)
_PUBLISHED_IMAGES = {'train': 50_000, 'test': 10_000}


class _Layout(NamedTuple):
  """Where a data set is.

  Attributes:
    folder: the folder of its files.
    archive: the archive of that folder.
    train: the files of the training split, in their order.
    test: that of the test split.
    meta: that of the names of the classes.
    labels: key of the labels in a file.
    names: key of the names in theirs.
    classes: number of classes.
  """

  folder: str
  archive: str
  train: tuple[str, ...]
  test: str
  meta: str
  labels: str
  names: str
  classes: int


_LAYOUTS: Mapping[str, _Layout] = {
  'cifar10': _Layout(
    folder='cifar-10-batches-py',
    archive='cifar-10-python.tar.gz',
    train=tuple(f'data_batch_{number}' for number in range(1, 6)),
    test='test_batch',
    meta='batches.meta',
    labels='labels',
    names='label_names',
    classes=10,
  ),
  'cifar100': _Layout(
    folder='cifar-100-python',
    archive='cifar-100-python.tar.gz',
    train=('train',),
    test='test',
    meta='meta',
    labels='fine_labels',
    names='fine_label_names',
    classes=100,
  ),
}


def load(name: str, data_dir: str) -> Source | None:
  """Reads CIFAR from its batches, if they are there.

  Args:
    name: 'cifar10' or 'cifar100'; others have no batches.
    data_dir: the folder that holds theirs or the archive, or is theirs.

  Returns:
    The data set in memory, without a validation split; None if neither folder
    nor archive is there.

  Raises:
    FileNotFoundError: one of its files is missing.
    ValueError: one is damaged.
  """
  layout = _LAYOUTS.get(name)
  place = layout and _find(data_dir, layout)
  if not layout or not place:
    return None
  read = _reader(place, layout)
  splits = {}
  for split, files in (('train', layout.train), ('test', (layout.test,))):
    parts = [_decode(*read(file), layout) for file in files]
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    splits[split] = Split(images, labels)
    if len(labels) != _PUBLISHED_IMAGES[split]:
      logger.warning(
        '%s has %d images in its %s split, and as published %s has %d',
        place,
        len(labels),
        split,
        name,
        _PUBLISHED_IMAGES[split],
      )
  logger.info('%s is read from %s', name, place)
  return Source(
    splits['train'], None, splits['test'], _class_names(place, layout, read)
  )


def _find(data_dir: str, layout: _Layout) -> str | None:
  """Returns the path of the folder or else of the archive."""
  if os.path.basename(os.path.abspath(data_dir)) == layout.folder:
    return data_dir
  paths = [os.path.join(data_dir, each) for each in layout[:2]]
  return next(filter(os.path.exists, paths), None)


_Read = Callable[[str], tuple[str, Any]]


def _reader(place: str, layout: _Layout) -> _Read:
  """Returns a function that returns the path and the content of a file."""
  content: Mapping[str, bytes] = {}
  is_archive = os.path.isfile(place)
  if is_archive:
    names = [*layout.train, layout.test, layout.meta]
    content = _cifar.unpack(place, names, f'{layout.folder}/', layout.archive)

  def read(name: str) -> tuple[str, Any]:
    path = os.path.join(place, name)
    try:
      encoded = content[name] if is_archive else _bytes(path)
    except FileNotFoundError as error:
      raise FileNotFoundError(
        f'{path} is missing: {_how_to_replace(place)}'
      ) from error
    try:
      return path, _Unpickler(io.BytesIO(encoded), encoding='latin1').load()
    # A damaged pickle raises errors of many kinds.
    except Exception as error:
      raise _damaged(path, f'cannot be read ({error})') from error

  return read


def _bytes(path: str) -> bytes:
  with open(path, 'rb') as file:
    return file.read()


def _how_to_replace(place: str) -> str:
  return (
    f'delete {place} and download it again, or set config.data.data_dir to '
    'another folder'
  )


def _damaged(path: str, what: str) -> ValueError:
  return ValueError(
    f'{path} {what}, expected a file of CIFAR as published: '
    f'{_how_to_replace(os.path.dirname(path))}'
  )


class _Array:
  """What a pickle says of an array of NumPy."""

  def __init__(self, *_: Any):
    self.shape: Any = None
    self.dtype: Any = None
    self.fortran: Any = False
    self.data: Any = None

  def __setstate__(self, state: Any) -> None:
    _, self.shape, self.dtype, self.fortran, self.data = state


class _Dtype:
  """What it says of a dtype."""

  def __init__(self, name: Any, *_: Any):
    self.name = name

  def __setstate__(self, state: Any) -> None:
    pass


def _from_buffer(
  data: Any, dtype: Any, shape: Any, order: Any, *_: Any
) -> _Array:
  array = _Array()
  array.__setstate__((1, shape, dtype, order == 'F', data))
  return array


_KNOWN: Mapping[str, Callable[..., Any] | None] = {
  'numpy.ndarray': None,
  'numpy.dtype': _Dtype,
  # Python 3 writes bytes so for Python 2.
  '_codecs.encode': lambda text, _: text.encode('latin1'),
  **{
    f'numpy.{core}.{name}': function
    for core in ('core', '_core')
    for name, function in (
      ('multiarray._reconstruct', _Array),
      ('numeric._frombuffer', _from_buffer),
    )
  },
}


class _Unpickler(pickle.Unpickler):
  """Reads plain data and descriptions of arrays."""

  def find_class(self, module: str, name: str) -> Any:
    full = f'{module}.{name}'
    if full not in _KNOWN:
      raise pickle.UnpicklingError(
        f'it names {full!r}, which is no data; nothing was executed'
      )
    return _KNOWN[full]


def _items(path: str, batch: Any) -> dict[str, Any]:
  """Returns a dictionary by text, whatever Python wrote it."""
  if not isinstance(batch, dict):
    raise _damaged(path, 'holds no dictionary')
  return {
    key.decode('latin1') if isinstance(key, bytes) else str(key): value
    for key, value in batch.items()
  }


def _decode(
  path: str, batch: Any, layout: _Layout
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images, `[N, 32, 32, 3]`, and the labels of a file."""
  items = _items(path, batch)
  pixels, labels = items.get('data'), items.get(layout.labels)
  if not isinstance(labels, list) or not all(
    type(label) is int and 0 <= label < layout.classes for label in labels
  ):
    raise _damaged(
      path, f'has no list of labels from 0 to {layout.classes - 1}'
    )
  size = len(labels), int(np.prod(_CHANNELS_ROWS_COLUMNS))
  if (
    not isinstance(pixels, _Array)
    or getattr(pixels.dtype, 'name', None) not in ('u1', b'u1')
    or pixels.shape != size
    or pixels.fortran
  ):
    raise _damaged(path, f'has no array of bytes {size} in "data"')
  data = pixels.data
  data = data.encode('latin1') if isinstance(data, str) else data
  if not isinstance(data, bytes | bytearray) or len(data) != size[0] * size[1]:
    raise _damaged(path, 'is truncated')
  images = np.frombuffer(data, np.uint8).reshape(-1, *_CHANNELS_ROWS_COLUMNS)
  # All red, then all green, then all blue of an image.
  return images.transpose(0, 2, 3, 1).copy(), np.array(labels, np.int32)


def _class_names(place: str, layout: _Layout, read: _Read) -> tuple[str, ...]:
  """Reads the names of the classes; their numbers where the file is missing."""
  try:
    path, meta = read(layout.meta)
  except FileNotFoundError:
    logger.warning(
      '%s has no %s: its classes are named by numbers', place, layout.meta
    )
    return tuple(map(str, range(layout.classes)))
  names = _items(path, meta).get(layout.names)
  names = [
    name.decode('latin1') if isinstance(name, bytes) else name
    for name in (names if isinstance(names, list) else ())
  ]
  if len(names) != layout.classes or not all(
    isinstance(name, str) for name in names
  ):
    raise _damaged(path, f'has no names of {layout.classes} classes')
  return tuple(names)
