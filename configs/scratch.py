"""ResNet-18 on CIFAR-10 without a teacher: the baseline to compare with.

  python -m kdjax.main --config=configs/scratch.py

The recipe of configs/fkd.py and configs/rkd.py. Published test accuracy of the
student alone: 85.83 %; with learning rate 0.001 for 20 epochs (variant `adam`)
84.82 %. Cost: 20 epochs of ResNet-18.
"""

import ml_collections

from kdjax import config as config_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the configuration, with the recipe of either published variant."""
  config = config_lib.default()
  if variant == 'adam':
    config_lib.set_adam_recipe(config)
  elif variant:
    raise ValueError(f"unknown variant '{variant}': expected 'adam' or none")
  return config
