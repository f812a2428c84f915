"""Similarity-preserving distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted


def sp(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · distance of similarity matrices.

  Tung and Mori, 2019, https://arxiv.org/abs/1907.09682; see `kdjax.losses.sp`.

  Args:
    student_feature: name of the student's feature, of any shape.
    teacher_feature: name of the teacher's.
  """

  def term(params: Any, batch: Batch) -> jax.Array:
    del params
    return losses.sp(
      batch.student.features[student_feature],
      batch.teacher.features[teacher_feature],
    )

  return weighted(
    'sp',
    term,
    weight=3000.0,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
