"""Any method by name, in the recipe that most authors use on CIFAR.

  python -m kdjax.main --config=configs/methods.py:dkd
  python -m kdjax.main --config=configs/methods.py:dkd --config.train.epochs=20

`methods.py:NAME`, NAME any method of kdjax/methods/: SGD 0.05, weight decay
5e-4, batches of 64 and 240 epochs, with the authors' weights and schedules of
them, the learning rate divided by ten after 150, 180 and 210 epochs. Schedules
count epochs, whatever `train.epochs` is. The teacher is that of configs/rkd.py.
For the digits in minutes:

  python -m kdjax.main --config=configs/quickstart.py --mode=dkd

Cost: 240 epochs of ResNet-18 with a ResNet-50 beside it, hours on one
accelerator; `crd` also keeps two memories of 128 numbers for each image.
"""

import ml_collections

from kdjax import config as config_lib
from kdjax import methods

# Hyperparameters that the authors change over the epochs.
SCHEDULES = {
  'ctkd': 'strength=cosine:10',
  'dkd': 'weight=linear:20',
  'gdkd': 'weight=linear:20',
  'pskd': 'alpha=linear:240',
  'reviewkd': 'weight=linear:20',
  'rld': 'weight=linear:20',
  'sdd': 'weight=linear:20',
  'wkd_f': 'weight=decay:150:240',
  'wkd_l': 'transport_weight=decay:150:240',
}


def get_config(name: str = 'kd') -> ml_collections.ConfigDict:
  """Returns the configuration of a method."""
  config = config_lib.default()
  if name not in methods.names():
    raise ValueError(f"unknown method '{name}': see kdjax/methods/")
  config.method.name = name
  if name in SCHEDULES:
    config.method.schedule = (SCHEDULES[name],)
  for field in ('learning_rate', 'batch_size', 'schedule', 'warmup_epochs'):
    config.teacher.train[field] = config.train[field]
  config.train.epochs = 240
  config.train.schedule = 'step'
  config.train.milestones = (150, 180, 210)
  config.train.warmup_epochs = 0.0
  config.train.batch_size = 64
  config.train.learning_rate = 0.05
  if name == 'ema_teacher':
    config.train.ema_decay = 0.999
  if name == 'simkd':
    config.student.name = 'resnet18_simkd'
  if name == 'wkd_l':
    config.method.wkd_l.temperature = 8.0
    config.method.wkd_l.transport_weight = 600.0
  return config
