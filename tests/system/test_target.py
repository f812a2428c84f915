"""Devices that are absent take the place of those that are there."""

import jax
import numpy as np
import pytest

from kdjax.system import devices, memory, target


def test_within_it_absent_devices_count():
  absent = target.Target('tpu', (jax.devices()[0],))
  assert target.platform() == jax.default_backend()
  assert target.device_count() == jax.device_count()
  with target.compile_for(absent):
    assert target.absent() == absent
    assert target.platform() == 'tpu'
    assert not target.on_cpu()
    assert target.device_count() == 1
    found = devices.replicate({'x': np.zeros((2, 3), np.uint8)})
    # Nobody knows what is free there.
    memory.check(2**60, 'everything', 'Ask for less')
  assert target.absent() is None
  assert found == {
    'x': jax.ShapeDtypeStruct((2, 3), np.uint8, sharding=devices.replicated())
  }
  with pytest.raises(ValueError, match=r'everything: .* Ask for less'):
    memory.check(2**60, 'everything', 'Ask for less')


def test_an_error_within_it_ends_it():
  absent = target.Target('cuda', tuple(jax.devices()))

  def fail():
    with target.compile_for(absent):
      raise OSError('ended')

  with pytest.raises(OSError, match='ended'):
    fail()
  assert target.absent() is None
