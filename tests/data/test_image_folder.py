"""Folders of images: what is read, in which order, and what is refused."""

import os
import shutil

import folder
import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize('name', ['val', 'valid', 'Validation'])
def test_validation_has_several_names(name, tmp_path):
  source = load(folder.write(tmp_path, splits=('Train', name, 'TEST')))
  assert f'/{name}/' in source.validation.name(0)
  assert '/TEST/' in source.test.name(0)


@pytest.mark.parametrize('name', ['validation', 'valid'])
def test_without_test_folder_validation_is_the_test(name, tmp_path):
  source = load(folder.write(tmp_path, splits=('train', name)))
  assert source.validation is None
  assert f'/{name}/' in source.test.name(0)


def test_without_validation_folder_there_is_none(tmp_path):
  source = load(folder.write(tmp_path, splits=('train', 'test')))
  assert source.validation is None
  assert '/test/' in source.test.name(0)


def test_folders_of_classes_alone_are_divided(tmp_path, caplog):
  caplog.set_level('INFO')
  folder.write(tmp_path, splits=('.',), count=10)
  source = load(tmp_path)
  assert source.class_names == folder.CLASSES
  assert source.validation is None
  assert source.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
  assert source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
  names = [
    split.name(index)
    for split in (source.train, source.test)
    for index in range(len(split))
  ]
  assert sorted(names) == sorted(map(str, tmp_path.rglob('*.jpg')))
  assert 'its 3 folders are classes' in caplog.text
  assert 'no test split: 6 of its 30 images, a fifth of each' in caplog.text
  np.testing.assert_array_equal(load(tmp_path).test.files, source.test.files)
  # A class of trains is no split.
  (tmp_path / 'bee').rename(tmp_path / 'train')
  assert load(tmp_path).class_names == ('ant', 'cow', 'train')


@pytest.mark.parametrize('name', ['train', 'Training'])
def test_a_test_split_is_held_out_of_train_alone(name, tmp_path):
  source = load(folder.write(tmp_path, splits=(name,), count=5))
  assert source.validation is None
  assert source.test.labels.tolist() == [0, 1, 2]
  assert source.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_one_image_a_class_leaves_nothing_to_hold_out(tmp_path):
  folder.write(tmp_path, splits=('train',), count=1)
  refused(tmp_path, ValueError, 'no test split, and only one image of each')


def test_what_is_held_out_changes_the_digest(tmp_path):
  """Of images that are resized only names and sizes are digested."""
  config = config_lib.default().data
  folder.write(tmp_path, splits=('.',), count=5, size=9)
  config.update(name='image_folder', data_dir=str(tmp_path), image_size=8)
  first = data.load(config)
  assert first.digest == data.load(config).digest
  for name in folder.CLASSES:
    (tmp_path / name / '004.jpg').rename(tmp_path / name / '005.jpg')
  assert data.load(config).digest != first.digest


def test_hidden_files_system_files_and_other_cases_are_fine(tmp_path):
  folder.write(tmp_path, count=1)
  (tmp_path / '.git').mkdir()
  (tmp_path / '__MACOSX/train').mkdir(parents=True)
  for name in ('.DS_Store', 'Thumbs.db', 'desktop.ini'):
    (tmp_path / 'train' / name).touch()
    (tmp_path / 'train/ant' / name).touch()
  (tmp_path / 'train/ant/._000.jpg').touch()
  for name in ('.ipynb_checkpoints', '@eaDir'):
    (tmp_path / 'train/ant' / name).mkdir()
    shutil.copy(
      tmp_path / 'train/ant/000.jpg', tmp_path / 'train/ant' / name / '0.jpg'
    )
  os.rename(tmp_path / 'train/ant/000.jpg', tmp_path / 'train/ant/Ä 0\n.JPEG')
  source = load(tmp_path)
  assert source.class_names == folder.CLASSES
  assert len(source.train) == 3
  assert source.train.name(0) == f'{tmp_path}/train/ant/Ä 0\n.JPEG'


def test_every_kind_of_file_is_an_image(tmp_path):
  folder.write(tmp_path, count=1)
  image = Image.new('RGB', (9, 9), 'red')
  kinds = {'tif', 'TIFF', 'ppm', 'pnm', 'gif', 'jfif', 'jpe', 'webp', 'bmp'}
  for kind in kinds:
    image.save(tmp_path / f'train/ant/1.{kind}')
  image.convert('L').save(tmp_path / 'train/ant/1.pgm')
  image.convert('1').save(tmp_path / 'train/ant/1.pbm')
  config = config_lib.default().data
  config.update(name='image_folder', data_dir=str(tmp_path), image_size=8)
  dataset = data.load(config)
  assert dataset.train.size == 3 + len(kinds) + 2
  assert dataset.train.labels.tolist() == [0] * 12 + [1, 2]


def test_folders_in_a_class_are_read_after_its_own_files(tmp_path, caplog):
  caplog.set_level('INFO')
  folder.write(tmp_path, count=2)
  for name in ('000 b', '000 a/deep', 'empty'):
    (tmp_path / 'train/bee' / name).mkdir(parents=True)
  # A class may be a link, and may hold one.
  os.rename(tmp_path / 'train/ant', tmp_path / 'elsewhere.d')
  (tmp_path / 'train/ant').symlink_to(tmp_path / 'elsewhere.d')
  (tmp_path / 'train/bee/link').symlink_to(tmp_path / 'test/bee')
  for name in ('000 b/2.jpg', '000 a/deep/1.jpg', '000 a/3.jpg'):
    shutil.copy(tmp_path / 'test/bee/000.jpg', tmp_path / 'train/bee' / name)
  train = load(tmp_path).train
  root = f'{tmp_path}/train/'
  names = [train.name(i).removeprefix(root) for i in range(len(train))]
  assert names == [
    *('ant/000.jpg', 'ant/001.jpg', 'bee/000.jpg', 'bee/001.jpg'),
    *('bee/000 a/3.jpg', 'bee/000 a/deep/1.jpg', 'bee/000 b/2.jpg'),
    *('bee/link/000.jpg', 'bee/link/001.jpg', 'cow/000.jpg', 'cow/001.jpg'),
  ]
  assert train.labels.tolist() == [0] * 2 + [1] * 7 + [2] * 2
  assert '5 of 11 images are in folders within' in caplog.text


def test_folders_that_are_no_splits_are_named(tmp_path, caplog):
  folder.write(tmp_path, splits=('train', 'test', 'unlabeled', 'extra'))
  load(tmp_path)
  assert 'not read: extra, unlabeled' in caplog.text


def test_names_of_classes_that_only_look_alike_are_the_same(tmp_path, caplog):
  folder.write(tmp_path)
  os.rename(tmp_path / 'train/bee', tmp_path / 'train/b\u00e9')
  os.rename(tmp_path / 'validation/bee', tmp_path / 'validation/be\u0301')
  os.rename(tmp_path / 'test/bee', tmp_path / 'test/B\u00c9')
  source = load(tmp_path)
  assert source.class_names == ('ant', 'b\u00e9', 'cow')
  assert '/be\u0301/' in source.validation.name(4)
  assert '/B\u00c9/' in source.test.name(4)
  assert r"'be\u0301' for 'b\xe9'" in caplog.text
  assert r"'B\xc9' for 'b\xe9'" in caplog.text


def test_classes_may_differ_by_case_where_all_splits_do(tmp_path, caplog):
  folder.write(tmp_path)
  for split in ('train', 'validation', 'test'):
    os.rename(tmp_path / split / 'cow', tmp_path / split / 'ANT')
  assert load(tmp_path).class_names == ('ANT', 'ant', 'bee')
  assert 'ANT and ant, which differ by case only' in caplog.text
  os.rename(tmp_path / 'test/ANT', tmp_path / 'test/Ant')
  # Which of the two is meant?
  assert load(tmp_path).test.name(0).endswith('/Ant/000.jpg')
  os.rename(tmp_path / 'test/ant', tmp_path / 'test/aNt')
  refused(tmp_path, ValueError, 'missing: ANT, ant; only there: Ant, aNt')


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
  message = refused(tmp_path / 'none', FileNotFoundError, 'there is no ')
  assert f'{tmp_path}/none' in message
  assert 'train/CLASS' in message


@pytest.mark.parametrize('splits', [(), ('test', 'val')])
def test_missing_splits(splits, tmp_path):
  folder.write(tmp_path, splits=splits)
  message = refused(
    tmp_path, FileNotFoundError, f'holds {", ".join(splits) or "nothing"}'
  )
  assert 'train/CLASS' in message


def test_two_validations(tmp_path):
  folder.write(tmp_path, splits=('train', 'val', 'Valid'))
  refused(tmp_path, ValueError, 'both Valid and val, which mean the same')


def test_the_folder_above_or_an_archive(tmp_path):
  folder.write(tmp_path / 'set')
  refused(
    tmp_path, FileNotFoundError, f'{tmp_path}/set holds splits: set config'
  )
  (tmp_path / 'set.zip').touch()
  refused(tmp_path / 'set.zip', NotADirectoryError, 'is a file: unpack it')


def test_the_same_class_in_two_forms_of_unicode(tmp_path):
  folder.write(tmp_path)
  os.rename(tmp_path / 'train/ant', tmp_path / 'train/\u00e9')
  os.rename(tmp_path / 'train/bee', tmp_path / 'train/e\u0301')
  refused(tmp_path, ValueError, r"twice.*'e\\u0301' and '\\xe9'")


@pytest.mark.parametrize('name', ['ant/more/Val', 'train/ant'])
def test_a_split_within_a_split(name, tmp_path):
  folder.write(tmp_path)
  for split in ('train', 'validation', 'test'):
    (tmp_path / split / 'train').mkdir()
    shutil.copy(tmp_path / 'test/cow/000.jpg', tmp_path / split / 'train')
  # A class of trains.
  (tmp_path / 'test/train/steam').mkdir()
  shutil.copy(tmp_path / 'test/cow/000.jpg', tmp_path / 'test/train/steam')
  assert 'train' in load(tmp_path).class_names
  path = tmp_path / 'train' / name
  path.mkdir(parents=True)
  for image in (tmp_path / 'train/train').glob('*.jpg'):
    image.rename(path / '1.jpg')
  refused(tmp_path, ValueError, f'{path} is a split|train/train is a split')


def test_a_link_to_a_folder_that_it_is_in(tmp_path):
  folder.write(tmp_path)
  (tmp_path / 'train/ant/loop').symlink_to(tmp_path / 'train')
  refused(tmp_path, ValueError, 'train/ant/loop is a link to')


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


@pytest.mark.parametrize('name', ['notes.txt', 'more/x', 'list.jpg.csv'])
def test_a_file_that_is_no_image(name, tmp_path):
  folder.write(tmp_path)
  path = tmp_path / 'test/bee' / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  refused(tmp_path, ValueError, f'{path} is not an image: ')
  (tmp_path / 'test/cow/a').touch()
  refused(tmp_path, ValueError, 'and 1 more files are no images')


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


def test_one_class_is_no_classifier(tmp_path):
  """As where the folders of the classes are one level too deep."""
  folder.write(tmp_path)
  for split in ('train', 'validation', 'test'):
    deep = tmp_path / 'deep' / split / 'images'
    shutil.copytree(tmp_path / split, deep)
  with pytest.raises(
    ValueError, match=r'one folder, images: .*\(ant, bee, cow\) .*move them up'
  ):
    load(tmp_path / 'deep')
  for split in ('train', 'validation', 'test'):
    for name in ('bee', 'cow'):
      shutil.rmtree(tmp_path / split / name)
  with pytest.raises(
    ValueError, match=r'one folder, ant: expected .* two clas'
  ):
    load(tmp_path)
