"""What does not fit is refused before it is asked for."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax.data import Split
from kdjax.system import memory
from kdjax.training import compiled as compiled_lib
from kdjax.training import plan as plan_lib
from kdjax.training.plan import Plan


def test_sizes_have_no_end():
  shapes = {'a': jax.ShapeDtypeStruct((2**31 - 1, 2**31 - 1), jnp.float32)}
  assert memory.size(shapes) == 4 * (2**31 - 1) ** 2


def test_what_is_needed_and_available_is_told(monkeypatch):
  monkeypatch.setattr(memory, '_host', lambda: 2**31)
  memory.check(2**31, 'it', 'Do this')
  message = r'it: 4\.0 GiB of memory are needed, and 2\.0 GiB .*\. Do this'
  with pytest.raises(ValueError, match=message):
    memory.check(2**32, 'it', 'Do this')
  # Where nobody knows, nothing is refused.
  monkeypatch.setattr(memory, '_host', lambda: None)
  memory.check(2**60, 'it', 'Do this')


def test_the_memory_of_this_machine_is_known_on_linux():
  free = memory._host()
  assert free is None or 2**20 < free < 2**50


def dataset(side=8):
  train = Split(np.zeros((64, side, side, 1), np.uint8), np.zeros(64, np.int32))
  return types.SimpleNamespace(
    name='squares', train=train, image_shape=(side, side, 1)
  )


def plan(**changes):
  config = config_lib.default()
  config.train.batch_size = 16
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return plan_lib.plan(config, dataset())


def test_a_plan_is_made_of_what_can_be(monkeypatch):
  with pytest.raises(ValueError, match=r'crop_padding is 9, .* 8×8 pixels'):
    plan(**{'data.crop_padding': 9})
  with pytest.raises(
    ValueError, match=r'4,000,000,000 steps: expected at most'
  ):
    plan(**{'train.epochs': 10**9})
  # As many as an epoch has.
  assert plan(**{'device.steps_per_dispatch': 10**9}).steps_per_dispatch == 4
  monkeypatch.setattr(memory, '_host', lambda: 1000)
  with pytest.raises(ValueError, match='a batch of 16 images of 8×8 pixels'):
    plan()
  state = {'w': jax.ShapeDtypeStruct((1000,), jnp.float32)}
  with pytest.raises(
    ValueError, match=r'parameters .*student\.name or \.width'
  ):
    compiled_lib.check_memory(state)
  compiled = jax.jit(lambda x: jnp.sort(x @ x.T).sum()).lower(
    jax.ShapeDtypeStruct((500, 500), jnp.float32)
  )
  with pytest.raises(ValueError, match=r'activations .*config\.device\.remat'):
    compiled_lib._check_working_memory(compiled.compile())


@pytest.mark.parametrize('done', [0, 3, 8, 29])
def test_a_long_run_compiles_what_each_of_its_epochs_needs(done):
  short = Plan(1, 10, 10, 35, 4, overlap=False)
  found, at = set(), done
  while at < short.total_steps:
    found.add(short.next_dispatch(at))
    at += short.next_dispatch(at)
  assert short.dispatches(done) == found
  # At once, however long it is.
  assert short._replace(total_steps=2**31 - 1).dispatches(0) == {2, 3, 4}
