"""No distillation: cross-entropy alone, the baseline of every comparison."""

import jax

from kdjax import losses
from kdjax.methods._base import (
  Hyperparameters,
  Method,
  Metrics,
  Parameters,
  no_parameters,
)
from kdjax.models.features import Outputs


def scratch() -> Method:
  """Trains on the labels alone, without a teacher.

  Returns:
    A Method whose loss is `kdjax.losses.cross_entropy`.
  """

  def loss(
    parameters: Parameters,
    hyperparameters: Hyperparameters,
    student: Outputs,
    teacher: Outputs | None,
    labels: jax.Array,
  ) -> tuple[jax.Array, Metrics]:
    del parameters, hyperparameters, teacher
    return losses.cross_entropy(student.logits, labels), {}

  return Method(
    student_features=(),
    teacher_features=(),
    needs_teacher=False,
    hyperparameters={},
    init=no_parameters,
    loss=loss,
  )
