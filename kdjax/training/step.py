"""The training step and the prediction step: pure functions of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kdjax.methods import Method
from kdjax.models import features, sums
from kdjax.training import state as state_lib
from kdjax.training.state import TrainState


def make_train_step(
  student: nn.Module,
  method: Method,
  optimizer: optax.GradientTransformation,
  *,
  teacher: nn.Module | None = None,
  teacher_known: bool = False,
  label_smoothing: float = 0.0,
  accumulate: int = 1,
  skip_nonfinite: bool = False,
  ema_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Makes the training step of a method.

  Args:
    student: the student's model.
    method: the distillation method.
    optimizer: the optimiser.
    teacher: the teacher's model, if the method needs one.
    teacher_known: whether there is no such model, because its `Outputs` are
      known for all images.
    label_smoothing: share of the probability spread evenly over all classes,
      from 0 to 1 (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567).
    accumulate: number of equal parts that a batch is computed in, one after the
      other, for one update with the mean of their gradients; it must divide the
      batch. Part i has the rows i, i + accumulate, …. BatchNorm sees each part
      by itself, and its running statistics are updated after each.
    skip_nonfinite: whether a step whose loss or gradient is not finite changes
      nothing but the number of steps done, here and in the optimiser's
      schedules. The metric `skipped` is then 1, and all others are 0.
    ema_decay: share d of the moving averages that a step keeps, for a state
      that has them (Polyak and Juditsky, 1992,
      https://doi.org/10.1137/0330046); 0 for a state that has none. After t
      steps the next keeps min(d, (1 + t) / (10 + t)), so that the first weights
      are soon forgotten, as `tf.train.ExponentialMovingAverage` does.

  Returns:
    A pure function `train_step(state, images, labels, normalization,
    from_teacher, hyperparameters)`, to be jitted, that returns the next state
    and the batch's metrics (`loss`, `accuracy`, `gradient_norm`, with a teacher
    `teacher_agreement`, and the method's own), all scalars. Images are pixels
    from 0 to 255, `[batch, height, width, channels]`, labels integers
    `[batch]`; `normalization` is the student's. `from_teacher` is the teacher's
    variables, and it runs in evaluation mode without being changed; or its
    `Outputs` for these images, where they are known already; or None.

  Raises:
    ValueError: the method needs a teacher and there is none, or the reverse.
  """
  state_lib.check_teacher(method, teacher is not None or teacher_known)

  def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    normalization: Mapping[str, jax.Array],
    from_teacher: features.Variables | features.Outputs | None,
    hyperparameters: Mapping[str, jax.typing.ArrayLike],
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    known, teacher_variables = None, None
    if isinstance(from_teacher, features.Outputs):
      known = from_teacher
    else:
      teacher_variables = from_teacher
    dropout_key = jax.random.fold_in(
      jax.random.fold_in(state.rng, state_lib.DROPOUT_KEY), state.step
    )

    def differentiate(
      batch_stats: Any,
      dropout_key: jax.Array,
      batch: tuple[jax.Array, jax.Array, features.Outputs | None],
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
      """Gives the gradient, the statistics after it, and the metrics."""
      images, labels, teacher_outputs = batch
      if teacher_outputs is not None:
        teacher_outputs = jax.lax.stop_gradient(teacher_outputs)
      elif teacher is not None:
        assert teacher_variables is not None
        teacher_outputs, _ = features.forward(
          teacher,
          jax.lax.stop_gradient(teacher_variables),
          images,
          names=method.teacher_features,
          train=False,
        )

      def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, Any]:
        outputs, new_stats = features.forward(
          student,
          state_lib.student_variables(
            state.replace(params=params, batch_stats=batch_stats), normalization
          ),
          images,
          names=method.student_features,
          train=True,
          rngs={'dropout': dropout_key},
        )
        per_example, metrics = method.loss(
          params['method'],
          hyperparameters,
          outputs,
          teacher_outputs,
          _smooth(labels, outputs.logits.shape[-1], label_smoothing),
        )
        return per_example.mean(), (outputs.logits, new_stats, metrics)

      (loss, (logits, new_stats, metrics)), gradients = jax.value_and_grad(
        loss_fn, has_aux=True
      )(state.params)
      predictions = logits.argmax(axis=-1)
      metrics = {
        'loss': loss,
        'accuracy': (predictions == labels).mean(),
        **{name: values.mean() for name, values in metrics.items()},
      }
      if teacher_outputs is not None:
        metrics['teacher_agreement'] = (
          predictions == teacher_outputs.logits.argmax(axis=-1)
        ).mean()
      return gradients, new_stats, metrics

    batch = images, labels, known
    if accumulate == 1:
      gradients, batch_stats, metrics = differentiate(
        state.batch_stats, dropout_key, batch
      )
    else:
      gradients, batch_stats, metrics = _over_parts(
        differentiate, accumulate, state, dropout_key, batch
      )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
      kept = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      ema = optax.incremental_update(
        state_lib.student_collections(params, batch_stats), ema, 1 - kept
      )
    new = state.replace(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema=ema,
    )
    metrics = metrics | {'gradient_norm': _norm(gradients)}
    if skip_nonfinite:
      return _unless_nonfinite(state, new, metrics)
    return new, metrics

  return train_step


def _norm(tree: Any) -> jax.Array:
  """Computes what `optax.tree.norm` does, with sums that suit the platform."""
  squares = [sums.total(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.zeros(())))


def _unless_nonfinite(
  old: TrainState, new: TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Keeps the old state, but for its steps, where a step came to nothing."""
  finite = jnp.isfinite(metrics['loss'] + metrics['gradient_norm'])

  def choose(new: Any, old: Any) -> Any:
    # The learning rate is that of the step, whatever became of those before.
    return new if _is_schedule(new) else jnp.where(finite, new, old)

  state = jax.tree.map(choose, new, old, is_leaf=_is_schedule)
  counted = {name: jnp.where(finite, x, 0.0) for name, x in metrics.items()}
  counted['skipped'] = 1.0 - finite
  return state.replace(step=new.step), counted


def _is_schedule(leaf: Any) -> bool:
  return isinstance(leaf, optax.ScaleByScheduleState)


def _over_parts(
  differentiate: Callable[..., tuple[Any, Any, dict[str, jax.Array]]],
  count: int,
  state: TrainState,
  dropout_key: jax.Array,
  batch: Any,
) -> tuple[Any, Any, dict[str, jax.Array]]:
  """Averages over parts of a batch what `differentiate` gives for each."""
  # With such rows a part is spread over devices as the batch is.
  parts = jax.tree.map(
    lambda rows: rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1), batch
  )

  def add(
    done: tuple[Any, Any], part: tuple[jax.Array, Any]
  ) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
    total, batch_stats = done
    # A part's forward pass needs nothing of the gradient of the one before: it
    # could begin before those activations are gone.
    total, (index, rows) = jax.lax.optimization_barrier((total, part))
    gradients, batch_stats, metrics = differentiate(
      batch_stats, jax.random.fold_in(dropout_key, index), rows
    )
    return (optax.tree.add(total, gradients), batch_stats), metrics

  (total, batch_stats), metrics = jax.lax.scan(
    add,
    (optax.tree.zeros_like(state.params), state.batch_stats),
    (jnp.arange(count), parts),
    # On CPU convolutions in a loop lose their parallel kernels.
    unroll=jax.default_backend() == 'cpu',
  )
  return (
    optax.tree.scale(1 / count, total),
    batch_stats,
    jax.tree.map(lambda values: values.mean(axis=0), metrics),
  )


def _smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  if not smoothing:
    return labels
  return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)
