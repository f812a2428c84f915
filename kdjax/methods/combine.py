"""The sum of the losses of several methods, each with a weight."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kdjax.methods import _registry
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)

# What methods take as labels, from the widest to the narrowest.
_LABELS = 'any', 'argmax', 'class'


def combine(*, methods: tuple[str, ...] = ('kd', 'at')) -> Method:
  """Adds the terms of several methods to one cross-entropy.

  w_ce · cross-entropy + Σ of the methods' terms. Each hyperparameter of a
  method is called `METHOD_NAME`, such as `at_weight`; the methods' own
  cross-entropies are left out. For other methods than the default give the
  section as a whole: `config.method.combine = {'methods': ('dkd', 'sp'),
  'dkd_beta': 2.0}`.

  Args:
    methods: names of the methods, with their other settings by default.

  Raises:
    ValueError: a name is unknown, or one method needs a teacher of another kind
      than another, or has several views, or its cross-entropy inside.
  """
  parts = {name: _registry.build(name)[0] for name in methods}
  teacher = _common_teacher(parts)
  hyperparameters = {'ce_weight': Hyperparameter(1.0)}
  for name, part in parts.items():
    for key, value in part.hyperparameters.items():
      if key != 'ce_weight':
        hyperparameters[f'{name}_{key}'] = value

  def init(rng: jax.Array, setup: Setup) -> Variables:
    made = {
      name: part.init(jax.random.fold_in(rng, index), setup)
      for index, (name, part) in enumerate(parts.items())
    }
    return Variables(
      {name: one.params for name, one in made.items()},
      {name: one.state for name, one in made.items()},
    )

  def loss(variables: Variables, batch: Batch) -> Loss:
    values = batch.hyperparameters
    total = jnp.zeros(())
    metrics: dict[str, jax.Array] = {}
    state = dict(variables.state)
    for index, (name, part) in enumerate(parts.items()):
      # The cross-entropy is counted once, with the first.
      own = {'ce_weight': values['ce_weight'] * (index == 0)}
      for key in part.hyperparameters.keys() - {'ce_weight'}:
        own[key] = values[f'{name}_{key}']
      result = part.loss(
        Variables(variables.params[name], variables.state[name]),
        batch._replace(
          hyperparameters=own, rng=jax.random.fold_in(batch.rng, index)
        ),
      )
      total = total + result.per_example
      metrics |= result.metrics
      if result.state is not None:
        state[name] = result.state
    return Loss(total, metrics, state)

  return Method(
    loss,
    init,
    teacher=teacher,
    student_features=_unique(parts, 'student_features'),
    teacher_features=_unique(parts, 'teacher_features'),
    hyperparameters=hyperparameters,
    labels=max((part.labels for part in parts.values()), key=_LABELS.index),
    batch_level=any(part.batch_level for part in parts.values()),
  )


def _common_teacher(parts: Mapping[str, Method]) -> str | None:
  """Checks that methods can be added, and returns their kind of teacher."""
  for name, part in parts.items():
    if part.views > 1:
      raise ValueError(
        f'combine.methods names {name}, which has {part.views} views of each '
        'image: expected methods that have one'
      )
    if 'ce_weight' not in part.hyperparameters:
      raise ValueError(
        f'combine.methods names {name}, which has no ce_weight to set to 0: '
        'expected methods that have one'
      )
  kinds = {part.teacher for part in parts.values()} - {None}
  if not parts or len(kinds) > 1:
    raise ValueError(
      f'combine.methods is {tuple(parts)}, with teachers of the kinds '
      f'{sorted(map(str, kinds))}: expected one method or more, and one kind'
    )
  return next(iter(kinds), None)


def _unique(parts: dict[str, Method], field: str) -> tuple[str, ...]:
  names = [name for part in parts.values() for name in getattr(part, field)]
  return tuple(dict.fromkeys(names))
