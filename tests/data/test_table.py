"""Tables of paths and labels: what is read, and what is refused."""

import csv

import folder
import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources


def load(path, *options):
  return sources.load('table', str(path), *options)


def write(path, rows, header=('path', 'label'), delimiter=','):
  """Writes a table."""
  with path.open('w', newline='') as file:
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])
  return path


def images(tmp_path, split, count=4):
  """Writes images; returns the rows of their table."""
  folder.write(tmp_path, splits=(split,), count=count)
  return [
    (f'{split}/{name}/{index:03d}.jpg', name)
    for index in range(count)
    for name in folder.CLASSES
  ]


def refused(path, match, kind=ValueError, options=()):
  with pytest.raises(kind, match=match):
    load(path, *options)


def test_a_table_for_each_split(tmp_path):
  for split, file in (('a', 'Train.csv'), ('b', 'val.csv'), ('c', 'test.csv')):
    write(tmp_path / file, images(tmp_path, split))
  source = load(tmp_path)
  assert source.class_names == folder.CLASSES
  assert source.train.labels.tolist() == [0, 1, 2] * 4
  assert list(source.train.read([4])) == [(f'{tmp_path}/a/bee/001.jpg', 1)]
  assert source.validation.name(0) == f'{tmp_path}/b/ant/000.jpg'
  assert source.test.name(0) == f'{tmp_path}/c/ant/000.jpg'


@pytest.mark.parametrize('delimiter', ',;\t')
def test_a_column_may_tell_the_split(tmp_path, delimiter):
  rows = images(tmp_path, 'a')
  splits = ['train'] * 9 + ['test'] * 3
  path = write(
    tmp_path / 'all.tsv',
    [(*row, split) for row, split in zip(rows, splits, strict=True)],
    ('\ufeffFile_Name', 'Category', 'split'),
    delimiter,
  )
  source = load(path)
  assert (len(source.train), len(source.test)) == (9, 3)
  assert source.validation is None


def test_a_fifth_is_held_out_of_one_table_and_labels_are_text(tmp_path):
  rows = [
    (path, {'ant': 10, 'bee': 9, 'cow': 1}[name])
    for path, name in images(tmp_path, 'a', count=5)
  ]
  source = load(write(tmp_path / 'labels.csv', rows))
  assert source.class_names == ('1', '9', '10')
  assert sorted(source.test.labels) == [0, 1, 2]
  assert len(source.train) == 12


def test_a_column_of_labels_can_be_chosen(tmp_path):
  rows = [(*row, 'xy'[i % 2]) for i, row in enumerate(images(tmp_path, 'a'))]
  path = write(tmp_path / 'a.csv', rows, ('path', 'label', 'Other'))
  assert load(path, 'other').class_names == ('x', 'y')
  config = config_lib.default().data
  config.update(name='table', data_dir=str(path), label_column='other')
  config.update(image_size=8, validation_fraction=0.0)
  assert data.load(config).class_names == ('x', 'y')
  refused(
    path, 'columns path, label, other: expected .*of size', options=('size',)
  )


def test_relabelling_changes_the_digest_of_resized_images(tmp_path):
  rows = images(tmp_path, 'a', count=5)
  path = write(tmp_path / 'train.csv', rows)
  write(tmp_path / 'test.csv', rows)
  config = config_lib.default().data
  config.update(name='table', data_dir=str(tmp_path), image_size=8)
  first = data.load(config)
  swapped = {'ant': 'bee', 'bee': 'ant', 'cow': 'cow'}
  write(path, [(image, swapped[name]) for image, name in rows])
  second = data.load(config)
  assert second.digest != first.digest
  assert set(second.train.labels) == {0, 1, 2}
  config.streaming = True
  stream = data.load(config)
  assert stream.digest == second.digest
  np.testing.assert_array_equal(
    stream.train.batch(np.arange(5)).labels, second.train.labels[:5]
  )


def test_wrong_tables(tmp_path):
  rows = images(tmp_path, 'a')
  path = tmp_path / 'a.csv'
  write(path, rows, ('name', 'label'))
  refused(path, 'has the columns name, label: expected exactly one of path')
  write(path, rows, rows[0])
  refused(path, 'has the columns a/ant/000.jpg, ant')
  write(path, [*rows, ('a/x.jpg',)])
  refused(path, r"a\.csv, row 14, is 'a/x\.jpg': expected 2 columns")
  write(path, [*rows, ('a/x.jpg', '')])
  refused(path, 'row 14, .* with a path and a label')
  write(path, [(*row, 'dev') for row in rows], ('path', 'label', 'split'))
  refused(path, "row 2, has the split 'dev': expected train")
  write(path, [(row[0][2:], row[1]) for row in rows])
  refused(path, 'names .*/ant/000.jpg, which is not there', FileNotFoundError)
  write(path, [])
  refused(path, 'no line but the first')
  path.write_bytes(b'')
  refused(path, 'a.csv is empty')
  path.write_bytes(b'path,label\na,\xff')
  refused(path, 'save it as CSV in UTF-8')


def test_wrong_folders_of_tables(tmp_path):
  refused(tmp_path, 'holds no table', FileNotFoundError)
  rows = images(tmp_path, 'a')
  write(tmp_path / 'train.csv', rows)
  write(tmp_path / 'test.csv', [(path, name + 's') for path, name in rows])
  refused(tmp_path, r'not among those of train \(ant, .*: ants, bees, cows')
  write(tmp_path / 'test.tsv', rows)
  refused(tmp_path, r'has both test\.csv and test\.tsv')
