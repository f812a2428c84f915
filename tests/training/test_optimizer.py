"""The optimiser against updates worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_a_step_schedule_falls_at_its_milestones():
  config = config_lib.default().train
  config.update(
    learning_rate=0.4,
    warmup_epochs=1.0,
    schedule='step',
    milestones=(5, 8),
    decay=0.1,
  )
  _, schedule = optimizer.build(config, steps_per_epoch=10, total_steps=100)
  for step, want in [(5, 0.2), (10, 0.4), (49, 0.4), (51, 0.04), (81, 0.004)]:
    assert float(schedule(step)) == pytest.approx(want), step


@pytest.mark.parametrize(('power', 'half'), [(1.0, 0.2), (2.0, 0.1)])
def test_a_polynomial_schedule_falls_to_zero(power, half):
  config = recipe(learning_rate=0.4)
  config.update(schedule='polynomial', power=power)
  _, schedule = optimizer.build(config, steps_per_epoch=10, total_steps=100)
  for step, want in [(0, 0.4), (50, half), (100, 0.0)]:
    assert float(schedule(step)) == pytest.approx(want)


def test_lion_moves_by_the_sign_and_decays_kernels():
  config = recipe(optimizer='lion', learning_rate=0.1)
  config.weight_decay = 0.5
  change = updates(config)
  # 0.1 · (sign(0.5) + 0.5 · 2) for kernels, which are 2.
  np.testing.assert_allclose(change['conv']['kernel'], -0.2, rtol=1e-6)
  np.testing.assert_allclose(change['bn']['scale'], -0.1, rtol=1e-6)


def test_muon_takes_a_convolution_as_a_matrix_to_its_outputs():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
  bias = jnp.ones(4)
  config = recipe(optimizer='muon', learning_rate=0.1)
  found, _ = optimizer.build(config, steps_per_epoch=10, total_steps=100)
  params = {'kernel': kernel, 'bias': bias}
  change, _ = jax.jit(found.update)(params, found.init(params), params)
  plain = optax.contrib.muon(0.1)
  matrix = {'kernel': kernel.reshape(18, 4)}
  expected, _ = plain.update(matrix, plain.init(matrix), matrix)
  np.testing.assert_allclose(
    change['kernel'].reshape(18, 4), expected['kernel'], rtol=1e-4, atol=1e-6
  )
  # Its singular values are nearly equal.
  values = np.linalg.svd(change['kernel'].reshape(18, 4), compute_uv=False)
  assert values.max() / values.min() < 1.7
  # Adam's first step with Nesterov's look ahead, gradient 1.
  first = 0.1 * (1 + 0.9 * 0.1 / (1 - 0.9**2))
  np.testing.assert_allclose(change['bias'], -first, rtol=1e-5)


def test_options_go_to_optax():
  plain = recipe(optimizer='sgd', learning_rate=0.1, momentum=0.9)
  other = recipe(
    optimizer='sgd',
    learning_rate=0.1,
    momentum=0.9,
    optimizer_options=('nesterov=False',),
  )
  # Nesterov's first step is that of 1 + 0.9.
  np.testing.assert_allclose(updates(plain)['bn']['bias'], -0.095, rtol=1e-6)
  np.testing.assert_allclose(updates(other)['bn']['bias'], -0.05, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (('b3=0.1',), "has 'b3=0.1': expected NAME=VALUE, and adamw takes b1, b2"),
    (('b1',), "has 'b1': expected NAME=VALUE"),
    (('mask=1',), 'expected NAME=VALUE'),
    (('b1=high',), "'high' is no number"),
  ],
)
def test_wrong_options_are_refused(options, message):
  config = recipe(optimizer='adamw', optimizer_options=options)
  with pytest.raises(ValueError, match=message):
    optimizer.parse_options(config)
