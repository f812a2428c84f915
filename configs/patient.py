"""A patient and consistent teacher: long training on mixed images, KL alone.

  python -m kdjax.main --config=configs/patient.py
  python -m kdjax.main --config=configs/patient.py:digits

Beyer et al., 2021, https://arxiv.org/abs/2106.05237: teacher and student see
the same crop and the same mixed pixels (`data.mixup`), the student never sees a
label, and training is much longer than usual. `cifar`, the default: 1,200
epochs; the paper finds that accuracy still rises there. `digits`: the same for
scikit-learn's digits, 60 epochs, minutes on two CPU cores.

Cost: 1,200 epochs of ResNet-18 with a ResNet-50 beside it, a day on one
accelerator. Compare it with `--mode=scratch` of the same length.
"""

import ml_collections

from kdjax import config as config_lib


def get_config(variant: str = 'cifar') -> ml_collections.ConfigDict:
  """Returns the configuration, on CIFAR-10 or on the digits."""
  config = config_lib.default()
  config.method.name = 'kd'
  config.method.kd.update(ce_weight=0.0, weight=1.0, temperature=1.0)
  if variant == 'digits':
    config_lib.set_digits_recipe(config)
    config.train.epochs = 60
    config.train.label_smoothing = 0.0
    config.teacher.train.label_smoothing = 0.1
  elif variant == 'cifar':
    config.train.epochs = 1200
    config.eval.every_epochs = 10
  else:
    raise ValueError(
      f"unknown variant '{variant}': expected 'cifar' or 'digits'"
    )
  config.data.mixup = 1.0
  # Trained on mixed images too, unless config.teacher.path names another.
  config.teacher.sibling = 'patient_teacher'
  return config
