"""Normalised knowledge distillation, two cross-entropies."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def nkd() -> Method:
  """Trains on w_ce · cross-entropy + w · two cross-entropies.

  Yang et al., 2023, https://arxiv.org/abs/2303.13005; see `kdjax.losses.nkd`.
  γ = 3.5 and T = 3 are for CIFAR; for ImageNet they are 1.5 and 1.XX
  labels the most probable class counts.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.nkd(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      **values,
    )

  return weighted(
    'nkd',
    term,
    weight=1.0,
    hyperparameters={'temperature': temperature(3.0), 'gamma': 3.5},
    labels='argmax',
  )
