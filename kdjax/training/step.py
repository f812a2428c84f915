"""The training step: a pure function of arrays, made of a core and wrappers.

The core computes gradients and updates the parameters; scopes (`teacher`,
`student`, `loss`, `optimizer`) name its parts in profiles. Wrappers change the
core where a setting asks for it: gradient accumulation, moving averages, steps
that are left out because they are not finite.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kdjax import methods
from kdjax.methods import Batch, Method, Variables
from kdjax.models import features, sums
from kdjax.system import target
from kdjax.training import state as state_lib
from kdjax.training.state import TrainState

Metrics = dict[str, jax.Array]


class Inputs(NamedTuple):
  """What a training step reads beside the state.

  Attributes:
    images: pixels from 0 to 255, `[views · batch, height, width, channels]`.
    labels: class indices, `[batch]`; or probabilities `[batch, classes]`, zeros
      where there is no label.
    ids: index of each example in the training split, `[batch]`.
    epoch: epochs done, a float32 scalar.
    normalization: `mean` and `std` of the student's images, `[channels]`.
    teacher: the teacher's variables, and it runs in evaluation mode without
      being changed; or its `Outputs` for these images, where they are known
      already; or None.
    hyperparameters: the method's hyperparameters, scalars by name.
  """

  images: jax.Array
  labels: jax.Array
  ids: jax.Array
  epoch: jax.Array
  normalization: Any
  teacher: Any
  hyperparameters: Any


class Options(NamedTuple):
  """What changes a training step, whatever the method.

  Attributes:
    label_smoothing: share of the probability spread evenly over all classes,
      from 0 to 1 (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567).
    accumulate: number of microbatches that a batch is divided into; see
      `accumulate_gradients`.
    skip_nonfinite: whether steps that are not finite are left out; see
      `skip_nonfinite`.
    ema_decay: decay of the moving averages; see `keep_moving_averages`. 0 for a
      state that has none.
    class_weights: what the loss of an example of each class is multiplied by,
      see `example_weights`; None for 1.
  """

  label_smoothing: float = 0.0
  accumulate: int = 1
  skip_nonfinite: bool = False
  ema_decay: float = 0.0
  class_weights: tuple[float, ...] | None = None


_PLAIN = Options()

TrainStep = Callable[[TrainState, Inputs], tuple[TrainState, Metrics]]


class _Keys(NamedTuple):
  """What a batch draws random numbers with."""

  dropout: jax.Array
  loss: jax.Array


class _Changed(NamedTuple):
  """What a batch changes beside the parameters."""

  batch_stats: Any
  method_state: Any


# From a state, a batch and its keys: gradients of the mean loss by `params`,
# what else is changed, and the metrics.
_Gradients = Callable[
  [TrainState, Inputs, _Keys], tuple[Any, _Changed, Metrics]
]


def make_train_step(
  student: nn.Module,
  method: Method,
  optimizer: optax.GradientTransformation,
  teacher: nn.Module | None = None,
  options: Options = _PLAIN,
) -> TrainStep:
  """Makes the training step of a method.

  Args:
    student: the student's model.
    method: the distillation method.
    optimizer: the optimiser.
    teacher: the teacher's model, if the method needs one and its `Outputs` are
      not among the inputs.
    options: what changes the step.

  Returns:
    A pure function `train_step(state, inputs)`, to be jitted, that returns the
    next state and the batch's metrics, all scalars: `loss`, which is minimised;
    `nll`, of the same meaning as the loss of a validation; `accuracy`,
    `gradient_norm`, with a teacher `teacher_agreement`, and the method's own.
    It raises ValueError, when it is traced, if the method needs a teacher and
    there is none, or the reverse.
  """
  gradients = _make_gradients(student, method, teacher, options)
  if options.accumulate > 1:
    gradients = accumulate_gradients(gradients, options.accumulate)
  train_step = _update_with(gradients, optimizer)
  if options.ema_decay:
    train_step = keep_moving_averages(train_step, options.ema_decay)
  if options.skip_nonfinite:
    train_step = skip_nonfinite(train_step)
  return train_step


def _make_gradients(
  student: nn.Module,
  method: Method,
  teacher: nn.Module | None,
  options: Options,
) -> _Gradients:
  """Makes the function that computes the gradients of a batch."""

  def gradients(
    state: TrainState, inputs: Inputs, keys: _Keys
  ) -> tuple[Any, _Changed, Metrics]:
    state_lib.check_teacher(method, inputs.teacher is not None)
    if method.teacher == 'ema':
      averages = state_lib.student_variables(
        state, inputs.normalization, ema=True
      )
      taught = _teach(student, method, inputs._replace(teacher=averages))
    else:
      taught = _teach(teacher, method, inputs)

    def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, Any]:
      variables = state_lib.student_variables(
        state.replace(params=params), inputs.normalization
      )
      with jax.named_scope('student'):
        outputs, batch_stats = features.forward(
          student,
          variables,
          inputs.images,
          names=method.student_features,
          train=True,
          rngs={'dropout': keys.dropout},
        )
      batch = _make_batch(outputs, taught, inputs, keys.loss)
      labels = _smooth(
        inputs.labels, outputs.logits.shape[-1], options.label_smoothing
      )
      with jax.named_scope('loss'):
        result = method.loss(
          Variables(params['method'], state.method_state),
          batch._replace(labels=labels),
        )
      methods.check_loss(result, batch, state.method_state)
      kept = state.method_state if result.state is None else result.state
      changed = _Changed(batch_stats, kept)
      per_example = result.per_example
      if options.class_weights:
        per_example *= example_weights(inputs.labels, options.class_weights)
      return per_example.mean(), (outputs, changed, result.metrics)

    (loss, (outputs, changed, own)), found = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    metrics = {
      'loss': loss,
      **_measure(outputs, taught, inputs.labels),
      **{name: values.mean() for name, values in own.items()},
    }
    return found, jax.lax.stop_gradient(changed), metrics

  return gradients


def _make_batch(
  student: features.Outputs,
  teacher: features.Outputs | None,
  inputs: Inputs,
  rng: jax.Array,
) -> Batch:
  """Puts together what a method's loss may read."""
  return Batch(
    student=student,
    teacher=teacher,
    labels=inputs.labels,
    images=features.normalize(inputs.images, **inputs.normalization),
    ids=inputs.ids,
    epoch=inputs.epoch,
    rng=rng,
    hyperparameters=inputs.hyperparameters,
  )


def _measure(
  student: features.Outputs,
  teacher: features.Outputs | None,
  labels: jax.Array,
) -> Metrics:
  """Measures how far the student agrees with labels and teacher."""
  predictions = student.logits.argmax(axis=-1)
  metrics = {
    'accuracy': _accuracy(predictions, labels),
    'nll': _nll(student.logits, labels),
  }
  if teacher is not None:
    same = predictions == teacher.logits.argmax(axis=-1)
    metrics['teacher_agreement'] = same.mean()
  return metrics


def _teach(
  teacher: nn.Module | None, method: Method, inputs: Inputs
) -> features.Outputs | None:
  """Computes the teacher's outputs, unless they are among the inputs."""
  if inputs.teacher is None or isinstance(inputs.teacher, features.Outputs):
    return jax.lax.stop_gradient(inputs.teacher)
  if teacher is None:
    raise ValueError('the step was given variables of a teacher, and no model')
  with jax.named_scope('teacher'):
    outputs, _ = features.forward(
      teacher,
      jax.lax.stop_gradient(inputs.teacher),
      inputs.images,
      names=method.teacher_features,
      train=False,
    )
  return outputs


def _update_with(
  gradients: _Gradients, optimizer: optax.GradientTransformation
) -> TrainStep:
  """Makes the step that follows the gradients of a whole batch."""

  def train_step(
    state: TrainState, inputs: Inputs
  ) -> tuple[TrainState, Metrics]:
    found, changed, metrics = gradients(
      state,
      inputs,
      _Keys(state_lib.dropout_key(state), state_lib.loss_key(state)),
    )
    with jax.named_scope('optimizer'):
      updates, opt_state = optimizer.update(
        found, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, updates)
    new = state.replace(
      step=state.step + 1,
      params=params,
      batch_stats=changed.batch_stats,
      method_state=changed.method_state,
      opt_state=opt_state,
    )
    return new, metrics | {'gradient_norm': _norm(found)}

  return train_step


def accumulate_gradients(gradients: _Gradients, count: int) -> _Gradients:
  """Divides a batch into microbatches, and averages over them.

  They are computed one after the other, for one update with the mean of their
  gradients. Microbatch i has the rows i, i + count, …. BatchNorm sees each of
  them by itself, and its running statistics are updated after each.

  Args:
    gradients: computes the gradients of a batch.
    count: number of microbatches; it must divide the batch.

  Returns:
    A function like `gradients`.
  """

  def accumulated(
    state: TrainState, inputs: Inputs, keys: _Keys
  ) -> tuple[Any, _Changed, Metrics]:
    known = isinstance(inputs.teacher, features.Outputs)
    batch = (
      inputs.images,
      inputs.labels,
      inputs.ids,
      inputs.teacher if known else None,
    )
    # With such rows a microbatch is spread over devices as the batch is.
    microbatches = jax.tree.map(
      lambda rows: rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1),
      batch,
    )

    def add(
      done: tuple[Any, _Changed], microbatch: tuple[jax.Array, Any]
    ) -> tuple[tuple[Any, _Changed], Metrics]:
      total, changed = done
      # A forward pass needs nothing of the gradient before it: it could begin
      # before those activations are gone.
      total, (index, (images, labels, ids, teacher)) = (
        jax.lax.optimization_barrier((total, microbatch))
      )
      part = inputs._replace(images=images, labels=labels, ids=ids)
      found, changed, metrics = gradients(
        state.replace(**changed._asdict()),
        part._replace(teacher=teacher) if known else part,
        _Keys(*(jax.random.fold_in(key, index) for key in keys)),
      )
      return (optax.tree.add(total, found), changed), metrics

    (total, changed), metrics = jax.lax.scan(
      add,
      (
        optax.tree.zeros_like(state.params),
        _Changed(state.batch_stats, state.method_state),
      ),
      (jnp.arange(count), microbatches),
      # On CPU convolutions in a loop lose their parallel kernels.
      unroll=target.on_cpu(),
    )
    return (
      optax.tree.scale(1 / count, total),
      changed,
      jax.tree.map(lambda values: values.mean(axis=0), metrics),
    )

  return accumulated


def keep_moving_averages(train_step: TrainStep, decay: float) -> TrainStep:
  """Keeps moving averages of the student's variables (Polyak averaging).

  Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046. After t steps the
  next keeps min(decay, (1 + t) / (10 + t)) of them, so that the first weights
  are soon forgotten, as `tf.train.ExponentialMovingAverage` does.

  Args:
    train_step: the step; the state that it is given has averages.
    decay: the largest share that a step keeps.

  Returns:
    A step like it.
  """

  def averaging(
    state: TrainState, inputs: Inputs
  ) -> tuple[TrainState, Metrics]:
    new, metrics = train_step(state, inputs)
    kept = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    student = state_lib.student_collections(new.params, new.batch_stats)
    averages = optax.incremental_update(student, state.ema, 1 - kept)
    # What counts or is true or false has no mean.
    ema = jax.tree.map(
      lambda new, mean: (
        mean if jnp.issubdtype(new.dtype, jnp.floating) else new
      ),
      student,
      averages,
    )
    return new.replace(ema=ema), metrics

  return averaging


def skip_nonfinite(train_step: TrainStep) -> TrainStep:
  """Leaves out steps whose loss or gradient is not finite.

  Such a step changes nothing but the number of steps done, here and in the
  optimiser's schedules. The metric `skipped` is then 1, and all others are 0.

  Args:
    train_step: the step.

  Returns:
    A step like it, with the metric `skipped`.
  """

  def skipping(state: TrainState, inputs: Inputs) -> tuple[TrainState, Metrics]:
    new, metrics = train_step(state, inputs)
    finite = jnp.isfinite(metrics['loss'] + metrics['gradient_norm'])

    def choose(new: Any, old: Any) -> Any:
      # The learning rate is that of the step, whatever became of those before.
      return new if _is_schedule(new) else jnp.where(finite, new, old)

    chosen = jax.tree.map(choose, new, state, is_leaf=_is_schedule)
    counted = {name: jnp.where(finite, x, 0.0) for name, x in metrics.items()}
    counted['skipped'] = 1.0 - finite
    return chosen.replace(step=new.step), counted

  return skipping


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
  """Weights of classes that make up for how many images each has.

  King and Zeng, 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868: the
  mean weighted loss is that of as many images of every class.

  Args:
    counts: training images of each class.

  Returns:
    images / (classes · images of the class); the mean over images is 1. Classes
    without images do not count, and have the weight 1.
  """
  present = sum(count > 0 for count in counts)
  total = sum(counts)
  return tuple(
    float(total / (present * count)) if count else 1.0 for count in counts
  )


def example_weights(
  labels: jax.Array, class_weights: Sequence[float]
) -> jax.Array:
  """Weights of examples by their classes.

  Args:
    labels: class indices, `[batch]`; or probabilities `[batch, classes]`, zeros
      where there is no label.
    class_weights: weight of each class.

  Returns:
    Weights, float32 `[batch]`: of mixed labels the mean, and 1 where there is
    no label.
  """
  weights = jnp.array(class_weights, jnp.float32)
  if labels.ndim == 1:
    return weights[labels]
  return 1 + (labels * (weights - 1)).sum(axis=-1)


def _norm(tree: Any) -> jax.Array:
  """Computes what `optax.tree.norm` does, with sums that suit the platform."""
  squares = [sums.total(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.zeros(())))


def _is_schedule(leaf: Any) -> bool:
  return isinstance(leaf, optax.ScaleByScheduleState)


def _smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  if not smoothing:
    return labels
  if labels.ndim == 1:
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)
  # An image without a label stays without one.
  known = labels.sum(axis=-1, keepdims=True)
  return (1 - smoothing) * labels + smoothing * known / num_classes


def _nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean cross-entropy of the first view, of images with a label, in nats.

  Without label smoothing, class weights and a method's terms; mixed images are
  compared with their mixed labels.
  """
  logits = logits[: len(labels)].astype(jnp.float32)
  if labels.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()
  known = (labels.sum(axis=-1) > 0).sum()
  total = optax.softmax_cross_entropy(logits, labels).sum()
  return total / jnp.maximum(known, 1)


def _accuracy(predictions: jax.Array, labels: jax.Array) -> jax.Array:
  """Share of right predictions in the first view, of images with a label."""
  predictions = predictions[: len(labels)]
  if labels.ndim == 1:
    return (predictions == labels).mean()
  known = labels.sum(axis=-1) > 0
  right = known & (predictions == labels.argmax(axis=-1))
  return right.sum() / jnp.maximum(known.sum(), 1)
