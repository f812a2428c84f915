"""Image classification data sets of TensorFlow Datasets, without TensorFlow.

Whatever TFDS has prepared in the array_record format can be read: cifar10,
cifar100, mnist, fashion_mnist and the rest of its catalogue, and data sets of
one's own that `tfds build` has prepared. The number and names of the classes,
the splits and the size of the images come from the data set. CIFAR-10 and
CIFAR-100 are downloaded and prepared at their first use.
"""

import concurrent.futures
import difflib
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import read_only_builder, registered
from tensorflow_datasets.proto import tf_example_pb2

from kdjax.data import sources
from kdjax.data.sources import Source, Split, _cifar, _decoded

_FORMAT = 'array_record'
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_CHUNK = 1024
# Pillow decodes outside the interpreter's lock, but opens and copies inside it.
# Below this many pixels an image the threads wait for each other for longer
# than they decode: at 32×32 two threads took 1.3 times as long as one, from
# 64×64 on PNG (128×128 on JPEG) half as long.
_THREADED_PIXELS = 64 * 64


def load(name: str, data_dir: str | None) -> Source:
  """Reads a data set of TFDS into memory.

  Args:
    name: `name[/config][:version]`, as TFDS writes it. Without a version, the
      newest that is prepared.
    data_dir: folder of the prepared data sets; None is that of TFDS,
      `~/tensorflow_datasets`.

  Returns:
    The data set. Its split `test` is the test split; where it has none,
    `validation` is, and there is no validation split.

  Raises:
    ValueError: the name is unknown; or the data set is not for image
      classification, has images of several sizes or not of 8 bits, lacks a
      split, has examples without a class, or is prepared in another format.
    FileNotFoundError: the data set is not prepared in `data_dir`, and it is
      not CIFAR or the download of CIFAR failed.
  """
  builder = _prepared(name, data_dir)
  image_key, label_key = _keys(builder.info)
  splits = set(builder.info.splits)
  if 'train' not in splits or not splits & {'test', 'validation'}:
    raise ValueError(
      f'data set {name!r} has the splits {sorted(splits)}, expected train and '
      'at least one of test and validation. Use another data set.'
    )
  reader = _Reader(builder, image_key, label_key)
  held_out = 'test' in splits and 'validation' in splits
  return Source(
    train=reader.read('train'),
    validation=reader.read('validation') if held_out else None,
    test=reader.read('test' if 'test' in splits else 'validation'),
    class_names=tuple(builder.info.features[label_key].names),
  )


def _prepared(
  name: str, data_dir: str | None
) -> tfds.core.dataset_builder.DatasetBuilder:
  """Returns the builder of a data set whose files can be read."""
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  # From the files and not from TFDS's code, which knows one version only and
  # no data set of one's own.
  builder = None
  try:
    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
  except ValueError as error:
    if name not in _cifar.BUILDERS:
      raise _explain_absence(name, data_dir, error) from error
  if builder is None:
    _cifar.prepare(name, data_dir)
    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
  formats = sorted(
    file_format.value for file_format in builder.info.available_file_formats()
  )
  if _FORMAT not in formats:
    raise ValueError(
      f'data set {name!r} in {builder.data_dir} is prepared as '
      f'{", ".join(formats)}, which only TensorFlow can read; expected '
      f'{_FORMAT}. Choose another data_dir. {_how_to_prepare(name)}'
    )
  return builder


def _explain_absence(
  name: str, data_dir: str | None, error: ValueError
) -> Exception:
  """Says why TFDS found no files: an unknown name, or none prepared."""
  known = tfds.list_builders(with_community_datasets=False)
  dataset = re.split('[/:]', name)[0]
  if dataset not in known:
    near = difflib.get_close_matches(dataset, [*known, *sources.names()])
    return ValueError(
      f'unknown data set {name!r}. Close to it are: '
      f'{", ".join(near) or "none"}. Expected one of '
      f'{", ".join(sources.names())}, or a name of the TFDS catalogue, '
      'https://www.tensorflow.org/datasets/catalog, or a data set of your own '
      'that `tfds build` has prepared in data_dir.'
    )
  if not isinstance(error, registered.DatasetNotFoundError):
    return error
  return FileNotFoundError(
    f'data set {name!r} is not prepared in '
    f'{data_dir or tfds.core.constants.DATA_DIR}. {_how_to_prepare(name)} If '
    f'it has configurations, name one: {name}/CONFIG.'
  )


def _how_to_prepare(name: str) -> str:
  if name in _cifar.BUILDERS:
    return 'kdjax prepares it there at its first use, without TensorFlow.'
  return (
    'Preparing it needs TensorFlow, reading it does not: prepare it once where '
    f'TensorFlow is installed, with `tfds build {name} '
    f'--file_format={_FORMAT} --data_dir=DIR`, then set data_dir to DIR.'
  )


def _keys(info: tfds.core.DatasetInfo) -> tuple[str, str]:
  """Returns the names of the image feature and of the label feature."""
  keys = info.supervised_keys or ('image', 'label')
  features = info.features
  if (
    len(keys) != 2
    or not all(isinstance(key, str) and key in features for key in keys)
    or not isinstance(features[keys[0]], tfds.features.Image)
    or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    or not features[keys[1]].num_classes
  ):
    raise ValueError(
      f'data set {info.full_name!r} is not for image classification: expected '
      'supervised keys that name an Image and a ClassLabel, found '
      f'{info.supervised_keys} among the features {features}. Use another data '
      'set.'
    )
  image = features[keys[0]]
  if image.np_dtype != np.uint8 or image.shape[-1] not in _MODES:
    raise ValueError(
      f'data set {info.full_name!r} has images of shape {image.shape} and '
      f'type {np.dtype(image.np_dtype)}, expected uint8 and 1, 3 or 4 '
      'channels. Use another data set.'
    )
  return keys


class _Reader:
  """Reads the splits of one data set, whose images all have one size."""

  def __init__(
    self,
    builder: tfds.core.dataset_builder.DatasetBuilder,
    image_key: str,
    label_key: str,
  ):
    self._builder = builder
    self._image_key = image_key
    self._label_key = label_key
    self._classes = builder.info.features[label_key].num_classes
    # Height and width are None where the data set declares neither: its images
    # may yet be of one size, that of the first one.
    self._shape = tuple(builder.info.features[image_key].shape)

  def read(self, split: str) -> Split:
    """Reads one split."""
    files = self._builder.info.splits[split].filepaths
    return _decoded.keep(files, lambda: self._read(split))

  def _read(self, split: str) -> Split:
    """Decodes one split."""
    # TFDS's own decoding of each example takes nearly twice as long.
    source = self._builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    if None in self._shape:
      encoded, _ = next(self._examples(source, [0]))
      width, height = Image.open(io.BytesIO(encoded)).size
      self._shape = (height, width, self._shape[-1])
    images = np.empty((len(source), *self._shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    def decode(start: int) -> None:
      indices = range(start, min(start + _CHUNK, len(source)))
      examples = self._examples(source, indices)
      for index, (encoded, label) in zip(indices, examples, strict=True):
        if not 0 <= label < self._classes:
          raise ValueError(
            f'{self._at(split, index)} has the label {label}, expected 0 to '
            f'{self._classes - 1}: the split has examples without a class. '
            'Use another data set.'
          )
        images[index] = self._decode(encoded, split, index)
        labels[index] = label

    height, width, _ = self._shape
    small = height * width < _THREADED_PIXELS
    with concurrent.futures.ThreadPoolExecutor(
      1 if small else os.cpu_count()
    ) as pool:
      # The iteration raises what `decode` raised, and cancels the chunks left.
      for _ in pool.map(decode, range(0, len(source), _CHUNK)):
        pass
    return Split(images, labels)

  def _examples(self, source: Any, indices: Any) -> Iterator[tuple[bytes, int]]:
    """Yields encoded image and label."""
    for record in source.__getitems__(list(indices)):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      yield (
        feature[self._image_key].bytes_list.value[0],
        feature[self._label_key].int64_list.value[0],
      )

  def _decode(self, encoded: bytes, split: str, index: int) -> np.ndarray:
    """Returns one image, `[H, W, C]`."""
    height, width, channels = self._shape
    image: Image.Image = Image.open(io.BytesIO(encoded))
    if image.size != (width, height):
      raise ValueError(
        f'{self._at(split, index)} is {image.height} pixels high and '
        f'{image.width} wide, expected {height} and {width}, as declared or as '
        'the first image: kdjax needs images of one size. Use another data '
        'set, or prepare a copy of this one with its images resized.'
      )
    if image.mode != _MODES[channels]:
      image = image.convert(_MODES[channels])
    return np.frombuffer(image.tobytes(), np.uint8).reshape(self._shape)

  def _at(self, split: str, index: int) -> str:
    return f'{self._builder.info.full_name!r} {split}[{index}]'
