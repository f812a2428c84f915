"""Multi-level logit distillation, of two views of each image."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted


def mlkd() -> Method:
  """Trains on w_ce · cross-entropy + w · KL and relations, of two views.

  Jin et al., Multi-level logit distillation, CVPR 2023; see
  `kdjax.losses.mlkd`. The cross-entropy is the sum of that of both views; a
  step takes twice the time of a method with one.
  """

  def term(params: Any, batch: Batch) -> jax.Array:
    del params
    student = jnp.split(batch.student.logits, 2)
    teacher = jnp.split(batch.teacher.logits, 2)
    return losses.mlkd(student[0], teacher[0], student[1], teacher[1])

  return weighted(
    'mlkd', term, weight=0.9, ce_weight=0.1, views=2, batch_level=True
  )
