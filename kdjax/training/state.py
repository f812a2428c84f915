"""The state of a run, and how it begins."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from kdjax.methods import Method, Setup
from kdjax.models import features
from kdjax.models.network import Network


class TrainState(flax.struct.PyTreeNode):
  """All that changes during a run, and all that is needed to continue it.

  Attributes:
    step: number of steps done, int32 scalar.
    params: `student`, the student's parameters, and `method`, the method's own.
    batch_stats: the student's BatchNorm statistics.
    method_state: what the method keeps beside its parameters.
    opt_state: the optimiser's state.
    rng: the run's key, the same throughout.
    ema: moving averages of the student's `params` and `batch_stats`; empty if
      none are kept.
  """

  step: jax.Array
  params: dict[str, Any]
  batch_stats: Any
  method_state: Any
  opt_state: optax.OptState
  rng: jax.Array
  ema: dict[str, Any]


# What a run's key is folded with, so that no two uses draw the same numbers.
_STUDENT_KEY, _METHOD_KEY, _DATA_KEY, _DROPOUT_KEY, _LOSS_KEY = range(5)


def data_key(rng: jax.Array) -> jax.Array:
  """Derives the key that orders and augments a run's data."""
  return jax.random.fold_in(rng, _DATA_KEY)


def dropout_key(state: TrainState) -> jax.Array:
  """Derives the key of the dropout of a state's next step."""
  key = jax.random.fold_in(state.rng, _DROPOUT_KEY)
  return jax.random.fold_in(key, state.step)


def loss_key(state: TrainState) -> jax.Array:
  """Derives the key that the method draws with in a state's next step."""
  key = jax.random.fold_in(state.rng, _LOSS_KEY)
  return jax.random.fold_in(key, state.step)


def student_variables(
  state: TrainState, normalization: Mapping[str, jax.Array], ema: bool = False
) -> dict[str, Any]:
  """Returns the variables of the student in a state.

  Args:
    state: the state.
    normalization: `mean` and `std` of the student's images.
    ema: whether to give the moving averages that the state keeps.

  Returns:
    Its collections, as `Network` has them.
  """
  variables = (
    state.ema if ema else student_collections(state.params, state.batch_stats)
  )
  return {**variables, 'normalization': normalization}


class Start(NamedTuple):
  """What a state starts from, beside the student's model and the method.

  Attributes:
    images: shape of the images, `[views · batch, height, width, channels]`.
    teacher: the teacher, if the method needs one; or the shapes of its Outputs,
      where these are precomputed.
    ema: whether to keep moving averages of the student's variables.
    initial: initial `params` and `batch_stats` of the student; random where it
      lacks something.
    num_classes: number of logits that both networks must give; None for any.
    num_examples: number of training examples, for a method that keeps something
      of each.
  """

  images: jax.ShapeDtypeStruct
  teacher: Network | features.Outputs | None = None
  ema: bool = False
  initial: Mapping[str, Any] | None = None
  num_classes: int | None = None
  num_examples: int = 0


def create_state(
  rng: jax.Array,
  student: nn.Module,
  method: Method,
  optimizer: optax.GradientTransformation,
  start: Start,
) -> TrainState:
  """Makes the state that a run starts from.

  Args:
    rng: the run's key; the same key gives the same state.
    student: the student's model.
    method: the distillation method.
    optimizer: the optimiser.
    start: all else.

  Returns:
    The state at step 0.

  Raises:
    ValueError: a feature that the method needs is missing or does not fit, or a
      network has another number of logits, or the method needs a teacher and
      there is none, or the reverse.
  """
  check_teacher(method, start.teacher is not None)
  variables = _init_student(rng, student, start)
  setup = _make_setup(student, variables, method, start)
  own = method.init(jax.random.fold_in(rng, _METHOD_KEY), setup)
  params = {'student': variables['params'], 'method': own.params}
  batch_stats = variables['batch_stats']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    method_state=own.state,
    opt_state=optimizer.init(params),
    rng=rng,
    ema=student_collections(params, batch_stats) if start.ema else {},
  )


def _init_student(
  rng: jax.Array, student: nn.Module, start: Start
) -> dict[str, Any]:
  """Makes the student's variables: random, initial ones, or the teacher's."""
  key = jax.random.fold_in(rng, _STUDENT_KEY)
  variables = features.init(student, key, start.images)
  if start.initial:
    variables = variables | {
      name: {**variables[name], **start.initial[name]}
      for name in ('params', 'batch_stats')
    }
  return _adopt(student, variables, start.teacher)


def _make_setup(
  student: nn.Module,
  variables: Mapping[str, Any],
  method: Method,
  start: Start,
) -> Setup:
  """Computes the shapes that the method's `init` may know, and checks them."""

  def shapes_of(network: Network, names: Sequence[str]) -> features.Outputs:
    return features.output_shapes(*network, start.images, names)

  own = Network(student, variables)
  shapes: dict[str, Any] = {
    'student': shapes_of(own, method.student_features),
    'teacher': shapes_of(start.teacher, method.teacher_features)
    if isinstance(start.teacher, Network)
    else start.teacher,
  }
  for who, outputs in shapes.items():
    count = outputs.logits.shape[-1] if outputs else start.num_classes
    if start.num_classes is not None and count != start.num_classes:
      raise ValueError(
        f'the {who} returns {count} logits, and there are {start.num_classes} '
        'classes'
      )
  if method.teacher == 'ema':
    shapes['teacher'] = shapes_of(own, method.teacher_features)
  return Setup(
    **shapes,
    model=student,
    images=start.images,
    num_examples=start.num_examples,
    num_classes=shapes['student'].logits.shape[-1],
  )


def _adopt(
  student: nn.Module,
  variables: dict[str, Any],
  teacher: Network | features.Outputs | None,
) -> dict[str, Any]:
  """Copies the teacher's part into a student that has one.

  Such a model has a method `adopt(variables, teacher_variables)`.
  """
  adopt = getattr(student, 'adopt', None)
  if adopt is None:
    return variables
  if not isinstance(teacher, Network):
    raise ValueError(
      'the student has a part of its teacher, and '
      + (
        'the teacher is a file of logits' if teacher else 'there is no teacher'
      )
      + ": set config.method.name='simkd' and a teacher that is a network, or "
      'choose another config.student.name'
    )
  return adopt(variables, teacher.variables)


def student_collections(
  params: Mapping[str, Any], batch_stats: Any
) -> dict[str, Any]:
  """The student's collections of a state."""
  return {'params': params['student'], 'batch_stats': batch_stats}


def check_teacher(method: Method, has_teacher: bool) -> None:
  """Checks that there is a teacher exactly if the method needs one.

  Raises:
    ValueError: the method needs one and there is none, or the reverse.
  """
  if method.needs_teacher != has_teacher:
    raise ValueError(
      'this method needs a teacher, and none was given'
      if method.needs_teacher
      else 'a teacher was given, and this method needs none'
    )
