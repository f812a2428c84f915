"""Information-theoretic distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted


def itrd(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · correlation and mutual information.

  Miles et al., 2021, https://arxiv.org/abs/2112.00459; see `kdjax.losses.itrd`.
  A linear layer to the teacher's channels is trained.

  Args:
    student_feature: name of the student's map, whose mean is compared.
    teacher_feature: name of the teacher's.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    source = setup.student.features[student_feature].shape[-1]
    target = setup.teacher.features[teacher_feature].shape[-1]
    return Variables(_connectors.init_dense(rng, source, target))

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    student = _connectors.pool(batch.student.features[student_feature])
    teacher = _connectors.pool(batch.teacher.features[teacher_feature])
    return losses.itrd(_connectors.dense(params, student), teacher, **values)

  return weighted(
    'itrd',
    term,
    init=init,
    weight=1.0,
    hyperparameters={'correlation_weight': 2.0, 'mutual_weight': 1.0},
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
