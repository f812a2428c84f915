"""Convolution for the models, lowered to suit the platform.

`conv_general_dilated` computes what `jax.lax.conv_general_dilated` computes and
plugs into `flax.linen.Conv` through its `conv_general_dilated` field, so
parameters keep the names and layouts of Flax.

On CPU, XLA runs a 1×1 convolution's gradients, and any convolution whose map
is nearly all padding, many times slower than the same sums written as a matrix
product. There, and only there, those are lowered as matrix products, and in
training all of them wait until their operands are computed. The choice falls
when the program is lowered for a platform, so a program exported for several
platforms carries the right form for each. There is no forward-mode gradient.
Over several devices, gradients of kernels are added in float32.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.system import devices

# Flax hands the layout over as a ConvDimensionNumbers of tuples (NHWC, HWIO).
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Largest map (height × width) for which k×k convolutions become one matrix
# product. Up to 2×2, XLA's own kernel on CPU was 7 to 20 times slower.
_TINY_MAP = 4

_Padding = tuple[tuple[int, int], ...]
_Convolution = Callable[..., jax.Array]


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Convolves as `jax.lax.conv_general_dilated` does.

  Args:
    lhs: images, `[batch, height, width, in_channels]`.
    rhs: kernel, `[kernel_height, kernel_width, in_channels, out_channels]`.
    window_strides: stride along height and width.
    padding: `(low, high)` for height and for width, or a padding's name.
    lhs_dilation: as in `jax.lax`.
    rhs_dilation: as in `jax.lax`.
    dimension_numbers: as in `jax.lax`.
    feature_group_count: as in `jax.lax`.
    precision: as in `jax.lax`.

  Returns:
    `[batch, out_height, out_width, out_channels]`, in the dtype of `lhs`.
    Dilated, grouped and non-NHWC convolutions go to `jax.lax` unchanged.
  """
  general = functools.partial(
    lax.conv_general_dilated,
    window_strides=window_strides,
    padding=padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    precision=precision,
  )
  dilated = {*(lhs_dilation or ()), *(rhs_dilation or ())} - {1}
  grouped = feature_group_count != 1
  if lhs.ndim != 4 or dimension_numbers != NHWC or grouped or dilated:
    return general(lhs, rhs)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:3], rhs.shape[:2], window_strides, padding
    )
  pads = tuple((low, high) for low, high in padding)
  pointwise = rhs.shape[:2] == (1, 1) and not any(itertools.chain(*pads))
  out_shape = jax.eval_shape(general, lhs, rhs).shape
  # Of a map and its output, the smaller: either is mostly padding to one of the
  # convolution and its gradients.
  tiny = min(math.prod(lhs.shape[1:3]), math.prod(out_shape[1:3])) <= _TINY_MAP
  if not (pointwise or tiny) or min(itertools.chain(*pads)) < 0:
    return _by_platform(general, general, lhs, rhs)
  taps = _useful_taps(lhs.shape, rhs.shape, out_shape, window_strides, pads)
  if not taps:
    return general(lhs, rhs)
  product = functools.partial(
    _matrix_product,
    taps=taps,
    out_size=out_shape[1:3],
    strides=tuple(window_strides),
    padding=pads,
    precision=precision,
  )
  return _by_platform(general, product, lhs, rhs)


def _useful_taps(
  shape: Sequence[int],
  kernel_shape: Sequence[int],
  out_shape: Sequence[int],
  strides: Sequence[int],
  padding: _Padding,
) -> list[tuple[int, int]]:
  """Lists the places in the kernel that meet more than padding.

  The others add nothing: on a 1×1 map, one of nine places is left.
  """

  def useful(axis: int) -> list[int]:
    """Along height (0) or width (1)."""
    size, low = shape[axis + 1], padding[axis][0]
    return [
      tap
      for tap in range(kernel_shape[axis])
      if any(
        0 <= tap + strides[axis] * out - low < size
        for out in range(out_shape[axis + 1])
      )
    ]

  return list(itertools.product(useful(0), useful(1)))


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies a 1×1 convolution.

  Args:
    x: `[batch, height, width, in_channels]`.
    kernel: `[in_channels, out_channels]`, of the same dtype.

  Returns:
    `[batch, height, width, out_channels]`.
  """

  def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    rows = lax.dot(x.reshape(-1, x.shape[-1]), kernel)
    return rows.reshape(*x.shape[:-1], -1)

  return _by_platform(jnp.matmul, product, x, kernel)


def _matrix_product(
  lhs: jax.Array,
  rhs: jax.Array,
  *,
  taps: Sequence[tuple[int, int]],
  out_size: Sequence[int],
  strides: tuple[int, ...],
  padding: _Padding,
  precision: lax.PrecisionLike,
) -> jax.Array:
  """Convolves by multiplying gathered patches with the kernel's matrix."""
  (out_h, out_w), (stride_h, stride_w) = out_size, strides
  padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
  patches = jnp.concatenate(
    [
      padded[
        :,
        i : i + stride_h * out_h : stride_h,
        j : j + stride_w * out_w : stride_w,
      ][:, :out_h, :out_w]
      for i, j in taps
    ],
    axis=-1,
  )
  kernel = jnp.concatenate([rhs[i, j] for i, j in taps])
  # Two dimensions each, so that the gradients too are plain matrix products.
  product = lax.dot(
    patches.reshape(-1, patches.shape[-1]), kernel, precision=precision
  )
  return product.reshape(*patches.shape[:-1], rhs.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_platform(
  general: _Convolution, product: _Convolution, lhs: jax.Array, rhs: jax.Array
) -> jax.Array:
  return lax.platform_dependent(lhs, rhs, cpu=product, default=general)


def _of_arrays(function: _Convolution) -> _Convolution:
  """Computes the arguments of a function before it.

  Else XLA on CPU computes it anew, inside the copies that bring it into the
  layout of a matrix product or of a convolution's gradient.
  """
  return lambda *arrays: function(*lax.optimization_barrier(arrays))


# The gradient is chosen by platform as a whole: differentiating through
# `platform_dependent` would make every platform store the residuals of both.
def _forward(
  general: _Convolution, product: _Convolution, lhs: jax.Array, rhs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  value = lax.platform_dependent(
    lhs, rhs, cpu=_of_arrays(product), default=general
  )
  return value, (lhs, rhs)


def _backward(
  general: _Convolution,
  product: _Convolution,
  residuals: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def gradient(convolution: _Convolution) -> Callable[..., Any]:
    return devices.by_device(
      lambda lhs, rhs, ct: jax.vjp(convolution, lhs, rhs)[1](ct)
    )

  return lax.platform_dependent(
    *residuals,
    cotangent,
    cpu=_of_arrays(gradient(product)),
    default=gradient(general),
  )


_by_platform.defvjp(_forward, _backward)
