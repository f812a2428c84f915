"""MobileNetV2 of half the width, for small images (Sandler et al., 2018).

https://arxiv.org/abs/1801.04381, with the strides and the ReLU of Tian et al.,
2019, https://arxiv.org/abs/1910.10699: the stem has stride 2 and the first two
groups of blocks stride 1. The first block does not expand its channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import folding, resnet

_EXPANSION = 6
# Of each stage: stride, and channels of its blocks in a network of full width.
_STAGES = (
  (1, (16, 24, 24)),
  (2, (32, 32, 32)),
  (2, (64, 64, 64, 64, 96, 96, 96)),
  (2, (160, 160, 160, 320)),
)
_LAST = 1280


class Stage(nn.Module):
  """Inverted residual blocks of one resolution.

  The module `preact` returns the output of the last block, which no ReLU
  follows; in the last stage what the ReLU of its last convolution is given.

  Attributes:
    widths: channels of the blocks, named `block1`, `block2`, ….
    stride: stride of the first block.
    expansion: of the first block; that of the others is 6.
    last: channels of a 1×1 convolution, `last_conv`, that follows; 0 for none.
    dtype: dtype of the computation.
    folded: as in `MobileNetV2`.
  """

  widths: tuple[int, ...]
  stride: int
  expansion: int = _EXPANSION
  last: int = 0
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, channels]`."""
    for i, width in enumerate(self.widths):
      x = Block(
        width,
        self.stride if i == 0 else 1,
        self.expansion if i == 0 else _EXPANSION,
        dtype=self.dtype,
        folded=self.folded,
        name=f'block{i + 1}',
      )(x, train)
    if self.last:
      layer = resnet.layers(train, self.folded, self.dtype)
      x = layer(x, self.last, (1, 1), name='last_conv')
    x = resnet.Preactivation(name='preact')(x)
    return nn.relu(x) if self.last else x


class Block(nn.Module):
  """1×1, depthwise 3×3 and linear 1×1 convolutions, and a shortcut.

  Attributes:
    width: channels of the output.
    stride: stride of the depthwise convolution; there is a shortcut where it is
      1 and the channels stay the same.
    expansion: channels inside over those of the input.
    dtype: dtype of the computation.
    folded: as in `MobileNetV2`.
  """

  width: int
  stride: int = 1
  expansion: int = _EXPANSION
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    layer = resnet.layers(train, self.folded, self.dtype)
    inside = self.expansion * x.shape[-1]
    y = nn.relu(layer(x, inside, (1, 1), name='conv1'))
    y = resnet.depthwise(layer, y, self.stride, 'conv2')
    y = layer(nn.relu(y), self.width, (1, 1), name='conv3')
    return x + y if self.stride == 1 and x.shape == y.shape else y


class MobileNetV2(folding.Folding, nn.Module):
  """A MobileNetV2; its stages are the modules `stage1` … `stage4`.

  Attributes:
    num_classes: number of logits.
    multiplier: of the channels, but not of the last convolution's 1,280.
    dtype: dtype of the computation, bfloat16 or float32.
    folded: whether BatchNorms are part of convolutions; for evaluation only.
  """

  num_classes: int
  multiplier: float = 0.5
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones.

    Returns:
      Logits, float32 `[batch, num_classes]`.

    Raises:
      ValueError: a folded network is to be trained.
    """
    resnet.check_mode(train, self.folded)
    layer = resnet.layers(train, self.folded, self.dtype)
    x = layer(
      jnp.asarray(images, self.dtype),
      int(32 * self.multiplier),
      (3, 3),
      strides=2,
      padding=1,
      name='conv1',
    )
    x = nn.relu(x)
    for i, (stride, widths) in enumerate(_STAGES):
      x = Stage(
        tuple(int(width * self.multiplier) for width in widths),
        stride,
        expansion=1 if i == 0 else _EXPANSION,
        last=_LAST if i == len(_STAGES) - 1 else 0,
        dtype=self.dtype,
        folded=self.folded,
        name=f'stage{i + 1}',
      )(x, train)
    return resnet.classify(x, self.num_classes)


MODELS = {'mobilenetv2': MobileNetV2}
