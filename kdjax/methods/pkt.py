"""Probabilistic knowledge transfer."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted


def pkt(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · divergence of similarities.

  Passalis and Tefas, 2018, https://arxiv.org/abs/1803.10837; see
  `kdjax.losses.pkt`.

  Args:
    student_feature: name of the student's map, whose mean is compared.
    teacher_feature: name of the teacher's.
  """

  def term(params: Any, batch: Batch) -> jax.Array:
    student = _connectors.pool(batch.student.features[student_feature])
    teacher = _connectors.pool(batch.teacher.features[teacher_feature])
    del params
    return losses.pkt(student, teacher)

  return weighted(
    'pkt',
    term,
    weight=30000.0,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
