"""Normalised knowledge distillation, a temperature for each example."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method
from kdjax.methods._weighted import weighted


def normkd() -> Method:
  """Trains on w_ce · cross-entropy + w · KL at T = k · std of the logits.

  Chi et al., 2023, https://arxiv.org/abs/2308.00520; see `kdjax.losses.normkd`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.normkd(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'normkd',
    term,
    weight=0.9,
    ce_weight=0.1,
    hyperparameters={'scale': Hyperparameter(2.0, 0.01, 1000.0)},
  )
