"""Distils ResNet-50 into ResNet-18 on scikit-learn's digits: a first look.

  python -m kdjax.main --config=configs/quickstart.py

1,293 images to train on, 8 epochs for each network; no network access and no
accelerator needed. Cost: three minutes on two CPU cores, first compilation
included. Test accuracy measured there: teacher 98.1 %, student 98.6 %.
"""

import ml_collections

from kdjax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Returns the configuration."""
  config = config_lib.default()
  config.method.name = 'feature'
  config_lib.set_digits_recipe(config)
  return config
