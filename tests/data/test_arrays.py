"""Arrays: which files are read, and what is said of wrong ones."""

import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 6, 5, 3), np.uint8)
LABELS = np.arange(60) % 4


def load(path):
  return sources.load('arrays', str(path))


def loaded(tmp_path, **arrays):
  """Reads a file with such arrays; four classes, train and test."""
  defaults = {
    'train_images': IMAGES[:40],
    'train_labels': LABELS[:40],
    'test_images': IMAGES[40:],
    'test_labels': LABELS[40:],
  }
  kept = {
    name: array
    for name, array in (defaults | arrays).items()
    if array is not None
  }
  np.savez(tmp_path / 'set.npz', **kept)
  return load(tmp_path / 'set.npz')


def refused(tmp_path, match, **arrays):
  with pytest.raises(ValueError, match=match) as error:
    loaded(tmp_path, **arrays)
  return str(error.value)


def test_arrays_are_read_as_they_are(tmp_path):
  source = loaded(tmp_path, val_images=IMAGES[:4], val_labels=LABELS[:4])
  np.testing.assert_array_equal(source.train.images, IMAGES[:40])
  np.testing.assert_array_equal(source.validation.images, IMAGES[:4])
  np.testing.assert_array_equal(source.test.labels, LABELS[40:])
  assert source.test.labels.dtype == np.int32
  assert source.class_names == ('0', '1', '2', '3')


@pytest.mark.parametrize(
  ('files', 'names'),
  [
    # Keras's mnist.npz.
    ({'mnist.npz': ('x_train', 'y_train', 'x_test', 'y_test')}, None),
    (
      {
        'train.npz': ('images', 'labels', None, None),
        'test.npz': (None, None, 'images', 'labels'),
      },
      None,
    ),
    (
      {
        'X_train.npy': (True, None, None, None),
        'y_train.npy': (None, True, None, None),
        'X_test.npy': (None, None, True, None),
        'y_test.npy': (None, None, None, True),
        'class_names.npy': None,
      },
      ('a', 'b', 'c', 'd'),
    ),
  ],
)
def test_layouts(tmp_path, files, names):
  arrays = IMAGES[:40], LABELS[:40], IMAGES[40:], LABELS[40:]
  for file, keys in files.items():
    if keys is None:
      np.save(tmp_path / file, np.array(names))
    elif file.endswith('.npy'):
      np.save(tmp_path / file, arrays[keys.index(True)])
    else:
      np.savez(
        tmp_path / file,
        **{key: each for key, each in zip(keys, arrays, strict=True) if key},
      )
  source = load(tmp_path)
  np.testing.assert_array_equal(source.train.images, IMAGES[:40])
  np.testing.assert_array_equal(source.test.labels, LABELS[40:])
  assert source.class_names == (names or ('0', '1', '2', '3'))


def test_a_fifth_of_each_class_is_held_out_where_nothing_else_is(
  tmp_path, caplog
):
  caplog.set_level('INFO')
  np.savez(tmp_path / 'set.npz', images=IMAGES, labels=LABELS)
  source = load(tmp_path / 'set.npz')
  assert np.bincount(source.test.labels).tolist() == [3] * 4
  assert np.bincount(source.train.labels).tolist() == [12] * 4
  both = np.concatenate([source.train.images, source.test.images])
  assert {image.tobytes() for image in both} == {
    image.tobytes() for image in IMAGES
  }
  assert 'has no test split: 12 of its 60 images' in caplog.text
  again = load(tmp_path / 'set.npz')
  np.testing.assert_array_equal(again.test.images, source.test.images)


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
  source = loaded(
    tmp_path,
    test_images=None,
    test_labels=None,
    valid_images=IMAGES[40:],
    valid_labels=LABELS[40:],
  )
  assert source.validation is None
  np.testing.assert_array_equal(source.test.images, IMAGES[40:])


def test_streams_and_memory_are_the_same(tmp_path):
  loaded(tmp_path)
  config = config_lib.default().data
  config.update(name='arrays', data_dir=str(tmp_path / 'set.npz'))
  memory = data.load(config)
  config.streaming = True
  stream = data.load(config)
  assert stream.digest == memory.digest
  np.testing.assert_array_equal(
    stream.train.batch(np.arange(4)).images, memory.train.images[:4]
  )


def test_what_can_be_converted_without_loss_is(tmp_path):
  np.testing.assert_array_equal(
    loaded(tmp_path, train_images=IMAGES[:40] / 255).train.images, IMAGES[:40]
  )
  for dtype in (np.int64, np.float32):
    np.testing.assert_array_equal(
      loaded(tmp_path, train_images=IMAGES[:40].astype(dtype)).train.images,
      IMAGES[:40],
    )
  grey = loaded(
    tmp_path, train_images=IMAGES[:40, ..., 0], test_images=IMAGES[40:, ..., 0]
  )
  assert grey.train.image_shape == (6, 5, 1)
  column = loaded(tmp_path, train_labels=LABELS[:40, None].astype(np.float64))
  np.testing.assert_array_equal(column.train.labels, LABELS[:40])


def test_labels_may_be_text(tmp_path):
  names = np.array(['10', '9', '2', '1'])
  source = loaded(
    tmp_path, train_labels=names[LABELS[:40]], test_labels=names[LABELS[40:]]
  )
  assert source.class_names == ('1', '2', '9', '10')
  np.testing.assert_array_equal(source.train.labels, 3 - LABELS[:40])


@pytest.mark.parametrize(
  ('images', 'match'),
  [
    (
      IMAGES[:40].transpose(0, 3, 1, 2),
      r'shape \(40, 3, 6, 5\).*images\.transpose\(0, 2, 3, 1\)',
    ),
    (
      IMAGES[:40].reshape(40, -1),
      r'shape \(40, 90\): expected pixels as uint8',
    ),
    (IMAGES[:0], r'shape \(0, 6, 5, 3\)'),
    (IMAGES[:40] / 64 - 2, 'float64 from -2 to .*Undo a normalisation'),
    (IMAGES[:40] + 0.5, 'from 0.5 to 255.5: expected pixels as uint8'),
    (IMAGES[:40].astype(np.int32) * 16, 'int32 from 0 to 4080'),
    (IMAGES[:40] > 9, 'are bool'),
  ],
)
def test_images_that_are_none(tmp_path, images, match):
  refused(tmp_path, f'the images of train of .*{match}', train_images=images)


def test_pixels_that_are_no_numbers(tmp_path):
  images = IMAGES[:40] / 255
  images[7, 0, 0, 0] = np.nan
  refused(tmp_path, 'not finite in 1 images, .* number 7', train_images=images)


def test_nearly_black_images_are_warned_of(tmp_path, caplog):
  loaded(tmp_path, train_images=(IMAGES[:40] // 255).astype(np.int64))
  assert 'go from 0 to 1, which is nearly black' in caplog.text


@pytest.mark.parametrize(
  ('labels', 'match'),
  [
    (LABELS[:40] + 1, 'go from 1 to 4: expected 0 to 3. Subtract 1'),
    (LABELS[:40] * 2, 'leave out 1, 3, 5 of 0 to 6: .*return_inverse'),
    (LABELS[:40] - 1, 'go from -1 to 2.* remove it'),
    (np.eye(4)[LABELS[:40]], r'They are one-hot: labels\.argmax\(axis=1\)'),
    (np.ones((40, 4)), r'shape \(40, 4\): expected the number of one class'),
    (np.where(LABELS[:40], LABELS[:40], np.nan), 'have nan in row 0'),
    (LABELS[:40] + 0.5, 'have 0.5 in row 0'),
    (LABELS[:39], 'has 40 images and 39 labels'),
    (LABELS[:0], 'are empty: add images, or leave the split out'),
    (np.where(LABELS[:40], 'a', ''), 'are empty text in row 0'),
    (np.full(40, 'a'), 'are numbers, and those of train are text'),
    (LABELS[:40].astype('datetime64[s]'), r'are datetime64\[s\]: expected num'),
    (LABELS[:40] // 4, 'has one class, 0'),
  ],
)
def test_labels_that_are_none(tmp_path, labels, match):
  if match.startswith('has one'):
    both = {'train_labels': labels, 'test_labels': LABELS[40:] * 0}
  else:
    both = {'train_labels': labels}
  refused(tmp_path, match, **both)


def test_labels_of_other_splits(tmp_path, caplog):
  refused(
    tmp_path, 'test of .* go from 0 to 4: expected 0 to 3', test_labels=[4, 0]
  )
  loaded(tmp_path, test_images=IMAGES[:2], test_labels=[1, 3])
  assert 'test of' in caplog.text
  assert caplog.text.count('has no image of 2 of 4 classes: 0, 2') == 1
  refused(
    tmp_path,
    r'test of .* shape \(5, 6, 3\)',
    test_images=IMAGES[40:].swapaxes(1, 2),
  )


def test_names_of_classes_tell_which_there_are(tmp_path, caplog):
  names = ['ant', 'bee', 'cow', 'dog', 'elk']
  source = loaded(tmp_path, class_names=names)
  assert source.class_names == tuple(names)
  assert 'no image of 1 of 5 classes: elk' in caplog.text
  refused(
    tmp_path,
    'go from 1 to 4: .*subtract 1',
    class_names=names[:4],
    train_labels=LABELS[:40] + 1,
  )


def test_a_name_of_two_classes(tmp_path):
  refused(
    tmp_path, r'names a class twice \(a, b, a, d\)', class_names=list('abad')
  )


def test_arrays_that_are_missing(tmp_path):
  refused(tmp_path, 'has no labels of test, only test_images', test_labels=None)
  refused(tmp_path, 'both train_images and x_train, which', x_train=IMAGES)
  np.savez(tmp_path / 'other.npz', a=IMAGES)
  with pytest.raises(ValueError, match=r'other\.npz holds a; expected'):
    load(tmp_path / 'other.npz')
  with pytest.raises(ValueError, match=r'set config\.data\.data_dir; expected'):
    sources.load('arrays', None)
  with pytest.raises(FileNotFoundError, match=r'there is no .*none'):
    load(tmp_path / 'none')


def test_files_with_objects_or_damage_are_refused(tmp_path):
  np.save(tmp_path / 'x_train.npy', np.array([print], object))
  with pytest.raises(ValueError, match=r'x_train\.npy cannot be .*no objects'):
    load(tmp_path)
  (tmp_path / 'x_train.npy').write_bytes(b'PK not an archive')
  with pytest.raises(ValueError, match=r'x_train\.npy cannot be read'):
    load(tmp_path)
