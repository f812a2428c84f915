"""The compiled program of a run: all that it computes, without the loop."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from kdjax import config as config_lib
from kdjax import data, methods, models, optimizer, runtime, step
from kdjax.data import batches

# On an accelerator the host is told of so many steps at once, by default.
_STEPS_PER_DISPATCH = 32


class Plan(NamedTuple):
  """How long a run is, in steps.

  Attributes:
    batch_size: images in a step.
    steps_per_epoch: steps in an epoch.
    steps_per_eval: steps from one validation to the next.
    total_steps: steps in the run.
    steps_per_dispatch: most steps that the device is given at once.
    overlap: whether the host does its own work while the device trains.
  """

  batch_size: int
  steps_per_epoch: int
  steps_per_eval: int
  total_steps: int
  steps_per_dispatch: int
  overlap: bool

  def epoch(self, steps_done: int) -> float:
    """Gives the epochs that so many steps make."""
    return steps_done / self.steps_per_epoch

  def next_dispatch(self, steps_done: int) -> int:
    """Gives the number of steps to do at once after so many.

    They stay within one epoch, so that one order of examples serves, and end
    where the run does.
    """
    return min(
      self.steps_per_dispatch,
      self.steps_per_epoch - steps_done % self.steps_per_epoch,
      self.total_steps - steps_done,
    )


def plan(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Plan:
  """Plans a run.

  Args:
    config: its configuration.
    dataset: its data set.

  Returns:
    The plan.

  Raises:
    ValueError: the data set is smaller than a batch.
  """
  batch_size = config.train.batch_size
  size = len(dataset.train.labels)
  steps_per_epoch = size // batch_size
  if not steps_per_epoch:
    raise ValueError(
      f'config.train.batch_size is {batch_size}, and {dataset.name} has only '
      f'{size} training images'
    )
  total_steps = config.train.epochs * steps_per_epoch
  if config.train.max_steps:
    total_steps = min(total_steps, config.train.max_steps)
  # On CPU host and device are the same processor, and convolutions in a loop
  # lose their parallel kernels.
  on_cpu = jax.default_backend() == 'cpu'
  dispatch = config.device.steps_per_dispatch
  if not dispatch:
    dispatch = 1 if on_cpu else _STEPS_PER_DISPATCH
  # Every number of steps is compiled by itself: best one that divides an epoch.
  dividing = (n for n in range(dispatch, 0, -1) if steps_per_epoch % n == 0)
  divisor = next(dividing)
  return Plan(
    batch_size,
    steps_per_epoch,
    config.eval.every_epochs * steps_per_epoch,
    total_steps,
    divisor if divisor > dispatch // 4 else dispatch,
    overlap=not on_cpu,
  )


class Program:
  """What a run computes, jitted: its initial state and its training steps.

  Data, the teacher's variables and hyperparameters are arguments: nothing large
  becomes a constant of a program, and no new value compiles it again.

  Args:
    config: the run's configuration.
    dataset: its data set; the training images are put on the device.
    method: its method.
    hyperparameters: the value of each of the method's hyperparameters.
    teacher: the teacher, if the method needs one.

  Attributes:
    plan: how long the run is.
    model: the student's model.
    schedule: the learning rate as a function of the step.
    normalization: `mean` and `std` of the student's images, `[channels]`.
    compile_time_s: seconds spent in `compile`.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    dataset: data.Dataset,
    method: methods.Method,
    hyperparameters: Mapping[str, float],
    teacher: step.Network | None,
  ):
    self.plan = plan(config, dataset)
    self.model = models.build(
      **config_lib.model_arguments(config, len(dataset.class_names))
    )
    transformation, self.schedule = optimizer.build(
      config.train,
      steps_per_epoch=self.plan.steps_per_epoch,
      total_steps=self.plan.total_steps,
    )
    self.normalization = jax.tree.map(
      jnp.asarray, {'mean': dataset.mean, 'std': dataset.std}
    )
    self.compile_time_s = 0.0
    self._rng = jax.random.key(config.seed)
    self._size = len(dataset.train.labels)
    self._teacher_variables = teacher and teacher.variables
    self._arguments = (
      *jax.device_put(dataset.train),
      self.normalization,
      self._teacher_variables,
      {name: jnp.float32(value) for name, value in hyperparameters.items()},
    )
    self._order: tuple[int, jax.Array] | None = None
    self._compiled: dict[int, Any] = {}

    images = jax.ShapeDtypeStruct(
      (self.plan.batch_size, *dataset.train.images.shape[1:]), jnp.uint8
    )
    # It runs once: on CPU, optimising its random numbers takes several times
    # longer than they do.
    quick = {'xla_backend_optimization_level': 0}

    @functools.partial(
      jax.jit,
      compiler_options=quick if jax.default_backend() == 'cpu' else None,
    )
    def create_state(rng: jax.Array, teacher_variables: Any) -> step.TrainState:
      network = teacher and step.Network(teacher.model, teacher_variables)
      return step.create_state(
        rng, self.model, method, transformation, images, network
      )

    train_step = step.make_train_step(
      self.model,
      method,
      transformation,
      teacher=teacher and teacher.model,
      label_smoothing=config.train.label_smoothing,
    )
    augmentation = batches.Augmentation(
      config.data.crop_padding, config.data.flip
    )

    @functools.partial(
      jax.jit,
      donate_argnums=0,
      static_argnames='steps',
      compiler_options=runtime.compiler_options(),
    )
    def run_steps(
      state: step.TrainState,
      order: jax.Array,
      train_images: jax.Array,
      train_labels: jax.Array,
      *arguments: Any,
      steps: int,
    ) -> tuple[step.TrainState, dict[str, jax.Array]]:
      def run_step(
        state: step.TrainState, _: None
      ) -> tuple[step.TrainState, dict[str, jax.Array]]:
        images, labels = batches.train_batch(
          step.data_key(state.rng),
          state.step,
          order,
          train_images,
          train_labels,
          batch_size=self.plan.batch_size,
          augmentation=augmentation,
        )
        return train_step(state, images, labels, *arguments)

      if steps > 1:
        return jax.lax.scan(run_step, state, length=steps)
      state, metrics = run_step(state, None)
      return state, jax.tree.map(lambda value: value[None], metrics)

    self._create_state = create_state
    self._run_steps = run_steps

  def create_state(self) -> step.TrainState:
    """Makes the state that the run starts from."""
    return self._create_state(self._rng, self._teacher_variables)

  def state_shapes(self) -> step.TrainState:
    """Gives the shapes and dtypes of the state, computing nothing."""
    return jax.eval_shape(
      self._create_state, self._rng, self._teacher_variables
    )

  def compile(self, state: step.TrainState, steps_done: int = 0) -> None:
    """Compiles the programs that the run needs from a step on.

    Ahead of the loop, so that none is compiled within it. A run cut off always
    continues where an epoch begins.

    Args:
      state: the state, or its shapes and dtypes.
      steps_done: steps done already.
    """
    start = time.perf_counter()
    order = jax.ShapeDtypeStruct((self._size,), jnp.int32)
    while steps_done < self.plan.total_steps:
      steps = self.plan.next_dispatch(steps_done)
      if steps not in self._compiled:
        self._compiled[steps] = self._run_steps.lower(
          state, order, *self._arguments, steps=steps
        ).compile()
      steps_done += steps
    self.compile_time_s += time.perf_counter() - start

  def run(
    self, state: step.TrainState, steps_done: int
  ) -> tuple[step.TrainState, dict[str, jax.Array]]:
    """Starts the next steps of training; on an accelerator without waiting.

    Args:
      state: the state; its buffers are reused, it must not be used again.
      steps_done: its step, known to the host without asking the device.

    Returns:
      The state after `plan.next_dispatch(steps_done)` further steps, and the
      metrics of each of them, `[steps]`.
    """
    epoch = steps_done // self.plan.steps_per_epoch
    if self._order is None or self._order[0] != epoch:
      key = step.data_key(self._rng)
      self._order = epoch, batches.epoch_order(key, epoch, self._size)
    steps = self.plan.next_dispatch(steps_done)
    return runtime.settle(
      self._compiled[steps](state, self._order[1], *self._arguments)
    )

  def student(self, state: step.TrainState) -> step.Network:
    """Gives the student in a state."""
    return step.Network(
      self.model, step.student_variables(state, self.normalization)
    )

  def flops_per_step(self, state: step.TrainState) -> float:
    """Counts the floating-point operations of one training step.

    Args:
      state: the state, or its shapes and dtypes.

    Returns:
      XLA's own count for the program of one step (a multiplication and an
      addition are two).
    """
    lowered = self._run_steps.lower(
      state,
      jax.ShapeDtypeStruct((self._size,), jnp.int32),
      *self._arguments,
      steps=1,
    )
    # Library calls are not counted once compiled, nor are loops more than once.
    compiled = self._compiled.get(1, lowered)
    return max(
      (analysed.cost_analysis() or {}).get('flops', 0.0)
      for analysed in (lowered, compiled)
    )
