"""The max-pool whose gradient suits the platform, against Flax's own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kdjax.models import cpu_pool

SETTINGS = [
  ((3, 3), (2, 2), ((1, 1), (1, 1))),
  ((2, 2), (2, 2), ((0, 0), (0, 0))),
  ((3, 2), (1, 3), ((1, 0), (0, 1))),
  ((2, 3), (3, 1), ((0, 1), (2, 2))),
]


def value_and_gradient(max_pool, settings, x):
  window, strides, padding = settings
  value, pull_back = jax.vjp(lambda x: max_pool(x, window, strides, padding), x)
  weights = jnp.cos(jnp.arange(value.size)).astype(x.dtype)
  return value, *pull_back(weights.reshape(value.shape))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('size', [(8, 8), (7, 5), (3, 4)], ids=str)
def test_value_and_gradient_are_those_of_flax(size, settings, dtype):
  x = np.random.default_rng(0).normal(size=(2, *size, 3))
  # Ties, as after a ReLU.
  x = jnp.asarray(np.maximum(np.round(x, 1), 0), dtype)
  found, expected = (
    jax.jit(functools.partial(value_and_gradient, max_pool, settings))(x)
    for max_pool in (cpu_pool.max_pool, nn.max_pool)
  )
  np.testing.assert_array_equal(found[0], expected[0])
  assert found[1].dtype == dtype
  # One sum of at most nine terms, in another order.
  np.testing.assert_allclose(
    *(np.asarray(y[1], np.float32) for y in (found, expected)),
    atol=1e-6 if dtype == 'float32' else 2e-2,
  )


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_a_value_alone_is_that_of_flax(settings):
  x = -np.random.default_rng(0).uniform(1, 2, (2, 7, 5, 3)).astype(np.float32)
  window, strides, padding = settings
  predict = jax.jit(lambda x: cpu_pool.max_pool(x, window, strides, padding))
  np.testing.assert_array_equal(
    predict(x), nn.max_pool(x, window, strides, padding)
  )
  # Padded and pooled at once.
  assert ' pad(' not in predict.lower(x).compile().as_text()


@pytest.mark.parametrize(
  ('platform', 'expected'), [('cpu', 0), ('cuda', 1), ('tpu', 1)]
)
def test_each_platform_gets_its_own_gradient(platform, expected):
  gradient = jax.jit(
    jax.grad(lambda x: cpu_pool.max_pool(x, *SETTINGS[0]).sum())
  )
  program = export.export(gradient, platforms=[platform])(
    jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  )
  assert program.mlir_module().count('select_and_scatter') >= expected
  assert ('select_and_scatter' in program.mlir_module()) == bool(expected)
