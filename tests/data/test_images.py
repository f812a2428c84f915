"""Images of any mode and size against what they should become."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

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


# From a file


def saved(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  file.seek(0)
  return file


def oriented(orientation):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  return exif


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_a_photo_is_turned_as_its_exif_data_say(kind):
  # Dark to the left; upright it is dark at the top.
  pixels = np.zeros((16, 32, 3), np.uint8)
  pixels[:, 16:] = 255
  file = saved(Image.fromarray(pixels), kind, exif=oriented(6))
  found = np.asarray(images.read(file, 1), int)
  assert found.shape == (32, 16)
  assert found[:14].max() < 50
  assert found[18:].min() > 200


def test_every_orientation_is_that_of_pillow():
  image = gradient(5, 3)
  for orientation in range(10):
    file = saved(image, 'PNG', exif=oriented(orientation))
    expected = ImageOps.exif_transpose(Image.open(file))
    np.testing.assert_array_equal(images.read(file, 3), expected)


def test_damaged_exif_data_do_not_matter(monkeypatch):
  file = saved(gradient(5, 3), 'PNG', exif=oriented(6))

  def fail(self):
    raise SyntaxError('not a TIFF file')

  monkeypatch.setattr(Image.Image, 'getexif', fail)
  assert images.read(file, 3).size == (5, 3)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_have_one_scale(kind):
  notes = {}
  for values in ([0, 256, 65535], [0, 300, 40000]):
    image = Image.fromarray(np.array([values], np.uint16))
    found = images.read(saved(image, kind), 1, notes=notes)
    np.testing.assert_array_equal(found, [[value >> 8 for value in values]])
  assert not notes
  image = Image.fromarray(np.array([[0, 4095]], np.uint16))
  found = images.read(saved(image, kind), 1, 'name', notes)
  np.testing.assert_array_equal(found, [[0, 15]])
  assert 'name has 16 bits a channel and hardly uses them' in notes['dark']


def test_bits_that_a_file_declares_are_its_scale():
  # A PGM of 10 bits, and a TIFF of 12, two of them in three bytes.
  pgm = io.BytesIO(b'P5 2 1 1023\n' + bytes([3, 255, 1, 255]))
  tags = {
    **{256: 2, 257: 1, 258: 12, 259: 1, 262: 1},
    **{273: 8, 277: 1, 278: 1, 279: 3},
  }
  entries = (struct.pack('<HHII', tag, 4, 1, tags[tag]) for tag in tags)
  tiff = io.BytesIO(
    b'II*\0\x0b\0\0\0\xff\xf8\x00\x09\0' + b''.join(entries) + b'\0' * 4
  )
  dark = io.BytesIO(tiff.getvalue().replace(b'\xff\xf8\x00', b'\x01\x00\x10'))
  for file, expected in ((pgm, [255, 127]), (tiff, [255, 128]), (dark, [1, 1])):
    notes = {}
    found = images.read(file, 1, notes=notes)
    np.testing.assert_array_equal(found, [expected])
    assert not notes


def test_colours_of_sixteen_bits_that_are_hardly_used():
  pixels = b''.join(struct.pack('>3H', 0, 4095, 2000) for _ in range(4))
  for largest, dark in ((65535, True), (4095, False)):
    notes = {}
    file = io.BytesIO(f'P6 2 2 {largest}\n'.encode() + pixels)
    found = images.read(file, 3, notes=notes)
    assert np.asarray(found).max() == (16 if dark else 255)
  header = struct.pack('>2I5B', 2, 2, 16, 2, 0, 0, 0)
  rows = b''.join(b'\0' + pixels[i : i + 12] for i in (0, 12))
  png = b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content))
    + name
    + content
    + struct.pack('>I', zlib.crc32(name + content))
    for name, content in (
      (b'IHDR', header),
      (b'IDAT', zlib.compress(rows)),
      (b'IEND', b''),
    )
  )
  found = images.read(io.BytesIO(png), 3, 'name', notes)
  assert np.asarray(found).max() == 15
  assert 'hardly uses them' in notes['dark']


def test_floating_point_numbers_are_of_zero_to_one():
  image = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
  found = images.read(saved(image, 'TIFF'), 1)
  np.testing.assert_array_equal(found, [[0, 128, 255]])


@pytest.mark.parametrize(
  'values', [[0.0, 255.0], [-0.1, 1.0], [np.nan, 1.0], [-1, 5], [0, 65536]]
)
def test_numbers_without_a_known_scale_are_refused(values):
  pixels = np.array([values])
  dtype = np.int32 if pixels.dtype.kind == 'i' else np.float32
  file = saved(Image.fromarray(pixels.astype(dtype)), 'TIFF')
  with pytest.raises(images.UnreadableError, match='save it with 8 or 16 bits'):
    images.read(file, 3)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_the_first_of_several_frames_is_read(kind, caplog):
  notes, warned = {}, set()
  frames = [Image.new('RGB', (9, 9), colour) for colour in ('red', 'blue')]
  file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
  red, _, blue = images.read(file, 3, 'a', notes).getpixel((4, 4))
  assert red > 240
  assert blue < 20
  for _ in range(2):
    images.warn(notes, warned)
  (record,) = caplog.records
  assert record.getMessage().startswith('a has several frames or pages')
  alone = {}
  images.read(saved(frames[0], kind), 3, 'a', alone)
  # The preview of a photo.
  images.read(
    saved(frames[0], 'MPO', save_all=True, append_images=frames), 3, 'a', alone
  )
  assert not alone


def test_files_that_cannot_be_opened_are_unreadable(tmp_path, monkeypatch):
  (tmp_path / 'empty.png').touch()
  (tmp_path / 'folder.png').mkdir()
  (tmp_path / 'broken.png').symlink_to('nowhere')
  (tmp_path / 'loop.png').symlink_to('loop.png')
  file = saved(gradient(64, 64), 'JPEG').getvalue()
  (tmp_path / 'truncated.jpg').write_bytes(file[: len(file) // 2])
  for path in sorted(tmp_path.iterdir()):
    with pytest.raises(images.UnreadableError, match=f'{path.name}: ') as error:
      images.read(str(path), 3)
    assert str(error.value).count(path.name) == 1

  def fail(file):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(Image, 'open', fail)
  with pytest.raises(images.UnreadableError, match='x: Permission denied'):
    images.read('x', 3)
