"""Deep mutual learning: two students, each other's teacher."""

import flax.linen as nn
import jax

from kdjax import losses, models
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)
from kdjax.methods._weighted import temperature
from kdjax.models.features import forward, init


def dml(
  *, network: str = 'resnet18', stem: str = 'cifar', width: int = 64
) -> Method:
  """Trains a second student with the first, without a teacher.

  Each has its cross-entropy and T² · KL from the other, which gets no gradient.
  Zhang et al., 2018, https://arxiv.org/abs/1706.00384. The first is the run's
  student; the second is kept with the method's variables.

  Args:
    network: name of the second student's model.
    stem: its stem.
    width: its width.
  """

  def build(num_classes: int) -> nn.Module:
    return models.build(
      network, num_classes=num_classes, stem=stem, width=width
    )

  def init_second(rng: jax.Array, setup: Setup) -> Variables:
    model = build(setup.num_classes)
    variables = init(model, rng, setup.images)
    return Variables(variables['params'], variables['batch_stats'])

  def loss(variables: Variables, batch: Batch) -> Loss:
    values = batch.hyperparameters
    other, stats = forward(
      build(batch.student.logits.shape[-1]),
      {'params': variables.params, 'batch_stats': variables.state},
      batch.images,
      train=True,
      rngs={'dropout': batch.rng},
    )
    ours = batch.student.logits
    mutual = losses.kd(ours, other.logits, values['temperature'])
    back = losses.kd(other.logits, ours, values['temperature'])
    hard = losses.cross_entropy(ours, batch.labels)
    return Loss(
      hard
      + losses.cross_entropy(other.logits, batch.labels)
      + values['weight'] * (mutual + back),
      {'cross_entropy': hard, 'dml': mutual},
      stats,
    )

  return Method(
    loss,
    init_second,
    teacher=None,
    hyperparameters={
      'weight': Hyperparameter(1.0),
      'temperature': temperature(1.0),
    },
    batch_level=True,
  )
