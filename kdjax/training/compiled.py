"""The compiled program of a run: all that it computes, without the loop."""

import copy
import functools
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax import data, methods, models
from kdjax.data import augment, prefetch
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage.teacher_logits import Replay
from kdjax.system import devices, memory, xla
from kdjax.training import optimizer, step
from kdjax.training import plan as plan_lib
from kdjax.training import state as state_lib
from kdjax.training.state import TrainState

logger = logging.getLogger('kdjax')


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


class _Epoch(NamedTuple):
  """What the steps of one epoch share.

  Attributes:
    order: index of the example at each position, int32 `[size]`; None where
      batches come from a stream.
    teacher_logits: `[steps, batch, classes]`, where they are replayed or known.
  """

  order: jax.Array | None
  teacher_logits: jax.Array | None


class Program:
  """What a run computes, jitted: its initial state and its training steps.

  Data, the teacher's variables and hyperparameters are arguments: nothing large
  becomes a constant of a program, and no new value compiles it again.

  Args:
    config: the run's configuration.
    dataset: its data set; training images that are in memory are put on the
      device.
    method: its method.
    hyperparameters: the value of each of the method's hyperparameters.
    teacher: the teacher, if the method needs one.
    replay: where the teacher's logits for this run are kept, if they are not
      to be computed in each step.
    initial: the student's initial weights, as `state.create_state` takes them.
    known_logits: those of each training image, `[size, classes]`, in place of a
      teacher.

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
    teacher: Network | None,
    replay: Replay | None = None,
    initial: Mapping[str, Any] | None = None,
    known_logits: np.ndarray | None = None,
  ):
    self.plan = plan_lib.plan(config, dataset)
    self.model = models.build(
      **config_lib.model_arguments(config, len(dataset.class_names))
    )
    transformation, self.schedule = optimizer.build(
      config.train,
      steps_per_epoch=self.plan.steps_per_epoch,
      total_steps=self.plan.total_steps,
    )
    self.normalization = devices.replicate(
      {'mean': dataset.mean, 'std': dataset.std}
    )
    # Nearly all of a step is in the loop over the parts of a batch, which CPUs
    # do not have.
    on_cpu = jax.default_backend() == 'cpu'
    self._loop_size = 1 if on_cpu else config.train.accumulate
    self._classes = len(dataset.class_names)
    self._size = dataset.train.size
    self._teacher_variables = teacher and devices.replicate(teacher.variables)
    self._known_logits = known_logits
    self._initial = initial and devices.replicate(dict(initial))
    self._stream: data.Stream | None = None
    # All training images and labels, or the shapes of a batch.
    self._train: tuple[Any, ...]
    if isinstance(dataset.train, data.Stream):
      self._stream = dataset.train
      self._train = tuple(
        jax.ShapeDtypeStruct(
          (self.plan.batch_size, *shape), dtype, sharding=devices.sharded()
        )
        for shape, dtype in ((dataset.image_shape, jnp.uint8), ((), jnp.int32))
      )
    else:
      self._train = devices.replicate(tuple(dataset.train))
    self._random_resized_crop = config.data.random_resized_crop
    self._workers = config.data.workers
    self._compiled: dict[int, Any] = {}
    self._begin(config.seed, hyperparameters, replay)

    batch = jax.ShapeDtypeStruct(
      (self.plan.batch_size, *dataset.image_shape), jnp.uint8
    )
    # It runs once: on CPU, optimising its random numbers takes several times
    # longer than they do.
    quick = {'xla_backend_optimization_level': 0}

    @functools.partial(
      xla.jit,
      compiler_options=quick if jax.default_backend() == 'cpu' else {},
      out_shardings=devices.replicated(),
    )
    def create_state(
      rng: jax.Array, teacher_variables: Any, initial: Any
    ) -> TrainState:
      network: Network | features.Outputs | None = None
      if teacher:
        network = Network(teacher.model, teacher_variables)
      elif known_logits is not None:
        shape = self.plan.batch_size, known_logits.shape[-1]
        network = features.Outputs(jnp.zeros(shape), {})
      return state_lib.create_state(
        rng,
        self.model,
        method,
        transformation,
        batch,
        network,
        ema=config.train.ema_decay > 0,
        initial=initial,
        num_classes=self._classes,
      )

    train_step = step.make_train_step(
      models.rematerialize(self.model, config.device.remat),
      method,
      transformation,
      teacher=teacher and teacher.model,
      teacher_known=known_logits is not None,
      label_smoothing=config.train.label_smoothing,
      accumulate=config.train.accumulate,
      skip_nonfinite=config.train.nonfinite == 'skip',
      ema_decay=config.train.ema_decay,
    )
    steps_per_epoch = self.plan.steps_per_epoch
    augmentation = augment.Augmentation(
      config.data.crop_padding, config.data.flip
    )

    def train_batch(
      key: jax.Array,
      number: jax.Array,
      order: jax.Array | None,
      images: jax.Array,
      labels: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
      if order is None:
        images = augment.augment_batch(
          key,
          number,
          images,
          steps_per_epoch=steps_per_epoch,
          augmentation=augmentation,
        )
      else:
        images, labels = augment.train_batch(
          key,
          number,
          order,
          images,
          labels,
          batch_size=self.plan.batch_size,
          augmentation=augmentation,
        )
      return devices.divide((images, labels))

    @functools.partial(
      xla.jit,
      donate_argnums=0,
      static_argnames='steps',
      out_shardings=devices.replicated(),
    )
    def run_steps(
      state: TrainState,
      epoch: _Epoch,
      train: tuple[jax.Array, jax.Array],
      normalization: Mapping[str, jax.Array],
      teacher_variables: features.Variables | None,
      hyperparameters: Mapping[str, jax.Array],
      *,
      steps: int,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
      def run_step(
        state: TrainState, _: None
      ) -> tuple[TrainState, dict[str, jax.Array]]:
        images, labels = train_batch(
          state_lib.data_key(state.rng), state.step, epoch.order, *train
        )
        from_teacher: Any = teacher_variables
        if epoch.teacher_logits is not None:
          logits = devices.divide(
            epoch.teacher_logits[state.step % steps_per_epoch]
          )
          from_teacher = features.Outputs(logits, {})
        return train_step(
          state, images, labels, normalization, from_teacher, hyperparameters
        )

      if steps > 1:
        return jax.lax.scan(run_step, state, length=steps)
      state, metrics = run_step(state, None)
      return state, jax.tree.map(lambda value: value[None], metrics)

    @functools.partial(
      xla.jit,
      out_shardings=devices.replicated(),
    )
    def teacher_logits(
      variables: features.Variables, images: jax.Array
    ) -> jax.Array:
      assert teacher is not None
      outputs, _ = features.forward(
        teacher.model, variables, images, train=False
      )
      return outputs.logits

    self._create_state = create_state
    self._run_steps = run_steps
    self._train_batch = xla.jit(train_batch)
    self._teacher_logits = teacher_logits

  def _begin(
    self,
    seed: int,
    hyperparameters: Mapping[str, float],
    replay: Replay | None,
  ) -> None:
    """Sets all that differs between runs that share what is compiled."""
    self.compile_time_s = 0.0
    self._rng = _key(seed)
    self._replay = replay
    self._epoch: tuple[int, _Epoch] | None = None
    self._feed: prefetch.Feed | None = None
    self._arguments = (
      self.normalization,
      None if replay else self._teacher_variables,
      devices.replicate(
        {name: np.float32(value) for name, value in hyperparameters.items()}
      ),
    )

  def again(
    self,
    seed: int,
    hyperparameters: Mapping[str, float],
    replay: Replay | None,
  ) -> 'Program':
    """Gives the program of another run, which shares all that is compiled.

    Args:
      seed: that run's seed.
      hyperparameters: the value of each of its hyperparameters.
      replay: where its teacher's logits are kept; None exactly if it is for
        this run.

    Returns:
      The program.
    """
    assert (replay is None) == (self._replay is None)
    other = copy.copy(self)
    other._begin(seed, hyperparameters, replay)
    return other

  def create_state(self) -> TrainState:
    """Makes the state that the run starts from."""
    return self._create_state(self._rng, self._teacher_variables, self._initial)

  def state_shapes(self) -> TrainState:
    """Gives the shapes and dtypes of the state, computing nothing."""
    return jax.eval_shape(
      self._create_state, self._rng, self._teacher_variables, self._initial
    )

  def compile(self, state: TrainState, steps_done: int = 0) -> None:
    """Compiles the programs that the run needs from a step on.

    Ahead of the loop, so that none is compiled within it. A run cut off
    continues where a dispatch ended, so that those after it are the same.

    Args:
      state: the state, or its shapes and dtypes.
      steps_done: steps done already.
    """
    start = time.perf_counter()
    epoch = self._epoch_shapes()
    for steps in self.plan.dispatches(steps_done):
      if steps not in self._compiled:
        self._compiled[steps] = self._run_steps.lower(
          state, epoch, self._train, *self._arguments, steps=steps
        ).compile()
        _check_working_memory(self._compiled[steps])
    self.compile_time_s += time.perf_counter() - start

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
    number = steps_done // self.plan.steps_per_epoch
    if self._epoch is None or self._epoch[0] != number:
      self._epoch = number, self._begin_epoch(number)
    steps = self.plan.next_dispatch(steps_done)
    train = self._train
    if self._stream:
      if self._feed is None or self._feed.next_step != steps_done:
        self.close()
        self._feed = self._open(range(steps_done, self.plan.total_steps))
      train = next(self._feed)
    return xla.settle(
      self._compiled[steps](state, self._epoch[1], train, *self._arguments)
    )

  def close(self) -> None:
    """Stops what reads the stream of training images, if anything does."""
    if self._feed:
      self._feed.close()
    self._feed = None

  def _open(self, steps: range, workers: int | None = None) -> prefetch.Feed:
    """Opens the stream of the batches of some steps."""
    assert self._stream is not None
    return prefetch.Feed(
      self._stream,
      state_lib.data_key(self._rng),
      steps,
      self.plan.batch_size,
      self._random_resized_crop,
      self._workers if workers is None else workers,
    )

  def _begin_epoch(self, number: int) -> _Epoch:
    key = state_lib.data_key(self._rng)
    order = None
    if self._gives_logits or not self._stream:
      order = augment.epoch_order(key, number, self._size)
    in_memory = None if self._stream else order
    if not self._gives_logits:
      return _Epoch(in_memory, None)
    if self._known_logits is not None:
      shape = self.plan.steps_per_epoch, self.plan.batch_size
      rows = jax.device_get(order)[: math.prod(shape)]
      logits = self._known_logits[rows].reshape(*shape, self._classes)
      return _Epoch(in_memory, devices.replicate(logits))
    assert self._replay is not None

    first = number * self.plan.steps_per_epoch
    steps = min(self.plan.steps_per_epoch, self.plan.total_steps - first)

    def images(count: int) -> Iterator[jax.Array]:
      """Yields the images of the epoch's first steps."""
      numbers = range(first, first + count)
      if not self._stream:
        for number in numbers:
          yield self._train_batch(key, number, order, *self._train)[0]
        return
      # Worker processes take longer to start than one batch to read.
      with self._open(numbers, workers=0 if count == 1 else None) as batches:
        for number, batch in zip(numbers, batches, strict=True):
          yield self._train_batch(key, number, None, *batch)[0]

    def compute() -> np.ndarray:
      logits = [
        xla.settle(self._teacher_logits(self._teacher_variables, batch))
        for batch in images(steps)
      ]
      return np.stack(jax.device_get(logits))

    # The order of the whole epoch and the pixels of a batch tell whether what
    # is kept was made from the same crops and flips of the same examples.
    seen = hashlib.sha256()
    for array in jax.device_get((order, *images(1))):
      seen.update(np.ascontiguousarray(array).tobytes())
    kept = self._replay.epoch(number, steps, seen.hexdigest(), compute)
    logits = np.zeros((self.plan.steps_per_epoch, *kept.shape[1:]), np.float32)
    logits[:steps] = kept[:steps]
    return _Epoch(in_memory, devices.replicate(logits))

  @property
  def _gives_logits(self) -> bool:
    """Whether each step is given the teacher's logits."""
    return self._replay is not None or self._known_logits is not None

  def _epoch_shapes(self) -> _Epoch:
    """Gives the shapes and dtypes of what `_begin_epoch` gives."""
    order: Any = None
    logits: Any = None
    if self._gives_logits:
      logits = jax.ShapeDtypeStruct(
        (self.plan.steps_per_epoch, self.plan.batch_size, self._classes),
        jnp.float32,
        # Else XLA might divide them as it divides the batch.
        sharding=devices.replicated(),
      )
    if not self._stream:
      order = jax.ShapeDtypeStruct((self._size,), jnp.int32)
    return _Epoch(order, logits)

  def student(self, state: TrainState, ema: bool = False) -> Network:
    """Gives the student in a state, or its moving average."""
    return Network(
      self.model, state_lib.student_variables(state, self.normalization, ema)
    )

  def flops_per_step(self, state: TrainState) -> float:
    """Counts the floating-point operations of one training step.

    Args:
      state: the state, or its shapes and dtypes.

    Returns:
      XLA's own count for the program of one step (a multiplication and an
      addition are two).
    """
    lowered = self._run_steps.lower(
      state, self._epoch_shapes(), self._train, *self._arguments, steps=1
    )
    # Library calls are not counted once compiled, nor are loops more than once.
    compiled = self._compiled.get(1, lowered)
    return self._loop_size * max(
      (analysed.cost_analysis() or {}).get('flops', 0.0)
      for analysed in (lowered, compiled)
    )


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
  """Makes the key of a run, on every device."""
  return xla.jit(jax.random.key, out_shardings=devices.replicated())(seed)
