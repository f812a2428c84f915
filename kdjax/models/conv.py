"""Convolution for the models, lowered to suit the platform.

`conv_general_dilated` computes what `jax.lax.conv_general_dilated` computes and
plugs into `flax.linen.Conv` through its `conv_general_dilated` field, so
parameters keep the names and layouts of Flax.

On CPU, XLA runs a 1×1 convolution's gradients, and any convolution whose map
is nearly all padding, many times slower than the same sums written as a matrix
product. There, and only there, those are lowered as matrix products. The
choice falls when the program is lowered for a platform, so a program exported
for several platforms carries the right form for each.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Flax hands the layout over as a ConvDimensionNumbers of tuples (NHWC, HWIO).
_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Largest map (height × width) for which k×k convolutions become one matrix
# product. Up to 2×2, XLA's own kernel on CPU was 7 to 20 times slower.
_TINY_MAP = 4

_Padding = tuple[tuple[int, int], ...]
_Convolution = Callable[[jax.Array, jax.Array], jax.Array]


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
  ordinary = (
    lhs.ndim == 4
    and dimension_numbers == _NHWC
    and feature_group_count == 1
    and set(lhs_dilation or (1,)) | set(rhs_dilation or (1,)) == {1}
  )
  if not ordinary:
    return general(lhs, rhs)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:3], rhs.shape[:2], window_strides, padding
    )
  pads = tuple((low, high) for low, high in padding)
  pointwise = rhs.shape[:2] == (1, 1) and not any(map(sum, pads))
  tiny = lhs.shape[1] * lhs.shape[2] <= _TINY_MAP
  if not (pointwise or tiny):
    return general(lhs, rhs)
  product = functools.partial(
    _matrix_product,
    strides=tuple(window_strides),
    padding=pads,
    precision=precision,
  )
  return _by_platform(general, product, lhs, rhs)


def _matrix_product(
  lhs: jax.Array,
  rhs: jax.Array,
  *,
  strides: tuple[int, ...],
  padding: _Padding,
  precision: lax.PrecisionLike,
) -> jax.Array:
  """Convolves by multiplying gathered patches with the kernel's matrix."""
  (low_h, high_h), (low_w, high_w) = padding
  (stride_h, stride_w), (height, width) = strides, lhs.shape[1:3]
  out_h = (height + low_h + high_h - rhs.shape[0]) // stride_h + 1
  out_w = (width + low_w + high_w - rhs.shape[1]) // stride_w + 1

  def meets_image(tap: int, low: int, size: int, stride: int, out: int) -> bool:
    return any(0 <= tap + stride * o - low < size for o in range(out))

  # A tap of the kernel that only ever meets padding adds nothing: on a 1×1 map
  # that leaves one of nine.
  taps = list(
    itertools.product(
      (
        i
        for i in range(rhs.shape[0])
        if meets_image(i, low_h, height, stride_h, out_h)
      ),
      (
        j
        for j in range(rhs.shape[1])
        if meets_image(j, low_w, width, stride_w, out_w)
      ),
    )
  )
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


# The gradient is chosen by platform as a whole: differentiating through
# `platform_dependent` would make every platform store the residuals of both.
def _forward(
  general: _Convolution, product: _Convolution, lhs: jax.Array, rhs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _by_platform(general, product, lhs, rhs), (lhs, rhs)


def _backward(
  general: _Convolution,
  product: _Convolution,
  residuals: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def gradient(convolution: _Convolution) -> Callable[..., Any]:
    return lambda lhs, rhs, ct: jax.vjp(convolution, lhs, rhs)[1](ct)

  return lax.platform_dependent(
    *residuals, cotangent, cpu=gradient(product), default=gradient(general)
  )


_by_platform.defvjp(_forward, _backward)
