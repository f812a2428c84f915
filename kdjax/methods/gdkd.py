"""Generalised decoupled distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import temperature, weighted


def gdkd(*, k: int = 5) -> Method:
  """Trains on w_ce · cross-entropy + w · KL around the teacher's top k classes.

  Zheng and Cheng, 2025, https://arxiv.org/abs/2512.04625; see
  `kdjax.losses.gdkd`. The authors raise `weight` linearly over the first 20
  epochs (`config.method.schedule`).

  Args:
    k: size of the first group of classes.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    del rng
    if setup.num_classes <= k:
      raise ValueError(
        f'gdkd.k is {k}, and there are {setup.num_classes} classes: expected '
        'fewer than there are classes'
      )
    return Variables()

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.gdkd(
      batch.student.logits, batch.teacher.logits, k=k, **values
    )

  return weighted(
    'gdkd',
    term,
    init=init,
    weight=1.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'group_weight': 1.0,
      'top_weight': 1.0,
      'rest_weight': 8.0,
    },
  )
