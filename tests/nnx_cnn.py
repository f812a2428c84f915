"""Networks in Flax NNX, named by their import path."""

import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
  """A convolution with BatchNorm and ReLU, twice as small."""

  def __init__(self, inputs, outputs, *, rngs):
    self.conv = nnx.Conv(
      inputs, outputs, (3, 3), strides=2, use_bias=False, rngs=rngs
    )
    self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.norm(self.conv(x)))


class Cnn(nnx.Module):
  """Two blocks, and two dropouts that draw at random in training only."""

  def __init__(self, num_classes, image_shape, width=8, rate=0.2, *, rngs):
    channels = image_shape[-1], width, 2 * width
    self.blocks = nnx.List(
      [Block(*channels[i : i + 2], rngs=rngs) for i in range(2)]
    )
    self.dropout1 = nnx.Dropout(rate, rngs=rngs)
    self.dropout2 = nnx.Dropout(rate, rngs=rngs)
    self.fc = nnx.Linear(2 * width, num_classes, rngs=rngs)

  def __call__(self, images):
    x = self.blocks[1](self.dropout1(self.blocks[0](images)))
    return self.fc(self.dropout2(x).mean(axis=(1, 2)))


def teacher(num_classes: int, image_shape, rngs) -> nnx.Module:
  """A function is as good as a class."""
  return Cnn(num_classes, image_shape, width=16, rate=0.0, rngs=rngs)


class Remembering(Cnn):
  """It has a variable that is neither trained nor a statistic."""

  def __init__(self, num_classes, image_shape, *, rngs):
    super().__init__(num_classes, image_shape, rngs=rngs)
    self.seen = nnx.Cache(jnp.zeros(3))
    self.table = nnx.data(jnp.zeros(2))


class Late(Cnn):
  """It wants something that nobody gives it."""

  def __call__(self, images, labels):
    return super().__call__(images)
