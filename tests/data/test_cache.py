"""Copies of arrays: used while valid, and never in the way."""

import os

import numpy as np
import pytest

from kdjax.data import cache as cache_lib


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'kdjax' / 'data'


class Maker:
  """Makes another array each time."""

  def __init__(self):
    self.count = 0

  def __call__(self):
    self.count += 1
    return {'images': np.full(12, self.count, np.uint8)}


def test_an_array_is_made_once(cache):
  make = Maker()
  first = cache_lib.load_or_make(['a'], make)
  second = cache_lib.load_or_make(['a'], make)
  assert make.count == 1
  np.testing.assert_array_equal(second['images'], first['images'])
  assert second['images'].dtype == first['images'].dtype
  assert len(list(cache.iterdir())) == 1


def test_what_is_made_of_something_else_is_another(cache):
  make = Maker()
  cache_lib.load_or_make(['a', 'b'], make)
  assert cache_lib.load_or_make(['ab'], make)['images'].max() == 2


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'empty'])
def test_a_damaged_copy_is_made_again(cache, damage):
  make = Maker()
  cache_lib.load_or_make(['a'], make)
  (copy,) = cache.iterdir()
  content = bytearray(copy.read_bytes())
  if damage == 'flipped':
    # In the images themselves: they are all ones.
    content[content.index(b'\1' * 12)] ^= 0xFF
  copy.write_bytes(
    {'truncated': content[:100], 'flipped': content, 'empty': b''}[damage]
  )
  assert cache_lib.load_or_make(['a'], make)['images'].max() == 2
  assert cache_lib.load_or_make(['a'], make)['images'].max() == 2


def test_where_nothing_can_be_written_all_goes_on(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert cache_lib.load_or_make(['a'], Maker())['images'].max() == 1


def test_a_full_disk_leaves_no_half_copy(cache, monkeypatch):
  def full(file, **_):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  assert cache_lib.load_or_make(['a'], Maker())['images'].max() == 1
  assert list(cache.iterdir()) == []


def test_the_copy_used_longest_ago_goes_first(cache, monkeypatch):
  make = Maker()
  cache_lib.load_or_make(['a'], make)
  (copy_of_a,) = cache.iterdir()
  monkeypatch.setattr(cache_lib, '_BYTES', 2 * copy_of_a.stat().st_size)
  os.utime(copy_of_a, ns=(1, 1))
  cache_lib.load_or_make(['b'], make)
  (copy_of_b,) = set(cache.iterdir()) - {copy_of_a}
  os.utime(copy_of_b, ns=(2, 2))
  cache_lib.load_or_make(['a'], make)
  assert copy_of_a.stat().st_mtime_ns > 2
  cache_lib.load_or_make(['c'], make)
  assert copy_of_a.exists()
  assert not copy_of_b.exists()
  assert len(list(cache.iterdir())) == 2
