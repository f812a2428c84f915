"""Logit standardisation before the divergence."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import temperature, weighted


def logit_std() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL of standardised logits.

  Sun et al., 2024, https://arxiv.org/abs/2403.01427; see
  `kdjax.losses.standardize_logits`, which suits any other loss of logits too.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.kd(
      losses.standardize_logits(batch.student.logits),
      losses.standardize_logits(batch.teacher.logits),
      **values,
    )

  return weighted(
    'logit_std',
    term,
    weight=9.0,
    ce_weight=0.1,
    hyperparameters={'temperature': temperature(2.0)},
  )
