"""Feature-based distillation on CIFAR-10: ResNet-50 into ResNet-18.

  python -m kdjax.main --config=configs/fkd.py
  python -m kdjax.main --config=configs/fkd.py:sum

`mean`, the default: 0.3 · CE + 0.7 · mean over four stages of MSE; the teacher
has 60 epochs. Published test accuracy: teacher 88.44, scratch 85.83, feature
86.69 %. `sum`: CE + 0.1 · sum over four stages of MSE; learning rate 0.001 and
20 epochs for all. Published: scratch 84.82, feature 85.41 %.

Cost: 20 epochs of the student, and 60 (or 20) of the teacher unless there is
one in the run directory beside this one. An accelerator is needed for all of
it; README has a short run for two CPU cores.
"""

import ml_collections

from kdjax import config as config_lib


def get_config(variant: str = 'mean') -> ml_collections.ConfigDict:
  """Returns the configuration of one of the two published variants."""
  config = config_lib.default()
  config.method.name = 'feature'
  if variant == 'mean':
    config.method.feature.reduction = 'mean'
    config.method.feature.ce_weight = 0.3
    config.method.feature.feature_weight = 0.7
  elif variant == 'sum':
    config.method.feature.reduction = 'sum'
    config.method.feature.ce_weight = 1.0
    config.method.feature.feature_weight = 0.1
    config_lib.set_adam_recipe(config)
  else:
    raise ValueError(f"unknown variant '{variant}': expected 'mean' or 'sum'")
  return config
