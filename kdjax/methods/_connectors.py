"""Modules that a method trains beside the student, as functions of arrays.

Parameters are dicts with the names and layouts of Flax. BatchNorm normalises by
the statistics of the batch, with ε = 1e-5: a method's modules are never run in
evaluation mode.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.methods._base import Setup
from kdjax.models import cpu_conv, sums

Params = dict[str, Any]

# PyTorch's default for convolutions and dense layers: uniform in ±1/√fan_in.
_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def init_conv(
  rng: jax.Array,
  in_channels: int,
  out_channels: int,
  size: int = 1,
  bias: bool = True,
) -> Params:
  """Initialises a convolution, as PyTorch does but for the bias, which is 0."""
  kernel = _uniform(rng, (size, size, in_channels, out_channels))
  return {'kernel': kernel} | (
    {'bias': jnp.zeros(out_channels)} if bias else {}
  )


def conv(
  params: Params,
  x: jax.Array,
  stride: int = 1,
  padding: int = 0,
) -> jax.Array:
  """Applies a convolution with the bias that it has, in the dtype of `x`."""
  kernel = params['kernel'].astype(x.dtype)
  if kernel.shape[:2] == (1, 1) and stride == 1 and not padding:
    x = cpu_conv.pointwise(x, kernel[0, 0])
  else:
    x = _convolve(x, kernel, stride, padding)
  if 'bias' in params:
    x = sums.add_bias(x, params['bias'].astype(x.dtype))
  return x


def _convolve(
  x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0
) -> jax.Array:
  return cpu_conv.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=cpu_conv.NHWC,
  )


@jax.custom_vjp
def connected_mse(
  params: Params, source: jax.Array, target: jax.Array
) -> jax.Array:
  """Mean squared difference of a connected map and its target.

  What `conv` and `kdjax.losses.feature_mse` compute together, with a gradient
  that keeps the difference, by far the largest map here, as it is: written
  once, with its sums over positions, and read once for each of its two matrix
  products. Weights of the loss are multiplied into the smaller arrays. In
  bfloat16 the difference is rounded to it before it is squared, which changes
  the error by less than one part in 1,000.

  Args:
    params: of a 1×1 convolution with bias.
    source: `[batch, ..., channels]`.
    target: `[batch, ..., channels of the convolution]`; receives no gradient.

  Returns:
    Squared difference averaged over all axes but the first, float32 `[batch]`.
  """
  return _connect_forward(params, source, target)[0]


def _connect_forward(
  params: Params, source: jax.Array, target: jax.Array
) -> tuple[jax.Array, Any]:
  # Of maps, and in this form, cuDNN does it in one pass.
  kernel = params['kernel'].astype(source.dtype)
  connected = (
    _convolve(source, kernel)
    if source.ndim == 4
    else cpu_conv.pointwise(source, kernel[0, 0])
  )
  shifted = connected + params['bias'].astype(source.dtype)
  difference = (shifted + -1 * target).astype(source.dtype)
  exact = difference.astype(jnp.float32)
  # Both from one reading: they are computed before one is summed on.
  first, second = lax.optimization_barrier(
    (sums.position_sum(exact), sums.position_sum(jnp.square(exact)))
  )
  mean = second.sum(axis=-1) / math.prod(target.shape[1:])
  return mean, (params['kernel'], source, difference, first)


def _connect_backward(
  kept: Any, cotangent: jax.Array
) -> tuple[Params, jax.Array, None]:
  kernel, source, difference, first = kept
  weights = cotangent * (2 / math.prod(difference.shape[1:]))
  by_example = jnp.expand_dims(weights, range(1, source.ndim))
  weighted = (by_example * source.astype(jnp.float32)).astype(source.dtype)
  matrix = kernel[0, 0].astype(source.dtype)
  _, to_source = jax.vjp(lambda x: cpu_conv.pointwise(x, matrix), source)
  _, to_matrix = jax.vjp(lambda k: cpu_conv.pointwise(weighted, k), matrix)
  (d_source,) = to_source(difference)
  (d_matrix,) = to_matrix(difference)
  d_params = {
    'kernel': d_matrix.astype(jnp.float32)[None, None],
    'bias': (weights[:, None] * first).sum(axis=0),
  }
  d_source = (by_example * d_source.astype(jnp.float32)).astype(source.dtype)
  return d_params, d_source, None


connected_mse.defvjp(_connect_forward, _connect_backward)


def init_dense(
  rng: jax.Array, in_channels: int, out_channels: int, bias: bool = True
) -> Params:
  """Initialises a dense layer, as PyTorch does but for the bias, which is 0."""
  return {'kernel': _uniform(rng, (in_channels, out_channels))} | (
    {'bias': jnp.zeros(out_channels)} if bias else {}
  )


def dense(params: Params, x: jax.Array) -> jax.Array:
  """Applies a dense layer to `[batch, in_channels]`, in float32."""
  x = jnp.matmul(
    x.astype(jnp.float32),
    params['kernel'],
    precision=jax.lax.Precision.HIGHEST,
  )
  return x + params['bias'] if 'bias' in params else x


def init_batch_norm(channels: int) -> Params:
  """Initialises a BatchNorm: scale 1 and bias 0."""
  return {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)}


def batch_norm(params: Params, x: jax.Array) -> jax.Array:
  """Normalises each channel by the batch's statistics, in float32."""
  x = x.astype(jnp.float32)
  axes = range(x.ndim - 1)
  centered = x - x.mean(axis=axes)
  variance = jnp.square(centered).mean(axis=axes)
  scale = params['scale'] * jax.lax.rsqrt(variance + 1e-5)
  return centered * scale + params['bias']


def pool(x: jax.Array) -> jax.Array:
  """Averages a map over its positions, `[batch, channels]` float32.

  Of a ResNet's last stage it is the input of the last layer.
  """
  return x.astype(jnp.float32).mean(axis=range(1, x.ndim - 1))


def init_regressor(
  rng: jax.Array, student: Sequence[int], teacher: Sequence[int]
) -> Params:
  """Initialises FitNet's regressor of a student's map to the teacher's shape.

  Raises:
    ValueError: the student's map is smaller than the teacher's.
  """
  ours, theirs = student[1], teacher[1]
  if student[1:3] == teacher[1:3]:
    size = 1
  elif ours == 2 * theirs:
    size = 3
  elif ours > theirs:
    size = 1 + ours - theirs
  else:
    raise ValueError(
      f'the map of the student has shape {tuple(student)}, that of the teacher '
      f'{tuple(teacher)}: the student must not be the smaller one. Give both '
      'networks the same stem, or pair other features'
    )
  return {
    'conv': init_conv(rng, student[-1], teacher[-1], size),
    'bn': init_batch_norm(teacher[-1]),
  }


def regress(params: Params, x: jax.Array, height: int) -> jax.Array:
  """Applies FitNet's regressor, ReLU(BN(conv(x))), to a map of that height."""
  halves = x.shape[1] == 2 * height
  x = conv(
    params['conv'], x, stride=2 if halves else 1, padding=1 if halves else 0
  )
  return jax.nn.relu(batch_norm(params['bn'], x))


def init_projector(
  rng: jax.Array, in_channels: int, out_channels: int
) -> Params:
  """Initialises SimKD's projector: 1×1, 3×3, 1×1 with BatchNorms."""
  middle = out_channels // 2
  sizes = [(in_channels, middle, 1), (middle, middle, 3)]
  sizes.append((middle, out_channels, 1))
  params: Params = {}
  for index, (source, target, size) in enumerate(sizes, start=1):
    key = jax.random.fold_in(rng, index)
    params[f'conv{index}'] = init_conv(key, source, target, size, bias=False)
    params[f'bn{index}'] = init_batch_norm(target)
  return params


def project(params: Params, x: jax.Array) -> jax.Array:
  """Applies SimKD's projector."""
  for index in (1, 2, 3):
    kernel = params[f'conv{index}']['kernel']
    x = conv(params[f'conv{index}'], x, padding=kernel.shape[0] // 2)
    x = jax.nn.relu(batch_norm(params[f'bn{index}'], x))
  return x


def init_gaussian(
  rng: jax.Array, in_channels: int, out_channels: int
) -> Params:
  """Initialises VID's mean, three 1×1 convolutions, and log-variances of 5."""
  keys = jax.random.split(rng, 3)
  channels = (in_channels, out_channels, out_channels, out_channels)
  return {
    f'conv{i + 1}': init_conv(keys[i], channels[i], channels[i + 1], bias=False)
    for i in range(3)
  } | {'log_scale': jnp.full(out_channels, math.log(math.expm1(5 - 1e-5)))}


def gaussian(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Applies VID's modules: mean and variance of the teacher's feature."""
  x = jax.nn.relu(conv(params['conv1'], x))
  x = jax.nn.relu(conv(params['conv2'], x))
  variance = jax.nn.softplus(params['log_scale']) + 1e-5
  return conv(params['conv3'], x), variance


def init_fusion(
  rng: jax.Array, student: Sequence[Any], teacher: Sequence[Any]
) -> Params:
  """Initialises ReviewKD's modules; level 1 is the shallowest."""
  middle = min(512, student[-1].shape[-1])
  params: Params = {}
  for index, (ours, theirs) in enumerate(
    zip(student, teacher, strict=True), start=1
  ):
    keys = jax.random.split(jax.random.fold_in(rng, index), 3)
    level = {
      'conv1': init_conv(keys[0], ours.shape[-1], middle, bias=False),
      'bn1': init_batch_norm(middle),
      'conv2': init_conv(keys[1], middle, theirs.shape[-1], 3, bias=False),
      'bn2': init_batch_norm(theirs.shape[-1]),
    }
    if index < len(student):
      level['att'] = init_conv(keys[2], 2 * middle, 2)
    params[f'abf{index}'] = level
  return params


def fuse(params: Params, levels: Sequence[jax.Array]) -> list[jax.Array]:
  """Applies ReviewKD's attention-based fusion, the deepest level first.

  Args:
    params: as `init_fusion` makes them.
    levels: the student's maps, the shallowest first.

  Returns:
    A map of the teacher's channels for each level, in the same order.
  """
  outputs: list[jax.Array] = []
  below = None
  for index in range(len(levels), 0, -1):
    level, x = params[f'abf{index}'], levels[index - 1]
    x = batch_norm(level['bn1'], conv(level['conv1'], x))
    if below is not None:
      y = jax.image.resize(below, x.shape, 'nearest')
      weights = jax.nn.sigmoid(
        conv(level['att'], jnp.concatenate([x, y], axis=-1))
      )
      x = x * weights[..., :1] + y * weights[..., 1:]
    below = x
    outputs.insert(
      0, batch_norm(level['bn2'], conv(level['conv2'], x, padding=1))
    )
  return outputs


def check_maps(setup: Setup, ours: str, theirs: str, equal: bool) -> None:
  """Checks that two features are maps, and of one size where they must be.

  Raises:
    ValueError: they are not.
  """
  source = setup.student.features[ours].shape
  target = setup.teacher.features[theirs].shape
  if len(source) != 4 or len(target) != 4:
    raise ValueError(
      f'{ours} of the student has shape {source}, {theirs} of the teacher '
      f'{target}: expected maps, [batch, height, width, channels]'
    )
  if equal and source[:-1] != target[:-1]:
    raise ValueError(
      f'{ours} of the student has shape {source}, {theirs} of the teacher '
      f'{target}: expected maps of one size. Give both networks the same stem, '
      'or pair other features'
    )


def pair(
  student_features: Sequence[str], teacher_features: Sequence[str]
) -> dict[str, tuple[str, str]]:
  """Names the pairs of features that the method compares.

  Args:
    student_features: names of the student's features.
    teacher_features: names of the teacher's, in the same order.

  Returns:
    The student's and the teacher's feature of each pair. A pair of two features
    of one name has that name, another is called `STUDENT->TEACHER`.
  """
  return {
    student if student == teacher else f'{student}->{teacher}': (
      student,
      teacher,
    )
    for student, teacher in zip(student_features, teacher_features, strict=True)
  }
