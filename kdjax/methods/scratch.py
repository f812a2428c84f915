"""No distillation: cross-entropy alone, the baseline of every comparison."""

from kdjax import losses
from kdjax.methods._base import Batch, Loss, Method, Variables


def scratch() -> Method:
  """Trains on the labels alone, without a teacher.

  Returns:
    A Method whose loss is `kdjax.losses.cross_entropy`.
  """

  def loss(variables: Variables, batch: Batch) -> Loss:
    del variables
    return Loss(losses.cross_entropy(batch.student.logits, batch.labels))

  return Method(loss, teacher=None)
