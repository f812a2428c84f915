"""Data sets of one's own, by import path and by entry point."""

import importlib
import sys

import numpy as np
import pytest
import tiny

from kdjax.data import sources
from kdjax.export import write
from kdjax.report import collect, feature_maps
from kdjax.training import final_test, train

MODULE = """
import sklearn.datasets

DIGITS = sklearn.datasets.load_digits()
IMAGES, LABELS = DIGITS.images / 16, DIGITS.target

def few():
  return {
    'train': (IMAGES[:300], LABELS[:300]),
    'val': (IMAGES[300:350], LABELS[300:350]),
    'test': (IMAGES[350:400], LABELS[350:400]),
    'class_names': list('abcdefghij'),
  }

def of_folder(data_dir):
  return {'train': (IMAGES[:100], [data_dir + str(x) for x in LABELS[:100]])}

def shifted():
  return {'train': (IMAGES, LABELS + 1)}

def unknown():
  return {'train': (IMAGES, LABELS), 'dev': (IMAGES, LABELS)}

def nothing():
  return IMAGES

def fails():
  raise KeyError('mine')
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  (tmp_path / 'my_digits.py').write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop('my_digits', None)


def test_an_import_path_is_a_data_set():
  source = sources.load('my_digits:few', None)
  assert source.class_names == tuple('abcdefghij')
  assert source.train.images.shape == (300, 8, 8, 1)
  assert source.train.images.dtype == np.uint8
  assert source.train.images.max() == 255
  assert (source.validation.size, source.test.size) == (50, 50)


def test_it_is_given_the_folder_if_it_takes_one():
  source = sources.load('my_digits:of_folder', 'x')
  assert source.class_names == tuple(f'x{digit}' for digit in range(10))
  assert 15 < source.test.size < 25


def test_a_source_may_be_returned(monkeypatch):
  source = sources.load('digits', None)
  monkeypatch.setattr('kdjax.data.sources.made', lambda: source, raising=False)
  found = sources.load('kdjax.data.sources:made', None)
  np.testing.assert_array_equal(found.train.images, source.train.images)
  wrong = source._replace(class_names=source.class_names[:9])
  monkeypatch.setattr('kdjax.data.sources.made', lambda: wrong)
  with pytest.raises(ValueError, match='go from 0 to 9: expected 0 to 8'):
    sources.load('kdjax.data.sources:made', None)
  train = source.train._replace(images=source.train.images[:, :, :, 0] / 3.0)
  wrong = source._replace(train=train)
  monkeypatch.setattr('kdjax.data.sources.made', lambda: wrong)
  with pytest.raises(ValueError, match='float64 from 0 to 85'):
    sources.load('kdjax.data.sources:made', None)


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('my_digits:none', 'cannot be imported .AttributeError'),
    ('no_such.module:load', 'cannot be imported .ModuleNotFoundError'),
    ('my_digits:fails', "cannot be loaded .KeyError: 'mine'"),
    ('my_digits:nothing', "returns ndarray: expected {'train'"),
    ('my_digits:unknown', "returns a mapping of train, dev: expected {'train'"),
    ('my_digits:shifted', 'go from 1 to 10: expected 0 to 9. Subtract 1'),
  ],
)
def test_what_is_no_data_set(name, match):
  with pytest.raises(ValueError, match=match):
    sources.load(name, None)


@pytest.mark.parametrize(
  ('name', 'is_path'),
  [
    ('mine.data:load', True),
    ('mine:Sets.load', True),
    ('cifar10', False),
    ('imagenette/320px-v2:1.0.0', False),
    ('cifar10:3.*.*', False),
  ],
)
def test_versions_are_no_import_paths(name, is_path):
  assert sources.is_import_path(name) == is_path


def test_an_entry_point_is_a_data_set(tmp_path):
  # As pip leaves it where a package is installed.
  folder = tmp_path / 'theirs-1.0.dist-info'
  folder.mkdir()
  (folder / 'METADATA').write_text('Name: theirs\nVersion: 1.0\n')
  (folder / 'entry_points.txt').write_text(
    '[kdjax.data]\ntheir_digits = my_digits:few\n'
  )
  importlib.invalidate_caches()
  assert 'their_digits' in sources.names()
  assert sources.load('their_digits', None).train.size == 300


def test_a_run_of_it_is_evaluated_reported_and_exported(tmp_path, caplog):
  config = tiny.config('scratch')
  config.train.update(epochs=1, class_weights='balanced')
  config.data.update(name='my_digits:few', stratify=True)
  workdir = tmp_path / 'run'
  result = train.train_and_evaluate(config, workdir)
  again, _ = final_test.evaluate(workdir)
  assert again == result
  assert result['data']['test'] == 50
  assert result['config']['train']['class_weights'] == 'balanced'
  comparison = collect.read([workdir])
  images, names = feature_maps.test_images(comparison.groups[0].runs[0])
  assert (images.shape, names) == ((50, 8, 8, 1), tuple('abcdefghij'))
  output = tmp_path / 'out'
  table = write.export(workdir, ['orbax'], output)
  assert 'on 50 test images' in table
  # A card from anywhere calls nothing.
  caplog.clear()
  again = tmp_path / 'again'
  assert 'of noise' in write.export(output, ['orbax'], again)
  assert 'its data are made by my_digits:few' in caplog.text
