"""Response-based distillation: the student imitates the teacher's logits."""

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Loss, Method, Variables
from kdjax.methods._weighted import temperature


def response() -> Method:
  """Trains on (1-α) · cross-entropy + α · T² · KL.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531. Hyperparameters:
  `temperature`, T; `alpha`, α.

  Returns:
    A Method whose loss is `kdjax.losses.response_loss`.
  """

  def loss(variables: Variables, batch: Batch) -> Loss:
    del variables
    student, teacher = batch.student.logits, batch.teacher.logits
    values = batch.hyperparameters
    # XLA computes what the loss and its metrics share once.
    return Loss(
      losses.response_loss(student, teacher, batch.labels, **values),
      {
        'cross_entropy': losses.cross_entropy(student, batch.labels),
        'temperature_kl': losses.temperature_kl(
          student, teacher, values['temperature']
        ),
      },
    )

  return Method(
    loss,
    hyperparameters={
      'temperature': temperature(4.0),
      'alpha': Hyperparameter(0.5, 0.0, 1.0),
    },
  )
