"""Networks in Equinox, named by their import path."""

import equinox as eqx
import jax
import jax.numpy as jnp


class Block(eqx.Module):
  """A convolution with BatchNorm and ReLU, twice as small."""

  conv: eqx.nn.Conv2d
  norm: eqx.nn.BatchNorm

  def __init__(self, inputs, outputs, *, key):
    self.conv = eqx.nn.Conv2d(
      inputs, outputs, 3, stride=2, padding=1, use_bias=False, key=key
    )
    self.norm = eqx.nn.BatchNorm(outputs, 'batch', momentum=0.9, mode='batch')

  def __call__(self, x, state):
    x, state = self.norm(self.conv(x), state)
    return jax.nn.relu(x), state


class Cnn(eqx.Module):
  """Two blocks with statistics, and a dropout."""

  blocks: list[Block]
  dropout: eqx.nn.Dropout
  fc: eqx.nn.Linear

  def __init__(self, num_classes, image_shape, width=8, rate=0.2, *, key):
    keys = jax.random.split(key, 3)
    channels = image_shape[-1], width, 2 * width
    self.blocks = [Block(*channels[i : i + 2], key=keys[i]) for i in range(2)]
    self.dropout = eqx.nn.Dropout(rate)
    self.fc = eqx.nn.Linear(2 * width, num_classes, key=keys[2])

  def __call__(self, image, state, *, key):
    for block in self.blocks:
      image, state = block(image, state)
    return self.fc(self.dropout(image, key=key).mean(axis=(1, 2))), state


class Plain(eqx.Module):
  """Layers without a state."""

  layers: eqx.nn.Sequential

  def __init__(self, num_classes, image_shape, width=8, *, key):
    keys = jax.random.split(key)
    self.layers = eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(image_shape[-1], width, 3, 2, key=keys[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(lambda x: x.mean(axis=(1, 2))),
        eqx.nn.Linear(width, num_classes, key=keys[1]),
      ]
    )

  def __call__(self, image):
    return self.layers(image)


def teacher(num_classes: int, image_shape, key) -> eqx.Module:
  """A function is as good as a class."""
  return Cnn(num_classes, image_shape, width=16, rate=0.0, key=key)


class Counting(Plain):
  """It has an array that is not trained."""

  table: jax.Array

  def __init__(self, num_classes, image_shape, *, key):
    super().__init__(num_classes, image_shape, key=key)
    self.table = jnp.arange(3)


class Late(Plain):
  """It wants something that nobody gives it."""

  def __call__(self, image, labels):
    return super().__call__(image)
