"""BatchNorm for the models, with its gradient in closed form.

`BatchNorm` computes what `flax.linen.BatchNorm` computes and has the same
parameters and statistics (Ioffe and Szegedy, 2015,
https://arxiv.org/abs/1502.03167). In training its gradient is the formula of
their section 3: it keeps nothing but the activations and reads them twice.
There is no forward-mode gradient.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.models import sums


class BatchNorm(nn.BatchNorm):
  """Normalises each channel by its mean and variance over the batch.

  Of the attributes of `flax.linen.BatchNorm` it knows `use_running_average`,
  `momentum`, `epsilon`, `dtype`, `scale_init` and `bias_init`; the others must
  have their defaults. Parameters and statistics are float32.
  """

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Normalises activations.

    Args:
      x: `[batch, ..., channels]`.
      use_running_average: not taken here; set the attribute.
      mask: not supported.

    Returns:
      The same shape, in `dtype`, or else the dtype of `x`.
    """
    assert use_running_average is None
    assert mask is None
    shape = x.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    scale = self.param('scale', self.scale_init, shape)
    bias = self.param('bias', self.bias_init, shape)
    if self.use_running_average:
      y = _normalize(x, mean.value, var.value, scale, bias, self.epsilon)
    else:
      y, batch_mean, batch_var = batch_norm(x, scale, bias, self.epsilon)
      if not self.is_initializing():
        for running, new in ((mean, batch_mean), (var, batch_var)):
          running.value = (
            self.momentum * running.value + (1 - self.momentum) * new
          )
    return y.astype(self.dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the batch's own statistics.

  y = (x - mean) / √(var + ε) · scale + bias, with mean and variance of each
  channel over all other axes, var = max(0, mean of x² - mean²).

  Args:
    x: `[batch, ..., channels]`.
    scale: float32 `[channels]`.
    bias: float32 `[channels]`.
    epsilon: ε.

  Returns:
    y, float32, of the shape of `x`; the mean and the biased variance, float32
    `[channels]`, through which no gradient flows.
  """
  wide = x.astype(jnp.float32)
  count = math.prod(x.shape[:-1])
  mean = sums.channel_sum(wide) / count
  mean_of_squares = sums.channel_sum(jnp.square(wide)) / count
  var = jnp.maximum(0.0, mean_of_squares - jnp.square(mean))
  return _normalize(wide, mean, var, scale, bias, epsilon), mean, var


def _forward(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[Any, Any]:
  y, mean, var = batch_norm(x, scale, bias, epsilon)
  return (y, mean, var), (x, mean, var, scale)


def _backward(
  epsilon: float, residuals: Any, cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
  (x, mean, var, scale), ct = residuals, cotangents[0]
  inverse = lax.rsqrt(var + epsilon)
  normalized = (x.astype(jnp.float32) - mean) * inverse
  d_bias = sums.channel_sum(ct)
  d_scale = sums.channel_sum(ct * normalized)
  count = math.prod(x.shape[:-1])
  d_x = scale * inverse * (ct - (d_bias + normalized * d_scale) / count)
  return d_x.astype(x.dtype), d_scale, d_bias


batch_norm.defvjp(_forward, _backward)


def _normalize(
  x: jax.Array,
  mean: jax.Array,
  var: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
) -> jax.Array:
  return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
