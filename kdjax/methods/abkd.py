"""The α-β-divergence."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method
from kdjax.methods._weighted import temperature, weighted


def abkd() -> Method:
  """Trains on w_ce · cross-entropy + w · the α-β-divergence.

  Wang et al., 2025, https://arxiv.org/abs/2505.04560; see `kdjax.losses.abkd`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.abkd(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'abkd',
    term,
    weight=64.0,
    hyperparameters={
      'alpha': Hyperparameter(0.8, 0.01, 10.0),
      'beta': Hyperparameter(0.3, 0.01, 10.0),
      'temperature': temperature(1.0),
    },
  )
