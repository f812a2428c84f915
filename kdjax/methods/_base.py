"""The contract that every distillation method fulfils."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.features import Outputs


class Hyperparameter(NamedTuple):
  """A scalar of the loss; it is traced, so changing it never recompiles.

  Attributes:
    default: its value when none is given.
    low: smallest value that makes sense.
    high: largest value that makes sense.
  """

  default: float
  low: float = 0.0
  high: float = 1e6


class Setup(NamedTuple):
  """What `Method.init` may know; of arrays the shapes and dtypes only.

  Attributes:
    student: the student's outputs for a batch.
    teacher: the teacher's; None where there is none.
    model: the student's model.
    images: images, `[views · batch, height, width, channels]`.
    num_examples: number of training examples.
    num_classes: number of classes.
  """

  student: Outputs
  teacher: Any
  model: nn.Module
  images: jax.ShapeDtypeStruct
  num_examples: int
  num_classes: int


class Batch(NamedTuple):
  """What `Method.loss` may read.

  Attributes:
    student: the student's outputs, with `[views · batch]` rows: the second view
      of all examples after the first.
    teacher: the teacher's, without gradient; None where there is none.
    labels: class indices `[batch]`, or probabilities `[batch, classes]`, zeros
      for an example without a label.
    images: the student's normalised images, `[views · batch, height, width,
      channels]`.
    ids: index of each example in the training split, int32 `[batch]`.
    epoch: epochs done, a float32 scalar; 2.5 is the middle of the third.
    rng: a key for this step alone.
    hyperparameters: the method's hyperparameters, scalars by name.
  """

  student: Outputs
  teacher: Any
  labels: jax.Array
  images: jax.Array
  ids: jax.Array
  epoch: jax.Array
  rng: jax.Array
  hyperparameters: Mapping[str, jax.Array]


class Variables(NamedTuple):
  """What a method keeps beside the student; never exported with it.

  Attributes:
    params: trained with the student, such as connectors.
    state: all else that changes, such as memory banks; saved with the run.
  """

  params: Any = {}
  state: Any = {}


class Loss(NamedTuple):
  """What `Method.loss` returns.

  Attributes:
    per_example: the loss, float32 `[batch]`; its mean is minimised.
    metrics: arrays `[batch]` by name, of which the means are logged.
    state: the method's state after the batch; None leaves it as it is.
  """

  per_example: jax.Array
  metrics: Mapping[str, jax.Array] = {}
  state: Any = None


def check_loss(result: Any, batch: Batch, state: Any) -> None:
  """Checks what `Method.loss` returned, while it is traced.

  Args:
    result: what it returned.
    batch: the batch that it was given.
    state: the method's state before.

  Raises:
    ValueError: it is no `Loss`; the loss or a metric is not float32 `[batch]`;
      or the state has other shapes or dtypes than before.
  """
  if not isinstance(result, Loss):
    raise ValueError(
      f'loss returns {type(result).__name__}: expected a kdjax.methods.Loss'
    )
  for name, value in (
    ('the loss', result.per_example),
    *((f"the metric '{name}'", one) for name, one in result.metrics.items()),
  ):
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != batch.ids.shape:
      raise ValueError(
        f'{name} has shape {shape}: expected one value per example, '
        f'{batch.ids.shape}'
      )
    if dtype != jnp.float32:
      raise ValueError(f'{name} is {dtype}: expected float32')
  if result.state is None:
    return
  before, after = (
    jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
    for tree in (state, result.state)
  )
  if before != after:
    raise ValueError(
      f'loss returns a state of {after}: expected the shapes and dtypes of '
      f'init, {before}'
    )


def no_variables(rng: jax.Array, setup: Setup) -> Variables:
  """The `init` of a method that keeps nothing of its own."""
  del rng, setup
  return Variables()


class Method(NamedTuple):
  """A distillation method, in the spirit of `optax.GradientTransformation`.

  Attributes:
    loss: `loss(variables, batch)`, a pure function.
    init: `init(rng, setup)`, the method's variables before the first step.
    teacher: None; 'frozen' for a network that was trained before; 'ema' for the
      moving averages of the student itself.
    student_features: names of the student's modules whose outputs it needs, or
      of parameters, such as 'fc/kernel'.
    teacher_features: the same of the teacher.
    hyperparameters: the scalars of its loss, by name.
    views: how often each example is in the batch, cropped and flipped in
      another way; those after the first are strongly augmented.
    labels: what labels it takes. 'any'; 'argmax', where the most probable class
      of mixed labels counts, and each example needs a label; or 'class', where
      labels that are mixed are refused too. Smoothed labels are no mixed ones.
    batch_level: whether an example's loss depends on the others of its batch,
      so that gradient accumulation would change it.
  """

  loss: Callable[[Variables, Batch], Loss]
  init: Callable[[jax.Array, Setup], Variables] = no_variables
  teacher: str | None = 'frozen'
  student_features: tuple[str, ...] = ()
  teacher_features: tuple[str, ...] = ()
  hyperparameters: Mapping[str, Hyperparameter] = {}
  views: int = 1
  labels: str = 'any'
  batch_level: bool = False

  @property
  def needs_teacher(self) -> bool:
    """Whether it needs a network that was trained before."""
    return self.teacher == 'frozen'


def classes(labels: jax.Array) -> jax.Array:
  """Returns the class of each example, the most probable of soft labels.

  Args:
    labels: class indices `[batch]`, or probabilities `[batch, classes]`.

  Returns:
    Class indices, int32 `[batch]`.
  """
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return labels
  return labels.argmax(axis=-1)
