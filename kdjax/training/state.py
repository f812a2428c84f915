"""The state of a run, and how it begins."""

from collections.abc import Mapping
from typing import Any

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


def create_state(
  rng: jax.Array,
  student: nn.Module,
  method: Method,
  optimizer: optax.GradientTransformation,
  images: jax.ShapeDtypeStruct,
  teacher: Network | features.Outputs | None = None,
  ema: bool = False,
  initial: Mapping[str, Any] | None = None,
  num_classes: int | None = None,
  num_examples: int = 0,
) -> TrainState:
  """Makes the state that a run starts from.

  Args:
    rng: the run's key; the same key gives the same state.
    student: the student's model.
    method: the distillation method.
    optimizer: the optimiser.
    images: shape of the images, `[views · batch, height, width, channels]`.
    teacher: the teacher, if the method needs one; or the shapes of its Outputs,
      where these are precomputed.
    ema: whether to keep moving averages of the student's variables.
    initial: initial `params` and `batch_stats` of the student; random
      where it lacks something.
    num_classes: number of logits that both networks must give; by default any.
    num_examples: number of training examples, for a method that keeps something
      of each.

  Returns:
    The state at step 0.

  Raises:
    ValueError: a feature that the method needs is missing or does not fit, or a
      network has another number of logits, or the method needs a teacher and
      there is none, or the reverse.
  """
  check_teacher(method, teacher is not None)
  variables = features.init(
    student, jax.random.fold_in(rng, _STUDENT_KEY), images
  )
  if initial:
    variables = variables | {
      'params': {**variables['params'], **initial['params']},
      'batch_stats': {**variables['batch_stats'], **initial['batch_stats']},
    }
  variables = _adopt(student, variables, teacher)
  student_shapes = features.output_shapes(
    student, variables, images, method.student_features
  )
  if isinstance(teacher, Network):
    teacher_shapes: features.Outputs | None = features.output_shapes(
      teacher.model, teacher.variables, images, method.teacher_features
    )
  else:
    teacher_shapes = teacher
  for who, shapes in (('student', student_shapes), ('teacher', teacher_shapes)):
    count = shapes.logits.shape[-1] if shapes else num_classes
    if num_classes is not None and count != num_classes:
      raise ValueError(
        f'the {who} returns {count} logits, and there are {num_classes} classes'
      )
  if method.teacher == 'ema':
    teacher_shapes = features.output_shapes(
      student, variables, images, method.teacher_features
    )
  own = method.init(
    jax.random.fold_in(rng, _METHOD_KEY),
    Setup(
      student_shapes,
      teacher_shapes,
      student,
      images,
      num_examples,
      student_shapes.logits.shape[-1],
    ),
  )
  params = {'student': variables['params'], 'method': own.params}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables['batch_stats'],
    method_state=own.state,
    opt_state=optimizer.init(params),
    rng=rng,
    ema=student_collections(params, variables['batch_stats']) if ema else {},
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
