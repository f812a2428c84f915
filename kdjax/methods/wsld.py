"""Weighted soft labels."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def wsld() -> Method:
  """Trains on w_ce · cross-entropy + w · weighted soft cross-entropy.

  Zhou et al., 2021, https://arxiv.org/abs/2102.00650; see `kdjax.losses.wsld`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.wsld(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      **values,
    )

  return weighted(
    'wsld',
    term,
    weight=2.5,
    hyperparameters={'temperature': temperature(2.0)},
    labels='class',
  )
