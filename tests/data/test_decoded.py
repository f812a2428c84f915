"""Decoded copies of splits: used while valid, and never in the way."""

import os

import numpy as np
import pytest

from kdjax.data.sources import Split, _decoded


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'kdjax' / 'data'


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'records'
  path.write_bytes(b'records')
  return path


class Reader:
  """Gives another split each time it reads."""

  def __init__(self):
    self.count = 0

  def __call__(self):
    self.count += 1
    images = np.full((3, 2, 2, 1), self.count, np.uint8)
    return Split(images, np.arange(3, dtype=np.int32))


def test_a_split_is_decoded_once(cache, source):
  reader = Reader()
  first = _decoded.keep([source], reader)
  second = _decoded.keep([source], reader)
  assert reader.count == 1
  for ours, theirs in zip(second, first, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize('change', ['size', 'time', 'path'])
def test_other_files_are_decoded_again(cache, source, change):
  reader = Reader()
  _decoded.keep([source], reader)
  if change == 'size':
    status = source.stat()
    source.write_bytes(b'more records')
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
  elif change == 'time':
    os.utime(source, ns=(1, 1))
  else:
    source = source.rename(source.with_name('elsewhere'))
  assert _decoded.keep([source], reader).images.max() == 2


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'empty'])
def test_a_damaged_copy_is_made_again(cache, source, damage):
  reader = Reader()
  _decoded.keep([source], reader)
  (copy,) = cache.iterdir()
  content = bytearray(copy.read_bytes())
  if damage == 'flipped':
    # In the images themselves: they are all ones.
    content[content.index(b'\1' * 12)] ^= 0xFF
  copy.write_bytes(
    {'truncated': content[:100], 'flipped': content, 'empty': b''}[damage]
  )
  assert _decoded.keep([source], reader).images.max() == 2
  assert _decoded.keep([source], reader).images.max() == 2


def test_where_nothing_can_be_written_all_goes_on(
  tmp_path, source, monkeypatch
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert _decoded.keep([source], Reader()).images.max() == 1


def test_a_full_disk_leaves_no_half_copy(cache, source, monkeypatch):
  def full(file, **_):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  assert _decoded.keep([source], Reader()).images.max() == 1
  assert list(cache.iterdir()) == []


def test_the_copy_used_longest_ago_goes_first(cache, tmp_path, monkeypatch):
  reader = Reader()
  sources = [tmp_path / name for name in 'abc']
  for path in sources:
    path.write_text('')
  a, b, c = sources
  _decoded.keep([a], reader)
  (copy_of_a,) = cache.iterdir()
  monkeypatch.setattr(_decoded, '_BYTES', 2 * copy_of_a.stat().st_size)
  os.utime(copy_of_a, ns=(1, 1))
  _decoded.keep([b], reader)
  (copy_of_b,) = set(cache.iterdir()) - {copy_of_a}
  os.utime(copy_of_b, ns=(2, 2))
  _decoded.keep([a], reader)
  assert copy_of_a.stat().st_mtime_ns > 2
  _decoded.keep([c], reader)
  assert copy_of_a.exists()
  assert not copy_of_b.exists()
  assert len(list(cache.iterdir())) == 2
