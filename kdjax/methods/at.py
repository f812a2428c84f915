"""Attention transfer."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted

_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def at(
  *,
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _STAGES,
) -> Method:
  """Trains on w_ce · cross-entropy + w · distance of attention maps.

  Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1612.03928; see
  `kdjax.losses.at`.

  Args:
    student_features: names of the student's maps.
    teacher_features: names of the teacher's, in the same order.
  """

  def term(params: Any, batch: Batch) -> jax.Array:
    del params
    return losses.at(
      [batch.student.features[key] for key in student_features],
      [batch.teacher.features[key] for key in teacher_features],
    )

  return weighted(
    'at',
    term,
    weight=1000.0,
    student_features=tuple(student_features),
    teacher_features=tuple(teacher_features),
  )
