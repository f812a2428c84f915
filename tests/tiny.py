"""A real experiment, made small: real code paths in seconds."""

import ml_collections

from kdjax import config as config_lib

# The same as flags of a command.
FLAGS = (
  '--config=configs/quickstart.py',
  '--config.student.name=resnet10',
  '--config.student.width=4',
  '--config.teacher.name=resnet10',
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
  config.student.update(name='resnet10', width=4)
  config.teacher.update(name='resnet10', width=8)
  config.data.update(name='digits', train_limit=160, crop_padding=1, flip=False)
  config.train.update(
    epochs=3, batch_size=32, optimizer='adamw', learning_rate=0.01
  )
  config.teacher.train.epochs = 8
  config.log.every_steps = 2
  return config
