"""Refined logit distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def rld() -> Method:
  """Trains on w_ce · cross-entropy + w · (α · A² · KL₂ + β · T² · KLₘ).

  Sun et al., 2024, https://arxiv.org/abs/2408.07703; see `kdjax.losses.rld`.
  The authors raise `weight` linearly over the first 20 epochs
  (`config.method.schedule`).
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.rld(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      **values,
    )

  return weighted(
    'rld',
    term,
    weight=1.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'alpha': 1.0,
      'beta': 8.0,
      'alpha_temperature': temperature(4.0),
    },
    labels='class',
  )
