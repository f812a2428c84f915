"""Contrastive representation distillation, with a memory of all examples."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)


def crd(
  *,
  student_feature: str = 'stage4',
  teacher_feature: str = 'stage4',
  channels: int = 128,
  negatives: int = 16384,
) -> Method:
  """Trains on w_ce · cross-entropy + w · a contrast with stored examples.

  Tian et al., 2019, https://arxiv.org/abs/1910.10699; see `kdjax.losses.crd`.
  Linear embeddings of both networks are trained; the memory has two of them for
  each training example. Negatives are drawn from all other examples, each as
  likely, with replacement.

  Args:
    student_feature: name of the student's map, whose mean is compared.
    teacher_feature: name of the teacher's.
    channels: size of the embeddings.
    negatives: number of negatives of each example. A batch takes batch ×
      negatives × channels floats, twice: 1 GiB for 64 × 16,384 × 128.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    keys = jax.random.split(rng, 4)
    source = setup.student.features[student_feature].shape[-1]
    target = setup.teacher.features[teacher_feature].shape[-1]
    bound = (channels / 3) ** -0.5
    shape = setup.num_examples, channels
    banks = [
      jax.random.uniform(key, shape, minval=-bound, maxval=bound)
      for key in keys[2:]
    ]
    return Variables(
      {
        'student': _connectors.init_dense(keys[0], source, channels),
        'teacher': _connectors.init_dense(keys[1], target, channels),
      },
      losses.CRD(banks[0], banks[1], jnp.float32(-1.0), jnp.float32(-1.0)),
    )

  def loss(variables: Variables, batch: Batch) -> Loss:
    values, params = batch.hyperparameters, variables.params
    count = len(variables.state.student)

    def draw(index: jax.Array) -> jax.Array:
      # Any other example: from 1 to count - 1 places further on.
      key = jax.random.fold_in(batch.rng, index)
      further = jax.random.randint(key, (negatives,), 1, max(count, 2))
      return (index + further) % count

    drawn = jax.vmap(draw)(batch.ids)
    contrast, state = losses.crd(
      _connectors.dense(
        params['student'],
        _connectors.pool(batch.student.features[student_feature]),
      ),
      _connectors.dense(
        params['teacher'],
        _connectors.pool(batch.teacher.features[teacher_feature]),
      ),
      batch.ids,
      jnp.concatenate([batch.ids[:, None], drawn], axis=1),
      variables.state,
      values['temperature'],
      values['momentum'],
    )
    hard = losses.cross_entropy(batch.student.logits, batch.labels)
    return Loss(
      values['ce_weight'] * hard + values['weight'] * contrast,
      {'cross_entropy': hard, 'crd': contrast},
      state,
    )

  return Method(
    loss,
    init,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    hyperparameters={
      'ce_weight': Hyperparameter(1.0),
      'weight': Hyperparameter(0.8),
      'temperature': Hyperparameter(0.07, 0.02, 100.0),
      'momentum': Hyperparameter(0.5, 0.0, 1.0),
    },
    # Its constants are those of the first batch.
    batch_level=True,
  )
