"""Folders of images: what is read, in which order, and what is refused."""

import os
import shutil

import folder
import pytest

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources


def load(root):
  return sources.load('image_folder', str(root))


def test_classes_and_files_are_sorted(tmp_path):
  source = load(folder.write(tmp_path, count=2))
  assert source.class_names == ('ant', 'bee', 'cow')
  names = [source.train.name(index) for index in range(6)]
  assert names == [
    f'{tmp_path}/train/{name}/{file}.jpg'
    for name in source.class_names
    for file in ('000', '001')
  ]
  examples = list(source.train.read(range(6)))
  assert examples == list(zip(names, [0, 0, 1, 1, 2, 2], strict=True))
  assert source.validation.name(0) == f'{tmp_path}/validation/ant/000.jpg'
  assert source.test.name(0) == f'{tmp_path}/test/ant/000.jpg'


def test_validation_may_be_called_val(tmp_path):
  source = load(folder.write(tmp_path, splits=('train', 'val', 'test')))
  assert '/val/' in source.validation.name(0)


@pytest.mark.parametrize('name', ['validation', 'val'])
def test_without_test_folder_validation_is_the_test(name, tmp_path):
  source = load(folder.write(tmp_path, splits=('train', name)))
  assert source.validation is None
  assert f'/{name}/' in source.test.name(0)


def test_without_validation_folder_there_is_none(tmp_path):
  source = load(folder.write(tmp_path, splits=('train', 'test')))
  assert source.validation is None
  assert '/test/' in source.test.name(0)


def test_hidden_files_and_other_cases_are_fine(tmp_path):
  folder.write(tmp_path, count=1)
  (tmp_path / '.git').mkdir()
  (tmp_path / 'train' / '.DS_Store').touch()
  (tmp_path / 'train/ant/.thumbs').touch()
  os.rename(tmp_path / 'train/ant/000.jpg', tmp_path / 'train/ant/Ä 0.JPEG')
  source = load(tmp_path)
  assert len(source.train) == 3
  assert source.train.name(0) == f'{tmp_path}/train/ant/Ä 0.JPEG'


# What cannot be used, and says so


def refused(root, kind, match):
  with pytest.raises(kind, match=match) as error:
    load(root)
  return str(error.value)


def test_no_folder_is_given():
  with pytest.raises(ValueError, match=r'set config\.data\.data_dir') as error:
    sources.load('image_folder', None)
  assert 'train/CLASS' in str(error.value)


def test_no_such_folder(tmp_path):
  message = refused(tmp_path / 'none', FileNotFoundError, 'there is no folder')
  assert f'{tmp_path}/none' in message
  assert 'train/CLASS' in message


@pytest.mark.parametrize('splits', [(), ('train',), ('test', 'val')])
def test_missing_splits(splits, tmp_path):
  folder.write(tmp_path, splits=splits)
  message = refused(
    tmp_path, FileNotFoundError, f'holds {", ".join(splits) or "nothing"}'
  )
  assert 'train/CLASS' in message


def test_two_validations(tmp_path):
  folder.write(tmp_path, splits=('train', 'val', 'validation'))
  refused(tmp_path, ValueError, 'both validation and val')


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_other_classes_in_another_split(split, tmp_path):
  folder.write(tmp_path)
  os.rename(tmp_path / split / 'bee', tmp_path / split / 'wasp')
  refused(
    tmp_path,
    ValueError,
    f'{tmp_path}/{split} has other classes .* missing: bee; only there: wasp',
  )


def test_an_empty_class(tmp_path):
  folder.write(tmp_path)
  shutil.rmtree(tmp_path / 'validation/bee')
  (tmp_path / 'validation/bee').mkdir()
  refused(tmp_path, ValueError, f'{tmp_path}/validation/bee has no images')


def test_an_empty_split(tmp_path):
  folder.write(tmp_path, splits=('train',))
  (tmp_path / 'test').mkdir()
  refused(tmp_path, ValueError, f'{tmp_path}/test is empty')


@pytest.mark.parametrize('name', ['notes.txt', 'more', 'list.jpg.csv'])
def test_a_file_that_is_no_image(name, tmp_path):
  folder.write(tmp_path)
  path = tmp_path / 'test/cow' / name
  path.touch() if '.' in name else path.mkdir()
  refused(tmp_path, ValueError, f'{path} is not an image')


def test_images_without_a_class(tmp_path):
  folder.write(tmp_path)
  (tmp_path / 'train/000.jpg').touch()
  refused(tmp_path, ValueError, f'{tmp_path}/train/000.jpg is a file among')


def test_names_may_have_any_encoding(tmp_path):
  folder.write(tmp_path)
  image = next((tmp_path / 'train').rglob('*.jpg'))
  image.rename(image.with_name(os.fsdecode(b'\xe9t\xe9.jpg')))
  config = config_lib.default().data
  config.update(name='image_folder', data_dir=str(tmp_path), image_size=8)
  assert data.load(config).train.size
