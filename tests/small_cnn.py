"""A network of one's own: no ResNet, no BatchNorm, named by its import path."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class SmallCNN(nn.Module):
  """Two convolutions, and a dropout that draws at random in training only."""

  num_classes: int
  width: int = 8
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images, train):
    x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name='conv1')(images)
    x = nn.Conv(2 * self.width, (3, 3), 2, dtype=self.dtype, name='conv2')(
      nn.relu(x)
    )
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    x = x.mean(axis=(1, 2))
    return nn.Dense(self.num_classes, dtype=self.dtype, name='head')(x)


def dropping(**options) -> nn.Module:
  """A function is as good as a class."""
  return SmallCNN(
    options['num_classes'],
    options.get('width', 8),
    dropout=0.5,
    dtype=options['dtype'],
  )


class Probabilities(SmallCNN):
  """The same with a softmax at its end, as other frameworks' have."""

  def __call__(self, images, train):
    return nn.softmax(super().__call__(images, train))
