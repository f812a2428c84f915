"""Checks of a distillation method, for methods of your own.

from kdjax import testing

testing.check_method(crd())
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import methods, models
from kdjax.methods import Batch, Method, Setup, Variables
from kdjax.models import features
from kdjax.system import xla

_BATCH, _CLASSES, _EXAMPLES = 6, 7, 20
_LABELS = (0, 3, 4, 3, 1, 6)


def check_method(
  method: Method | str,
  student: nn.Module | None = None,
  teacher: nn.Module | None = None,
) -> None:
  """Checks that a method keeps the contract of `kdjax.methods.Method`.

  It is given random outputs of the shapes that two small networks give.

  Args:
    method: the method, or its name.
    student: a model of the student, for a method that needs a special one; by
      default a ResNet-10 of width 4.
    teacher: the same of the teacher; by default a ResNet-10 of width 8.

  Raises:
    AssertionError: it does not; the message says in what.
    ValueError: the name is unknown, or a feature that it needs does not exist.
  """
  if isinstance(method, str):
    method, _ = methods.build(method)
  assert method.labels in ('any', 'argmax', 'class'), (
    f"labels is {method.labels!r}: expected 'any', 'argmax' or 'class'"
  )
  make = functools.partial(make_problem, method, student, teacher)
  variables, batch = make()
  assert _equal(variables, make()[0]), (
    'init returns other variables for the same key'
  )
  traces: list[int] = []
  run = _compile(method, traces)
  result, _ = run(variables, batch)
  _check_values(result, batch)
  if result.state is not None:
    variables = variables._replace(state=result.state)
  _check_gradients(run, variables, batch)
  before = len(traces)
  _check_hyperparameters(method, run, variables, batch)
  assert len(traces) == before, 'another hyperparameter traces the loss again'
  _check_order(method, run, variables, batch)
  _check_labels(method, run, variables, batch)
  _check_extremes(make, run, variables, batch)


def make_problem(
  method: Method,
  student: nn.Module | None = None,
  teacher: nn.Module | None = None,
  size: int = _BATCH,
  num_classes: int = _CLASSES,
) -> tuple[Variables, Batch]:
  """Makes variables and a batch for a method, from two small networks.

  Args:
    method: the method.
    student: as in `check_method`.
    teacher: the same.
    size: number of examples.
    num_classes: number of classes; of a network that is given, its own.

  Returns:
    What `method.loss` takes.
  """
  student = student or _network(4, num_classes)
  if method.teacher == 'ema':
    teacher = student
  teacher = teacher or _network(8, num_classes)
  rows = method.views * size
  ours = _outputs(student, rows, method.student_features, 1)
  theirs = None
  if method.teacher is not None:
    theirs = _outputs(teacher, rows, method.teacher_features, 2)
  num_classes = ours.logits.shape[-1]
  shapes = jax.eval_shape(lambda: (ours, theirs))
  setup = Setup(
    shapes[0],
    shapes[1],
    student,
    jax.ShapeDtypeStruct((rows, 16, 16, 3), jnp.float32),
    _EXAMPLES,
    num_classes,
  )
  variables = method.init(jax.random.key(0), setup)
  batch = Batch(
    student=ours,
    teacher=theirs,
    labels=jnp.resize(jnp.array(_LABELS), (size,)) % num_classes,
    images=_images(rows),
    ids=jnp.arange(size) + 3,
    epoch=jnp.float32(1.5),
    rng=jax.random.key(5),
    hyperparameters={
      name: jnp.float32(one.default)
      for name, one in method.hyperparameters.items()
    },
  )
  return variables, batch


@functools.cache
def _network(width: int, num_classes: int) -> nn.Module:
  return models.build(
    'resnet10', num_classes=num_classes, stem='cifar', width=width
  )


def _images(size: int) -> jax.Array:
  return jax.random.normal(jax.random.key(3), (size, 16, 16, 3))


@functools.cache
def _outputs(
  model: nn.Module, size: int, names: tuple[str, ...], seed: int
) -> features.Outputs:
  """Makes random outputs of the shapes that a network returns."""
  images = jax.ShapeDtypeStruct((size, 16, 16, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  shapes = features.output_shapes(model, variables, images, names)
  rng = np.random.default_rng(seed)

  def draw(shape: Any) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape.shape), shape.dtype)

  # From unsure to sure.
  scales = jnp.linspace(1.0, 5.0, size)[:, None]
  return features.Outputs(
    scales * draw(shapes.logits),
    {name: draw(shape) for name, shape in shapes.features.items()},
  )


# Of variables and a batch: the loss, and the gradients of its mean for the
# parameters, the student's logits and its features.
_Run = Callable[[Variables, Batch], tuple[methods.Loss, Any]]


def _compile(method: Method, traces: list[int]) -> _Run:
  @xla.jit
  def run(variables: Variables, batch: Batch) -> tuple[methods.Loss, Any]:
    traces.append(1)

    def mean(params: Any, student: Any) -> tuple[jax.Array, methods.Loss]:
      result = method.loss(
        variables._replace(params=params), batch._replace(student=student)
      )
      try:
        methods.check_loss(result, batch, variables.state)
      except ValueError as error:
        raise AssertionError(*error.args) from None
      return result.per_example.mean(), result

    gradients, result = jax.grad(mean, argnums=(0, 1), has_aux=True)(
      variables.params, batch.student
    )
    return result, gradients

  return run


def _check_values(result: methods.Loss, batch: Batch) -> None:
  values = {
    'the loss': result.per_example,
    **{f"the metric '{name}'": one for name, one in result.metrics.items()},
  }
  for name, value in values.items():
    assert np.isfinite(value).all(), f'{name} is not finite: {value}'


def _check_gradients(run: _Run, variables: Variables, batch: Batch) -> None:
  _, (to_params, to_student) = run(variables, batch)
  assert _finite(to_params), 'a gradient of the parameters is not finite'
  assert _finite(to_student), 'a gradient of the student is not finite'
  assert any(np.any(leaf) for leaf in jax.tree.leaves(to_student)), (
    'the student has no gradient'
  )


def _check_hyperparameters(
  method: Method, run: _Run, variables: Variables, batch: Batch
) -> None:
  usual = run(variables, batch)
  for name, (default, low, high) in method.hyperparameters.items():
    assert low <= default <= high, (
      f'the default of {name} is {default}: expected from {low} to {high}'
    )
    differs = False
    for value in {low, high, min(2 * default + 0.25, high)} - {default}:
      values = {**batch.hyperparameters, name: jnp.float32(value)}
      changed = run(variables, batch._replace(hyperparameters=values))
      assert np.isfinite(changed[0].per_example).all(), (
        f'with {name} = {value} the loss is not finite'
      )
      differs |= not _equal(changed, usual)
    assert differs, f'another {name} changes nothing'


def _check_order(
  method: Method, run: _Run, variables: Variables, batch: Batch
) -> None:
  size = len(batch.ids)
  order = np.random.default_rng(0).permutation(size)
  rows = (size * np.arange(method.views)[:, None] + order).ravel()
  permuted = batch._replace(
    student=_rows(batch.student, rows),
    teacher=_rows(batch.teacher, rows),
    labels=batch.labels[order],
    images=batch.images[rows],
    ids=batch.ids[order],
  )
  found = run(variables, permuted)[0].per_example
  expected = run(variables, batch)[0].per_example[order]
  if method.batch_level:
    found, expected = found.mean(), expected.mean()
  assert np.allclose(found, expected, rtol=1e-3, atol=1e-4), (
    'in another order the examples have other losses'
  )


def _rows(outputs: Any, order: np.ndarray) -> Any:
  if outputs is None:
    return None
  return features.Outputs(
    outputs.logits[order],
    {
      # A parameter has no batch.
      name: x
      if '/' in name and name.split('/')[-1] in _PARAMETERS
      else x[order]
      for name, x in outputs.features.items()
    },
  )


_PARAMETERS = 'kernel', 'bias', 'scale'


def _check_labels(
  method: Method, run: _Run, variables: Variables, batch: Batch
) -> None:
  one_hot = jax.nn.one_hot(batch.labels, batch.student.logits.shape[-1])
  soft = run(variables, batch._replace(labels=one_hot))[0].per_example
  hard = run(variables, batch)[0].per_example
  assert np.allclose(soft, hard, rtol=1e-4, atol=1e-5), (
    'probabilities of 0 and 1 as labels give another loss than class indices'
  )
  if method.labels == 'any':
    none = run(variables, batch._replace(labels=0 * one_hot))
    assert _finite((none[0].per_example, none[1])), (
      'without labels (zeros) the loss or a gradient is not finite: set '
      "Method.labels to 'argmax' or 'class' if it needs them"
    )


def _check_extremes(
  make: Callable[..., tuple[Variables, Batch]],
  run: _Run,
  variables: Variables,
  batch: Batch,
) -> None:
  cases = {'logits of ±1e4': (variables, _large(batch))}
  for name, size, num_classes in (
    ('a batch of one', 1, _CLASSES),
    ('two classes', _BATCH, 2),
  ):
    # A method may refuse it, in words.
    with contextlib.suppress(ValueError):
      cases[name] = make(size=size, num_classes=num_classes)
  for name, arguments in cases.items():
    result, gradients = run(*arguments)
    assert _finite((result.per_example, gradients)), (
      f'with {name} the loss or a gradient is not finite'
    )


def _finite(tree: Any) -> bool:
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def _large(batch: Batch) -> Batch:
  def enlarge(outputs: Any) -> Any:
    return outputs and outputs._replace(logits=1e4 * jnp.sign(outputs.logits))

  return batch._replace(
    student=enlarge(batch.student), teacher=enlarge(batch.teacher)
  )


def _equal(first: Any, second: Any) -> bool:
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first, second)
  return all(jax.tree.leaves(same))
