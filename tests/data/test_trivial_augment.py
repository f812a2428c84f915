"""The operations of TrivialAugment are those of Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from kdjax.data import trivial_augment

NAMES = list(trivial_augment.OPERATIONS)


def make_image(shape):
  """A smooth image of all brightnesses."""
  noise = np.random.default_rng(0).normal(size=shape)
  smooth = noise.cumsum(axis=0).cumsum(axis=1)
  return (smooth * 6 + 120).clip(3, 240).astype(np.uint8)


IMAGE = make_image((24, 20, 3))
GREY = make_image((16, 16, 1))

apply = jax.jit(trivial_augment.apply)


def by_pillow(name, image, strength):
  """What Pillow makes of an image at a strength from -1 to 1."""
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  factor = 1 + 0.99 * strength
  shear, shift = 0.99 * strength, round(32 * strength)

  def affine(*matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)

  made = {
    'identity': lambda: picture,
    'brightness': lambda: ImageEnhance.Brightness(picture).enhance(factor),
    'color': lambda: ImageEnhance.Color(picture).enhance(factor),
    'contrast': lambda: ImageEnhance.Contrast(picture).enhance(factor),
    'sharpness': lambda: ImageEnhance.Sharpness(picture).enhance(factor),
    'posterize': lambda: ImageOps.posterize(
      picture, 8 - round(6 * abs(strength))
    ),
    'solarize': lambda: ImageOps.solarize(picture, 255 * (1 - abs(strength))),
    'autocontrast': lambda: ImageOps.autocontrast(picture),
    'equalize': lambda: ImageOps.equalize(picture),
    'rotate': lambda: picture.rotate(135 * strength),
    'shear_x': lambda: affine(1, shear, 0, 0, 1, 0),
    'shear_y': lambda: affine(1, 0, 0, shear, 1, 0),
    'translate_x': lambda: affine(1, 0, shift, 0, 1, 0),
    'translate_y': lambda: affine(1, 0, 0, 0, 1, shift),
  }[name]()
  return np.asarray(made).reshape(image.shape)


@pytest.mark.parametrize('image', [IMAGE, GREY], ids=['colour', 'grey'])
@pytest.mark.parametrize('name', NAMES)
def test_an_operation_does_what_pillow_does(name, image):
  # At 135° pixels lie between two others, and either is the nearest.
  end = 0.95 if name == 'rotate' else 1.0
  for strength in (-end, -0.4, 0.0, 0.5, end):
    found = apply(image, NAMES.index(name), strength)
    # Pillow drops the fraction of what it blends, which is rounded here.
    np.testing.assert_allclose(
      np.asarray(found, int),
      by_pillow(name, image, strength).astype(int),
      atol=2 if name == 'color' else 1,
      err_msg=f'strength {strength}',
    )


@pytest.mark.parametrize('value', [0, 77, 255])
@pytest.mark.parametrize('name', NAMES)
def test_a_constant_image_stays_in_range(name, value):
  image = np.full((4, 4, 3), value, np.uint8)
  found = apply(image, NAMES.index(name), 0.5)
  assert found.dtype == np.uint8
  if name in ('autocontrast', 'equalize', 'identity', 'sharpness'):
    np.testing.assert_array_equal(found, image)


def test_images_of_two_pixels_are_no_error():
  image = np.full((2, 2, 1), 9, np.uint8)
  for number in range(len(NAMES)):
    assert apply(image, number, 0.3).shape == image.shape


def test_operations_strengths_and_signs_are_all_drawn():
  keys = jax.random.split(jax.random.key(0), 512)
  draw = jax.jit(jax.vmap(trivial_augment.trivial_augment, (0, None)))
  images = np.asarray(draw(keys, jnp.asarray(IMAGE)))
  # Of 14 operations one changes nothing, and others nothing at strength 0.
  same = (images == IMAGE).all(axis=(1, 2, 3)).mean()
  assert 0.07 < same < 0.2
  assert len(np.unique(images.reshape(512, -1), axis=0)) > 200
