"""Inter-channel correlation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted


def ickd(
  *, student_feature: str = 'stage4', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w_ce · cross-entropy + w · distance of channels' Gram matrices.

  Liu et al., 2022, https://arxiv.org/abs/2202.03680; see `kdjax.losses.ickd`.
  The student's map passes a 1×1 convolution and a BatchNorm. The authors add
  T² · KL.

  Args:
    student_feature: name of the student's map.
    teacher_feature: name of the teacher's, of the same size.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    _connectors.check_maps(setup, student_feature, teacher_feature, equal=True)
    source = setup.student.features[student_feature].shape[-1]
    target = setup.teacher.features[teacher_feature].shape[-1]
    conv = _connectors.init_conv(rng, source, target, bias=False)
    return Variables({'conv': conv, 'bn': _connectors.init_batch_norm(target)})

  def term(params: Any, batch: Batch) -> jax.Array:
    x = _connectors.conv(
      params['conv'], batch.student.features[student_feature]
    )
    return losses.ickd(
      _connectors.batch_norm(params['bn'], x),
      batch.teacher.features[teacher_feature],
    )

  return weighted(
    'ickd',
    term,
    init=init,
    weight=2.5,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    batch_level=True,
  )
