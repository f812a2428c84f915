"""Knowledge distillation with free weights of its two terms."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import temperature, weighted


def kd() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531. `response` is the same
  with weights 1-α and α. Most gains of newer methods are measured against this
  one with weights that nobody tuned.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.kd(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'kd',
    term,
    weight=0.9,
    ce_weight=0.1,
    hyperparameters={'temperature': temperature(4.0)},
  )
