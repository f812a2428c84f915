"""The form that most methods have: cross-entropy and a term, each weighted."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Variables,
)

# From the trained parameters, the batch and the other hyperparameters.
Term = Callable[..., jax.Array]


def weighted(
  name: str,
  term: Term,
  *,
  weight: float,
  ce_weight: float = 1.0,
  hyperparameters: Mapping[str, float | Hyperparameter] | None = None,
  **fields: Any,
) -> Method:
  """Makes the method w_ce · cross-entropy + w · term.

  The cross-entropy is the sum of those of all views.

  Args:
    name: the term's name among the metrics.
    term: `term(params, batch, **hyperparameters)`, one value per example.
    weight: default of the hyperparameter `weight`.
    ce_weight: default of the hyperparameter `ce_weight`.
    hyperparameters: defaults of the term's own, by name.
    **fields: further fields of `Method`.

  Returns:
    The method.
  """
  own = {
    key: value if isinstance(value, Hyperparameter) else Hyperparameter(value)
    for key, value in (hyperparameters or {}).items()
  }

  def loss(variables: Variables, batch: Batch) -> Loss:
    values = dict(batch.hyperparameters)
    ce, outer = values.pop('ce_weight'), values.pop('weight')
    views = jnp.split(batch.student.logits, fields.get('views', 1))
    hard = jnp.stack(
      [losses.cross_entropy(view, batch.labels) for view in views]
    ).sum(axis=0)
    soft = term(variables.params, batch, **values)
    return Loss(ce * hard + outer * soft, {'cross_entropy': hard, name: soft})

  return Method(
    loss,
    hyperparameters={
      'ce_weight': Hyperparameter(ce_weight),
      'weight': Hyperparameter(weight),
      **own,
    },
    **fields,
  )


# Below 0.01 the tempered probabilities are one-hot in float32.
def temperature(default: float) -> Hyperparameter:
  """Describes a temperature."""
  return Hyperparameter(default, 0.01, 1000.0)
