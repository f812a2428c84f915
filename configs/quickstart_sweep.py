"""Sweeps on scikit-learn's digits: no network access, no accelerator.

  python -m kdjax.sweep --config=configs/quickstart_sweep.py
  python -m kdjax.sweep --config=configs/quickstart_sweep.py:tuning

The first compares scratch, response and feature with three seeds each, the
second tunes T and α of the method response as the published protocol does:
twenty runs of two epochs each.
"""

import ml_collections

from kdjax import config as config_lib
from kdjax import sweep


def get_config(variant: str = 'comparison') -> ml_collections.ConfigDict:
  """Returns the configuration of a comparison, or of the published tuning."""
  config = sweep.default()
  config_lib.set_digits_recipe(config.run)
  if variant == 'comparison':
    config.stages = (sweep.comparison(),)
    config.seeds = (0, 1, 2)
  elif variant == 'tuning':
    config.stages = sweep.tuning()
    config.run.train.epochs = 2
  else:
    raise ValueError(
      f"unknown variant '{variant}': expected 'comparison' or 'tuning'"
    )
  return config
