"""What kdjax compiles on CPU, against NumPy in double precision.

jaxlib 0.10.2 hands reductions to YNNPACK, and some come out wrong, crash or
hang (https://github.com/jax-ml/jax/issues/39103, /39257, /40412; and
https://github.com/openxla/xla/issues/48714).
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.models import batch_norm, cpu_conv, cpu_pool, sums
from kdjax.system import xla

cpu_only = pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='these are faults on CPU'
)

# In a process of its own, which they may end.
REPORTED = """
import jax, numpy as np
from jax import lax
import jax.numpy as jnp
from kdjax.system import xla

rng = np.random.default_rng(0)

def compare(function, expected, *arrays):
  found = np.asarray(xla.jit(function)(*arrays), np.float64)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

for dtype, rows in ((np.float32, 32_769), (np.float64, 16_385)):
  with jax.enable_x64(dtype == np.float64):
    x = np.zeros((rows, 3), dtype)
    x[:, 0] = np.arange(rows)
    function = lambda x: jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2))(x)
    compare(function, np.arange(rows) ** 2.0, x)

def sums_of_products(first, second, *axes):
  a, b = (rng.normal(size=x).astype(np.float32) for x in (first, second))
  for axis in axes:
    expected = (np.float64(a) * b).sum(axis)
    compare(lambda a, b: (a * b).sum(axis), expected, a, b)

for shape in (
  (3, 1, 2, 2, 8, 8, 8), (1, 3, 2, 2, 8, 8, 8), (2, 3, 1, 2, 2, 2, 4, 8)
):
  sums_of_products(shape, shape, *range(len(shape)))
sums_of_products((4, 1, 3, 1, 2, 1, 5, 8), (1, 6, 1, 2, 1, 3, 1, 8), (1, 3, 5))

x = rng.normal(size=(64, 128)).astype(np.float32)
dilated = np.full((64, 255), -np.inf)
dilated[:, ::2] = x
compare(
  lambda x: lax.reduce_window(
    x, -jnp.inf, lax.max, (2, 1), (2, 1), ((0, 0), (0, 0)), base_dilation=(1, 2)
  ),
  np.maximum(dilated[::2], dilated[1::2]),
  x,
)
print('right')
"""


@cpu_only
def test_what_was_reported_comes_out_right():
  finished = subprocess.run(
    [sys.executable, '-W', 'error', '-c', REPORTED],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.stdout == 'right\n', finished.stderr[-2000:]


@cpu_only
def test_nothing_is_handed_to_ynnpack():
  def handed(jit):
    square = jit(lambda x: jnp.square(x @ x).sum(axis=0))
    program = square.lower(jnp.ones((512, 512))).compile().as_text()
    return program.count('__ynn_fusion')

  assert handed(xla.jit) == 0
  # Else this should be seen in another way.
  assert handed(jax.jit) > 0


def numbers(rng, shape, dtype, scale=1.0):
  return jnp.asarray(rng.normal(scale=scale, size=shape), dtype)


def log_softmax(z):
  z = z - z.max(axis=-1, keepdims=True)
  return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def wide(*arrays):
  return [np.asarray(array, np.float64) for array in arrays]


def a_cross_entropy(rng, dtype):
  batch, classes = rng.integers(1, 300), rng.integers(2, 200)
  z = numbers(rng, (batch, classes), dtype, 5)
  labels = rng.integers(classes, size=batch)
  (wide_z,) = wide(z)
  expected = -log_softmax(wide_z)[np.arange(batch), labels]
  return losses.cross_entropy, (z, labels), expected


def a_divergence(rng, dtype):
  shape = rng.integers(1, 300), rng.integers(2, 200)
  s, t = numbers(rng, shape, dtype, 5), numbers(rng, shape, dtype, 5)
  temperature = float(rng.uniform(1, 10))
  log_s, log_t = (log_softmax(z / temperature) for z in wide(s, t))
  expected = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(axis=-1)
  return losses.temperature_kl, (s, t, temperature), expected


def a_feature_mse(rng, dtype):
  shape = (rng.integers(1, 130), *rng.integers(1, 9, 2), rng.integers(1, 130))
  s, t = numbers(rng, shape, dtype), numbers(rng, shape, dtype)
  wide_s, wide_t = wide(s, t)
  expected = np.square(wide_s - wide_t).mean(axis=(1, 2, 3))
  return losses.feature_mse, (s, t), expected


def a_batch_norm(rng, dtype):
  shape = (rng.integers(2, 130), *rng.integers(1, 9, 2), rng.integers(1, 130))
  x = numbers(rng, shape, dtype)
  scale, bias = (numbers(rng, shape[-1], 'float32') for _ in range(2))
  ct = numbers(rng, shape, 'float32')

  def gradients(x, scale, bias, ct):
    def apply(x, scale, bias):
      return batch_norm.batch_norm(x.astype(jnp.float32), scale, bias, 1e-2)

    y, pull_back = jax.vjp(apply, x, scale, bias)
    return y, pull_back((ct, jnp.zeros_like(scale), jnp.zeros_like(scale)))

  wide_x, wide_scale, wide_bias, wide_ct = wide(x, scale, bias, ct)
  axes, count = (0, 1, 2), wide_x[..., 0].size
  mean, var = wide_x.mean(axes), wide_x.var(axes)
  normal = (wide_x - mean) / np.sqrt(var + 1e-2)
  d_bias, d_scale = wide_ct.sum(axes), (wide_ct * normal).sum(axes)
  d_x = wide_ct - (d_bias + normal * d_scale) / count
  d_x *= wide_scale / np.sqrt(var + 1e-2)
  values = normal * wide_scale + wide_bias, mean, var
  return gradients, (x, scale, bias, ct), (values, (d_x, d_scale, d_bias))


def a_connector(rng, dtype):
  """A 1×1 convolution with bias, and all its gradients."""
  shape = (rng.integers(1, 130), *rng.integers(1, 9, 2), rng.integers(1, 130))
  width = rng.integers(1, 130)
  x, kernel, bias, ct = (
    numbers(rng, each, dtype)
    for each in (shape, (shape[-1], width), width, (*shape[:-1], width))
  )

  def gradients(x, kernel, bias, ct):
    def apply(x, kernel, bias):
      return sums.add_bias(cpu_conv.pointwise(x, kernel), bias)

    y, pull_back = jax.vjp(apply, x, kernel, bias)
    return y, pull_back(ct)

  wide_x, wide_kernel, wide_bias, wide_ct = wide(x, kernel, bias, ct)
  d_kernel = np.einsum('bhwc,bhwd->cd', wide_x, wide_ct)
  expected = (
    wide_x @ wide_kernel + wide_bias,
    (wide_ct @ wide_kernel.T, d_kernel, wide_ct.sum(axis=(0, 1, 2))),
  )
  return gradients, (x, kernel, bias, ct), expected


def a_convolution(rng, dtype):
  shape = (rng.integers(1, 40), *rng.integers(3, 12, 2), rng.integers(1, 40))
  kernel = numbers(rng, (3, 3, shape[-1], rng.integers(1, 40)), dtype)
  x = numbers(rng, shape, dtype)

  def apply(x, kernel):
    return cpu_conv.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=cpu_conv.NHWC
    )

  wide_x, wide_kernel = wide(x, kernel)
  padded = np.pad(wide_x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  expected = sum(
    padded[:, i : i + shape[1], j : j + shape[2]] @ wide_kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  return apply, (x, kernel), expected


def a_pool(rng, dtype):
  shape = (rng.integers(1, 130), *rng.integers(3, 17, 2), rng.integers(1, 65))
  x = numbers(rng, shape, dtype)

  def apply(x):
    return jax.vjp(
      lambda x: cpu_pool.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), x
    )[0]

  (wide_x,) = wide(x)
  padded = np.pad(
    wide_x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf
  )
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  return apply, (x,), windows[:, ::2, ::2].max(axis=(-2, -1))


def a_step_of_adam(rng, dtype):
  shape = tuple(rng.integers(1, 65, rng.integers(1, 5)))
  g, p = numbers(rng, shape, 'float32'), numbers(rng, shape, 'float32')

  def update(g, p):
    adam = optax.adamw(1e-2, weight_decay=1e-1)
    change, _ = adam.update(g, adam.init(p), p)
    return p + change, jnp.sqrt(sums.total(jnp.square(g)))

  wide_g, wide_p = wide(g, p)
  moved = wide_g / (np.abs(wide_g) + 1e-8) + 1e-1 * wide_p
  return update, (g, p), (wide_p - 1e-2 * moved, np.sqrt((wide_g**2).sum()))


CASES = (
  a_cross_entropy,
  a_divergence,
  a_feature_mse,
  a_batch_norm,
  a_connector,
  a_convolution,
  a_pool,
  a_step_of_adam,
)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('case', CASES)
def test_compiled_is_what_numpy_computes_in_double_precision(
  case, dtype, request
):
  rng = np.random.default_rng(len(case.__name__))
  for _ in range(request.config.getoption('--shapes')):
    function, arguments, expected = case(rng, dtype)
    found = xla.jit(function)(*arguments)
    for ours, right in zip(
      *map(jax.tree.leaves, (found, expected)), strict=True
    ):
      tolerance = 2e-2 if ours.dtype == jnp.bfloat16 else 2e-5
      (ours,) = wide(ours)
      assert ours.shape == np.shape(right)
      np.testing.assert_allclose(
        ours, right, rtol=tolerance, atol=tolerance * np.abs(right).max()
      )
