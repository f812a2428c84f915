"""Order and augmentation: pure functions of (seed, epoch, position)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import taken

from kdjax.data import augment

KEY = jax.random.key(3)
SIZE = 23
# Every pixel of every image is its own, so that any image can be recognised.
IMAGES = (np.arange(SIZE * 6 * 5 * 2) % 251 + 1).astype(np.uint8)
IMAGES = IMAGES.reshape(SIZE, 6, 5, 2)
LABELS = np.arange(SIZE, dtype=np.int32)
CROP_AND_FLIP = augment.Augmentation(crop_padding=2, flip=True)


def take(step, order, batch_size, augmentation):
  arrays = jnp.asarray(IMAGES), jnp.asarray(LABELS)
  return taken.batch(KEY, step, order, *arrays, batch_size, augmentation)[:2]


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
    augment.augment(
      augment.position_keys(key, epoch, positions), image, CROP_AND_FLIP
    )
    for epoch in (0, 1)
  )
  assert not np.array_equal(first, second)
  assert len({np.asarray(x).tobytes() for x in first}) > 1


def test_the_ids_of_a_batch_are_the_examples_in_it():
  order = augment.epoch_order(KEY, 0, SIZE)
  batch = taken.batch(
    KEY, jnp.int32(1), order, jnp.asarray(IMAGES), jnp.arange(SIZE), 4
  )
  np.testing.assert_array_equal(batch.ids, batch.labels)
  np.testing.assert_array_equal(
    batch.ids, augment.batch_indices(jnp.int32(1), order, 4)
  )


# Strong augmentation

COLOURED = jnp.asarray(
  np.random.default_rng(0).integers(1, 256, (64, 12, 10, 3)), jnp.uint8
)
POSITIONS = jnp.arange(64)
PROBABILITIES = jax.nn.one_hot(POSITIONS % 5, 5)


def augmented(epoch=0, view=0, **fields):
  return np.asarray(
    augment.augment(
      augment.position_keys(KEY, epoch, POSITIONS),
      COLOURED,
      augment.Augmentation(**fields),
      view,
    )
  )


def mixed(images=COLOURED, epoch=0, **fields):
  return [
    np.asarray(x)
    for x in augment.mix(
      augment.position_keys(KEY, epoch, POSITIONS),
      images,
      PROBABILITIES,
      augment.Augmentation(**fields),
    )
  ]


@pytest.mark.parametrize(
  'fields', [{'trivial_augment': True}, {'cutout': 5}], ids=str
)
def test_strong_augmentation_is_a_function_of_seed_epoch_and_position(fields):
  first = augmented(**fields)
  assert first.dtype == np.uint8
  assert (first != COLOURED).any()
  np.testing.assert_array_equal(augmented(**fields), first)
  assert (augmented(epoch=1, **fields) != first).any()
  assert (augmented(view=1, **fields) != first).any()
  # A batch of its second half alone.
  half = augment.augment(
    augment.position_keys(KEY, 0, POSITIONS[32:]),
    COLOURED[32:],
    augment.Augmentation(**fields),
  )
  np.testing.assert_array_equal(half, first[32:])


def test_crops_and_flips_are_the_same_beside_strong_augmentation():
  plain = augmented(crop_padding=2, flip=True)
  cut = augmented(crop_padding=2, flip=True, cutout=3)
  np.testing.assert_array_equal(np.where(cut == 0, 0, plain), cut)


def test_cutout_blackens_a_square_about_a_pixel_of_the_image():
  black = (augmented(cutout=5) == 0).all(axis=-1)
  for one in black:
    rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
    assert one[np.ix_(rows, columns)].all()
    assert one.sum() == len(rows) * len(columns)
    # A side is cut where it reaches beyond the image, 2 pixels or less.
    assert 3 <= len(rows) <= 5
    assert 3 <= len(columns) <= 5
  assert black.any(axis=0).all()


def test_mixup_averages_an_image_and_its_label_with_the_next():
  images, labels = mixed(mixup=1.0)
  share = (PROBABILITIES * labels).sum(axis=-1)
  np.testing.assert_allclose(labels.sum(axis=-1), 1, rtol=1e-6)
  other = np.roll(COLOURED, -1, axis=0).astype(np.float64)
  weight = np.asarray(share, np.float64)[:, None, None, None]
  expected = weight * np.asarray(COLOURED) + (1 - weight) * other
  np.testing.assert_allclose(images, expected, atol=0.51)
  # Beta(1, 1) is uniform: mean 1/2, variance 1/12.
  assert abs(share.mean() - 0.5) < 0.12
  assert 0.04 < share.var() < 0.13


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_cutmix_covers_a_rectangle_with_the_next_image(alpha):
  images, labels = mixed(cutmix=alpha)
  other = np.roll(COLOURED, -1, axis=0)
  share = np.asarray((PROBABILITIES * labels).sum(axis=-1))
  for index, image in enumerate(images):
    covered = (image == other[index]).all(-1) & (image != COLOURED[index]).any(
      -1
    )
    np.testing.assert_array_equal(
      image, np.where(covered[..., None], other[index], COLOURED[index])
    )
    if covered.any():
      rows = np.flatnonzero(covered.any(1))
      columns = np.flatnonzero(covered.any(0))
      assert covered.sum() == len(rows) * len(columns)
    # The label tells the area that is really covered.
    np.testing.assert_allclose(share[index], 1 - covered.mean(), atol=1e-6)


def test_with_mixup_and_cutmix_each_image_has_one_of_both():
  images, labels = mixed(mixup=1.0, cutmix=1.0)
  by_mixup, _ = mixed(mixup=1.0)
  by_cutmix, _ = mixed(cutmix=1.0)
  averaged = [
    np.array_equal(*pair) for pair in zip(images, by_mixup, strict=True)
  ]
  covered = [
    np.array_equal(*pair) for pair in zip(images, by_cutmix, strict=True)
  ]
  assert all(np.logical_or(averaged, covered))
  assert 16 < np.sum(averaged) < 48
  np.testing.assert_allclose(labels.sum(axis=-1), 1, rtol=1e-6)


def test_a_label_that_is_not_there_has_no_share_of_a_mixed_one():
  labels = PROBABILITIES.at[1].set(0)
  _, found = augment.mix(
    augment.position_keys(KEY, 0, POSITIONS),
    COLOURED,
    labels,
    augment.Augmentation(mixup=1.0),
  )
  _, whole = mixed(mixup=1.0)
  share = (PROBABILITIES[0] * whole[0]).sum()
  np.testing.assert_allclose(found[0], share * PROBABILITIES[0], rtol=1e-6)


def test_views_are_of_the_same_examples_and_the_later_ones_strong():
  order = augment.epoch_order(KEY, 0, 64)
  arrays = COLOURED, POSITIONS % 5
  two, one = (
    taken.batch(
      KEY, jnp.int32(1), order, *arrays, 8, CROP_AND_FLIP._replace(views=views)
    )
    for views in (2, 1)
  )
  np.testing.assert_array_equal(two.images[:8], one.images)
  np.testing.assert_array_equal(two.labels, one.labels)
  strong = CROP_AND_FLIP._replace(trivial_augment=True)
  np.testing.assert_array_equal(
    two.images[8:],
    augment.augment(
      augment.position_keys(KEY, 0, 8 + jnp.arange(8)),
      COLOURED[one.ids],
      strong,
      1,
    ),
  )


def test_both_views_are_mixed_in_the_same_shares():
  order = augment.epoch_order(KEY, 0, 64)
  two, one = (
    taken.batch(
      KEY,
      jnp.int32(0),
      order,
      COLOURED,
      POSITIONS % 5,
      8,
      augment.Augmentation(mixup=1.0, views=views),
    )
    for views in (2, 1)
  )
  assert two.images.shape == (16, 12, 10, 3)
  np.testing.assert_array_equal(two.labels, one.labels)


def test_crops_by_products_are_the_same_pixels():
  image = jnp.asarray(np.arange(7 * 6 * 3).reshape(7, 6, 3) * 2, jnp.uint8)
  assert image.max() == 250
  size = 4, 3

  @jax.jit
  @jax.vmap
  def both(corner):
    products = augment.crop_by_products(image, corner, size)
    return products, augment.crop(image, corner, size)

  rows, columns = np.meshgrid(range(4), range(4))
  corners = np.stack([rows.ravel(), columns.ravel()], axis=1)
  products, cuts = both(corners)
  assert products.dtype == jnp.uint8
  np.testing.assert_array_equal(products, cuts)
  for (top, left), found in zip(corners, products, strict=True):
    np.testing.assert_array_equal(found, image[top : top + 4, left : left + 3])
