"""One-for-all distillation of logits, for any pair of networks."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method, classes
from kdjax.methods._weighted import temperature, weighted


def ofa() -> Method:
  """Trains on w_ce · cross-entropy + w · an adapted cross-entropy.

  Hao et al., 2023, https://arxiv.org/abs/2310.19444; see `kdjax.losses.ofa`;
  without the branches at the stages. Of mixed labels the most probable class
  counts.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.ofa(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      **values,
    )

  return weighted(
    'ofa',
    term,
    weight=1.0,
    hyperparameters={
      'power': Hyperparameter(1.5, 1.0, 10.0),
      'temperature': temperature(1.0),
    },
    labels='argmax',
  )
