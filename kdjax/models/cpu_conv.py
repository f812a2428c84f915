"""Convolution for the models, lowered to suit the platform.

`conv_general_dilated` computes what `jax.lax.conv_general_dilated` computes and
plugs into `flax.linen.Conv` through its `conv_general_dilated` field, so
parameters keep the names and layouts of Flax.

On CPU, XLA runs a 1×1 convolution's gradients, and any convolution whose map
is nearly all padding, many times slower than the same sums written as a matrix
product. There, and only there, those are lowered as matrix products, and in
training all of them wait until their operands are computed. A depthwise
convolution is a sum of products with moved maps there (forward and backward,
3×3, 44 to 60 times faster), and a grouped 1×1 one a matrix product for each
group. The choice falls when the program is lowered for a platform, so a program
exported for several platforms carries the right form for each. There is no
forward-mode gradient. Over several devices,
gradients of kernels are added in float32.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.models import sums
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
    Dilated and non-NHWC convolutions go to `jax.lax` unchanged, and grouped
    ones that are neither depthwise nor 1×1.
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
  if lhs.ndim != 4 or dimension_numbers != NHWC or dilated:
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
  groups = feature_group_count
  if groups > 1:
    if 0 in out_shape or min(itertools.chain(*pads)) < 0:
      return general(lhs, rhs)
    return _grouped(general, lhs, rhs, groups, tuple(window_strides), pads)
  tiny = min(math.prod(lhs.shape[1:3]), math.prod(out_shape[1:3])) <= _TINY_MAP
  if not (pointwise or tiny) or min(itertools.chain(*pads)) < 0:
    return _by_platform(general, general, lhs, rhs)
  taps = _useful_taps(lhs.shape, rhs.shape, out_shape, window_strides, pads)
  if not taps:
    return general(lhs, rhs)
  product = functools.partial(
    _matrix_product,
    taps=taps,
    strides=tuple(window_strides),
    padding=pads,
    precision=precision,
  )
  return _by_platform(general, product, lhs, rhs)


def _grouped(
  general: _Convolution,
  lhs: jax.Array,
  rhs: jax.Array,
  groups: int,
  strides: tuple[int, ...],
  padding: _Padding,
) -> jax.Array:
  """Lowers a grouped convolution, which need be of none of the known kinds."""
  if groups == lhs.shape[-1] == rhs.shape[-1]:
    return _by_platform(
      general, functools.partial(_depthwise, strides, padding), lhs, rhs
    )
  if rhs.shape[:2] != (1, 1) or any(itertools.chain(*padding)):
    return general(lhs, rhs)

  def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    moved = lhs[:, :: strides[0], :: strides[1]]
    rows = moved.reshape(-1, lhs.shape[-1])
    pairs = zip(
      jnp.split(rows, groups, axis=-1),
      jnp.split(rhs[0, 0], groups, axis=-1),
      strict=True,
    )
    parts = jnp.concatenate(
      [lax.dot(x, kernel) for x, kernel in pairs], axis=-1
    )
    return parts.reshape(*moved.shape[:-1], -1)

  return _by_platform(general, product, lhs, rhs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _depthwise(
  strides: tuple[int, ...], padding: _Padding, lhs: jax.Array, rhs: jax.Array
) -> jax.Array:
  """Convolves each channel with a kernel of its own, `[h, w, 1, channels]`."""
  taps = _taps(rhs)
  moved = _moved(lhs, rhs.shape[:2], taps, strides, padding)
  return functools.reduce(
    jnp.add,
    (x * rhs[i, j, 0] for x, (i, j) in zip(moved, taps, strict=True)),
  )


def _depthwise_forward(
  strides: tuple[int, ...], padding: _Padding, lhs: jax.Array, rhs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _depthwise(strides, padding, lhs, rhs), (lhs, rhs)


def _depthwise_backward(
  strides: tuple[int, ...],
  padding: _Padding,
  residuals: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  lhs, rhs = residuals
  linear = functools.partial(_depthwise.fun, strides, padding)
  (d_lhs,) = jax.vjp(lambda lhs: linear(lhs, rhs), lhs)[1](cotangent)
  taps = _taps(rhs)
  moved = _moved(lhs, rhs.shape[:2], taps, strides, padding)
  # A reduction of its own is slow, too.
  d_rhs = jnp.stack(
    [sums.channel_sum((cotangent * x).astype(jnp.float32)) for x in moved]
  )
  return d_lhs, d_rhs.reshape(rhs.shape).astype(rhs.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _taps(kernel: jax.Array) -> list[tuple[int, int]]:
  return list(itertools.product(range(kernel.shape[0]), range(kernel.shape[1])))


def _moved(
  lhs: jax.Array,
  size: Sequence[int],
  taps: Sequence[tuple[int, int]],
  strides: Sequence[int],
  padding: _Padding,
) -> list[jax.Array]:
  """Returns what each place in a kernel meets, `[batch, out_h, out_w, C]`."""
  padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
  down, right = strides
  rows = (padded.shape[1] - size[0]) // down + 1
  columns = (padded.shape[2] - size[1]) // right + 1
  return [
    padded[:, i : i + down * rows : down, j : j + right * columns : right][
      :, :rows, :columns
    ]
    for i, j in taps
  ]


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
  strides: tuple[int, ...],
  padding: _Padding,
  precision: lax.PrecisionLike,
) -> jax.Array:
  """Convolves by multiplying gathered patches with the kernel's matrix."""
  patches = jnp.concatenate(
    _moved(lhs, rhs.shape[:2], taps, strides, padding), axis=-1
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
