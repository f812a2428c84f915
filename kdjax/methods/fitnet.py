"""FitNets: hints from a layer in the middle."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted


def fitnet(
  *, student_feature: str = 'stage2', teacher_feature: str = 'stage2'
) -> Method:
  """Trains on w_ce · cross-entropy + w · MSE of one stage.

  Romero et al., 2014, https://arxiv.org/abs/1412.6550. The student's map passes
  a convolution, a BatchNorm and a ReLU; `feature` has a convolution alone, at
  all stages.

  Args:
    student_feature: name of the student's map.
    teacher_feature: name of the teacher's, at most as large.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    _connectors.check_maps(setup, student_feature, teacher_feature, equal=False)
    return Variables(
      _connectors.init_regressor(
        rng,
        setup.student.features[student_feature].shape,
        setup.teacher.features[teacher_feature].shape,
      )
    )

  def term(params: Any, batch: Batch) -> jax.Array:
    target = batch.teacher.features[teacher_feature]
    x = batch.student.features[student_feature]
    return losses.feature_mse(
      _connectors.regress(params, x, target.shape[1]), target
    )

  return weighted(
    'feature_mse',
    term,
    init=init,
    weight=100.0,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
