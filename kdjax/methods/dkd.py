"""Decoupled knowledge distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def dkd() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · (α · KL₂ + β · KLₙ).

  Zhao et al., 2022, https://arxiv.org/abs/2203.08679; see `kdjax.losses.dkd`.
  The authors raise `weight` linearly over the first 20 epochs
  (`config.method.schedule`).
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.dkd(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      **values,
    )

  return weighted(
    'dkd',
    term,
    weight=1.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'alpha': 1.0,
      'beta': 8.0,
    },
    labels='class',
  )
