"""The optimiser against updates worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax.training import optimizer

PARAMS = {
  'conv': {'kernel': jnp.full((2, 2), 2.0)},
  'bn': {'scale': jnp.ones(2), 'bias': jnp.zeros(2)},
}
GRADIENTS = jax.tree.map(lambda x: jnp.full_like(x, 0.5), PARAMS)


def recipe(**fields):
  config = config_lib.default().train
  config.update(
    schedule='constant', warmup_epochs=0.0, weight_decay=0.0, **fields
  )
  return config


def updates(config, steps=1, gradients=GRADIENTS):
  transformation, _ = optimizer.build(
    config, steps_per_epoch=10, total_steps=100
  )
  state = transformation.init(PARAMS)
  update = jax.jit(transformation.update)
  for _ in range(steps):
    change, state = update(gradients, state, PARAMS)
  return change


def test_schedule_warms_up_and_falls_to_zero():
  config = config_lib.default().train
  config.update(learning_rate=0.4, warmup_epochs=2.0)
  _, schedule = optimizer.build(config, steps_per_epoch=10, total_steps=100)
  # 20 steps of warm-up, then half a cosine over 80.
  for step, want in [(0, 0.0), (10, 0.2), (20, 0.4), (60, 0.2), (100, 0.0)]:
    assert float(schedule(step)) == pytest.approx(want, abs=1e-7)
  assert float(schedule(40)) == pytest.approx(0.4 * (1 + np.cos(np.pi / 4)) / 2)


def test_a_short_run_still_reaches_its_learning_rate():
  config = config_lib.default().train
  config.update(learning_rate=0.4, warmup_epochs=5.0)
  _, schedule = optimizer.build(config, steps_per_epoch=10, total_steps=20)
  assert float(schedule(10)) == pytest.approx(0.4)
  assert float(schedule(20)) == pytest.approx(0.0, abs=1e-7)


def test_constant_schedule_stays():
  _, schedule = optimizer.build(
    recipe(learning_rate=0.3), steps_per_epoch=10, total_steps=100
  )
  assert [float(schedule(step)) for step in (0, 50, 100)] == [
    pytest.approx(0.3)
  ] * 3


def test_sgd_is_nesterov_momentum():
  config = recipe(learning_rate=0.1, momentum=0.9)
  first = updates(config, steps=1)['conv']['kernel']
  second = updates(config, steps=2)['conv']['kernel']
  # v1 = g, step g + 0.9 v1 = 1.9 g; v2 = 1.9 g, step g + 0.9 v2 = 2.71 g.
  np.testing.assert_allclose(first, -0.1 * 1.9 * 0.5, rtol=1e-6)
  np.testing.assert_allclose(second, -0.1 * 2.71 * 0.5, rtol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_only_kernels_decay(name):
  plain = recipe(optimizer=name, learning_rate=0.1, momentum=0.0)
  decayed = recipe(optimizer=name, learning_rate=0.1, momentum=0.0)
  decayed.weight_decay = 0.25
  before, after = updates(plain), updates(decayed)
  # Both optimisers take learning rate · decay · kernel off in a first step.
  np.testing.assert_allclose(
    after['conv']['kernel'] - before['conv']['kernel'],
    -0.1 * 0.25 * 2.0,
    rtol=1e-5,
  )
  for name in ('scale', 'bias'):
    np.testing.assert_array_equal(after['bn'][name], before['bn'][name])


def test_adamw_moves_by_the_learning_rate_at_first():
  change = updates(recipe(optimizer='adamw', learning_rate=0.1))
  np.testing.assert_allclose(change['conv']['kernel'], -0.1, rtol=1e-5)


def test_gradients_are_clipped_to_the_norm():
  config = recipe(learning_rate=1.0, momentum=0.0, clip_norm=0.1)
  change = updates(config)
  norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(change)))
  assert norm == pytest.approx(0.1, rel=1e-5)
  small = jax.tree.map(lambda x: x * 1e-3, GRADIENTS)
  np.testing.assert_allclose(
    updates(config, gradients=small)['conv']['kernel'], -5e-4, rtol=1e-6
  )


@pytest.mark.parametrize(('epochs', 'warns'), [(2.0, False), (2.1, True)])
def test_a_warm_up_longer_than_the_training_is_told(epochs, warns, caplog):
  config = recipe()
  config.warmup_epochs = epochs
  optimizer.build(config, steps_per_epoch=10, total_steps=20)
  assert ('the warm-up takes half of it, 10 steps' in caplog.text) == warns
