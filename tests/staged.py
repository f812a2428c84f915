"""A ResNet with one convolution a stage, which compiles fast."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models import resnet


class Convolution(nn.Module):
  """A 3×3 convolution with BatchNorm, in the place of a residual block."""

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  folded: bool = False
  expansion = 1

  @nn.compact
  def __call__(self, x, train, name_sum=lambda x: x):
    return nn.relu(
      name_sum(
        resnet.conv_norm(
          x,
          self.width,
          (3, 3),
          strides=self.stride,
          padding=1,
          name='conv1',
          train=train,
          folded=self.folded,
          dtype=self.dtype,
        )
      )
    )


def network(num_classes, stem='cifar', width=4, dtype=jnp.float32) -> nn.Module:
  """Builds one; its stages are named as those of every ResNet."""
  return resnet.ResNet(
    Convolution, (1, 1, 1, 1), num_classes, stem=stem, width=width, dtype=dtype
  )
