"""One run from its configuration to its result: the training loop."""

import functools
import importlib.metadata
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kdjax import (
  checkpoint,
  data,
  logs,
  measure,
  methods,
  metrics,
  models,
  optimizer,
  results,
  step,
)
from kdjax import config as config_lib
from kdjax import teacher as teacher_lib
from kdjax.data import batches
from kdjax.teacher import Teacher
from kdjax.version import __version__

logger = logs.logger


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, Any]:
  """Runs an experiment, or continues it where it was cut off.

  A method that needs a teacher, and is given none by `config.teacher.path`,
  uses the run directory beside this one that `config.teacher.sibling` names,
  and trains a teacher there first if need be. A run that has finished is only
  evaluated again.

  Args:
    config: as `kdjax.config.default` describes it.
    workdir: the run directory. It receives `config.json`, `metrics.jsonl`,
      `checkpoints/`, `tensorboard/` and, at the end, `result.json`.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError: the configuration makes no sense, or does not fit the data, the
      teacher, or the run that the directory already holds.
    FileNotFoundError: data or teacher are not where the configuration says.
    FloatingPointError: the loss is no longer finite.
  """
  workdir = pathlib.Path(workdir)
  config_lib.validate(config)
  results.check_same_run(workdir, config)
  if results.read_result(workdir):
    logger.info('%s has finished; evaluating its checkpoints', workdir)
    return measure.evaluate(workdir, config)
  return _run(config, workdir, data.load(config.data))


def _run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
) -> dict[str, Any]:
  method, hyperparameters = methods.build(
    config.method.name, config.method[config.method.name]
  )
  # Before a teacher is trained for hours: what else can be wrong?
  _plan(config, dataset)
  models.build(**config_lib.model_arguments(config, len(dataset.class_names)))
  teacher = None
  if method.needs_teacher:
    teacher = _find_teacher(config, workdir, dataset, method)
  results.write_config(workdir, config)
  wall_time = _train(config, workdir, dataset, method, hyperparameters, teacher)
  result = {
    'method': config.method.name,
    'seed': config.seed,
    'hyperparameters': hyperparameters,
    'data': {
      'name': dataset.name,
      'digest': dataset.digest,
      'train': len(dataset.train.labels),
      'validation': len(dataset.validation.labels),
      'test': len(dataset.test.labels),
    },
    'device': jax.devices()[0].device_kind,
    'platform': jax.default_backend(),
    'versions': {
      'kdjax': __version__,
      **{
        package: importlib.metadata.version(package)
        for package in ('jax', 'flax', 'optax', 'orbax-checkpoint')
      },
    },
    'config': results.as_json(config),
    **measure.measure(workdir, config, dataset, teacher),
  }
  result['student'] |= {
    'model': config.student.name,
    'stem': config.student.stem,
    'wall_time_s': wall_time,
  }
  results.write_result(workdir, result)
  return result


def _find_teacher(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  method: methods.Method,
) -> Teacher:
  """Loads the teacher, after training it if there is none."""
  if config.teacher.path:
    path = pathlib.Path(config.teacher.path)
  else:
    path = workdir.absolute().parent / config.teacher.sibling
    if path == workdir.absolute():
      raise ValueError(
        f'{workdir} is where the teacher of its neighbours belongs '
        f'(config.teacher.sibling={config.teacher.sibling!r}): choose another '
        '--workdir'
      )
    _train_teacher(config, path, dataset, method)
  teacher = teacher_lib.load(path, config)
  teacher_lib.check_suits(teacher, dataset)
  logger.info(
    'teacher: %s of %s, step %d, validation accuracy %s',
    teacher.report['model'],
    path,
    teacher.report['step'],
    teacher.report['validation_accuracy'],
  )
  if teacher.report['data_digest'] != dataset.digest:
    logger.warning(
      'the teacher in %s was not trained on the same training and validation '
      'images as this run has; its accuracy on either may mislead',
      path,
    )
  return teacher


def _train_teacher(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  dataset: data.Dataset,
  method: methods.Method,
) -> None:
  """Trains a teacher in a directory, unless a finished one is there."""
  teacher_config = config_lib.teacher_run(config)
  if results.read_result(path):
    teacher_lib.check_sibling(path, teacher_config)
    return
  config_lib.validate(teacher_config)
  results.check_same_run(path, teacher_config)
  teacher_lib.check_fit(config, dataset, method)
  logger.info('training the teacher first, in %s', path)
  result = _run(teacher_config, path, dataset)
  logger.info('the teacher is trained\n%s', results.table(result))


class _Plan(NamedTuple):
  """How long a run is, in steps."""

  batch_size: int
  steps_per_epoch: int
  steps_per_eval: int
  total_steps: int

  def epoch(self, steps_done: int) -> float:
    """Gives the epochs that so many steps make."""
    return steps_done / self.steps_per_epoch


def _plan(config: ml_collections.ConfigDict, dataset: data.Dataset) -> _Plan:
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
  return _Plan(
    batch_size,
    steps_per_epoch,
    config.eval.every_epochs * steps_per_epoch,
    total_steps,
  )


def _train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  method: methods.Method,
  hyperparameters: Mapping[str, float],
  teacher: Teacher | None,
) -> float:
  """Trains to the end and returns the seconds it took over all starts."""
  start_time = time.perf_counter()
  plan = _plan(config, dataset)
  transformation, schedule = optimizer.build(
    config.train,
    steps_per_epoch=plan.steps_per_epoch,
    total_steps=plan.total_steps,
  )
  metadata = _metadata(config, dataset, teacher)
  model = models.build(**metadata['model'])
  normalization = jax.tree.map(
    jnp.asarray, {'mean': dataset.mean, 'std': dataset.std}
  )
  teacher_variables = teacher and teacher.network.variables
  create_state, run_step = _functions(
    config, plan, dataset, model, method, transformation, teacher
  )

  with checkpoint.Checkpoints(
    workdir,
    keep=config.checkpoint.keep,
    validated=len(dataset.validation.labels) > 0,
  ) as checkpoints:
    rng = jax.random.key(config.seed)
    first_step = checkpoints.latest_step() or 0
    if first_step:
      like = jax.eval_shape(create_state, rng, teacher_variables)
      state, saved = checkpoints.restore(first_step, like)
      for what in ('data', 'teacher'):
        digest = f'{what}_digest'
        results.check_same_digest(
          workdir, what, saved[digest], metadata[digest]
        )
      start_time -= saved['wall_time_s']
      logger.info('continuing %s from step %d', workdir, first_step)
      if first_step == plan.total_steps:
        return saved['wall_time_s']
    else:
      state = create_state(rng, teacher_variables)

    arguments = (
      *jax.device_put(dataset.train),
      normalization,
      teacher_variables,
      {name: jnp.float32(value) for name, value in hyperparameters.items()},
    )
    validation_images = jax.device_put(dataset.validation.images)
    # Compiled ahead of the loop: a second compilation would be an error.
    compile_start = time.perf_counter()
    size = len(dataset.train.labels)
    compiled_step = run_step.lower(
      state, jax.ShapeDtypeStruct((size,), jnp.int32), *arguments
    ).compile()
    logger.info(
      '%s: %s (%s), %s parameters, %d images, %d steps on %s; compiled in '
      '%.1f s',
      workdir.name,
      config.student.name,
      config.method.name,
      f'{optax.tree.size(state.params["student"]):,}',
      size,
      plan.total_steps,
      jax.devices()[0].device_kind,
      time.perf_counter() - compile_start,
    )

    with logs.RunLog(
      workdir,
      start_step=first_step,
      total_steps=plan.total_steps,
      tensorboard=config.log.tensorboard,
    ) as log:
      order = None
      window = _Window(plan)
      for done in range(first_step + 1, plan.total_steps + 1):
        epoch, position = divmod(done - 1, plan.steps_per_epoch)
        if order is None or position == 0:
          order = batches.epoch_order(step.data_key(rng), epoch, size)
        state, step_metrics = compiled_step(state, order, *arguments)
        window.add(step_metrics)
        log.advance()
        at_eval = done % plan.steps_per_eval == 0 or done == plan.total_steps
        # A checkpoint ends a window, so that a run continued there averages
        # over the same steps as one that was never cut off.
        if at_eval or done % config.log.every_steps == 0:
          averages, timings = window.close(done)
          learning_rate = float(schedule(done - 1))
          log.write(
            'train',
            done,
            averages | {'learning_rate': learning_rate},
            **timings,
          )
          _check_finite(
            {key: averages[key] for key in ('loss', 'gradient_norm')},
            done,
            workdir,
            learning_rate,
          )
        if at_eval:
          accuracy = None
          if len(dataset.validation.labels):
            logits = step.predict(
              step.Network(model, step.student_variables(state, normalization)),
              validation_images,
              config.eval.batch_size,
            )
            measured = metrics.classification(logits, dataset.validation.labels)
            accuracy = measured['accuracy']
            log.write(
              'validation', done, {'epoch': plan.epoch(done), **measured}
            )
            # So that no checkpoint holds what cannot be continued from.
            _check_finite(
              {'validation loss': measured['loss']},
              done,
              workdir,
              learning_rate,
            )
          progress = {
            'step': done,
            'epoch': plan.epoch(done),
            'validation_accuracy': accuracy,
            'wall_time_s': time.perf_counter() - start_time,
          }
          checkpoints.save(state, metadata | progress, accuracy)
          window.restart_clock()
  return time.perf_counter() - start_time


def _functions(
  config: ml_collections.ConfigDict,
  plan: _Plan,
  dataset: data.Dataset,
  model: nn.Module,
  method: methods.Method,
  transformation: optax.GradientTransformation,
  teacher: Teacher | None,
) -> tuple[Any, Any]:
  """Makes the jitted functions that create the state and advance it.

  Data, the teacher's variables and hyperparameters are arguments: nothing large
  becomes a constant of the program, and no new value compiles it again.
  """
  teacher_model = teacher and teacher.network.model
  train_step = step.make_train_step(
    model,
    method,
    transformation,
    teacher=teacher_model,
    label_smoothing=config.train.label_smoothing,
  )
  augmentation = batches.Augmentation(
    config.data.crop_padding, config.data.flip
  )

  # It runs once: on CPU, optimising its random numbers takes several times
  # longer than they do.
  quick = {'xla_backend_optimization_level': 0}

  @functools.partial(
    jax.jit, compiler_options=quick if jax.default_backend() == 'cpu' else None
  )
  def create_state(rng: jax.Array, teacher_variables: Any) -> step.TrainState:
    return step.create_state(
      rng,
      model,
      method,
      transformation,
      jax.ShapeDtypeStruct(
        (plan.batch_size, *dataset.train.images.shape[1:]), jnp.uint8
      ),
      step.Network(teacher_model, teacher_variables) if teacher_model else None,
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def run_step(
    state: step.TrainState,
    order: jax.Array,
    train_images: jax.Array,
    train_labels: jax.Array,
    *arguments: Any,
  ) -> tuple[step.TrainState, dict[str, jax.Array]]:
    images, labels = batches.train_batch(
      step.data_key(state.rng),
      state.step,
      order,
      train_images,
      train_labels,
      batch_size=plan.batch_size,
      augmentation=augmentation,
    )
    return train_step(state, images, labels, *arguments)

  return create_state, run_step


def _check_finite(
  values: Mapping[str, float],
  done: int,
  workdir: pathlib.Path,
  learning_rate: float,
) -> None:
  for name, value in values.items():
    if not math.isfinite(value):
      raise FloatingPointError(
        f'the {name} is {value} at step {done} of {workdir}, learning rate '
        f'{learning_rate:g}. Lower config.train.learning_rate, or set '
        'config.train.clip_norm'
      )


class _Window:
  """The training metrics between two log lines, left on the device."""

  def __init__(self, plan: _Plan):
    self._plan = plan
    self._pending: list[dict[str, jax.Array]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    self._start = time.perf_counter()

  def add(self, step_metrics: dict[str, jax.Array]) -> None:
    self._pending.append(step_metrics)

  def close(self, done: int) -> tuple[dict[str, float], dict[str, float]]:
    """Waits for the device; returns average metrics and the timings."""
    fetched = jax.device_get(self._pending)
    seconds = (time.perf_counter() - self._start) / len(fetched)
    averages = {
      name: float(np.mean([metric[name] for metric in fetched], dtype=float))
      for name in fetched[0]
    }
    self._pending = []
    self.restart_clock()
    return {'epoch': self._plan.epoch(done), **averages}, {
      'images_per_second': self._plan.batch_size / seconds,
      'seconds_left': (self._plan.total_steps - done) * seconds,
    }


def _metadata(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  teacher: Teacher | None,
) -> dict[str, Any]:
  """What every checkpoint of the run says of it."""
  return {
    'config': results.as_json(config),
    'model': config_lib.model_arguments(config, len(dataset.class_names)),
    'image_shape': list(dataset.train.images.shape[1:]),
    'class_names': list(dataset.class_names),
    'normalization': {
      'mean': dataset.mean.tolist(),
      'std': dataset.std.tolist(),
    },
    'data_digest': dataset.digest,
    'teacher_digest': teacher and teacher.report['digest'],
  }
