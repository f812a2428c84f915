"""Fewer labels, wrong labels and class-balanced subsets."""

import folder
import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data


def load(**fields):
  config = config_lib.default().data
  config.update({'name': 'digits', **fields})
  return data.load(config)


def counts(labels):
  return np.bincount(labels, minlength=10)


def test_all_labels_are_used_by_default():
  assert load().label_changes is None


@pytest.mark.parametrize('fraction', [0.1, 0.5])
def test_a_subset_has_the_same_share_of_each_class(fraction):
  whole, part = load(), load(train_fraction=fraction)
  expected = np.round(fraction * counts(whole.train.labels))
  np.testing.assert_array_equal(counts(part.train.labels), expected)
  # In the order of the whole, and named by the same ids.
  rows = np.searchsorted(whole.train_ids, part.train_ids)
  np.testing.assert_array_equal(whole.train.images[rows], part.train.images)
  np.testing.assert_array_equal(part.test.images, whole.test.images)
  np.testing.assert_array_equal(part.validation.images, whole.validation.images)
  assert part.digest != whole.digest


def test_a_smaller_subset_is_part_of_a_larger_one():
  small, large = load(train_fraction=0.1), load(train_fraction=0.3)
  assert set(small.train_ids) < set(large.train_ids)
  other = load(train_fraction=0.1, subset_seed=1)
  assert set(other.train_ids) != set(small.train_ids)


def test_each_class_keeps_one_image_at_least():
  dataset = load(train_fraction=1e-6)
  np.testing.assert_array_equal(counts(dataset.train.labels), 1)


def test_a_share_of_each_class_keeps_its_label():
  dataset = load(label_fraction=0.25)
  known = dataset.label_changes >= 0
  labels = dataset.train.labels
  np.testing.assert_array_equal(
    counts(labels[known]), np.round(0.25 * counts(labels))
  )
  assert (dataset.label_changes[known] == 0).all()
  # The images and their true labels are all there.
  assert dataset.digest == load().digest


def test_noise_gives_another_class_each_as_likely():
  dataset = load(label_noise=0.4)
  changes = dataset.label_changes
  wrong = changes > 0
  # 1,293 draws: three standard deviations are 0.04.
  assert abs(wrong.mean() - 0.4) < 0.04
  assert changes.min() == 0
  shares = np.bincount(changes[wrong], minlength=10)[1:] / wrong.sum()
  np.testing.assert_allclose(shares, 1 / 9, atol=0.045)
  again = load(label_noise=0.4)
  np.testing.assert_array_equal(again.label_changes, changes)
  other = load(label_noise=0.4, subset_seed=1)
  assert (other.label_changes != changes).any()


def test_what_is_not_labelled_is_not_wrong():
  dataset = load(label_fraction=0.5, label_noise=0.4)
  known = load(label_fraction=0.5).label_changes >= 0
  np.testing.assert_array_equal(dataset.label_changes >= 0, known)
  assert (dataset.label_changes > 0).any()


@pytest.mark.parametrize('streaming', [False, True])
def test_folders_and_streams_have_the_same_labels(tmp_path, streaming):
  root = folder.write(tmp_path / 'images', splits=('train', 'test'), count=8)
  fields = {
    'name': 'image_folder',
    'data_dir': str(root),
    'image_size': 16,
    'train_fraction': 0.7,
    'label_fraction': 0.5,
    'label_noise': 0.3,
  }
  dataset = load(streaming=streaming, **fields)
  assert len(dataset.label_changes) == dataset.train.size
  resident = load(**fields)
  np.testing.assert_array_equal(dataset.train_ids, resident.train_ids)
  np.testing.assert_array_equal(dataset.label_changes, resident.label_changes)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('train_fraction', 0.0, 'above 0, to 1'),
    ('train_fraction', 1.5, 'above 0, to 1'),
    ('label_fraction', -0.1, 'above 0, to 1'),
    ('label_noise', 1.0, 'from 0 to less than 1'),
    ('mixup', -1.0, 'from 0 to 1,000'),
    ('cutout', -1, 'from 0 to 16,384'),
  ],
)
def test_a_share_that_makes_no_sense_is_refused(field, value, expected):
  config = config_lib.default()
  config.data[field] = value
  with pytest.raises(ValueError, match=f'config.data.{field} is .*{expected}'):
    config_lib.validate(config)
