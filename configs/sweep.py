"""Sweeps on CIFAR-10: ResNet-50 into ResNet-18, many runs of one teacher.

  python -m kdjax.sweep --config=configs/sweep.py
  python -m kdjax.sweep --config=configs/sweep.py:published_sum
  python -m kdjax.sweep --config=configs/sweep.py:few_images
  python -m kdjax.sweep --config=configs/sweep.py:tuning
  python -m kdjax.sweep --config=configs/sweep.py:tuned
  python -m kdjax.sweep --config=configs/sweep.py:reduced

`comparison`, the default: scratch, response (T = 2, α = 0.7) and feature
(0.3 · CE + 0.7 · mean of MSE) with five seeds each, 20 epochs; the teacher has
60. Published test accuracy: teacher 88.44, scratch 85.83, response 85.12,
feature 86.69 %, without a spread.

`published_sum`: the other published variant, with five seeds each: scratch,
response (T = 4, α = 0.5) and feature (CE + 0.1 · sum of MSE), learning rate
0.001 and 20 epochs for all, the teacher included, and the ImageNet stem, with
which two CPU cores train it in half a day. Published test accuracy: scratch
84.82, response 85.58, feature 85.41 %, without a spread.

`few_images`: the recipe of `published_sum` and its teacher, which must be there
(`run.teacher.path`), students on a tenth of each class's images (4,500) for 100
epochs, T = 4, α = 0.9. Half the cost.

`tuning`: T from 1 to 10 at α = 0.1, then α from 0.1 to 1 at the best T, with
learning rate 0.001 and 20 epochs for all; chosen on validation. Published:
T = 4 and α = 0.5, test accuracy 85.58 %.

`tuned`: the recipe of `comparison`; T, α and the weight of the features are
tuned with one seed, then the methods are compared with five others.

Cost: 15, 15, 20 and 40 runs of 20 epochs, and a teacher. An accelerator is
needed for all but `published_sum` and `few_images`.

`reduced`: the protocol of `tuned` on a problem for two CPU cores, half an hour
or so: 3,000 training images, the ImageNet stem, six epochs (ten for the
teacher), fewer values. Its accuracies are those of so small a problem.
"""

from typing import Any

import ml_collections

from kdjax import config as config_lib
from kdjax import sweep


def get_config(variant: str = 'comparison') -> ml_collections.ConfigDict:
  """Returns the configuration of a variant."""
  config = sweep.default()
  method = config.run.method
  method.response.temperature = 2.0
  method.response.alpha = 0.7
  method.feature.ce_weight = 0.3
  method.feature.feature_weight = 0.7
  if variant == 'comparison':
    config.seeds = (0, 1, 2, 3, 4)
    config.stages = (sweep.comparison(),)
  elif variant in ('published_sum', 'few_images'):
    config_lib.set_adam_recipe(config.run)
    config.run.student.stem = 'imagenet'
    method.response.temperature = 4.0
    method.response.alpha = 0.5
    method.feature.reduction = 'sum'
    method.feature.ce_weight = 1.0
    method.feature.feature_weight = 0.1
    # Hours on two cores: little is lost when it is stopped.
    config.run.checkpoint.every_steps = 100
    config.seeds = (0, 1, 2, 3, 4)
    config.stages = (sweep.comparison(),)
    if variant == 'few_images':
      config.run.teacher.path = 'runs/sweep-published_sum/teacher_adam'
      method.response.alpha = 0.9
      config.run.data.train_fraction = 0.1
      config.run.train.epochs = 100
      config.run.eval.every_epochs = 10
  elif variant == 'tuning':
    config_lib.set_adam_recipe(config.run)
    config.stages = sweep.tuning()
  elif variant == 'tuned':
    config.stages = (
      *sweep.tuning(),
      _feature_weight(config, 0.1, 0.3, 1.0, 3.0, 10.0),
      sweep.comparison(seeds=range(1, 6)),
    )
  elif variant == 'reduced':
    _reduce(config.run)
    config.stages = (
      *sweep.tuning(
        temperatures=(1, 2, 4, 8), alphas=(0.1, 0.3, 0.5, 0.7, 0.9)
      ),
      _feature_weight(config, 0.1, 1.0, 10.0),
      sweep.comparison(seeds=range(1, 6)),
    )
  else:
    raise ValueError(
      f"unknown variant '{variant}': expected 'comparison', 'published_sum', "
      "'few_images', 'tuning', 'tuned' or 'reduced'"
    )
  return config


def _feature_weight(
  config: ml_collections.ConfigDict, *values: float
) -> dict[str, Any]:
  """The stage that weighs features against a cross-entropy of weight one."""
  config.run.method.feature.ce_weight = 1.0
  return sweep.stage(
    'feature weight',
    grid={'method.feature.feature_weight': values},
    fixed={'method.name': 'feature'},
  )


def _reduce(run: ml_collections.ConfigDict) -> None:
  run.student.stem = 'imagenet'
  run.data.train_limit = 3000
  run.data.validation_fraction = 0.04
  run.train.epochs = 6
  run.train.batch_size = 64
  run.train.learning_rate = 0.05
  run.eval.every_epochs = 2
  run.teacher.train.epochs = 10
