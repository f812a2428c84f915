"""Curriculum temperature: a temperature that is trained against the student."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Method,
  Setup,
  Variables,
)
from kdjax.methods._weighted import weighted


def ctkd() -> Method:
  """Trains on w_ce · cross-entropy + w · T² · KL, T trained to be hard.

  Li et al., 2022, https://arxiv.org/abs/2211.16231; see `kdjax.losses.ctkd`.
  The authors raise `strength` from 0 to 1 over the first 10 epochs, as a cosine
  (`config.method.schedule`).
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    del rng, setup
    return Variables({'theta': jnp.ones(())})

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    return losses.ctkd(
      batch.student.logits, batch.teacher.logits, params['theta'], **values
    )

  return weighted(
    'ctkd',
    term,
    init=init,
    weight=0.9,
    ce_weight=0.1,
    hyperparameters={
      'strength': Hyperparameter(1.0, 0.0, 1.0),
      'start': Hyperparameter(1.0, 0.01, 100.0),
      'span': Hyperparameter(20.0, 0.0, 1000.0),
    },
  )
