"""The teacher alone: ResNet-50 on CIFAR-10, 60 epochs.

  python -m kdjax.main --config=configs/teacher.py

Writes runs/teacher, which the runs of configs/fkd.py and configs/rkd.py in
runs/ then find. Published test accuracy: 88.44 %. Cost: 60 epochs of ResNet-50.
"""

import ml_collections

from kdjax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Returns the configuration."""
  return config_lib.teacher_run(config_lib.default())
