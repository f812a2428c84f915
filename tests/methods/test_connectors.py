"""The connector and its squared error, which have a gradient of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.methods import _connectors


def arrays(dtype='float32', positions=(4, 4)):
  source_shape, target_shape = (6, *positions, 8), (6, *positions, 32)
  keys = jax.random.split(jax.random.key(0), 5)
  params = _connectors.init_conv(keys[0], 8, 32)
  params['bias'] = jax.random.normal(keys[1], (32,))
  source = jax.nn.relu(jax.random.normal(keys[2], source_shape)).astype(dtype)
  target = jax.nn.relu(jax.random.normal(keys[3], target_shape)).astype(dtype)
  # Examples need not weigh the same.
  return params, source, target, jax.random.uniform(keys[4], (6,))


def plain(params, source, target):
  """The same in float64, differentiated by JAX."""
  connected = source @ params['kernel'][0, 0] + params['bias']
  return jnp.square(connected - target).mean(axis=range(1, target.ndim))


def gradients(function, params, source, target, weights):
  def total(params, source):
    values = function(params, source, target)
    return (values * weights).sum(), values

  (_, values), found = jax.jit(
    jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  )(params, source)
  return values, found


@pytest.mark.parametrize(
  ('dtype', 'value_tolerance', 'tolerance', 'positions'),
  [
    ('float32', 1e-6, 1e-5, (4, 4)),
    ('float32', 1e-6, 1e-5, ()),
    ('float32', 1e-6, 1e-5, (11, 1)),
    # The rounding of many differences is lost in their mean.
    ('bfloat16', 1e-3, 2e-2, (4, 4)),
  ],
)
def test_error_and_gradients_are_those_of_float64(
  dtype, value_tolerance, tolerance, positions
):
  given = arrays(dtype, positions)
  values, found = gradients(_connectors.connected_mse, *given)
  with jax.enable_x64(True):
    exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), 'float64'), given)
    expected_values, expected = gradients(plain, *exact)
  assert values.dtype == jnp.float32
  np.testing.assert_allclose(values, expected_values, rtol=value_tolerance)
  for mine, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(
      np.asarray(mine, 'float64'), theirs, atol=tolerance * scale
    )
  assert found[1].dtype == given[1].dtype


def test_it_is_the_connector_and_its_loss():
  params, source, target, _ = arrays()
  connected = _connectors.conv(params, source)
  np.testing.assert_allclose(
    _connectors.connected_mse(params, source, target),
    losses.feature_mse(connected, target),
    rtol=1e-5,
  )


def test_a_map_equal_to_its_target_has_no_error_and_no_gradient():
  params, source, _, weights = arrays()
  target = _connectors.conv(params, source)
  values, found = gradients(
    _connectors.connected_mse, params, source, target, weights
  )
  assert not values.any()
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_the_target_has_no_gradient():
  params, source, target, _ = arrays()
  found = jax.grad(
    lambda target: _connectors.connected_mse(params, source, target).sum()
  )(target)
  assert not found.any()


def test_recomputing_changes_nothing():
  given = arrays()
  values, found = gradients(_connectors.connected_mse, *given)
  again = gradients(jax.checkpoint(_connectors.connected_mse), *given)
  np.testing.assert_array_equal(values, again[0])
  jax.tree.map(np.testing.assert_array_equal, found, again[1])
