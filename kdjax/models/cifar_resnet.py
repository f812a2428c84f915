"""ResNets of three stages for small images, ResNet-8 to -110, -8x4 and -32x4.

He et al., 2015, https://arxiv.org/abs/1512.03385, section 4.2: a 3×3 stem, and
stages of basic blocks at 16, 32 and 64 channels; with `x4` at 64, 128 and 256
after a stem of 32 (Tian et al., 2019, https://arxiv.org/abs/1910.10699). Where
channels or size change, the shortcut is a projection, as in the latter.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models import resnet


def build(
  size: int,
  width: int,
  stem_width: int,
  *,
  num_classes: int,
  dtype: Any = jnp.float32,
) -> nn.Module:
  """Builds one of them.

  Args:
    size: number of blocks of each stage; there are 6 · size + 2 layers.
    width: channels of the first stage.
    stem_width: channels of the stem.
    num_classes: number of logits.
    dtype: dtype of the computation.

  Returns:
    The network, whose stages are the modules `stage1`, `stage2` and `stage3`.
  """
  return resnet.ResNet(
    resnet.BasicBlock,
    (size, size, size),
    num_classes,
    'cifar',
    width,
    dtype,
    stem_width=stem_width,
  )


MODELS = {
  f'resnet{6 * size + 2}': functools.partial(build, size, 16, 16)
  for size in (1, 2, 3, 5, 7, 9, 18)
} | {
  f'resnet{6 * size + 2}x4': functools.partial(build, size, 64, 32)
  for size in (1, 5)
}
