"""Progressive self-distillation: the student's past softens the labels."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)


def pskd() -> Method:
  """Trains on cross-entropy with labels mixed with past predictions.

  Kim et al., 2020, https://arxiv.org/abs/2006.12000; see `kdjax.losses.pskd`.
  `alpha` is the share of the past; the authors raise it linearly over the
  training, to 0.8 (`config.method.schedule`). Keeps the predictions of every
  training example, `[examples, classes]`; the first labels are its own.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    del rng
    shape = setup.num_examples, setup.num_classes
    # 0 for an example that was not seen yet.
    return Variables(state={'predictions': jnp.zeros(shape)})

  def loss(variables: Variables, batch: Batch) -> Loss:
    bank = variables.state['predictions']
    logits = batch.student.logits
    past = bank[batch.ids]
    seen = past.sum(axis=-1, keepdims=True) > 0
    labels = batch.labels
    if jnp.issubdtype(labels.dtype, jnp.integer):
      labels = jax.nn.one_hot(labels, logits.shape[-1])
    targets = jnp.where(seen, past, labels)
    per_example = losses.pskd(
      logits, labels, targets, batch.hyperparameters['alpha']
    )
    new = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return Loss(
      per_example,
      {'cross_entropy': losses.cross_entropy(logits, labels)},
      {'predictions': bank.at[batch.ids].set(new)},
    )

  return Method(
    loss,
    init,
    teacher=None,
    hyperparameters={'alpha': Hyperparameter(0.8, 0.0, 1.0)},
  )
