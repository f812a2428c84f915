"""Wide ResNets (Zagoruyko and Komodakis, 2016).

https://arxiv.org/abs/1605.07146: blocks of BatchNorm, ReLU and 3×3 convolution,
twice, at k times 16, 32 and 64 channels. A shortcut that changes the shape is a
1×1 convolution of what the block's first ReLU returns. No dropout.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import resnet


class Block(nn.Module):
  """BatchNorm, ReLU and convolution, twice, and a shortcut.

  Attributes:
    width: channels.
    stride: stride of the first convolution and of the shortcut.
    dtype: dtype of the computation.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    norm = functools.partial(
      resnet.BatchNorm, use_running_average=not train, dtype=self.dtype
    )
    conv = functools.partial(
      resnet.Conv, self.width, use_bias=False, dtype=self.dtype
    )
    y = nn.relu(norm(name='bn1')(x))
    if x.shape[-1] != self.width:
      x = conv((1, 1), strides=self.stride, name='downsample_conv')(y)
    y = conv((3, 3), strides=self.stride, padding=1, name='conv1')(y)
    y = nn.relu(norm(name='bn2')(y))
    return x + conv((3, 3), padding=1, name='conv2')(y)


class Stage(nn.Module):
  """Blocks of one resolution, the last stage with the network's last BatchNorm.

  The module `preact` returns the sum of the last block, which the next stage
  normalises; in the last stage what its ReLU is given.

  Attributes:
    size: number of blocks, named `block1`, `block2`, ….
    width: channels.
    stride: stride of the first block.
    is_last: whether a BatchNorm, `bn`, and a ReLU follow.
    dtype: dtype of the computation.
  """

  size: int
  width: int
  stride: int
  is_last: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    for i in range(self.size):
      x = Block(
        self.width,
        self.stride if i == 0 else 1,
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train)
    if self.is_last:
      x = resnet.BatchNorm(
        use_running_average=not train, dtype=self.dtype, name='bn'
      )(x)
    x = resnet.Preactivation(name='preact')(x)
    return nn.relu(x) if self.is_last else x


class WideResNet(nn.Module):
  """A wide ResNet; its stages are the modules `stage1`, `stage2`, `stage3`.

  Attributes:
    size: number of blocks of each stage; there are 6 · size + 4 layers.
    factor: widening factor k.
    num_classes: number of logits.
    dtype: dtype of the computation, bfloat16 or float32.
  """

  size: int
  factor: int
  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones.

    Returns:
      Logits, float32 `[batch, num_classes]`.
    """
    x = resnet.Conv(
      16, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name='conv1'
    )(jnp.asarray(images, self.dtype))
    for i in range(3):
      x = Stage(
        self.size,
        16 * 2**i * self.factor,
        stride=1 if i == 0 else 2,
        is_last=i == 2,
        dtype=self.dtype,
        name=f'stage{i + 1}',
      )(x, train)
    return resnet.classify(x, self.num_classes)


MODELS = {
  f'wrn_{6 * size + 4}_{factor}': functools.partial(WideResNet, size, factor)
  for size, factor in ((2, 1), (2, 2), (6, 1), (6, 2))
}
