"""Sums against NumPy's in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kdjax.models import sums
from kdjax.system import xla


def numbers(shape):
  return np.random.default_rng(0).normal(1.0, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize(
  'shape', [(128, 16, 16, 64), (3, 7, 7, 5), (5, 13, 2), (6, 4), (1, 1, 1, 1)]
)
def test_sums_of_channels(shape):
  x = numbers(shape)
  expected = x.sum(axis=tuple(range(x.ndim - 1)), dtype=np.float64)
  found = xla.jit(sums.channel_sum)(x)
  scale = np.abs(x).sum(axis=tuple(range(x.ndim - 1)), dtype=np.float64)
  np.testing.assert_array_less(np.abs(found - expected), 2e-6 * scale + 1e-12)


@pytest.mark.parametrize('shape', [(3, 3, 64, 64), (10,), (1001,), ()])
def test_total(shape):
  x = numbers(shape)
  found = xla.jit(sums.total)(x)
  assert found.shape == ()
  assert abs(found - x.sum(dtype=np.float64)) <= 1e-6 * np.abs(x).sum()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_bias_and_its_gradient(dtype):
  x, bias = jnp.asarray(numbers((4, 3, 3, 5)), dtype), jnp.arange(5.0)
  weights = jnp.asarray(numbers((4, 3, 3, 5)), dtype)

  def gradients(add):
    def loss(x, bias):
      return (add(x, bias.astype(dtype)) * weights).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, bias)

  found, expected = gradients(sums.add_bias), gradients(jnp.add)
  for ours, plain in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert ours.dtype == plain.dtype
    np.testing.assert_allclose(
      np.asarray(ours, np.float32),
      np.asarray(plain, np.float32),
      rtol=1e-5 if dtype == 'float32' else 3e-2,
    )


def test_only_a_cpu_adds_slices():
  x = jax.ShapeDtypeStruct((16, 4, 4, 8), jnp.float32)
  for platform, sliced in (('cpu', True), ('cuda', False), ('tpu', False)):
    program = export.export(jax.jit(sums.channel_sum), platforms=[platform])(x)
    assert ('stablehlo.slice' in program.mlir_module()) == sliced
