"""Mean teacher: the moving average of the student teaches it."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods._base import Batch, Method
from kdjax.methods._weighted import temperature, weighted


def ema_teacher() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL from the moving average.

  Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780 (their cost is a
  squared difference of probabilities). Needs `config.train.ema_decay`.
  """

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    del params
    return losses.kd(batch.student.logits, batch.teacher.logits, **values)

  return weighted(
    'ema_teacher',
    term,
    weight=1.0,
    hyperparameters={'temperature': temperature(1.0)},
    teacher='ema',
  )
