"""Wasserstein distillation of features."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted


def wkd_f(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · Wasserstein distance of features.

  Lv et al., 2024, https://arxiv.org/abs/2412.08139; see `kdjax.losses.wkd_f`.
  The student's map passes a convolution, a BatchNorm and a ReLU. For CIFAR the
  authors lower `weight` after epoch 150 of 240, as a cosine
  (`config.method.schedule`); for ImageNet w is 0.02 and r is 2.

  Args:
    student_feature: name of the student's map.
    teacher_feature: name of the teacher's, at most as large.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    _connectors.check_maps(setup, student_feature, teacher_feature, equal=False)
    target = setup.teacher.features[teacher_feature].shape
    if target[1] * target[2] < 2:
      raise ValueError(
        f'{teacher_feature} of the teacher has shape {target}: wkd_f compares '
        'variances over positions, and there is one. Choose an earlier stage '
        '(wkd_f.student_feature, wkd_f.teacher_feature)'
      )
    source = setup.student.features[student_feature].shape
    return Variables(_connectors.init_regressor(rng, source, target))

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    target = batch.teacher.features[teacher_feature]
    x = batch.student.features[student_feature]
    return losses.wkd_f(
      _connectors.regress(params, x, target.shape[1]), target, **values
    )

  return weighted(
    'wkd_f',
    term,
    init=init,
    weight=0.08,
    hyperparameters={'mean_weight': 4.0},
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
