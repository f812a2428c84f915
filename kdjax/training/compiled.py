"""The compiled programs of a run: its first state and its training steps.

Data, the teacher's variables and hyperparameters are arguments: nothing large
becomes a constant of a program, and no new value compiles it again.
"""

import copy
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kdjax import data, methods, models
from kdjax.data import augment
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import devices, memory, target, xla
from kdjax.training import optimizer, step
from kdjax.training import state as state_lib
from kdjax.training.epochs import Epoch, Epochs, MakeBatch
from kdjax.training.run import Run
from kdjax.training.state import TrainState

AUGMENTATIONS = tuple(
  name for name in augment.Augmentation._fields if name != 'views'
)
"""The fields of `config.data` that change training images."""


def check_memory(state: Any) -> None:
  """Checks that the state of a run may fit on its device.

  Args:
    state: its shapes and dtypes.

  Raises:
    ValueError: it takes more memory than there is.
  """
  memory.check(
    memory.size(state),
    'parameters and the state of the optimizer',
    'Choose a smaller config.student.name or .width',
  )


class Program:
  """What a run computes, compiled.

  Args:
    run: the run. Training images that are in memory are put on the device.

  Attributes:
    plan: how long the run is.
    schedule: the learning rate as a function of the step.
    normalization: `mean` and `std` of the student's images, `[channels]`.
    compile_time_s: seconds spent in `compile`.
  """

  def __init__(self, run: Run):
    transformation, self.schedule = optimizer.build(
      run.config.train,
      steps_per_epoch=run.plan.steps_per_epoch,
      total_steps=run.plan.total_steps,
    )
    dataset = run.dataset
    self.normalization = devices.replicate(
      {'mean': dataset.mean, 'std': dataset.std}
    )
    network = run.teacher and run.teacher.network
    self._teacher = network and network._replace(
      variables=devices.replicate(network.variables)
    )
    self._initial = run.initial and devices.replicate(
      dict(run.initial.variables)
    )
    self._train = _put(dataset.train, run.plan.batch_size)
    make_batch = _make_batch(run)
    self._make_batch = xla.jit(make_batch)
    self._create_state = _make_create_state(run, transformation)
    self._run_steps = _make_run_steps(run, transformation, make_batch)
    # Nearly all of a step is in the loop over the parts of a batch, which CPUs
    # do not have.
    self._loop_size = 1 if target.on_cpu() else run.config.train.accumulate
    self._compiled: dict[int, Any] = {}
    self._begin(run)

  def _begin(self, run: Run) -> None:
    """Sets all that differs between runs that share what is compiled."""
    self.plan = run.plan
    self._model = run.model
    self.compile_time_s = 0.0
    self._rng = _key(run.config.seed)
    self._epochs = Epochs(
      run, self._rng, self._train, self._make_batch, self._teacher
    )
    cached = run.replay is not None
    self._arguments = (
      self.normalization,
      None if cached or not self._teacher else self._teacher.variables,
      devices.replicate(
        {name: np.float32(value) for name, value in run.hyperparameters.items()}
      ),
    )

  def share(self, run: Run) -> 'Program':
    """Makes the program of another run, which shares all that is compiled.

    Args:
      run: a run with the same `Run.program_key`.

    Returns:
      The program.
    """
    other = copy.copy(self)
    other._begin(run)
    return other

  def create_state(self) -> TrainState:
    """Makes the state that the run starts from."""
    return self._create_state(*self._initial_arguments())

  def state_shapes(self) -> TrainState:
    """Describes the shapes and dtypes of the state, computing nothing."""
    return devices.describe(
      jax.eval_shape(self._create_state, *self._initial_arguments())
    )

  def _initial_arguments(self) -> tuple[Any, ...]:
    variables = self._teacher and self._teacher.variables
    return self._rng, variables, self._initial

  def compile(self, state: TrainState, steps_done: int = 0) -> None:
    """Compiles the programs that the run needs from a step on.

    Ahead of the loop, so that none is compiled within it. A run cut off
    continues where a dispatch ended, so that those after it are the same.

    Args:
      state: the state, or its shapes and dtypes.
      steps_done: steps done already.
    """
    start = time.perf_counter()
    for steps in self.plan.dispatches(steps_done):
      if steps not in self._compiled:
        self._compiled[steps] = self.lower(state, steps).compile()
        _check_working_memory(self._compiled[steps])
    self.compile_time_s += time.perf_counter() - start

  def lower(self, state: TrainState, steps: int) -> jax.stages.Lowered:
    """Lowers the program of some steps of training, and compiles nothing.

    Args:
      state: the state, or its shapes and dtypes.
      steps: number of steps.

    Returns:
      What XLA is to compile.
    """
    epoch = self._epochs.shapes()
    return self._run_steps.lower(
      state, epoch, self._train, *self._arguments, steps=steps
    )

  def run(
    self, state: TrainState, steps_done: int
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Starts the next steps of training; on an accelerator without waiting.

    Args:
      state: the state; its buffers are reused, it must not be used again.
      steps_done: its step, known to the host without asking the device.

    Returns:
      The state after `plan.next_dispatch(steps_done)` further steps, and the
      metrics of each of them, `[steps]`.
    """
    epoch, train = self._epochs.next(steps_done)
    steps = self.plan.next_dispatch(steps_done)
    return xla.wait_on_cpu(
      self._compiled[steps](state, epoch, train, *self._arguments)
    )

  def close(self) -> None:
    """Stops what reads the stream of training images, if anything does."""
    self._epochs.close()

  def student(self, state: TrainState, ema: bool = False) -> Network:
    """Returns the student of a state, or its moving average."""
    return Network(
      self._model, state_lib.student_variables(state, self.normalization, ema)
    )

  def flops_per_step(self, state: TrainState) -> float:
    """Counts the floating-point operations of one training step.

    Args:
      state: the state, or its shapes and dtypes.

    Returns:
      XLA's own count for the program of one step (a multiplication and an
      addition are two).
    """
    lowered = self.lower(state, 1)
    # Library calls are not counted once compiled, nor are loops more than once.
    compiled = self._compiled.get(1, lowered)
    return self._loop_size * max(
      (analysed.cost_analysis() or {}).get('flops', 0.0)
      for analysed in (lowered, compiled)
    )


def _put(split: data.Split | data.Stream, batch_size: int) -> tuple[Any, ...]:
  """Puts training images and labels on the devices; of a stream the shapes.

  Images in memory have one row each: a TPU pads short axes, and would copy all
  images into such a layout in each dispatch.
  """
  if isinstance(split, data.Split):
    rows = split.images.reshape(split.size, -1)
    return devices.replicate((rows, split.labels))
  return tuple(
    jax.ShapeDtypeStruct(
      (batch_size, *shape), dtype, sharding=devices.sharded()
    )
    for shape, dtype in ((split.image_shape, jnp.uint8), ((), jnp.int32))
  )


def _make_create_state(
  run: Run, transformation: optax.GradientTransformation
) -> Callable[..., TrainState]:
  """Makes the function of the key, the teacher's and the initial variables."""
  teacher = run.teacher
  batch = jax.ShapeDtypeStruct(
    (run.method.views * run.plan.batch_size, *run.dataset.image_shape),
    jnp.uint8,
  )

  def create_state(
    rng: jax.Array, teacher_variables: Any, initial: Any
  ) -> TrainState:
    network: Network | features.Outputs | None = None
    if teacher and teacher.network:
      network = Network(teacher.network.model, teacher_variables)
    elif teacher and teacher.logits:
      shape = batch.shape[0], teacher.logits.train.logits.shape[-1]
      network = features.Outputs(jnp.zeros(shape), {})
    return state_lib.create_state(
      rng,
      run.model,
      run.method,
      transformation,
      state_lib.Start(
        batch,
        network,
        ema=run.config.train.ema_decay > 0,
        initial=initial,
        num_classes=len(run.dataset.class_names),
        num_examples=run.dataset.train.size,
      ),
    )

  # It runs once: on CPU, optimising its random numbers takes several times
  # longer than they do.
  quick = {'xla_backend_optimization_level': 0}
  return xla.jit(
    create_state,
    compiler_options=quick if target.on_cpu() else {},
    out_shardings=devices.replicated(),
  )


def _make_batch(run: Run) -> MakeBatch:
  """Makes the function that prepares and augments the batch of a step."""
  augmentation = augmentation_of(run.config)._replace(views=run.method.views)
  # Of an image without a label all are 0.
  as_probabilities = augmentation.mixes or run.config.data.label_fraction < 1
  plan, num_classes = run.plan, len(run.dataset.class_names)
  streamed = isinstance(run.dataset.train, data.Stream)

  def make_batch(
    key: jax.Array,
    number: jax.Array,
    epoch: Epoch,
    images: jax.Array,
    labels: jax.Array,
  ) -> augment.TrainBatch:
    ids = augment.batch_indices(number, epoch.order, plan.batch_size)
    if not streamed:
      images = images[ids].reshape(-1, *run.dataset.image_shape)
      labels = labels[ids]
    if epoch.label_changes is not None:
      changes = epoch.label_changes[ids]
      labels = jnp.where(changes < 0, -1, (labels + changes) % num_classes)
    if as_probabilities:
      labels = jax.nn.one_hot(labels, num_classes)
    return devices.divide(
      augment.augment_batch(
        key,
        number,
        augment.TrainBatch(images, labels, ids),
        plan.steps_per_epoch,
        augmentation,
      )
    )

  return make_batch


def augmentation_of(config: ml_collections.ConfigDict) -> augment.Augmentation:
  """Returns what a configuration does to training images."""
  fields = {name: config.data[name] for name in AUGMENTATIONS}
  return augment.Augmentation(**fields)


def _make_run_steps(
  run: Run,
  transformation: optax.GradientTransformation,
  make_batch: MakeBatch,
) -> Any:
  """Makes the jitted function that does some steps of an epoch."""
  train_step = _make_train_step(run, transformation)
  steps_per_epoch = run.plan.steps_per_epoch
  scheduled = methods.schedule(
    run.config.method.schedule, list(run.hyperparameters)
  )

  @functools.partial(
    xla.jit,
    donate_argnums=0,
    static_argnames='steps',
    out_shardings=devices.replicated(),
  )
  def run_steps(
    state: TrainState,
    epoch: Epoch,
    train: tuple[jax.Array, jax.Array],
    normalization: Mapping[str, jax.Array],
    teacher_variables: features.Variables | None,
    hyperparameters: Mapping[str, jax.Array],
    *,
    steps: int,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    def run_step(state: TrainState, _: None) -> tuple[TrainState, step.Metrics]:
      with jax.named_scope('data'):
        batch = make_batch(
          state_lib.data_key(state.rng), state.step, epoch, *train
        )
      epochs_done = state.step / steps_per_epoch
      teacher: Any = teacher_variables
      if epoch.teacher_logits is not None:
        logits = devices.divide(
          epoch.teacher_logits[state.step % steps_per_epoch]
        )
        teacher = features.Outputs(logits, {})
      inputs = step.Inputs(
        *batch,
        epochs_done,
        normalization,
        teacher,
        scheduled(hyperparameters, epochs_done),
      )
      with devices.dividing():
        return train_step(state, inputs)

    if steps > 1:
      return jax.lax.scan(run_step, state, length=steps)
    state, metrics = run_step(state, None)
    return state, jax.tree.map(lambda value: value[None], metrics)

  return run_steps


def _make_train_step(
  run: Run, transformation: optax.GradientTransformation
) -> step.TrainStep:
  settings = run.config.train
  network = run.teacher and run.teacher.network
  return step.make_train_step(
    models.rematerialize(run.model, run.config.device.remat),
    run.method,
    transformation,
    network and network.model,
    step.Options(
      label_smoothing=settings.label_smoothing,
      accumulate=settings.accumulate,
      skip_nonfinite=settings.nonfinite == 'skip',
      ema_decay=settings.ema_decay,
      class_weights=_class_weights(run),
    ),
  )


def _class_weights(run: Run) -> tuple[float, ...] | None:
  if run.config.train.class_weights == 'none':
    return None
  counts = data.class_counts(run.dataset)
  assert counts is not None
  return step.balanced_weights(counts.tolist())


def _check_working_memory(compiled: Any) -> None:
  """Checks that what a step computes may fit in memory, beside its arguments.

  Args:
    compiled: its program. One from a cache may say nothing.
  """
  analysis = compiled.memory_analysis()
  memory.check(
    getattr(analysis, 'temp_size_in_bytes', 0),
    'the activations of a training step',
    'Lower config.train.batch_size or config.data.image_size, or compute it in '
    'parts (config.train.accumulate, config.device.remat)',
  )


def _key(seed: int) -> jax.Array:
  """Makes the key of a run, on every device; here where these are absent."""
  if target.absent():
    return jax.random.key(seed)
  return xla.jit(jax.random.key, out_shardings=devices.replicated())(seed)
