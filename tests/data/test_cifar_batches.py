"""CIFAR as torchvision leaves it: what is read, and what is refused."""

import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources

SIZES = {
  'cifar10': {
    **{f'data_batch_{number}': 4 for number in range(1, 6)},
    'test_batch': 3,
  },
  'cifar100': {'train': 6, 'test': 5},
}
FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}
NAMES = {'cifar10': [f'kind {i}' for i in range(10)]}
NAMES['cifar100'] = [f'fine {i}' for i in range(100)]


def python2(value):
  """Pickles a value as Python 2 did, which published the data sets."""
  return b'\x80\x02' + encode(value) + b'.'


def encode(value):
  match value:
    case bytes():
      return b'T' + struct.pack('<i', len(value)) + value
    case int():
      return b'J' + struct.pack('<i', value)
    case list():
      return b']' + b'(' + b''.join(map(encode, value)) + b'e'
    case dict():
      items = (encode(key.encode()) + encode(value[key]) for key in value)
      return b'}' + b'(' + b''.join(items) + b'u'
  rows, columns = value.shape
  dtype = b'cnumpy\ndtype\n' + encode(b'u1') + b'K\x00K\x01\x87R'
  dtype += b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
  return (
    b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
    + (b'K\x00\x85U\x01b\x87R(K\x01' + encode(rows) + encode(columns) + b'\x86')
    + (dtype + b'\x89' + encode(value.tobytes()) + b'tb')
  )


def write(root, name, dump=python2):
  """Writes a small data set; returns images and labels of each split."""
  rng = np.random.default_rng(0)
  folder = root / FOLDERS[name]
  folder.mkdir(parents=True)
  fine = name == 'cifar100'
  splits = {'train': [], 'test': []}
  for file, size in SIZES[name].items():
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, len(NAMES[name]), size).tolist()
    batch = {
      'batch_label': b'some of them',
      'fine_labels' if fine else 'labels': labels,
      'data': images.transpose(0, 3, 1, 2).reshape(size, -1),
    }
    if fine:
      batch['coarse_labels'] = [0] * size
    (folder / file).write_bytes(dump(batch))
    splits['test' if 'test' in file else 'train'].append((images, labels))
  names = [each.encode() for each in NAMES[name]]
  meta = {'fine_label_names' if fine else 'label_names': names}
  (folder / ('meta' if fine else 'batches.meta')).write_bytes(dump(meta))
  return {
    split: tuple(map(np.concatenate, zip(*parts, strict=True)))
    for split, parts in splits.items()
  }


def check(source, expected):
  for split in ('train', 'test'):
    images, labels = expected[split]
    found = getattr(source, split)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int32
  assert source.validation is None


@pytest.mark.parametrize('name', FOLDERS)
def test_batches_are_read_in_their_order(name, tmp_path, caplog):
  expected = write(tmp_path, name)
  source = sources.load(name, str(tmp_path))
  check(source, expected)
  assert source.class_names == tuple(NAMES[name])
  count = len(expected['train'][1])
  assert f'has {count} images in its train split, and as pub' in caplog.text
  # The folder itself.
  check(sources.load(name, str(tmp_path / FOLDERS[name])), expected)


def bytes_keys(batch):
  return {key.encode(): value for key, value in batch.items()}


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('keys', [dict, bytes_keys])
def test_batches_that_python_3_wrote_are_read(protocol, keys, tmp_path):
  expected = write(
    tmp_path, 'cifar10', lambda batch: pickle.dumps(keys(batch), protocol)
  )
  source = sources.load('cifar10', str(tmp_path))
  check(source, expected)
  assert source.class_names == tuple(NAMES['cifar10'])


def test_the_archive_is_read_where_there_is_no_folder(tmp_path):
  expected = write(tmp_path / 'unpacked', 'cifar10')
  with tarfile.open(tmp_path / 'cifar-10-python.tar.gz', 'w:gz') as tar:
    tar.add(tmp_path / 'unpacked/cifar-10-batches-py', 'cifar-10-batches-py')
  check(sources.load('cifar10', str(tmp_path)), expected)


def test_moments_and_validation_are_as_of_other_data(tmp_path):
  write(tmp_path, 'cifar10')
  config = config_lib.default().data
  config.update(name='cifar10', data_dir=str(tmp_path), validation_fraction=0.2)
  dataset = data.load(config)
  assert (dataset.train.size, dataset.validation.size) == (16, 4)
  np.testing.assert_allclose(
    dataset.mean, dataset.train.images.mean((0, 1, 2)) / 255, rtol=1e-5
  )


def test_without_the_names_classes_have_numbers(tmp_path, caplog):
  write(tmp_path, 'cifar10')
  (tmp_path / 'cifar-10-batches-py/batches.meta').unlink()
  assert sources.load('cifar10', str(tmp_path)).class_names[9] == '9'
  assert 'has no batches.meta' in caplog.text


def array(**fields):
  return {'labels': [0], 'data': np.zeros((1, 3072), np.uint8)} | fields


class Evil:
  def __reduce__(self):
    return os.mkdir, ('executed',)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'is missing: delete .*-py and download it again'),
    (b'', r'cannot be read \(Ran out of input\)'),
    (python2(array())[:-100], 'cannot be read'),
    (b'<html>not found</html>', 'cannot be read'),
    (pickle.dumps(Evil()), "'posix.mkdir', which is no data; nothing was exec"),
    (pickle.dumps({'data': np.ndarray}), 'has no list of labels'),
    (pickle.dumps([]), 'holds no dictionary'),
    (python2({'labels': [0]}), r'no array of bytes \(1, 3072\)'),
    (python2(array(labels=[10])), 'no list of labels from 0 to 9'),
    (python2(array(labels=[0, 1])), r'no array of bytes \(2, 3072\)'),
    (pickle.dumps(array(data=np.zeros((1, 3072)))), 'no array of bytes'),
  ],
)
def test_a_damaged_batch_is_named(content, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path, 'cifar10')
  path = tmp_path / 'cifar-10-batches-py/data_batch_3'
  path.unlink() if content is None else path.write_bytes(content)
  with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
    sources.load('cifar10', str(tmp_path))
  assert str(path) in str(error.value)
  assert not (tmp_path / 'executed').exists()


def test_a_truncated_array_is_named(tmp_path):
  write(tmp_path, 'cifar10')
  path = tmp_path / 'cifar-10-batches-py/test_batch'
  content = path.read_bytes()
  head, tail = content.split(b'\x89T' + struct.pack('<i', 3 * 3072))
  path.write_bytes(
    head + b'\x89T' + struct.pack('<i', 3000) + tail[:3000] + tail[3 * 3072 :]
  )
  with pytest.raises(ValueError, match='test_batch is truncated'):
    sources.load('cifar10', str(tmp_path))
