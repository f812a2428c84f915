"""Distillation from a stronger teacher, by correlations."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import temperature, weighted


def dist() -> Method:
  """Trains on w_ce · cross-entropy + w · a distance of correlations.

  Huang et al., 2022, https://arxiv.org/abs/2205.10536; see `kdjax.losses.dist`.
  T is 1 on ImageNet and 4 on CIFAR.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.dist(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'dist',
    term,
    weight=2.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'beta': 1.0,
      'gamma': 1.0,
    },
    batch_level=True,
  )
