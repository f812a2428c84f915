"""Sums over many elements, written to suit the platform.

On CPU, XLA sums one element after the other, or has the sums made by a library
that jaxlib 0.10.2 calls wrongly (see `kdjax.system.xla`). Only there, these are
additions of whole slices, which a processor's vector units and the memory's
order suit, and a matrix product for the rest. The choice falls when a program
is lowered for a platform.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Slices that are added in one go. More are read from too many places at once.
_SLICES = 8


def channel_sum(x: jax.Array) -> jax.Array:
  """Sums over all axes but the last.

  Args:
    x: `[batch, ..., channels]`, float32.

  Returns:
    Sums, float32 `[channels]`. They have no gradient of their own: for use
    inside functions with one.
  """

  def slices(x: jax.Array) -> jax.Array:
    x = _add_slices(x.reshape(x.shape[0], -1, x.shape[-1]))
    x = x.reshape(-1, x.shape[-1])
    return jnp.ones(len(x), x.dtype) @ x

  def plain(x: jax.Array) -> jax.Array:
    return x.sum(axis=range(x.ndim - 1))

  return lax.platform_dependent(x, cpu=slices, default=plain)


def position_sum(x: jax.Array) -> jax.Array:
  """Sums over all axes but the first and the last.

  Args:
    x: `[batch, ..., channels]`, float32.

  Returns:
    Sums, float32 `[batch, channels]`, without a gradient as `channel_sum`.
  """

  def slices(x: jax.Array) -> jax.Array:
    return _add_slices(x.reshape(x.shape[0], -1, x.shape[-1])).sum(axis=1)

  def plain(x: jax.Array) -> jax.Array:
    return x.sum(axis=range(1, x.ndim - 1))

  return lax.platform_dependent(x, cpu=slices, default=plain)


def total(x: jax.Array) -> jax.Array:
  """Sums over all axes.

  Args:
    x: an array of any shape, float32.

  Returns:
    The sum, a float32 scalar, without a gradient as that of `channel_sum`.
  """

  def slices(x: jax.Array) -> jax.Array:
    return _add_slices(x.reshape(1, -1)).sum()

  return lax.platform_dependent(x, cpu=slices, default=jnp.sum)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias to each channel.

  Args:
    x: `[batch, ..., channels]`.
    bias: `[channels]`, of the same dtype.

  Returns:
    x + bias, whose gradient for the bias is a `channel_sum`.
  """
  return x + bias


add_bias.defvjp(
  lambda x, bias: (x + bias, None),
  lambda _, ct: (ct, channel_sum(ct.astype(jnp.float32)).astype(ct.dtype)),
)


def _add_slices(x: jax.Array) -> jax.Array:
  """Adds slices along the second axis for as long as it can be divided.

  Never along the first, over which devices divide a batch.
  """
  size = x.shape[1]
  while size > 1:
    counts = (k for k in range(_SLICES, 1, -1) if size % k == 0)
    count = next(counts, None)
    if count is None:
      break
    size //= count
    x = functools.reduce(
      jnp.add, (x[:, i * size : (i + 1) * size] for i in range(count))
    )
  return x
