"""Parquet, and what Hugging Face datasets saves."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources

pa = pytest.importorskip('pyarrow', reason='needs the extra "parquet"')
pq = pytest.importorskip('pyarrow.parquet')

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), np.uint8)
LABELS = np.arange(24) % 3


def load(path, *options):
  return sources.load('parquet', str(path), *options)


def encoded(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'png')
  return file.getvalue()


def table(rows, label=None, features=None, plain=False, **columns):
  """A table as datasets writes it; without `features` as others do."""
  values = [encoded(PIXELS[row]) for row in rows]
  if not plain:
    values = [{'bytes': value, 'path': 'x.png'} for value in values]
  label = LABELS[rows] if label is None else label
  made = pa.table({'image': values, 'label': pa.array(label), **columns})
  if features:
    info = json.dumps({'info': {'features': features}})
    made = made.replace_schema_metadata({'huggingface': info})
  return made


NAMED = {
  'image': {'_type': 'Image'},
  'label': {'_type': 'ClassLabel', 'names': ['ant', 'bee', 'cow']},
}


def read(split):
  """Decodes a split, as `data.load` does."""
  config = config_lib.default().data
  stream = data.stream.open_split(
    split,
    np.arange(len(split)),
    like=split,
    image_size=config.image_size,
    unreadable='error',
  )
  return stream.batch(np.arange(len(split)))


def test_a_file_or_more_for_each_split(tmp_path):
  (tmp_path / 'data').mkdir()
  for name, rows in {
    'train-00000-of-00002.parquet': range(0, 10),
    'train-00001-of-00002.parquet': range(10, 18),
    'validation.parquet': range(18, 21),
    'test-00000.parquet': range(21, 24),
  }.items():
    made = table(list(rows), features=NAMED)
    pq.write_table(made, tmp_path / 'data' / name, row_group_size=4)
  source = load(tmp_path)
  assert source.class_names == ('ant', 'bee', 'cow')
  # A worker process gets a copy, and opens the files by itself.
  batch = read(pickle.loads(pickle.dumps(source.train)))
  np.testing.assert_array_equal(batch.images, PIXELS[:18])
  np.testing.assert_array_equal(batch.labels, LABELS[:18])
  np.testing.assert_array_equal(read(source.test).images, PIXELS[21:])
  np.testing.assert_array_equal(read(source.validation).images, PIXELS[18:21])


@pytest.mark.parametrize('opened', [pa.ipc.new_stream, pa.ipc.new_file])
def test_what_is_saved_to_disk(tmp_path, opened):
  for split, rows in (('train', range(20)), ('test', range(20, 24))):
    folder = tmp_path / split
    folder.mkdir()
    made = table(list(rows), features=NAMED)
    name = 'data-00000-of-00001.arrow'
    # A cache beside it is no data.
    for file in (name, 'cache-1.arrow'):
      with opened(folder / file, made.schema) as writer:
        writer.write_table(made, max_chunksize=6)
    (folder / 'state.json').write_text(
      json.dumps({'_data_files': [{'filename': name}]})
    )
  source = load(tmp_path)
  np.testing.assert_array_equal(read(source.train).images, PIXELS[:20])
  np.testing.assert_array_equal(read(source.test).labels, LABELS[20:])


def test_one_plain_file_with_labels_that_are_text(tmp_path):
  labels = pa.array(np.array(['b', 'a', 'c'])[LABELS]).dictionary_encode()
  path = tmp_path / 'all.parquet'
  pq.write_table(table(list(range(24)), labels, plain=True), path)
  source = load(path)
  assert source.class_names == ('a', 'b', 'c')
  assert sorted(source.test.labels) == [0, 0, 1, 1, 2, 2]
  batch = read(source.train)
  np.testing.assert_array_equal(batch.images, PIXELS[source.train.rows])
  expected = np.array([1, 0, 2])[LABELS]
  np.testing.assert_array_equal(batch.labels, expected[source.train.rows])


def test_a_data_set_of_it_is_the_same_as_a_stream(tmp_path):
  path = tmp_path / 'train.parquet'
  # Of the same size whatever is in it.
  plain = {'compression': 'none', 'use_dictionary': False}
  for file in (path, tmp_path / 'test.parquet'):
    pq.write_table(table(list(range(24))), file, **plain)
  config = config_lib.default().data
  config.update(name='parquet', data_dir=str(tmp_path), image_size=4)
  memory = data.load(config)
  config.streaming = True
  stream = data.load(config)
  assert stream.digest == memory.digest
  np.testing.assert_array_equal(
    stream.train.batch(np.arange(6)).images, memory.train.images[:6]
  )
  # Of resized images the digest is that of names, sizes, rows and labels.
  size = path.stat().st_size
  pq.write_table(table(list(range(24)), LABELS[::-1].copy()), path, **plain)
  assert path.stat().st_size == size
  assert data.load(config).digest != stream.digest


def test_a_test_split_without_labels_is_left_out(tmp_path, caplog):
  pq.write_table(table(list(range(20))), tmp_path / 'train.parquet')
  hidden = table(list(range(20, 24)), np.full(4, -1))
  pq.write_table(hidden, tmp_path / 'test.parquet')
  assert len(load(tmp_path).test) == 3
  assert 'test of' in caplog.text
  assert 'has no labels, and is not read' in caplog.text


def test_columns(tmp_path):
  path = tmp_path / 'all.parquet'

  def refused(made, match, *options):
    pq.write_table(made, path)
    with pytest.raises(ValueError, match=match):
      load(path, *options)

  rows = list(range(24))
  other = {'fine': {'_type': 'ClassLabel', 'names': list('abcdefgh')}}
  fine = table(rows, fine=pa.array(np.arange(24) % 8), features=NAMED | other)
  pq.write_table(fine, path)
  assert load(path).class_names == ('ant', 'bee', 'cow')
  assert load(path, 'fine').class_names == tuple('abcdefgh')
  refused(fine, 'columns image, label, fine: expected one of labels', 'coarse')
  refused(fine.drop(['image']), 'of the bytes of encoded images, found none')
  refused(table(rows, LABELS + 1), 'go from 1 to 3: expected 0 to 2. Subtract')
  refused(table(rows, [None, *LABELS[1:]]), 'column label has no label in 1 r')


def test_files_that_are_damaged_or_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no such files'):
    load(tmp_path)
  for name in ('train.parquet', 'train.arrow'):
    (tmp_path / name).write_bytes(b'damaged')
    with pytest.raises(ValueError, match=f'{name} cannot be read'):
      load(tmp_path / name)


def test_an_image_that_is_none_is_named(tmp_path):
  made = table(list(range(24)))
  images = made.column('image').to_pylist()
  images[0] = None
  made = made.set_column(0, 'image', pa.array(images))
  pq.write_table(made, tmp_path / 'train.parquet')
  pq.write_table(made, tmp_path / 'test.parquet')
  with pytest.raises(ValueError, match=r'train\.parquet, row 0: it is empty'):
    read(load(tmp_path).train)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow.ipc', None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'kdjax\[parquet"):
    load(tmp_path)
