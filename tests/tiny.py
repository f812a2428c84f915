"""A real experiment, made small: real code paths in seconds."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from kdjax import config as config_lib
from kdjax.models import resnet


class Block(nn.Module):
  """One convolution and its BatchNorm: the least that a stage can be.

  Compiling takes most of the time of these tests, and grows with the number of
  convolutions: a ResNet-10 has twelve, `resnet5` has five.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  folded: bool = False
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = resnet._conv_norm(
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
    return nn.relu(x)


def resnet5(num_classes: int, **options: Any) -> nn.Module:
  """A network with the stem, stages and options of a ResNet."""
  return resnet.ResNet(Block, (1, 1, 1, 1), num_classes, **options)


NETWORK = 'tiny:resnet5'

# The same as `config`, as flags of a command.
FLAGS = (
  '--config=configs/quickstart.py',
  f'--config.student.name={NETWORK}',
  '--config.student.width=4',
  f'--config.teacher.name={NETWORK}',
  '--config.teacher.width=8',
  '--config.data.train_limit=160',
  '--config.train.batch_size=32',
  '--config.train.epochs=3',
  '--config.teacher.train.epochs=8',
  '--config.eval.every_epochs=1',
  '--config.log.every_steps=2',
)


# A network alone: arguments of kdjax.models.build.
MODEL = {
  'name': 'resnet10',
  'num_classes': 3,
  'stem': 'cifar',
  'width': 4,
  'dtype': 'float32',
}


def config(method: str = 'feature') -> ml_collections.ConfigDict:
  """Five steps an epoch; a student of 15 steps and a teacher of 40."""
  config = config_lib.default()
  config.method.name = method
  config.student.update(name=NETWORK, width=4)
  config.teacher.update(name=NETWORK, width=8)
  config.data.update(name='digits', train_limit=160, crop_padding=1, flip=False)
  config.train.update(
    epochs=3, batch_size=32, optimizer='adamw', learning_rate=0.01
  )
  config.teacher.train.epochs = 8
  config.log.every_steps = 2
  return config
