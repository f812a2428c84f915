"""Class attention transfer."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import weighted


def cat_kd(
  *, feature: str = 'stage4', head: str = 'fc', resolution: int = 2
) -> Method:
  """Trains on w_ce · cross-entropy + w · distance of class activation maps.

  Guo et al., 2023, https://arxiv.org/abs/2304.12777; see `kdjax.losses.cat_kd`.
  The authors' weight is between 1.8 and 600, by pair.

  Args:
    feature: the last map of both networks.
    head: the last layer of both networks, which is given the map's mean.
    resolution: positions along a side that are compared.
  """
  names = feature, f'{head}/kernel'

  def term(params: Any, batch: Batch) -> jax.Array:
    del params
    student, teacher = (
      jnp.matmul(
        outputs.features[feature].astype(jnp.float32),
        outputs.features[names[1]],
        precision=jax.lax.Precision.HIGHEST,
      )
      for outputs in (batch.student, batch.teacher)
    )
    return losses.cat_kd(student, teacher, resolution)

  return weighted(
    'cat_kd',
    term,
    weight=400.0,
    student_features=names,
    teacher_features=names,
  )
