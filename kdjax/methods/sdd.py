"""Scale-decoupled distillation: regions of an image have their own logits."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method, classes
from kdjax.methods._weighted import temperature, weighted


def sdd(
  *,
  feature: str = 'stage4',
  head: str = 'fc',
  levels: tuple[int, ...] = (1, 2, 4),
) -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL of regions.

  Wei et al., 2024, https://arxiv.org/abs/2403.13512; see `kdjax.losses.sdd`.

  Args:
    feature: the last map of both networks.
    head: the last layer of both networks, which is given the map's mean.
    levels: numbers of regions along a side.
  """
  names = feature, f'{head}/kernel', f'{head}/bias'

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    student, teacher = (
      losses.region_logits(
        outputs.features[names[0]],
        outputs.features[names[1]],
        outputs.features[names[2]],
        levels,
      )
      for outputs in (batch.student, batch.teacher)
    )
    return losses.sdd(
      student,
      teacher,
      classes(batch.labels),
      lambda s, t, y: losses.kd(s, t, **values),
    )

  return weighted(
    'sdd',
    term,
    weight=1.0,
    hyperparameters={'temperature': temperature(4.0)},
    student_features=names,
    teacher_features=names,
    labels='class',
  )
