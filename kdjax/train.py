"""One run from its configuration to its result: the training loop."""

import functools
import importlib.metadata
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kdjax import (
  checkpoint,
  data,
  devices,
  logs,
  measure,
  methods,
  metrics,
  models,
  program,
  results,
  runtime,
  step,
)
from kdjax import config as config_lib
from kdjax import teacher as teacher_lib
from kdjax.program import Plan, Program
from kdjax.replay import Replay
from kdjax.session import Session
from kdjax.teacher import Teacher
from kdjax.version import __version__

logger = logs.logger


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  session: Session | None = None,
) -> dict[str, Any]:
  """Runs an experiment, or continues it where it was cut off.

  A method that needs a teacher, and is given none by `config.teacher.path`,
  uses the run directory beside this one that `config.teacher.sibling` names,
  and trains a teacher there first if need be. A run that has finished is only
  evaluated again.

  Args:
    config: as `kdjax.config.default` describes it.
    workdir: the run directory. It receives `config.json`, `metrics.jsonl`,
      `checkpoints/`, `tensorboard/` and, at the end, `predictions.npz` and
      `result.json`.
    session: what this run shares with others of this process.

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
  devices.check_agree(_facts(config, workdir))
  results.check_same_run(workdir, config)
  if results.read_result(workdir):
    logger.info('%s has finished; evaluating its checkpoints', workdir)
    result, _ = measure.evaluate(workdir, config)
    return result
  return _run(config, workdir, session or Session())


def _run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> dict[str, Any]:
  dataset = session.dataset(config.data)
  devices.check_agree({'data': dataset.digest})
  method, hyperparameters = config_lib.build_method(config)
  # Before a teacher is trained for hours: what else can be wrong?
  program.plan(config, dataset)
  model = models.build(
    **config_lib.model_arguments(config, len(dataset.class_names))
  )
  models.rematerialize(model, config.device.remat)
  teacher, replay = None, None
  if method.needs_teacher:
    teacher = _find_teacher(config, workdir, session, method.teacher_features)
    replay = _find_replay(config, dataset, method, teacher)
  run = session.program(
    config, dataset, method, hyperparameters, teacher, replay
  )
  devices.once(lambda: results.write_config(workdir, config))
  devices.check_agree({'run directory': results.is_run(workdir)})
  wall_time = _train(config, workdir, dataset, teacher, run)
  measured, predictions = measure.measure(
    workdir, config, dataset, teacher, session
  )
  result = {
    'method': config.method.name,
    'seed': config.seed,
    'hyperparameters': hyperparameters,
    'data': {
      'name': dataset.name,
      'digest': dataset.digest,
      'train': dataset.train.size,
      'validation': dataset.validation.size,
      'test': dataset.test.size,
    },
    'device': jax.devices()[0].device_kind,
    'device_count': jax.device_count(),
    'platform': jax.default_backend(),
    'versions': {
      'kdjax': __version__,
      **{
        package: importlib.metadata.version(package)
        for package in ('jax', 'flax', 'optax', 'orbax-checkpoint')
      },
    },
    'config': results.as_json(config),
    **measured,
  }
  result['student'] |= {
    'model': config.student.name,
    'stem': config.student.stem,
    'wall_time_s': wall_time,
  }

  def write() -> None:
    results.write_predictions(workdir, predictions)
    results.write_result(workdir, result)

  devices.once(write)
  return result


def _facts(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Gives what all processes of a run must have been started with."""
  fields = flax.traverse_util.flatten_dict(results.as_json(config), sep='.')
  # Each host may have its own copy.
  del fields['data.data_dir']
  return {
    **{f'config.{name}': value for name, value in fields.items()},
    'run directory': str(workdir),
    'finished': results.read_result(workdir) is not None,
  }


def prepare_teacher(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> pathlib.Path:
  """Finds the teacher of a run, and trains it first if there is none.

  Args:
    config: configuration of a run whose method needs a teacher.
    workdir: the run's directory.
    session: what it shares with other runs.

  Returns:
    The teacher's run directory, or the checkpoint that the configuration names.

  Raises:
    ValueError: the teacher there is another than the run asks for, or would not
      fit it.
    FileNotFoundError: data are not where the configuration says.
    FloatingPointError: the teacher's loss is no longer finite.
  """
  if config.teacher.path:
    return pathlib.Path(config.teacher.path)
  path = workdir.absolute().parent / config.teacher.sibling
  if path == workdir.absolute():
    raise ValueError(
      f'{workdir} is where the teacher of its neighbours belongs '
      f'(config.teacher.sibling={config.teacher.sibling!r}): choose another '
      '--workdir'
    )
  _train_teacher(config, path, session)
  return path


def _find_teacher(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  session: Session,
  names: Sequence[str],
) -> Teacher:
  """Loads the teacher, after training it if there is none."""
  path = prepare_teacher(config, workdir, session)
  teacher = session.teacher(path, config, names)
  dataset = session.dataset(config.data)
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
  session: Session,
) -> None:
  """Trains a teacher in a directory, unless a finished one is there."""
  teacher_config = config_lib.teacher_run(config)
  if results.read_result(path):
    teacher_lib.check_sibling(path, teacher_config)
    return
  config_lib.validate(teacher_config)
  results.check_same_run(path, teacher_config)
  method, _ = config_lib.build_method(config)
  teacher_lib.check_fit(config, session.dataset(config.data), method)
  logger.info('training the teacher first, in %s', path)
  result = _run(teacher_config, path, session)
  logger.info('the teacher is trained\n%s', results.table(result))


def _find_replay(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  method: methods.Method,
  teacher: Teacher,
) -> Replay | None:
  """Opens the kept logits of the teacher, if the configuration names any."""
  if not config.teacher.replay:
    return None
  if jax.process_count() > 1:
    raise ValueError(
      'config.teacher.replay works in one process, and this run has '
      f"{jax.process_count()}: set it to ''"
    )
  if method.teacher_features:
    raise ValueError(
      'config.teacher.replay keeps logits only, and the method '
      f"'{config.method.name}' also wants the teacher's "
      f"{', '.join(method.teacher_features)}: set it to ''"
    )
  about = {
    'teacher': teacher.report['digest'],
    'teacher_dtype': config.teacher.dtype or config.student.dtype,
    'data': dataset.digest,
    'seed': config.seed,
    'batch_size': config.train.batch_size,
    'crop_padding': config.data.crop_padding,
    'flip': config.data.flip,
  }
  return Replay(config.teacher.replay, about, config.teacher.replay_dtype)


def _train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  teacher: Teacher | None,
  run: Program,
) -> float:
  """Trains to the end and returns the seconds it took over all starts."""
  start_time = time.perf_counter()
  metadata = _metadata(config, dataset, teacher)
  plan = run.plan

  with checkpoint.Checkpoints(
    workdir,
    keep=config.checkpoint.keep,
    validated=dataset.validation.size > 0,
  ) as checkpoints:
    done = checkpoints.latest_step() or 0
    if done:
      state, saved = checkpoints.restore(done, run.state_shapes())
      for what in ('data', 'teacher'):
        digest = f'{what}_digest'
        results.check_same_digest(
          workdir, what, saved[digest], metadata[digest]
        )
      start_time -= saved['wall_time_s']
      logger.info('continuing %s from step %d', workdir, done)
      if done == plan.total_steps:
        return saved['wall_time_s']
    else:
      state = run.create_state()
    run.compile(state, done)
    runtime.return_memory()
    logger.info(
      '%s: %s (%s), %s parameters, %d images, %d steps on %d × %s; compiled '
      'in %.1f s',
      workdir.name,
      config.student.name,
      config.method.name,
      f'{optax.tree.size(state.params["student"]):,}',
      dataset.train.size,
      plan.total_steps,
      jax.device_count(),
      jax.devices()[0].device_kind,
      run.compile_time_s,
    )
    validation_images = devices.replicate(dataset.validation.images)

    with (
      logs.RunLog(
        workdir,
        start_step=done,
        total_steps=plan.total_steps,
        tensorboard=config.log.tensorboard,
      )
      if devices.is_first()
      else logs.SilentLog()
    ) as log:
      window = _Window(plan, done)

      def report(boundaries: Sequence[int]) -> None:
        """Writes the training metrics of the windows that end there."""
        for step_done, averages, timings in window.close(boundaries):
          learning_rate = float(run.schedule(step_done - 1))
          log.write(
            'train',
            step_done,
            averages | {'learning_rate': learning_rate},
            **timings,
          )
          _check_finite(
            {key: averages[key] for key in ('loss', 'gradient_norm')},
            step_done,
            workdir,
            learning_rate,
          )

      def finish_evaluation(
        step_done: int, state: step.TrainState, logits: jax.Array | None
      ) -> None:
        """Writes what a validation gave, and saves the state."""
        accuracy, loss = None, None
        if logits is not None:
          measured = metrics.classification(logits, dataset.validation.labels)
          accuracy, loss = measured['accuracy'], measured['loss']
          log.write(
            'validation',
            step_done,
            {'epoch': plan.epoch(step_done), **measured},
          )
          # So that no checkpoint holds what cannot be continued from.
          _check_finite(
            {'validation loss': loss},
            step_done,
            workdir,
            float(run.schedule(step_done - 1)),
          )
        progress = {
          'step': step_done,
          'epoch': plan.epoch(step_done),
          'validation_accuracy': accuracy,
          'validation_loss': loss,
          'wall_time_s': time.perf_counter() - start_time,
        }
        checkpoints.save(state, metadata | progress, accuracy)

      # What waits for the device is done once the next steps are under way, so
      # that it never waits for the host.
      waiting: list[Callable[[], None]] = []

      def finish_waiting() -> None:
        while waiting:
          waiting.pop(0)()

      while done < plan.total_steps:
        before = done
        state, step_metrics = run.run(state, before)
        done += plan.next_dispatch(before)
        finish_waiting()
        window.add(step_metrics)
        log.advance(done - before)
        at_eval = done % plan.steps_per_eval == 0 or done == plan.total_steps
        # A checkpoint ends a window, so that a run continued there averages
        # over the same steps as one that was never cut off.
        boundaries = [
          end
          for end in range(before + 1, done + 1)
          if end % config.log.every_steps == 0 or (at_eval and end == done)
        ]
        if boundaries:
          waiting.append(functools.partial(report, boundaries))
        if at_eval:
          # The next steps reuse the state's own buffers.
          kept = _copy(state) if plan.overlap else state
          logits = None
          if dataset.validation.size:
            logits = step.predict(
              run.student(kept), validation_images, config.eval.batch_size
            )
          waiting.append(
            functools.partial(finish_evaluation, done, kept, logits)
          )
        if not plan.overlap:
          finish_waiting()
          if at_eval:
            window.restart_clock()
      finish_waiting()
  # The first process may still be completing the last checkpoint.
  devices.wait_for_all()
  return time.perf_counter() - start_time


@jax.jit
def _copy(state: step.TrainState) -> step.TrainState:
  return jax.tree.map(jnp.copy, state)


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

  def __init__(self, plan: Plan, done: int):
    self._plan = plan
    self._done = done
    self._pending: list[Mapping[str, jax.typing.ArrayLike]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    self._start = time.perf_counter()

  def add(self, step_metrics: Mapping[str, jax.Array]) -> None:
    self._pending.append(step_metrics)

  def close(
    self, boundaries: Sequence[int]
  ) -> Iterator[tuple[int, dict[str, float], dict[str, float]]]:
    """Waits for the device; yields average metrics and timings of windows.

    Args:
      boundaries: the step that each window ends with. Steps after the last
        stay for the next call.
    """
    fetched = {
      name: np.concatenate([metric[name] for metric in metrics])
      for metrics in [jax.device_get(self._pending)]
      for name in metrics[0]
    }
    count = boundaries[-1] - self._done
    seconds = (time.perf_counter() - self._start) / count
    self.restart_clock()
    begin = 0
    for end in boundaries:
      size = end - self._done
      averages = {
        name: float(np.mean(values[begin : begin + size], dtype=float))
        for name, values in fetched.items()
      }
      begin += size
      self._done = end
      yield (
        end,
        {'epoch': self._plan.epoch(end), **averages},
        {
          'images_per_second': self._plan.batch_size / seconds,
          'seconds_left': (self._plan.total_steps - end) * seconds,
        },
      )
    self._pending = [{name: values[begin:] for name, values in fetched.items()}]


def _metadata(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  teacher: Teacher | None,
) -> dict[str, Any]:
  """What every checkpoint of the run says of it."""
  return {
    'config': results.as_json(config),
    'model': config_lib.model_arguments(config, len(dataset.class_names)),
    'image_shape': list(dataset.image_shape),
    'class_names': list(dataset.class_names),
    'normalization': {
      'mean': dataset.mean.tolist(),
      'std': dataset.std.tolist(),
    },
    'data_digest': dataset.digest,
    'teacher_digest': teacher and teacher.report['digest'],
  }
