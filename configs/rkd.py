"""Response-based distillation on CIFAR-10: ResNet-50 into ResNet-18.

  python -m kdjax.main --config=configs/rkd.py
  python -m kdjax.main --config=configs/rkd.py:t4

`t2`, the default: T = 2, α = 0.7; the teacher has 60 epochs. Published test
accuracy: teacher 88.44, scratch 85.83, response 85.12 %. `t4`: T = 4, α = 0.5,
found by tuning; learning rate 0.001 and 20 epochs for all. Published: scratch
84.82, response 85.58 %.

Cost: as for configs/fkd.py, with which it shares its teachers.
"""

import ml_collections

from kdjax import config as config_lib


def get_config(variant: str = 't2') -> ml_collections.ConfigDict:
  """Returns the configuration of one of the two published variants."""
  config = config_lib.default()
  config.method.name = 'response'
  if variant == 't2':
    config.method.response.temperature = 2.0
    config.method.response.alpha = 0.7
  elif variant == 't4':
    config.method.response.temperature = 4.0
    config.method.response.alpha = 0.5
    config_lib.set_adam_recipe(config)
  else:
    raise ValueError(f"unknown variant '{variant}': expected 't2' or 't4'")
  return config
