"""Correlation congruence."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted


def cc(
  *,
  student_feature: str = 'stage4',
  teacher_feature: str = 'stage4',
  channels: int = 128,
) -> Method:
  """Trains on w_ce · cross-entropy + w · distance of kernel matrices.

  Peng et al., 2019, https://arxiv.org/abs/1904.01802; see `kdjax.losses.cc`.
  Linear embeddings of both networks are trained.

  Args:
    student_feature: name of the student's map, whose mean is compared.
    teacher_feature: name of the teacher's.
    channels: size of both embeddings.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    source = setup.student.features[student_feature].shape[-1]
    target = setup.teacher.features[teacher_feature].shape[-1]
    keys = jax.random.split(rng)
    return Variables(
      {
        'student': _connectors.init_dense(keys[0], source, channels),
        'teacher': _connectors.init_dense(keys[1], target, channels),
      }
    )

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    student = _connectors.pool(batch.student.features[student_feature])
    teacher = _connectors.pool(batch.teacher.features[teacher_feature])
    return losses.cc(
      _connectors.dense(params['student'], student),
      _connectors.dense(params['teacher'], teacher),
      **values,
    )

  return weighted(
    'cc',
    term,
    init=init,
    weight=0.02,
    hyperparameters={'gamma': 0.4},
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
