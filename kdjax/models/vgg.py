"""VGG-8 and VGG-13 with BatchNorm (Simonyan and Zisserman, 2014).

https://arxiv.org/abs/1409.1556, for small images as in Tian et al., 2019,
https://arxiv.org/abs/1910.10699: 3×3 convolutions with bias, one linear layer,
and no pooling between the last two groups of convolutions, which therefore are
one stage.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import cpu_pool, folding, resnet


class Stage(nn.Module):
  """Convolutions of one resolution, each with BatchNorm and ReLU.

  The module `preact` returns what the last ReLU is given.

  Attributes:
    size: number of convolutions, named `conv1`, `conv2`, ….
    width: channels.
    pooled: whether a 2×2 max-pool precedes.
    dtype: dtype of the computation.
    folded: as in `VGG`.
  """

  size: int
  width: int
  pooled: bool
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H, W, width]`, or half the size."""
    if self.pooled:
      x = cpu_pool.max_pool(x, (2, 2), (2, 2), padding=((0, 0), (0, 0)))
    layer = resnet.layers(train, self.folded, self.dtype)
    preactivation = resnet.Preactivation(name='preact')
    for i in range(1, self.size + 1):
      x = layer(x, self.width, (3, 3), padding=1, bias=True, name=f'conv{i}')
      x = nn.relu(preactivation(x) if i == self.size else x)
    return x


class VGG(folding.Folding, nn.Module):
  """A VGG of four stages at 64, 128, 256 and 512 channels.

  Attributes:
    stage_sizes: number of convolutions of each stage.
    num_classes: number of logits.
    dtype: dtype of the computation, bfloat16 or float32.
    folded: whether BatchNorms are part of convolutions; for evaluation only.
  """

  stage_sizes: tuple[int, ...]
  num_classes: int
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`, of at least
        8 pixels a side.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones.

    Returns:
      Logits, float32 `[batch, num_classes]`.

    Raises:
      ValueError: a folded network is to be trained.
    """
    resnet.check_mode(train, self.folded)
    x = jnp.asarray(images, self.dtype)
    for i, size in enumerate(self.stage_sizes):
      x = Stage(
        size,
        64 * 2**i,
        pooled=i > 0,
        dtype=self.dtype,
        folded=self.folded,
        name=f'stage{i + 1}',
      )(x, train)
    return resnet.classify(x, self.num_classes)


MODELS = {
  'vgg8': functools.partial(VGG, (1, 1, 1, 2)),
  'vgg13': functools.partial(VGG, (2, 2, 2, 4)),
}
