"""Variational information distillation."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted

_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def vid(
  *,
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _STAGES,
) -> Method:
  """Trains on w_ce · cross-entropy + w · negative log-likelihood of stages.

  Ahn et al., 2019, https://arxiv.org/abs/1904.05835; see `kdjax.losses.vid`.
  The variances are trained, which several public copies forget.

  Args:
    student_features: names of the student's maps.
    teacher_features: names of the teacher's, in the same order.
  """
  pairs = _connectors.pair(student_features, teacher_features)

  def init(rng: jax.Array, setup: Setup) -> Variables:
    params = {}
    for index, (name, (ours, theirs)) in enumerate(pairs.items()):
      _connectors.check_maps(setup, ours, theirs, equal=False)
      params[name] = _connectors.init_gaussian(
        jax.random.fold_in(rng, index),
        setup.student.features[ours].shape[-1],
        setup.teacher.features[theirs].shape[-1],
      )
    return Variables(params)

  def term(params: Any, batch: Batch) -> jax.Array:
    total = jnp.zeros(())
    for name, (ours, theirs) in pairs.items():
      student, teacher = losses.match_sizes(
        batch.student.features[ours], batch.teacher.features[theirs]
      )
      mean, variance = _connectors.gaussian(params[name], student)
      total = total + losses.vid(mean, teacher, variance)
    return total

  return weighted(
    'vid',
    term,
    init=init,
    weight=1.0,
    student_features=tuple(student_features),
    teacher_features=tuple(teacher_features),
  )
