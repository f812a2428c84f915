"""Relational knowledge distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted


def rkd(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · distances and angles of examples.

  Park et al., 2019, https://arxiv.org/abs/1904.05068; see `kdjax.losses.rkd`.
  Memory: batch³ floats.

  Args:
    student_feature: name of the student's map, whose mean is compared.
    teacher_feature: name of the teacher's.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    student = _connectors.pool(batch.student.features[student_feature])
    teacher = _connectors.pool(batch.teacher.features[teacher_feature])
    del params
    return losses.rkd(student, teacher, **values)

  return weighted(
    'rkd',
    term,
    weight=1.0,
    hyperparameters={'distance_weight': 25.0, 'angle_weight': 50.0},
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
