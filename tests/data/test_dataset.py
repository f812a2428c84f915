"""Splits, moments and digest of a loaded data set."""

import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import sources, stratify


def load(**fields):
  config = config_lib.default().data
  config.update(name='digits', **fields)
  return data.load(config)


def as_set(split):
  return {
    (image.tobytes(), int(label))
    for image, label in zip(split.images, split.labels, strict=True)
  }


def test_validation_is_split_off_train_and_never_changes():
  dataset = load(validation_fraction=0.1)
  source = sources.load('digits', None)
  assert len(dataset.validation.labels) == 144
  assert len(dataset.train.labels) == 1437 - 144
  assert as_set(dataset.train) | as_set(dataset.validation) == as_set(
    source.train
  )
  assert not as_set(dataset.train) & as_set(dataset.validation)
  assert load(validation_fraction=0.1).digest == dataset.digest
  np.testing.assert_array_equal(dataset.test.images, source.test.images)


def test_by_default_validation_is_drawn_from_all_images():
  """The draw is part of what old runs were trained on."""
  dataset = load(validation_fraction=0.1)
  order = np.random.default_rng(0).permutation(1437)
  np.testing.assert_array_equal(dataset.train_ids, np.sort(order[144:]))


@pytest.mark.parametrize('streaming', [False, True])
def test_stratified_validation_has_the_same_share_of_each_class(streaming):
  dataset = load(validation_fraction=0.1, stratify=True, streaming=streaming)
  labels = sources.load('digits', None).train.labels
  kept = np.bincount(labels[dataset.train_ids])
  np.testing.assert_array_equal(
    np.bincount(labels) - kept, np.round(0.1 * np.bincount(labels))
  )
  assert dataset.train.size + dataset.validation.size == 1437
  assert not load(validation_fraction=0.0, stratify=True).validation.size


def test_a_share_leaves_some_of_each_class():
  labels = np.array([0] * 10 + [1] * 2 + [2])
  chosen = stratify.choose(labels, 0.1, [0], leave=1)
  assert labels[chosen].tolist() == [0, 1]
  chosen = stratify.choose(labels, 0.9, [0], leave=1)
  assert labels[chosen].tolist() == [0] * 9 + [1]


def test_images_of_each_class_are_counted():
  dataset = load()
  labels = dataset.train.labels
  np.testing.assert_array_equal(data.class_counts(dataset), np.bincount(labels))
  np.testing.assert_array_equal(
    data.class_counts(load(streaming=True), read=False), np.bincount(labels)
  )
  few = load(label_fraction=0.5)
  np.testing.assert_array_equal(
    data.class_counts(few), np.bincount(labels[few.label_changes == 0])
  )
  noisy = load(label_noise=0.5)
  np.testing.assert_array_equal(
    data.class_counts(noisy), np.bincount((labels + noisy.label_changes) % 10)
  )


def test_unequal_classes_are_warned_of(monkeypatch, caplog):
  images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 3), np.uint8)

  def warned(first, **fields):
    labels = np.repeat(np.arange(2, dtype=np.int32), (first, 120 - first))
    train = data.Split(images, labels)
    source = sources.Source(train, train, train, ('ant', 'bee'))
    monkeypatch.setattr(sources, 'load', lambda *_: source)
    caplog.clear()
    load(**fields)
    return 'classes of digits are very unequal' in caplog.text

  for streaming in (False, True):
    assert warned(10, streaming=streaming)
    assert 'bee has 110 training images, ant 10. Accuracy' in caplog.text
    assert not warned(12, streaming=streaming)


def test_there_need_be_no_validation():
  dataset = load(validation_fraction=0.0)
  assert len(dataset.validation.labels) == 0
  assert len(dataset.train.labels) == 1437


def test_train_limit_keeps_the_other_splits():
  whole, limited = load(), load(train_limit=100)
  assert len(limited.train.labels) == 100
  assert as_set(limited.train) < as_set(whole.train)
  np.testing.assert_array_equal(limited.test.images, whole.test.images)
  np.testing.assert_array_equal(
    limited.validation.images, whole.validation.images
  )
  assert limited.digest != whole.digest


def test_moments_are_those_of_the_training_pixels():
  dataset = load()
  pixels = dataset.train.images.astype(np.float64) / 255
  np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)
  assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_a_constant_channel_is_only_centred(monkeypatch):
  images = np.full((10, 2, 2, 1), 51, np.uint8)
  split = data.Split(images, np.arange(10, dtype=np.int32))
  monkeypatch.setattr(
    sources, 'load', lambda *_: sources.Source(split, None, split, ('a',) * 10)
  )
  dataset = load()
  np.testing.assert_allclose(dataset.mean, [0.2])
  np.testing.assert_allclose(dataset.std, [1.0])


def test_nothing_left_to_train_on_is_an_error(monkeypatch):
  split = data.Split(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32))
  monkeypatch.setattr(
    sources, 'load', lambda *_: sources.Source(split, None, split, ('a',))
  )
  with pytest.raises(ValueError, match='leaves none'):
    load(validation_fraction=0.95)


def test_test_images_that_are_trained_on_are_warned_of(monkeypatch, caplog):
  images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
  labels = np.arange(200, dtype=np.int32) % 2
  train = data.Split(images[:150], labels[:150])

  def load_with(test, train=train):
    source = sources.Source(train, train, test, ('a', 'b'))
    monkeypatch.setattr(sources, 'load', lambda *_: source)
    load()
    return caplog.text

  # One of fifty is less than what is normal.
  assert not load_with(data.Split(images[150:], labels[150:]))
  assert '10 of 50 test images of digits are training images' in load_with(
    data.Split(images[140:190], labels[140:190])
  )
  caplog.clear()
  # The first and the last pixel alone do not tell images apart.
  near = images[100:150].copy()
  near[:, 4, 4] += 1
  assert not load_with(data.Split(near, labels[100:150]))
  doubled = data.Split(
    np.concatenate([images[:20], images[:20]]),
    np.concatenate([labels[:20], 1 - labels[:20]]),
  )
  assert '20 of 40 training images of digits have the same pixels' in load_with(
    data.Split(images[150:], labels[150:]), doubled
  )
