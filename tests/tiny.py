"""A real experiment, made small: real code paths in seconds."""

import ml_collections

from kdjax import config as config_lib

# Its training step compiles in half the time of a ResNet-10's.
NETWORK = 'staged:network'

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


# Settings of methods, smaller than the defaults, which suit a ResNet-50.
_TWO = ('stage1', 'stage2')
_BEFORE = ('stage1/preact', 'stage2/preact')
SETTINGS = {
  **{
    name: {'student_features': _TWO, 'teacher_features': _TWO}
    for name in ('at', 'feature', 'nst', 'vid')
  },
  'byot': {'features': ('stage2',), 'last': 'stage3'},
  'crd': {'negatives': 8, 'channels': 16},
  'dml': {'network': NETWORK, 'width': 4},
  'ofd': {
    'student_features': _BEFORE,
    'teacher_features': _BEFORE,
    'teacher_norms': ('stage1/block1/bn2', 'stage2/block1/bn2'),
  },
  'reviewkd': {'student_features': _TWO, 'teacher_features': _BEFORE},
}

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


def resnet_config(method: str = 'feature') -> ml_collections.ConfigDict:
  """The same with ResNet-10s, where weights have the names of ResNets."""
  resnets = config(method)
  resnets.student.name = resnets.teacher.name = 'resnet10'
  return resnets
