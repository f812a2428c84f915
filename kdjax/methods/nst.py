"""Neuron selectivity transfer."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted

_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def nst(
  *,
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _STAGES,
) -> Method:
  """Trains on w_ce · cross-entropy + w · discrepancy of channels.

  Huang and Wang, 2017, https://arxiv.org/abs/1707.01219; see
  `kdjax.losses.nst`.

  Args:
    student_features: names of the student's maps.
    teacher_features: names of the teacher's, in the same order.
  """

  def term(params: Any, batch: Batch) -> jax.Array:
    del params
    return losses.nst(
      [batch.student.features[key] for key in student_features],
      [batch.teacher.features[key] for key in teacher_features],
    )

  return weighted(
    'nst',
    term,
    weight=50.0,
    student_features=tuple(student_features),
    teacher_features=tuple(teacher_features),
  )
