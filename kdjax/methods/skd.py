"""Divergence and relations of the logits of a batch."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method
from kdjax.methods._weighted import temperature, weighted


def skd() -> Method:
  """Trains on w_ce · cross-entropy + w · KL and a Mahalanobis distance.

  Jeong et al., CVPR 2026; see `kdjax.losses.skd`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.skd(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'skd',
    term,
    weight=1.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'ridge': Hyperparameter(0.1, 0.001, 1e3),
      'direction_weight': 1.0,
    },
    batch_level=True,
  )
