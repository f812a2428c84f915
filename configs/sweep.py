"""Sweeps on CIFAR-10: ResNet-50 into ResNet-18, many runs of one teacher.

  python -m kdjax.sweep --config=configs/sweep.py
  python -m kdjax.sweep --config=configs/sweep.py:tuning
  python -m kdjax.sweep --config=configs/sweep.py:tuned

`comparison`, the default: scratch, response (T = 2, α = 0.7) and feature
(0.3 · CE + 0.7 · mean of MSE) with five seeds each, 20 epochs; the teacher has
60. Published test accuracy: teacher 88.44, scratch 85.83, response 85.12,
feature 86.69 %, without a spread.

`tuning`: T from 1 to 10 at α = 0.1, then α from 0.1 to 1 at the best T, with
learning rate 0.001 and 20 epochs for all; chosen on validation. Published:
T = 4 and α = 0.5, test accuracy 85.58 %.

`tuned`: the recipe of `comparison`; T, α and the weight of the features are
tuned with one seed, then the methods are compared with five others.

Cost: 15, 20 and 40 runs of 20 epochs, and a teacher. An accelerator is needed.
"""

import ml_collections

from kdjax import config as config_lib
from kdjax import sweep


def get_config(variant: str = 'comparison') -> ml_collections.ConfigDict:
  """Gives the configuration of a variant."""
  config = sweep.default()
  method = config.run.method
  method.response.temperature = 2.0
  method.response.alpha = 0.7
  method.feature.ce_weight = 0.3
  method.feature.feature_weight = 0.7
  if variant == 'comparison':
    config.stages = (sweep.comparison(seeds=range(5)),)
  elif variant == 'tuning':
    config_lib.set_adam_recipe(config.run)
    config.stages = sweep.tuning()
  elif variant == 'tuned':
    method.feature.ce_weight = 1.0
    feature_weight = sweep.stage(
      'feature weight',
      grid={'method.feature.feature_weight': (0.1, 0.3, 1.0, 3.0, 10.0)},
      fixed={'method.name': 'feature'},
    )
    config.stages = (
      *sweep.tuning(),
      feature_weight,
      sweep.comparison(seeds=range(1, 6)),
    )
  else:
    raise ValueError(
      f"unknown variant '{variant}': expected 'comparison', 'tuning' or 'tuned'"
    )
  return config
