"""Images of any mode and size against what they should become."""

import io

import numpy as np
import pytest
from PIL import Image

from kdjax.data import images

RED, GREY = (200, 30, 40), 77


def encoded(image, kind='PNG'):
  """The image as it comes from a file."""
  file = io.BytesIO()
  image.save(file, kind)
  return Image.open(file)


def plain(mode, colour):
  return Image.new(mode, (5, 3), colour)


def palette():
  return plain('RGB', RED).convert('P', palette=Image.Palette.ADAPTIVE)


def transparent_palette():
  image = palette()
  image.info['transparency'] = image.getpixel((0, 0))
  return image


def sixteen_bits():
  return Image.fromarray(np.full((3, 5), GREY * 256 + 200, np.uint16))


MODES = {
  'RGB': (plain('RGB', RED), RED),
  'L': (plain('L', GREY), (GREY,) * 3),
  '1': (plain('1', 1), (255,) * 3),
  'P': (palette(), RED),
  'P and transparency': (transparent_palette(), (255,) * 3),
  'LA': (plain('LA', (0, 0)), (255,) * 3),
  'RGBA, opaque': (plain('RGBA', (*RED, 255)), RED),
  'RGBA, half': (plain('RGBA', (100, 0, 200, 128)), (177, 127, 227)),
  '16 bits': (sixteen_bits(), (GREY,) * 3),
}


@pytest.mark.parametrize('name', MODES)
def test_every_mode_becomes_rgb(name):
  image, expected = MODES[name]
  converted = images.with_channels(encoded(image), 3)
  assert converted.mode == 'RGB'
  pixels = np.asarray(converted)
  assert pixels.shape == (3, 5, 3)
  np.testing.assert_allclose(
    pixels.astype(int), np.broadcast_to(expected, (3, 5, 3)), atol=1
  )


def test_cmyk_becomes_rgb():
  # No ink but yellow, and half of black.
  image = encoded(plain('CMYK', (0, 0, 255, 128)), 'JPEG')
  assert image.mode == 'CMYK'
  pixels = np.asarray(images.with_channels(image, 3)).astype(int)
  np.testing.assert_allclose(
    pixels, np.broadcast_to((127, 127, 0), pixels.shape), atol=3
  )


def test_channels_are_those_asked_for():
  colour = plain('RGB', RED)
  assert images.with_channels(colour, 1).mode == 'L'
  assert images.with_channels(colour, 4).mode == 'RGBA'
  half = images.with_channels(plain('RGBA', (*RED, 128)), 4)
  assert half.getpixel((0, 0)) == (*RED, 128)


def gradient(width, height):
  """Its red tells the column, its green the row."""
  columns, rows = np.meshgrid(np.arange(width), np.arange(height))
  pixels = np.stack(
    [columns * 255 / width, rows * 255 / height, 0 * rows], axis=-1
  )
  return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize('shape', [(64, 64), (128, 64), (60, 100)])
def test_the_centre_is_that_of_resizing_and_cropping(shape):
  image = gradient(*shape)
  size = 28
  # 28 / 0.875 = 32 pixels for the shorter side, then the middle 28.
  scale = 32 / min(shape)
  resized = image.resize(
    (round(shape[0] * scale), round(shape[1] * scale)),
    Image.Resampling.BILINEAR,
  )
  left, top = ((length - size) // 2 for length in resized.size)
  expected = resized.crop((left, top, left + size, top + size))
  found = np.asarray(images.centre_crop(image, size)).astype(int)
  assert found.shape == (size, size, 3)
  # Half a pixel of the resized image, where its size had to be rounded.
  assert np.abs(found - np.asarray(expected).astype(int)).max() <= 4


def test_a_centre_of_eight_sevenths_is_cut_out_unchanged():
  image = gradient(32, 48)
  np.testing.assert_array_equal(
    images.centre_crop(image, 28), np.asarray(image)[10:38, 2:30]
  )


def test_a_share_of_one_keeps_what_fits():
  image = gradient(32, 48)
  np.testing.assert_array_equal(images.centre_crop(image, (48, 32), 1), image)
  np.testing.assert_array_equal(
    images.centre_crop(image, 32, 1), np.asarray(image)[8:40]
  )


def test_a_crop_has_the_shape_of_what_it_becomes():
  # As high as 12 of 32 columns allow at 3 to 4, then enlarged to twice that.
  cut = gradient(32, 12).resize(
    (32, 24), Image.Resampling.BILINEAR, (8, 0, 24, 12)
  )
  np.testing.assert_array_equal(
    images.centre_crop(gradient(32, 12), (24, 32), 1), cut
  )


KEY = np.array([7, 9], np.uint32)


def box(width, height, smallest, draws):
  return images._random_box(width, height, smallest, draws)


def boxes(width, height, smallest, count=400):
  return np.array(
    [
      box(width, height, smallest, images.crop_draws(KEY, 0, position))
      for position in range(count)
    ]
  )


@pytest.mark.parametrize('shape', [(100, 80), (37, 211)])
def test_random_crops_keep_their_bounds(shape):
  width, height = shape
  found = boxes(width, height, 0.08)
  left, top, right, bottom = found.T
  assert left.min() >= 0
  assert top.min() >= 0
  assert right.max() <= width
  assert bottom.max() <= height
  area = (right - left) * (bottom - top) / (width * height)
  aspect = (right - left) / (bottom - top)
  # Widths and heights are whole pixels.
  assert area.min() > 0.08 * 0.9
  assert aspect.min() > 3 / 4 * 0.9
  assert aspect.max() < 4 / 3 * 1.1
  if shape == (100, 80):
    # Of all sizes, shapes and places.
    assert area.min() < 0.12
    assert area.max() > 0.85
    assert 0.3 < np.mean(area < 0.5) < 0.6
    assert np.ptp(left) > 50
    assert np.ptp(top) > 40
    # Where in the room that there is: both directions by themselves.
    across = left / np.maximum(width - right + left, 1)
    down = top / np.maximum(height - bottom + top, 1)
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.2


def test_the_whole_image_can_be_the_smallest_area():
  np.testing.assert_array_equal(
    boxes(60, 60, 1.0, 50).max(axis=0), [0, 0, 60, 60]
  )


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [((300, 2), (148, 0, 151, 2)), ((2, 300), (0, 148, 2, 151)), ((1, 1), None)],
)
def test_extreme_shapes_have_a_crop(shape, expected):
  width, height = shape
  # No draw fits: the area asked for is higher or wider than the image.
  found = box(width, height, 1.0, np.full((10, 4), 0.5))
  assert found == (expected or (0, 0, 1, 1))


def test_a_crop_is_resized_as_its_box_says():
  image, draws = gradient(90, 70), images.crop_draws(KEY, 3, 5)
  left, top, right, bottom = box(90, 70, 0.2, draws)
  found = np.asarray(images.random_resized_crop(image, 16, 0.2, draws))
  assert found.shape == (16, 16, 3)
  red, green, _ = found.astype(float).mean(axis=(0, 1))
  assert red == pytest.approx((left + right - 1) / 2 * 255 / 90, abs=2)
  assert green == pytest.approx((top + bottom - 1) / 2 * 255 / 70, abs=2)


def test_draws_are_a_function_of_key_epoch_and_position():
  first = images.crop_draws(KEY, 2, 1000)
  np.testing.assert_array_equal(first, images.crop_draws(KEY, 2, 1000))
  others = [
    images.crop_draws(KEY + np.uint32(1), 2, 1000),
    images.crop_draws(KEY, 3, 1000),
    images.crop_draws(KEY, 2, 1001),
    images.crop_draws(KEY, 1000, 2),
  ]
  for other in others:
    assert not np.isin(other, first).any()
  assert first.min() >= 0
  assert first.max() < 1
  # Written down: a run goes on after an update of NumPy.
  np.testing.assert_allclose(
    first[0], [0.1606247158, 0.2919501671, 0.6014396900, 0.5543693301]
  )
