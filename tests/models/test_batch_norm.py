"""BatchNorm with its closed-form gradient, against Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kdjax.models import batch_norm

# An odd size, maps of one value, and no map at all.
SHAPES = [(8, 4, 4, 3), (5, 7, 3, 2), (6, 1, 1, 4), (16, 5)]


def images(shape, dtype='float32'):
  x = np.random.default_rng(0).normal(2.0, 3.0, shape)
  return jnp.asarray(x, dtype)


def variables(channels):
  rng = np.random.default_rng(1)
  return {
    'params': {
      'scale': jnp.asarray(rng.normal(size=channels), jnp.float32),
      'bias': jnp.asarray(rng.normal(size=channels), jnp.float32),
    },
    'batch_stats': {
      'mean': jnp.asarray(rng.normal(size=channels), jnp.float32),
      'var': jnp.asarray(rng.uniform(1, 2, channels), jnp.float32),
    },
  }


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_it_trains_as_flax_does(shape, dtype):
  def value_and_gradients(module):
    model = module(use_running_average=False, momentum=0.8, dtype=dtype)
    x, known = images(shape, dtype), variables(shape[-1])

    def loss(params, x):
      y, new = model.apply(
        {**known, 'params': params}, x, mutable='batch_stats'
      )
      weights = jnp.sin(jnp.arange(y.size)).reshape(y.shape)
      return (y * weights).sum(), (y, new['batch_stats'])

    function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, (y, stats)), gradients = jax.jit(function)(known['params'], x)
    assert y.dtype == gradients[1].dtype == dtype
    return y, stats, gradients

  tolerance = 2e-5 if dtype == 'float32' else 3e-2
  found, expected = map(
    value_and_gradients, (batch_norm.BatchNorm, nn.BatchNorm)
  )
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for ours, flax in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(
      np.asarray(ours, np.float32),
      np.asarray(flax, np.float32),
      rtol=tolerance,
      atol=tolerance * np.abs(np.asarray(flax, np.float32)).max(),
    )


def test_it_predicts_and_starts_as_flax_does():
  x = images((4, 3, 3, 5))
  for train in (False, True):
    found, expected = (
      module(use_running_average=not train).init(jax.random.key(0), x)
      for module in (batch_norm.BatchNorm, nn.BatchNorm)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  found, expected = (
    jax.jit(module(use_running_average=True).apply)(variables(5), x)
    for module in (batch_norm.BatchNorm, nn.BatchNorm)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_formula():
  x = images((4, 2, 2, 3))
  known = variables(3)['params']
  check_grads(
    lambda x, scale, bias: batch_norm.batch_norm(x, scale, bias, 1e-5)[0],
    (x, known['scale'], known['bias']),
    order=1,
    modes=['rev'],
    atol=2e-2,
    rtol=2e-2,
  )


def test_a_constant_channel_has_no_variance_below_zero():
  x = jnp.full((7, 3, 3, 1), 1000.1)
  y, _, var = jax.jit(batch_norm.batch_norm, static_argnums=3)(
    x, jnp.ones(1), jnp.zeros(1), 1e-5
  )
  assert var >= 0
  assert np.isfinite(y).all()
