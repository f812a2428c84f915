"""Transformed teacher matching: only the teacher is tempered."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method
from kdjax.methods._weighted import weighted


def ttm() -> Method:
  """Trains on w_ce · cross-entropy + w · KL(p_t^γ ‖ p_s).

  Zheng and Yang, 2024, https://arxiv.org/abs/2402.11148; see
  `kdjax.losses.ttm`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.ttm(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'ttm',
    term,
    weight=45.0,
    hyperparameters={'power': Hyperparameter(0.1, 0.001, 1.0)},
  )
