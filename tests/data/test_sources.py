"""What the data sources read, and what they say when they cannot."""

import contextlib
import functools
import http.server
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import images as images_lib
from kdjax.data import sources, stream
from kdjax.data.sources import _cifar
from kdjax.system import plugins

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared' / 'tensorflow_datasets'

URLS = {
  'cifar10': 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
  'cifar100': 'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
}
# TFDS keeps the checksums that it is given for as long as the process lives, so
# a made archive never stands in for the real one at the real address.
NOWHERE = 'http://127.0.0.1:1/cifar-10-binary.tar.gz'


def load(name, data_dir):
  """Reads a data set of files into memory."""
  source = sources.load(name, data_dir)

  def decode(files):
    split = stream.open_split(
      files,
      np.arange(len(files)),
      like=source.train,
      image_size=0,
      unreadable='error',
    )
    decoded = list(split.batches())
    return sources.Split(
      np.concatenate([batch.images for batch in decoded]),
      np.concatenate([batch.labels for batch in decoded]),
    )

  return source._replace(
    train=decode(source.train),
    validation=source.validation and decode(source.validation),
    test=decode(source.test),
  )


# digits


def test_digits_have_the_documented_shapes_and_range():
  source = sources.load('digits', None)
  assert source.train.images.shape == (1437, 8, 8, 1)
  assert source.test.images.shape == (360, 8, 8, 1)
  assert source.validation is None
  assert source.class_names == tuple('0123456789')
  for split in (source.train, source.test):
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert split.labels.shape == split.images.shape[:1]
    assert (split.images.min(), split.images.max()) == (0, 255)


def test_digits_are_split_by_class_in_proportion():
  source = sources.load('digits', None)
  train = np.bincount(source.train.labels)
  test = np.bincount(source.test.labels)
  np.testing.assert_allclose(test, 0.2 * (train + test), atol=1)


def test_digits_are_split_the_same_way_for_ever():
  first = sources.load('digits', None)
  second = sources.load('digits', 'ignored')
  np.testing.assert_array_equal(first.train.images, second.train.images)
  np.testing.assert_array_equal(first.test.images, second.test.images)
  # Written down: the split must not follow a seed or a library's version.
  expected = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
  assert first.test.labels[:10].tolist() == expected


def test_digits_splits_share_no_scan():
  source = sources.load('digits', None)
  train = {image.tobytes() for image in source.train.images}
  assert not any(image.tobytes() in train for image in source.test.images)


# synthetic


def test_synthetic_has_the_shapes_of_cifar10():
  first = sources.load('synthetic', None)
  assert first.train.images.shape == (50_000, 32, 32, 3)
  assert first.test.images.shape == (10_000, 32, 32, 3)
  assert first.validation is None
  assert len(first.class_names) == 10
  for split in (first.train, first.test):
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert split.labels.shape == split.images.shape[:1]
    # Every value of a pixel, and every class, about as often as any other.
    values = np.bincount(split.images[:5000].ravel(), minlength=256)
    np.testing.assert_allclose(values, 5000 * 3072 / 256, rtol=0.05)
    classes = np.bincount(split.labels)
    np.testing.assert_allclose(classes, len(split.labels) / 10, rtol=0.1)
  again = sources.load('synthetic', 'ignored')
  np.testing.assert_array_equal(first.train.images, again.train.images)
  np.testing.assert_array_equal(first.test.labels, again.test.labels)


# names


def test_names_are_the_files_of_the_package():
  assert 'digits' in sources.names()
  assert 'tfds' not in sources.names()
  assert not any(name.startswith('_') for name in sources.names())


def test_a_new_file_is_a_new_data_set(monkeypatch, tmp_path):
  (tmp_path / 'brand_new.py').write_text(
    'from kdjax.data import sources\n\n\ndef load(data_dir):\n'
    '  digits = sources.load("digits", None)\n'
    '  names = data_dir, *digits.class_names[1:]\n'
    '  return digits._replace(class_names=names)\n'
  )
  monkeypatch.setattr(sources, '__path__', [*sources.__path__, str(tmp_path)])
  assert 'brand_new' in sources.names()
  try:
    assert sources.load('brand_new', 'here').class_names[0] == 'here'
    with pytest.raises(ValueError, match=r"label_column is 'x', and brand_new"):
      sources.load('brand_new', 'here', 'x')
  finally:
    sys.modules.pop('kdjax.data.sources.brand_new', None)


# CIFAR: archives in the layout of the real ones


def make_archive(name, path):
  """Writes a small archive; returns train and test as images and labels."""
  rng = np.random.default_rng(0)
  if name == 'cifar10':
    folder, classes = 'cifar-10-batches-bin', (10,)
    train = [f'data_batch_{number}.bin' for number in range(1, 6)]
    test = ['test_batch.bin']
    names = {'batches.meta.txt': [f'kind {index}' for index in range(10)]}
  else:
    folder, classes = 'cifar-100-binary', (20, 100)
    train, test = ['train.bin'], ['test.bin']
    names = {
      'coarse_label_names.txt': [f'coarse_{index}' for index in range(20)],
      'fine_label_names.txt': [f'fine_{index}' for index in range(100)],
    }
  splits, contents = {}, {'readme.html': b'not needed'}
  for split, files in (('train', train), ('test', test)):
    images, labels = [], []
    for file in files:
      pixels = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
      indices = rng.integers(0, classes, (4, len(classes)), np.uint8)
      planes = pixels.transpose(0, 3, 1, 2).reshape(4, -1)
      contents[file] = np.hstack([indices, planes]).tobytes()
      images.append(pixels)
      labels.append(indices[:, -1])
    splits[split] = np.concatenate(images), np.concatenate(labels)
  for file, lines in names.items():
    contents[file] = ('\n'.join(lines) + '\n\n').encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz') as tar:
    for file, content in contents.items():
      member = tarfile.TarInfo(f'{folder}/{file}')
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return splits


class QuietHandler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serve(folder):
  """Serves a folder over HTTP on this machine only; gives its address."""
  handler = functools.partial(QuietHandler, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}'
    finally:
      server.shutdown()
      thread.join()


def publish(monkeypatch, name, url, archive):
  """Makes the builder of `name` expect `archive` at `url`."""
  builder = _cifar.BUILDERS[name]
  layout = builder._cifar_info.fget(builder)._replace(url=url)
  monkeypatch.setattr(builder, '_cifar_info', property(lambda self: layout))
  monkeypatch.setattr(
    builder, 'url_infos', {url: checksums.compute_url_info(archive)}
  )
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')


def read_ids(name, data_dir):
  """The ids of all examples of a prepared data set, in the files' order."""
  builder = tfds.builder(name, data_dir=data_dir)
  return {
    split: [
      example['id'].decode()
      for example in builder.as_data_source(
        split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    ]
    for split in builder.info.splits
  }


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_is_downloaded_prepared_and_read(name, monkeypatch, tmp_path):
  archive = tmp_path / 'www' / pathlib.PurePath(URLS[name]).name
  splits = make_archive(name, archive)
  data_dir = str(tmp_path / 'data')
  with serve(archive.parent) as address:
    publish(monkeypatch, name, f'{address}/{archive.name}', archive)
    source = load(name, data_dir)

  ids = read_ids(name, data_dir)
  assert source.validation is None
  for split, (images, labels) in splits.items():
    found = getattr(source, split)
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int32
    assert sorted(ids[split]) == [
      f'{split}_{index:05d}' for index in range(len(labels))
    ]
    order = [int(example.removeprefix(f'{split}_')) for example in ids[split]]
    np.testing.assert_array_equal(found.images, images[order])
    np.testing.assert_array_equal(found.labels, labels[order])
  if name == 'cifar10':
    assert source.class_names == tuple(f'kind {index}' for index in range(10))
  else:
    assert source.class_names == tuple(f'fine_{index}' for index in range(100))
  # The server is gone: what was prepared is read without the network, and
  # whatever lies beside it.
  (tmp_path / 'data' / 'cifar-10-batches-py').mkdir()
  (tmp_path / 'data' / 'cifar-100-python').mkdir()
  again = load(name, data_dir)
  np.testing.assert_array_equal(again.train.images, source.train.images)


def test_cifar_is_prepared_as_tfds_names_it(monkeypatch, tmp_path):
  data_dir = tmp_path / 'data'
  archive = data_dir / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz'
  make_archive('cifar10', archive)
  publish(monkeypatch, 'cifar10', NOWHERE, archive)
  load('cifar10', str(data_dir))

  builder = tfds.builder('cifar10', data_dir=data_dir)
  theirs = tfds.builder_cls('cifar10')
  assert type(builder) is theirs
  assert builder.info.full_name == 'cifar10/3.0.2'
  assert builder.info.file_format.value == 'array_record'
  assert builder.info.splits['train'].num_examples == 20
  assert builder.info.splits['test'].num_examples == 4
  # TFDS sorts by a hash of the example's number; this is the order in which
  # these twenty come in the CIFAR-10 that TFDS has prepared.
  order = [6, 16, 19, 12, 14, 18, 5, 13, 15, 4, 10, 17, 0, 8, 3, 1, 9, 7, 11, 2]
  assert read_ids('cifar10', data_dir)['train'] == [
    f'train_{index:05d}' for index in order
  ]


def test_cifar_is_prepared_twice_at_once(monkeypatch, tmp_path):
  archive = tmp_path / 'a/downloads/manual/cifar-10-binary.tar.gz'
  make_archive('cifar10', archive)
  publish(monkeypatch, 'cifar10', NOWHERE, archive)
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  source = load('cifar10', str(tmp_path / 'a'))

  unpack = _cifar.unpack

  def overtaken(*args):
    shutil.copytree(
      tmp_path / 'a/cifar10', tmp_path / 'b/cifar10', dirs_exist_ok=True
    )
    return unpack(*args)

  monkeypatch.setattr(_cifar, 'unpack', overtaken)
  slower = load('cifar10', str(tmp_path / 'b'))
  np.testing.assert_array_equal(slower.test.images, source.test.images)
  assert [path.name for path in (tmp_path / 'b/cifar10').iterdir()] == ['3.0.2']


def test_a_failing_download_says_what_to_do_by_hand(monkeypatch, tmp_path):
  archive = tmp_path / 'elsewhere' / 'cifar-10-binary.tar.gz'
  splits = make_archive('cifar10', archive)
  data_dir = tmp_path / 'data'
  manual = data_dir / 'downloads' / 'manual' / archive.name
  (tmp_path / 'empty').mkdir()
  with serve(tmp_path / 'empty') as address:
    url = f'{address}/{archive.name}'
    publish(monkeypatch, 'cifar10', url, archive)
    with pytest.raises(FileNotFoundError, match='404') as missing:
      load('cifar10', str(data_dir))
  # The server is gone, so nothing answers.
  with pytest.raises(FileNotFoundError, match='refused') as unreachable:
    load('cifar10', str(data_dir))
  for error in (missing, unreachable):
    assert f'download {url} with a browser' in str(error.value)
    assert f'save it as {manual}' in str(error.value)
  assert not list(data_dir.glob('cifar10/*'))

  # The advice works.
  manual.parent.mkdir(parents=True)
  shutil.copy(archive, manual)
  source = load('cifar10', str(data_dir))
  assert len(source.train.labels) == len(splits['train'][1])


def truncate(path):
  path.write_bytes(path.read_bytes()[:-500])


def test_a_truncated_download_is_refused(monkeypatch, tmp_path):
  archive = tmp_path / 'www' / 'cifar-10-binary.tar.gz'
  make_archive('cifar10', archive)
  with serve(archive.parent) as address:
    url = f'{address}/{archive.name}'
    publish(monkeypatch, 'cifar10', url, archive)
    truncate(archive)
    with pytest.raises(ValueError, match='truncated') as error:
      load('cifar10', str(tmp_path / 'data'))
  assert url in str(error.value)
  assert 'by hand' in str(error.value)
  assert not list((tmp_path / 'data').glob('cifar10/*'))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_an_archive_put_by_hand_is_held_against_its_checksum(name, tmp_path):
  # Nothing is replaced here: address, checksum and folder are the real ones.
  manual = tmp_path / 'downloads/manual' / pathlib.PurePath(URLS[name]).name
  make_archive(name, manual)
  expected = f'{manual}, put there by hand, is not the published archive'
  with pytest.raises(ValueError, match=expected) as error:
    load(name, str(tmp_path))
  assert f'download {URLS[name]} with a browser' in str(error.value)


def test_an_archive_that_was_damaged_on_disk_is_refused(monkeypatch, tmp_path):
  # Its checksum is that of the damaged archive, so TFDS takes it for whole.
  manual = tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz'
  make_archive('cifar10', manual)
  truncate(manual)
  publish(monkeypatch, 'cifar10', NOWHERE, manual)
  with pytest.raises(ValueError, match=f'cannot read {manual}'):
    load('cifar10', str(tmp_path))


def test_an_archive_of_another_data_set_is_refused(monkeypatch, tmp_path):
  manual = tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz'
  make_archive('cifar100', manual)
  publish(monkeypatch, 'cifar10', NOWHERE, manual)
  with pytest.raises(ValueError, match=r'not .*data_batch_1\.bin'):
    load('cifar10', str(tmp_path))


def test_tensorflow_is_never_imported(monkeypatch, tmp_path):
  archive = tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz'
  make_archive('cifar10', archive)
  script = f"""
import sys
from tensorflow_datasets.core.download import checksums
from kdjax.data import sources
from kdjax.data.sources import _cifar
sources.load('digits', None)
archive = {str(archive)!r}
url = {URLS['cifar10']!r}
_cifar.Cifar10.url_infos = {{url: checksums.compute_url_info(archive)}}
sources.load('cifar10', {str(tmp_path)!r})
sources.load('cifar10', {str(tmp_path)!r})
try:
  sources.load('mnist', {str(tmp_path)!r})
except FileNotFoundError:
  pass
print('tensorflow' in sys.modules)
"""
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.splitlines()[-1] == 'False', result.stdout


# Other data sets of TFDS


def prepare(
  data_dir,
  *,
  shape=(6, 5, 1),
  sizes=((6, 5),),
  splits=('train', 'validation', 'test'),
  labels=(0, 1, 2, 1),
  features=None,
  keys=('picture', 'kind'),
  dtype=np.uint8,
  file_format='array_record',
):
  """Prepares a tiny data set of one's own, `tiny`; returns its arrays."""
  rng = np.random.default_rng(0)
  channels = shape[-1] or 1
  if isinstance(labels, dict):
    labels = dict.fromkeys(splits, (0, 1, 2, 1)) | labels
  else:
    labels = dict.fromkeys(splits, labels)
  arrays = {
    split: [
      rng.integers(0, 256, (*sizes[index % len(sizes)], channels), np.uint8)
      for index in range(len(labels[split]))
    ]
    for split in splits
  }
  features = features or {
    'picture': tfds.features.Image(shape=shape, dtype=dtype),
    'kind': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
  }

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.2.3')
    url_infos = None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=keys,
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
      for index, array in enumerate(arrays[split]):
        yield (
          index,
          {
            'picture': Image.fromarray(
              array.squeeze(-1) if channels == 1 else array
            ),
            'kind': labels[split][index],
          },
        )

  builder = Tiny(data_dir=str(data_dir))
  builder.download_and_prepare(
    file_format=file_format,
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return arrays, pathlib.Path(builder.data_dir)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_a_prepared_data_set_needs_no_file_of_its_own(channels, tmp_path):
  arrays, _ = prepare(tmp_path, shape=(6, 5, channels))
  source = load('tiny', str(tmp_path))
  assert source.class_names == ('ant', 'bee', 'cow')
  for split in ('train', 'validation', 'test'):
    found = getattr(source, split)
    np.testing.assert_array_equal(found.images, np.stack(arrays[split]))
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 1])


def test_large_images_are_decoded_by_several_threads(monkeypatch, tmp_path):
  monkeypatch.setattr(stream, '_CHUNK', 4)
  arrays, _ = prepare(
    tmp_path, shape=(64, 64, 3), sizes=((64, 64),), labels=[0, 1, 2] * 10
  )
  source = load('tiny', str(tmp_path))
  np.testing.assert_array_equal(source.test.images, np.stack(arrays['test']))
  np.testing.assert_array_equal(source.test.labels, [0, 1, 2] * 10)


def test_a_version_can_be_named(tmp_path):
  prepare(tmp_path)
  assert len(load('tiny:1.2.3', str(tmp_path)).train.labels) == 4


def test_home_is_expanded(monkeypatch, tmp_path):
  prepare(tmp_path / 'sets')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert len(load('tiny', '~/sets').train.labels) == 4


def test_without_test_split_validation_is_the_test(tmp_path):
  arrays, _ = prepare(tmp_path, splits=('train', 'validation'))
  source = load('tiny', str(tmp_path))
  assert source.validation is None
  np.testing.assert_array_equal(
    source.test.images, np.stack(arrays['validation'])
  )


def test_without_validation_split_there_is_none(tmp_path):
  prepare(tmp_path, splits=('train', 'test'))
  assert load('tiny', str(tmp_path)).validation is None


def test_a_test_split_without_classes_is_none(tmp_path):
  prepare(tmp_path, labels={'test': (-1, -1)})
  source = sources.load('tiny', str(tmp_path))
  assert source.validation is None
  assert source.test.name(0) == "'tiny/1.2.3' validation[0]"


def test_undeclared_sizes_are_fine_where_all_are_equal(tmp_path):
  arrays, _ = prepare(tmp_path, shape=(None, None, 1))
  source = load('tiny', str(tmp_path))
  np.testing.assert_array_equal(source.train.images, np.stack(arrays['train']))


# What cannot be used, and says so


def test_images_of_several_sizes_are_refused(tmp_path):
  prepare(tmp_path, shape=(None, None, 1), sizes=((6, 5), (7, 8)))
  expected = r'train\[1\] is 7 pixels high and 8 wide, expected 6 and 5'
  with pytest.raises(ValueError, match=expected) as error:
    load('tiny', str(tmp_path))
  assert 'config.data.image_size' in str(error.value)


def test_images_of_several_sizes_are_resized(tmp_path):
  arrays, _ = prepare(
    tmp_path, shape=(None, None, 3), sizes=((16, 9), (7, 8), (32, 32))
  )
  config = config_lib.default().data
  config.update(name='tiny', data_dir=str(tmp_path), image_size=7)
  resident = data.load(config)
  expected = np.stack(
    [
      images_lib.centre_crop(Image.fromarray(array), 7)
      for array in arrays['test']
    ]
  )
  np.testing.assert_array_equal(resident.test.images, expected)
  config.streaming = True
  streamed = data.load(config)
  assert streamed.digest == resident.digest
  with stream.eval_batches(streamed.test, batch_size=4) as loader:
    (batch,) = loader
  np.testing.assert_array_equal(batch.images, expected)
  np.testing.assert_array_equal(batch.labels, resident.test.labels)


@pytest.mark.parametrize('splits', [('train',), ('test',), ('train', 'extra')])
def test_missing_splits_are_refused(splits, tmp_path):
  prepare(tmp_path, splits=splits)
  with pytest.raises(ValueError, match='expected train and at least one'):
    load('tiny', str(tmp_path))


def test_examples_without_a_class_are_refused(tmp_path):
  prepare(tmp_path, labels=(0, -1, 2, 1))
  with pytest.raises(ValueError, match=r'train\[1\] has the label -1'):
    load('tiny', str(tmp_path))


def test_another_task_than_classification_is_refused(tmp_path):
  prepare(
    tmp_path,
    features={
      'picture': tfds.features.Image(shape=(6, 5, 1)),
      'kind': np.int64,
    },
  )
  with pytest.raises(ValueError, match='not for image classification'):
    load('tiny', str(tmp_path))


def test_a_data_set_without_supervised_keys_is_refused(tmp_path):
  prepare(tmp_path, keys=None)
  with pytest.raises(ValueError, match='found None among the features'):
    load('tiny', str(tmp_path))


@pytest.mark.parametrize(
  ('shape', 'dtype'), [((6, 5, 1), np.uint16), ((6, 5, 2), np.uint8)]
)
def test_images_of_another_kind_are_refused(shape, dtype, tmp_path):
  prepare(tmp_path, shape=shape, dtype=dtype)
  with pytest.raises(ValueError, match='expected uint8 and 1, 3 or 4 channels'):
    load('tiny', str(tmp_path))


def test_another_file_format_is_refused(tmp_path):
  _, folder = prepare(tmp_path)
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='prepared as tfrecord') as error:
    load('tiny', str(tmp_path))
  assert '--file_format=array_record' in str(error.value)


def test_a_data_set_that_is_not_prepared_says_how(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    load('mnist', str(tmp_path))
  assert str(tmp_path) in str(error.value)
  assert 'tfds build mnist --file_format=array_record' in str(error.value)


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('cifar11', 'cifar10'),
    ('digit', 'digits'),
    ('tfds', 'none'),
    ('_cifar', 'cifar'),
  ],
)
def test_an_unknown_name_lists_those_near(name, near, tmp_path):
  with pytest.raises(ValueError, match=f'unknown data set {name!r}') as error:
    load(name, str(tmp_path))
  assert near in str(error.value)


def test_a_name_that_cannot_be_one_is_unknown(tmp_path):
  with pytest.raises(ValueError, match='unknown data set'):
    load('no such data', str(tmp_path))


# The prepared CIFAR-10 beside the checkout


@pytest.mark.shared_data
def test_shared_cifar10_is_whole():
  if not (SHARED / 'cifar10').is_dir():
    pytest.skip(f'no prepared CIFAR-10 in {SHARED}')
  source = load('cifar10', str(SHARED))
  assert source.train.images.shape == (50_000, 32, 32, 3)
  assert source.test.images.shape == (10_000, 32, 32, 3)
  assert len(source.class_names) == 10
  assert source.class_names[0] == 'airplane'
  assert (np.bincount(source.train.labels) == 5_000).all()
  assert (np.bincount(source.test.labels) == 1_000).all()
  # Every image was decoded, and none twice into the same place.
  means = source.test.images.mean(axis=(1, 2, 3))
  assert means.min() > 0
  assert len(np.unique(means)) > 9_000


def test_a_data_set_of_one_class_is_refused(monkeypatch):
  split = sources.Split(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32))
  found = sources.Source(split, None, split, ('only',))
  monkeypatch.setattr(
    plugins, 'module', lambda *_: types.SimpleNamespace(load=lambda _: found)
  )
  with pytest.raises(ValueError, match='digits has one class, only: expected'):
    sources.load('digits', None)
