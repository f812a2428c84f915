"""ShuffleNetV1 and V2 for small images, as in Tian et al., 2019.

Zhang et al., 2017, https://arxiv.org/abs/1707.01083, and Ma et al., 2018,
https://arxiv.org/abs/1807.11164, with the stem of
https://arxiv.org/abs/1910.10699: a 1×1 convolution to 24 channels, without a
stride or a pool.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import folding, resnet

_STEM = 24


def shuffle(x: jax.Array, groups: int) -> jax.Array:
  """Puts the first channel of each group first, then the second of each, ….

  Args:
    x: `[..., channels]`.
    groups: number of groups, which divides the channels.

  Returns:
    The same shape.
  """
  split = x.reshape(*x.shape[:-1], groups, -1)
  return split.swapaxes(-1, -2).reshape(x.shape)


class GroupBlock(nn.Module):
  """The block of V1: grouped 1×1, shuffle, depthwise 3×3, grouped 1×1.

  Attributes:
    width: channels of the output.
    stride: 1, where the block's input is added; or 2, where its 3×3 averages
      are channels beside the others.
    groups: groups of the 1×1 convolutions, but of the first that the stem is
      given to.
    dtype: dtype of the computation.
    folded: as in `ShuffleNet`.
  """

  width: int
  stride: int = 1
  groups: int = 3
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, name_sum: resnet.Identity = resnet.unnamed
  ) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    layer = resnet.layers(train, self.folded, self.dtype)
    out = self.width - (x.shape[-1] if self.stride == 2 else 0)
    inside = out // 4
    groups = 1 if x.shape[-1] == _STEM else self.groups
    y = layer(x, inside, (1, 1), feature_group_count=groups, name='conv1')
    y = shuffle(nn.relu(y), groups)
    y = nn.relu(resnet.depthwise(layer, y, self.stride, 'conv2'))
    y = layer(y, out, (1, 1), feature_group_count=self.groups, name='conv3')
    if self.stride == 1:
      return nn.relu(name_sum(x + y))
    x = nn.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return nn.relu(name_sum(jnp.concatenate([y, x], axis=-1)))


class SplitBlock(nn.Module):
  """The block of V2: two branches, whose channels are shuffled.

  Attributes:
    width: channels of the output.
    stride: 1, where half of the channels pass through; or 2, where both
      branches are given all of them.
    dtype: dtype of the computation.
    folded: as in `ShuffleNet`.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, name_sum: resnet.Identity = resnet.unnamed
  ) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    layer = resnet.layers(train, self.folded, self.dtype)
    half = self.width // 2
    if self.stride == 1:
      passed, x = jnp.split(x, 2, axis=-1)
    else:
      passed = resnet.depthwise(layer, x, self.stride, 'left_conv1')
      passed = layer(passed, half, (1, 1), name='left_conv2')
    y = nn.relu(layer(x, half, (1, 1), name='conv1'))
    y = resnet.depthwise(layer, y, self.stride, 'conv2')
    y = layer(y, half, (1, 1), name='conv3')
    # What passed is the output of such a block, which has no negative values.
    y = shuffle(jnp.concatenate([passed, y], axis=-1), 2)
    return nn.relu(name_sum(y))


class Stage(nn.Module):
  """Blocks of one resolution.

  The module `preact` returns what the last ReLU is given.

  Attributes:
    block: class of the blocks.
    size: number of blocks, named `block1`, `block2`, ….
    width: channels of each.
    last: channels of a 1×1 convolution, `last_conv`, that follows; 0 for none.
    dtype: dtype of the computation.
    folded: as in `ShuffleNet`.
  """

  block: type[GroupBlock] | type[SplitBlock]
  size: int
  width: int
  last: int = 0
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/2, W/2, channels]`."""
    preactivation = resnet.Preactivation(name='preact')
    for i in range(1, self.size + 1):
      x = self.block(
        self.width,
        2 if i == 1 else 1,
        dtype=self.dtype,
        folded=self.folded,
        name=f'block{i}',
      )(
        x,
        train,
        resnet.unnamed if i < self.size or self.last else preactivation,
      )
    if not self.last:
      return x
    layer = resnet.layers(train, self.folded, self.dtype)
    return nn.relu(preactivation(layer(x, self.last, (1, 1), name='last_conv')))


class ShuffleNet(folding.Folding, nn.Module):
  """A ShuffleNet; its stages are the modules `stage1`, `stage2`, `stage3`.

  Attributes:
    block: class of the blocks.
    stage_sizes: number of blocks of each stage.
    widths: channels of each stage.
    last: channels of a 1×1 convolution at the end of the last stage; 0 for
      none.
    num_classes: number of logits.
    dtype: dtype of the computation, bfloat16 or float32.
    folded: whether BatchNorms are part of convolutions; for evaluation only.
  """

  block: type[GroupBlock] | type[SplitBlock]
  stage_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  last: int
  num_classes: int
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
    images = jnp.asarray(images, self.dtype)
    x = nn.relu(layer(images, _STEM, (1, 1), name='conv1'))
    count = len(self.stage_sizes)
    for i, size in enumerate(self.stage_sizes, start=1):
      x = Stage(
        self.block,
        size,
        self.widths[i - 1],
        last=self.last if i == count else 0,
        dtype=self.dtype,
        folded=self.folded,
        name=f'stage{i}',
      )(x, train)
    return resnet.classify(x, self.num_classes)


MODELS = {
  'shufflenetv1': functools.partial(
    ShuffleNet, GroupBlock, (4, 8, 4), (240, 480, 960), 0
  ),
  'shufflenetv2': functools.partial(
    ShuffleNet, SplitBlock, (4, 8, 4), (116, 232, 464), 1024
  ),
}
