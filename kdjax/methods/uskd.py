"""Universal self-distillation, from a classifier on an earlier stage."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables, classes
from kdjax.methods._weighted import weighted


def uskd(*, feature: str = 'stage3') -> Method:
  """Trains on w_ce · cross-entropy + w · three terms, without a teacher.

  Yang et al., 2023, https://arxiv.org/abs/2303.13005; see `kdjax.losses.uskd`.

  Args:
    feature: the map that the auxiliary classifier is given the mean of.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    channels = setup.student.features[feature].shape[-1]
    return Variables(_connectors.init_dense(rng, channels, setup.num_classes))

  def term(params: Any, batch: Batch, **values: Any) -> jax.Array:
    middle = _connectors.pool(batch.student.features[feature])
    return losses.uskd(
      batch.student.logits,
      _connectors.dense(params, middle),
      classes(batch.labels),
      **values,
    )

  return weighted(
    'uskd',
    term,
    init=init,
    weight=1.0,
    hyperparameters={'alpha': 1.0, 'beta': 0.1, 'mu': 0.005},
    student_features=(feature,),
    teacher=None,
    batch_level=True,
    labels='class',
  )
