"""The contract that every distillation method fulfils."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from kdjax.models.features import Outputs

Parameters = Any
Hyperparameters = Mapping[str, jax.typing.ArrayLike]
Metrics = dict[str, jax.Array]


class Hyperparameter(NamedTuple):
  """A scalar of the loss; it is traced, so changing it never recompiles.

  Attributes:
    default: its value when none is given.
    low: smallest value that makes sense.
    high: largest value that makes sense.
  """

  default: float
  low: float
  high: float


def no_parameters(
  rng: jax.Array, student: Outputs, teacher: Outputs | None
) -> Parameters:
  """The `init` of a method that trains nothing of its own."""
  del rng, student, teacher
  return {}


class Method(NamedTuple):
  """A distillation method, in the spirit of `optax.GradientTransformation`.

  Attributes:
    student_features: names of the student's modules whose outputs it wants.
    teacher_features: names of the teacher's modules whose outputs it wants.
    needs_teacher: whether it reads the teacher at all.
    hyperparameters: the scalars of its loss, by name.
    init: `init(rng, student, teacher)` makes the method's own trained
      parameters, such as connectors, from the shapes of both networks' Outputs
      (the teacher's is None where none is needed). `{}` when there are none.
    loss: `loss(parameters, hyperparameters, student, teacher, labels)` gives
      the loss of each example, float32 `[batch]`, and a dict of metrics, each
      `[batch]`. Labels are class indices `[batch]` or probabilities
      `[batch, classes]`. It is pure, and independent of the batch's order.
  """

  student_features: tuple[str, ...]
  teacher_features: tuple[str, ...]
  needs_teacher: bool
  hyperparameters: Mapping[str, Hyperparameter]
  init: Callable[[jax.Array, Outputs, Outputs | None], Parameters]
  loss: Callable[
    [Parameters, Hyperparameters, Outputs, Outputs | None, jax.Array],
    tuple[jax.Array, Metrics],
  ]
