"""Response-based distillation: the student imitates the teacher's logits."""

import jax

from kdjax import losses
from kdjax.methods._base import (
  Hyperparameter,
  Hyperparameters,
  Method,
  Metrics,
  Parameters,
  no_parameters,
)
from kdjax.models.features import Outputs


def response() -> Method:
  """Trains on (1-α) · cross-entropy + α · T² · KL.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531. Hyperparameters:
  `temperature`, T; `alpha`, α.

  Returns:
    A Method whose loss is `kdjax.losses.response_loss`.
  """

  def loss(
    parameters: Parameters,
    hyperparameters: Hyperparameters,
    student: Outputs,
    teacher: Outputs | None,
    labels: jax.Array,
  ) -> tuple[jax.Array, Metrics]:
    del parameters
    assert teacher is not None
    per_example = losses.response_loss(
      student.logits, teacher.logits, labels, **hyperparameters
    )
    # XLA computes what the loss and its metrics share once.
    return per_example, {
      'cross_entropy': losses.cross_entropy(student.logits, labels),
      'temperature_kl': losses.temperature_kl(
        student.logits, teacher.logits, hyperparameters['temperature']
      ),
    }

  return Method(
    student_features=(),
    teacher_features=(),
    needs_teacher=True,
    hyperparameters={
      # Below 0.01 the tempered probabilities are one-hot in float32.
      'temperature': Hyperparameter(4.0, 0.01, 1000.0),
      'alpha': Hyperparameter(0.5, 0.0, 1.0),
    },
    init=no_parameters,
    loss=loss,
  )
