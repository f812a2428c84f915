"""Order and augmentation: pure functions of (seed, epoch, position)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import augment

KEY = jax.random.key(3)
SIZE = 23
# Every pixel of every image is its own, so that any image can be recognised.
IMAGES = (np.arange(SIZE * 6 * 5 * 2) % 251 + 1).astype(np.uint8)
IMAGES = IMAGES.reshape(SIZE, 6, 5, 2)
LABELS = np.arange(SIZE, dtype=np.int32)
CROP_AND_FLIP = augment.Augmentation(crop_padding=2, flip=True)


def take(step, order, batch_size, augmentation):
  images, labels, _ = augment.train_batch(
    KEY,
    step,
    order,
    jnp.asarray(IMAGES),
    jnp.asarray(LABELS),
    batch_size=batch_size,
    augmentation=augmentation,
  )
  return images, labels


# Once for all epochs.
take_jitted = jax.jit(take, static_argnums=(2, 3))


def run_epoch(batch_size, epoch=0, augmentation=CROP_AND_FLIP, jit=True):
  steps = SIZE // batch_size
  order = augment.epoch_order(KEY, epoch, SIZE)
  taken = [
    (take_jitted if jit else take)(
      jnp.int32(epoch * steps + i), order, batch_size, augmentation
    )
    for i in range(steps)
  ]
  images, labels = zip(*taken, strict=True)
  return np.concatenate(images), np.concatenate(labels)


def test_an_epoch_is_a_permutation_of_its_own():
  orders = [
    np.asarray(augment.epoch_order(KEY, epoch, SIZE)) for epoch in range(3)
  ]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(SIZE))
  assert len({tuple(order) for order in orders}) == 3
  other_seed = augment.epoch_order(jax.random.key(4), 0, SIZE)
  assert not np.array_equal(orders[0], other_seed)


@pytest.mark.parametrize('epoch', [0, 5])
def test_examples_do_not_depend_on_the_batch_size(epoch):
  one_by_one = run_epoch(1, epoch)
  # 23 = 2 · 11 + 1: the last example of the epoch is in no full batch.
  for got, want in zip(run_epoch(11, epoch), one_by_one, strict=True):
    np.testing.assert_array_equal(got, want[:22])


def test_jit_changes_nothing():
  for got, want in zip(run_epoch(7), run_epoch(7, jit=False), strict=True):
    np.testing.assert_array_equal(got, want)


def test_images_stay_with_their_labels():
  images, labels = run_epoch(23, augmentation=augment.Augmentation())
  np.testing.assert_array_equal(images, IMAGES[labels])
  assert images.dtype == np.uint8


def windows(image, pad, flip):
  """All crops of an image, and their mirror images."""
  height, width, _ = image.shape
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  for top in range(2 * pad + 1):
    for left in range(2 * pad + 1):
      window = padded[top : top + height, left : left + width]
      yield (top, left, False), window
      if flip:
        yield (top, left, True), window[:, ::-1]


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('pad', [0, 2])
def test_every_image_is_a_crop_of_its_original(pad, flip):
  chosen = []
  for epoch in range(12):
    images, labels = run_epoch(
      23, epoch, augment.Augmentation(crop_padding=pad, flip=flip)
    )
    for image, label in zip(images, labels, strict=True):
      matches = [
        place
        for place, window in windows(IMAGES[label], pad, flip)
        if np.array_equal(image, window)
      ]
      assert len(matches) == 1
      chosen += matches
  tops, lefts, flips = zip(*chosen, strict=True)
  # 276 draws: all five offsets appear, and mirrored images are near one half.
  assert set(tops) == set(lefts) == set(range(2 * pad + 1))
  if flip:
    assert 0.4 < np.mean(flips) < 0.6
  if pad:
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2


def test_augmentation_changes_from_epoch_to_epoch():
  key = jax.random.key(0)
  positions = jnp.arange(8)
  image = jnp.asarray(np.repeat(IMAGES[:1], 8, axis=0))
  first, second = (
    augment.augment(key, epoch, positions, image, CROP_AND_FLIP)
    for epoch in (0, 1)
  )
  assert not np.array_equal(first, second)
  assert len({np.asarray(x).tobytes() for x in first}) > 1


def test_the_ids_of_a_batch_are_the_examples_in_it():
  order = augment.epoch_order(KEY, 0, SIZE)
  arguments = KEY, jnp.int32(1), order
  _, labels, ids = augment.train_batch(
    *arguments,
    jnp.asarray(IMAGES),
    jnp.arange(SIZE),
    batch_size=4,
    augmentation=augment.Augmentation(),
  )
  np.testing.assert_array_equal(ids, labels)
  np.testing.assert_array_equal(
    ids, augment.batch_indices(jnp.int32(1), order, 4)
  )
