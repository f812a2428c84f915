"""Wasserstein distillation of logits."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def wkd_l(*, head: str = 'fc') -> Method:
  """Trains on w_ce · cross-entropy + w · (label term + w_t · transport).

  Lv et al., 2024, https://arxiv.org/abs/2412.08139; see `kdjax.losses.wkd_l`.
  Mass costs 1 - exp(-(1 - cos)) to move between two classes, cos being that of
  the angle between their rows in the teacher's last layer; the authors compare
  classes by the teacher's features of all training images. For CIFAR they take
  T = 8 and w_t = 600, which falls to 0 as a cosine from epoch 150 on.

  Args:
    head: the teacher's last layer.
  """
  name = f'{head}/kernel'

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    prototypes = batch.teacher.features[name].astype(jnp.float32)
    prototypes /= jnp.linalg.norm(prototypes, axis=0) + 1e-12
    cosines = jnp.matmul(
      prototypes.T, prototypes, precision=jax.lax.Precision.HIGHEST
    )
    return losses.wkd_l(
      batch.student.logits,
      batch.teacher.logits,
      classes(batch.labels),
      1 - jnp.exp(cosines - 1),
      values['temperature'],
      values['transport_weight'],
    )

  return weighted(
    'wkd_l',
    term,
    weight=1.0,
    hyperparameters={'temperature': temperature(2.0), 'transport_weight': 30.0},
    teacher_features=(name,),
    labels='class',
  )
