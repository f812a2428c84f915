"""Image classification data sets of TensorFlow Datasets, without TensorFlow.

Whatever TFDS has prepared in the array_record format can be read: cifar10,
cifar100, mnist, fashion_mnist and the rest of its catalogue, and data sets of
one's own that `tfds build` has prepared. The number and names of the classes,
the splits and the size of the images come from the data set. CIFAR-10 and
CIFAR-100 are downloaded and prepared at their first use, unless torchvision has
left them in the folder (see `_cifar_batches`).
"""

import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from tensorflow_datasets.core import read_only_builder, registered
from tensorflow_datasets.proto import tf_example_pb2

from kdjax.data import images, sources
from kdjax.data.sources import Source, _cifar, _cifar_batches

_FORMAT = 'array_record'


def load(name: str, data_dir: str | None) -> Source:
  """Finds a data set of TFDS.

  Args:
    name: `name[/config][:version]`, as TFDS writes it. Without a version, the
      newest that is prepared.
    data_dir: folder of the prepared data sets; None is that of TFDS,
      `~/tensorflow_datasets`.

  Returns:
    The data set. Its split `test` is the test split; where it has none, or one
    without classes, `validation` is, and there is no validation split.

  Raises:
    ValueError: the name is unknown; or the data set is not for image
      classification, has images not of 8 bits, lacks a split, or is prepared in
      another format.
    FileNotFoundError: the data set is not prepared in `data_dir`, and it is
      not CIFAR or the download of CIFAR failed.
  """
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  builder = _prepared(name, data_dir)
  if builder is None:
    # What torchvision has downloaded is as good as a download.
    batches = data_dir and _cifar_batches.load(name, data_dir)
    if batches:
      return batches
    _cifar.prepare(name, data_dir)
    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
  _check_format(name, builder)
  image_key, label_key = _keys(builder.info)
  splits = set(builder.info.splits)
  if 'train' not in splits or not splits & {'test', 'validation'}:
    raise ValueError(
      f'data set {name!r} has the splits {sorted(splits)}, expected train and '
      'at least one of test and validation. Use another data set.'
    )

  def find(split: str) -> _Records:
    files = tuple(map(os.fspath, builder.info.splits[split].filepaths))
    *size, channels = builder.info.features[image_key].shape
    return _Records(
      title=f'{builder.info.full_name!r} {split}',
      files=files,
      records=array_record_data_source.ArrayRecordDataSource(files),
      image_key=image_key,
      label_key=label_key,
      num_classes=builder.info.features[label_key].num_classes,
      channels=channels,
      shape=None if None in size else tuple(size),
    )

  tests = [split for split in ('test', 'validation') if split in splits]
  # ImageNet's test split has no classes.
  if len(tests) == 2 and find('test').is_unlabelled():
    tests.remove('test')
  return Source(
    train=find('train'),
    validation=find('validation') if len(tests) == 2 else None,
    test=find(tests[0]),
    class_names=tuple(builder.info.features[label_key].names),
  )


def _prepared(
  name: str, data_dir: str | None
) -> tfds.core.dataset_builder.DatasetBuilder | None:
  """Returns the builder of a data set; None if it can yet be prepared."""
  # From the files and not from TFDS's code, which knows one version only and
  # no data set of one's own.
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except ValueError as error:
    if name not in _cifar.BUILDERS:
      raise _explain_absence(name, data_dir, error) from error
  return None


def _check_format(
  name: str, builder: tfds.core.dataset_builder.DatasetBuilder
) -> None:
  """Checks that the files of a data set can be read without TensorFlow."""
  formats = sorted(
    file_format.value for file_format in builder.info.available_file_formats()
  )
  if _FORMAT not in formats:
    raise ValueError(
      f'data set {name!r} in {builder.data_dir} is prepared as '
      f'{", ".join(formats)}, which only TensorFlow can read; expected '
      f'{_FORMAT}. Choose another data_dir. {_how_to_prepare(name)}'
    )


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
  if image.np_dtype != np.uint8 or image.shape[-1] not in images.MODES:
    raise ValueError(
      f'data set {info.full_name!r} has images of shape {image.shape} and '
      f'type {np.dtype(image.np_dtype)}, expected uint8 and 1, 3 or 4 '
      'channels. Use another data set.'
    )
  return keys


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
  """One split, as `kdjax.data.sources.Files` has it.

  Attributes:
    title: names the split in messages.
    files: paths of its files.
    records: its serialised examples, in the files' order.
    image_key: name of the image in an example.
    label_key: name of its class.
    num_classes: number of classes.
    channels: channels of an image.
    shape: height and width, where the data set declares them. It may declare
      neither, and all its images be of one size all the same.
    labels: None: they are in its examples.
    identity: empty: names and sizes of its files tell them apart.
  """

  title: str
  files: tuple[str, ...]
  records: array_record_data_source.ArrayRecordDataSource
  image_key: str
  label_key: str
  num_classes: int
  channels: int
  shape: tuple[int, int] | None
  labels: None = None
  identity: bytes = b''

  def __len__(self) -> int:
    return len(self.records)

  def _read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yields encoded image and label."""
    # TFDS's own decoding of each example takes nearly twice as long.
    for record in self.records.__getitems__(indices):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      yield (
        feature[self.image_key].bytes_list.value[0],
        feature[self.label_key].int64_list.value[0],
      )

  def read(self, indices: Sequence[int]) -> Iterator[tuple[io.BytesIO, int]]:
    examples = self._read(indices)
    for index, (encoded, label) in zip(indices, examples, strict=True):
      if not 0 <= label < self.num_classes:
        raise ValueError(
          f'{self.name(index)} has the label {label}, expected 0 to '
          f'{self.num_classes - 1}: the split has examples without a class. '
          'Use another data set.'
        )
      yield io.BytesIO(encoded), label

  def is_unlabelled(self) -> bool:
    """Whether its first example has no class."""
    _, label = next(self._read([0]))
    return label < 0

  def name(self, index: int) -> str:
    return f'{self.title}[{index}]'

  def paths(self) -> tuple[str, Sequence[str]]:
    folder = os.path.dirname(self.files[0])
    return folder, [os.path.basename(file) for file in self.files]
