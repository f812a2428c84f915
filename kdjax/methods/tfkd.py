"""Teacher-free distillation, with a teacher that is made up."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def tfkd() -> Method:
  """Trains on w_ce · cross-entropy + w · KL to softened labels, no teacher.

  Yuan et al., 2019, https://arxiv.org/abs/1909.11723; see `kdjax.losses.tfkd`.
  w is α times the multiplier of the paper.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.tfkd(
      batch.student.logits, classes(batch.labels), multiplier=1.0, **values
    )

  return weighted(
    'tfkd',
    term,
    weight=10.0,
    ce_weight=0.9,
    hyperparameters={'temperature': temperature(20.0)},
    teacher=None,
    labels='class',
  )
