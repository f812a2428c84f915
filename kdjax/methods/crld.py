"""Cross-view consistency where the teacher is confident."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Method
from kdjax.methods._weighted import temperature, weighted


def crld() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL within and across two views.

  Zhang et al., 2024, https://arxiv.org/abs/2412.16493; see `kdjax.losses.crld`.
  The cross-entropy is the sum of that of both views; a step takes twice the
  time of a method with one. For ImageNet T = 1 and w_ce = 2.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    student = jnp.split(batch.student.logits, 2)
    teacher = jnp.split(batch.teacher.logits, 2)
    return losses.crld(student[0], teacher[0], student[1], teacher[1], **values)

  return weighted(
    'crld',
    term,
    weight=1.0,
    hyperparameters={
      'temperature': temperature(4.0),
      'within_weight': 2.0,
      'cross_weight': 0.5,
      'weak_threshold': Hyperparameter(0.9, 0.0, 1.0),
      'strong_threshold': Hyperparameter(0.2, 0.0, 1.0),
    },
    views=2,
  )
