"""Distillation through the teacher's own last layer."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import temperature, weighted


def srrl(*, feature: str = 'stage4', head: str = 'fc') -> Method:
  """Trains on w_ce · cross-entropy + w · features, their logits, and a KL.

  w · (mean (x - e_t)² + mean (head_t(x) - z_t)² + w_kl · T² · KL), e the mean
  of the last map and x = ReLU(BN(W · e_s)). Yang et al., Knowledge distillation
  via softmax regression representation learning, ICLR 2021.

  Args:
    feature: the last map of both networks.
    head: the teacher's last layer, which is given the map's mean.
  """
  names = feature, f'{head}/kernel', f'{head}/bias'

  def init(rng: jax.Array, setup: Setup) -> Variables:
    source = setup.student.features[feature].shape[-1]
    target = setup.teacher.features[feature].shape[-1]
    dense = _connectors.init_dense(rng, source, target, bias=False)
    return Variables({**dense, 'bn': _connectors.init_batch_norm(target)})

  def term(
    params: Any,
    batch: Batch,
    kl_weight: jax.Array,
    temperature: jax.Array,
  ) -> jax.Array:
    x = _connectors.dense(
      {'kernel': params['kernel']},
      _connectors.pool(batch.student.features[feature]),
    )
    x = jax.nn.relu(_connectors.batch_norm(params['bn'], x))
    theirs = batch.teacher.features
    layer = {'kernel': theirs[names[1]], 'bias': theirs[names[2]]}
    target = batch.teacher.logits
    return (
      losses.feature_mse(x, _connectors.pool(theirs[feature]))
      + losses.feature_mse(_connectors.dense(layer, x), target)
      + kl_weight * losses.kd(batch.student.logits, target, temperature)
    )

  return weighted(
    'srrl',
    term,
    init=init,
    weight=1.0,
    hyperparameters={'kl_weight': 1.0, 'temperature': temperature(4.0)},
    student_features=(feature,),
    teacher_features=names,
    batch_level=True,
  )
