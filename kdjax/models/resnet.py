"""ResNet-10/18/34/50/101 (He et al., 2015, https://arxiv.org/abs/1512.03385).

Architecture as in PyTorch's reference implementations, so that weights can be
exchanged: the bottleneck's stride sits in its 3×3 convolution, paddings are
symmetric, BatchNorm has epsilon 1e-5 and keeps 0.9 of its running statistics at
each step. (PyTorch stores the unbiased batch variance there, Flax the biased
one; the outputs in training mode are the same.)

The last BatchNorm of each block starts with scale zero, so that every block
starts as the identity (Goyal et al., 2017, https://arxiv.org/abs/1706.02677).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import conv

Conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
  conv_general_dilated=conv.conv_general_dilated,
)
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut, the block of ResNet-18 and -34.

  Attributes:
    width: channels inside the block.
    stride: stride of the first convolution and of the shortcut.
    dtype: dtype of the computation.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    conv3x3 = functools.partial(
      Conv, self.width, (3, 3), padding=1, dtype=self.dtype
    )
    norm = functools.partial(
      BatchNorm, use_running_average=not train, dtype=self.dtype
    )
    y = conv3x3(strides=self.stride, name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y))
    y = norm(scale_init=nn.initializers.zeros, name='bn2')(
      conv3x3(name='conv2')(y)
    )
    return nn.relu(y + _shortcut(x, y, self.stride, norm))


class Bottleneck(nn.Module):
  """1×1, 3×3 and 1×1 convolutions and a shortcut: ResNet-50 and deeper.

  Attributes:
    width: channels of the 3×3 convolution; the block returns four times more.
    stride: stride of the 3×3 convolution and of the shortcut.
    dtype: dtype of the computation.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, 4·width]`."""
    convolution = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(
      BatchNorm, use_running_average=not train, dtype=self.dtype
    )
    y = convolution(self.width, (1, 1), name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y))
    y = convolution(
      self.width, (3, 3), strides=self.stride, padding=1, name='conv2'
    )(y)
    y = nn.relu(norm(name='bn2')(y))
    y = convolution(self.width * self.expansion, (1, 1), name='conv3')(y)
    y = norm(scale_init=nn.initializers.zeros, name='bn3')(y)
    return nn.relu(y + _shortcut(x, y, self.stride, norm))


def _shortcut(
  x: jax.Array, y: jax.Array, stride: int, norm: Callable[..., nn.Module]
) -> jax.Array:
  """The identity, or a projection where the block changes the shape."""
  if stride == 1 and x.shape == y.shape:
    return x
  x = Conv(
    y.shape[-1],
    (1, 1),
    strides=stride,
    dtype=y.dtype,
    name='downsample_conv',
  )(x)
  return norm(name='downsample_bn')(x)


class Stage(nn.Module):
  """Blocks that work at one resolution (conv2_x … conv5_x in the paper).

  Attributes:
    block: class of the blocks.
    size: number of blocks, named `block1`, `block2`, ….
    width: width of each block.
    stride: stride of the first block.
    dtype: dtype of the computation.
  """

  block: type[BasicBlock] | type[Bottleneck]
  size: int
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, channels]`."""
    for i in range(self.size):
      x = self.block(
        self.width,
        self.stride if i == 0 else 1,
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train)
    return x


class ResNet(nn.Module):
  """A residual network; its stages are the modules `stage1` … `stage4`.

  Parameters and BatchNorm statistics are float32 whatever `dtype` is.

  Attributes:
    block: class of the blocks.
    stage_sizes: number of blocks of each stage.
    num_classes: number of logits.
    stem: 'imagenet' (7×7 stride 2, then 3×3 max-pool stride 2) or 'cifar' (3×3
      stride 1, no pool).
    width: channels of the stem; stage i works at width · 2^(i-1).
    dtype: dtype of the computation, bfloat16 or float32.
  """

  block: type[BasicBlock] | type[Bottleneck]
  stage_sizes: tuple[int, ...]
  num_classes: int
  stem: str = 'imagenet'
  width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`, any number
        of channels.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones (collection `batch_stats`, then passed as mutable).

    Returns:
      Logits, float32 `[batch, num_classes]`.

    Raises:
      ValueError: the stem is unknown.
    """
    x = jnp.asarray(images, self.dtype)
    convolution = functools.partial(
      Conv, self.width, dtype=self.dtype, name='conv1'
    )
    if self.stem == 'imagenet':
      x = convolution((7, 7), strides=2, padding=3)(x)
    elif self.stem == 'cifar':
      x = convolution((3, 3), padding=1)(x)
    else:
      raise ValueError(
        f"unknown stem '{self.stem}': expected 'imagenet' or 'cifar'"
      )
    x = BatchNorm(use_running_average=not train, dtype=self.dtype, name='bn1')(
      x
    )
    x = nn.relu(x)
    if self.stem == 'imagenet':
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for i, size in enumerate(self.stage_sizes):
      x = Stage(
        self.block,
        size,
        self.width * 2**i,
        stride=1 if i == 0 else 2,
        dtype=self.dtype,
        name=f'stage{i + 1}',
      )(x, train)
    x = x.mean(axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(
      self.num_classes,
      # PyTorch's default: uniform within ±1/√fan_in.
      kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
      dtype=jnp.float32,
      name='fc',
    )(x)


MODELS = {
  'resnet10': functools.partial(ResNet, BasicBlock, (1, 1, 1, 1)),
  'resnet18': functools.partial(ResNet, BasicBlock, (2, 2, 2, 2)),
  'resnet34': functools.partial(ResNet, BasicBlock, (3, 4, 6, 3)),
  'resnet50': functools.partial(ResNet, Bottleneck, (3, 4, 6, 3)),
  'resnet101': functools.partial(ResNet, Bottleneck, (3, 4, 23, 3)),
}
