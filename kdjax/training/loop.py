"""The training loop of a run, from where it was cut off to its end."""

import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kdjax import config as config_lib
from kdjax import data
from kdjax.evaluation import metrics, predict
from kdjax.storage import checkpoint, run_directory
from kdjax.system import devices, logs, signals, xla
from kdjax.training import initial_weights as initial_lib
from kdjax.training import metrics_window
from kdjax.training.compiled import Program
from kdjax.training.metrics_window import Window
from kdjax.training.run_log import RunLog, SilentLog
from kdjax.training.state import TrainState
from kdjax.training.teacher import Teacher

logger = logs.logger


def train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  teacher: Teacher | None,
  initial: initial_lib.Initial | None,
  run: Program,
) -> float:
  """Trains to the end, from the newest sound checkpoint if there is one.

  Args:
    config: the run's configuration.
    workdir: its directory.
    dataset: its data set.
    teacher: its teacher, if its method needs one.
    initial: what its student begins with, if that is not random; a run that has
      begun goes on without it where that is gone.
    run: its program.

  Returns:
    The seconds that it took over all starts.

  Raises:
    ValueError: the checkpoints there are damaged, or not of this run.
    FloatingPointError: loss or gradient are no longer finite, or were not for
      as many steps in a row as are left out at most.
    OSError: a checkpoint or the metrics cannot be written.
    signals.Interrupted: SIGTERM or SIGINT came; the state is saved.
  """
  start_time = time.perf_counter()
  metadata = _metadata(config, dataset, teacher, initial)
  plan = run.plan

  with (
    signals.held_back() as stopped,
    checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints,
  ):
    restored = checkpoints.restore(run.state_shapes())
    done = restored[1]['step'] if restored else 0
    devices.check_agree({'step to continue from': done})
    pending, in_a_row, lines = {}, 0, None
    if restored:
      state, saved = restored
      pending, in_a_row = saved['window'], saved['skipped_in_a_row']
      lines = saved.get('metrics_lines')
      for what in ('data', 'teacher'):
        digest = f'{what}_digest'
        run_directory.check_same_digest(
          workdir, what, saved[digest], metadata[digest]
        )
      # An older checkpoint does not say.
      metadata['init_from'] = began = saved.get('init_from')
      initial_lib.check_began_with(workdir, config, began, initial)
      start_time -= saved['wall_time_s']
      logger.info('continuing %s from step %d', workdir, done)
      if done == plan.total_steps:
        return saved['wall_time_s']
    else:
      state = run.create_state()
    run.compile(state, done)
    xla.return_memory()
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
    with (
      RunLog(
        workdir,
        start_step=done,
        total_steps=plan.total_steps,
        tensorboard=config.log.tensorboard,
        lines=lines,
        validations=checkpoints.validations(),
      )
      if devices.is_first()
      else SilentLog()
    ) as log:
      _Loop(
        config,
        workdir,
        dataset,
        run,
        checkpoints,
        log,
        Window(plan, done, pending, in_a_row),
        metadata,
        start_time,
      ).run(state, done, stopped)
  # The first process may still be completing the last checkpoint.
  devices.wait_for_all()
  return time.perf_counter() - start_time


class _Loop:
  """The loop, and what it does between the steps."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    run: Program,
    checkpoints: checkpoint.Checkpoints,
    log: RunLog | SilentLog,
    window: Window,
    metadata: Mapping[str, Any],
    start_time: float,
  ):
    self._config = config
    self._workdir = workdir
    self._validation = predict.on_devices(dataset.validation)
    self._program = run
    self._plan = run.plan
    self._checkpoints = checkpoints
    self._log = log
    self._window = window
    self._metadata = metadata
    self._start_time = start_time
    # What waits for the device is done once the next steps are under way, so
    # that it need not wait for the host; but images of a validation split that
    # is streamed are read before the next steps.
    self._waiting: list[Callable[[], None]] = []

  def run(
    self,
    state: TrainState,
    done: int,
    stopped: Callable[[], str | None],
  ) -> None:
    """Trains to the end.

    Args:
      state: the state; its buffers are reused.
      done: its step.
      stopped: as `signals.held_back` gives it.

    Raises:
      signals.Interrupted: a signal came; the state is saved.
    """
    plan, window = self._plan, self._window
    # The step of the last checkpoint.
    self._saved = done
    self._stop_if(stopped(), done, state)
    while done < plan.total_steps:
      before = done
      state, step_metrics = self._program.run(state, before)
      done += plan.next_dispatch(before)
      self._finish_waiting()
      window.add(step_metrics)
      self._log.advance(done - before)
      at_eval = done % plan.steps_per_eval == 0 or done == plan.total_steps
      every = self._config.checkpoint.every_steps
      saves = at_eval or (every and done // every > before // every)
      # A validation ends a window.
      boundaries = [
        end
        for end in range(before + 1, done + 1)
        if end % self._config.log.every_steps == 0 or (at_eval and end == done)
      ]
      if boundaries:
        self._waiting.append(functools.partial(self._report, boundaries))
      if saves:
        # The next steps reuse the state's own buffers.
        kept = _copy(state) if plan.overlap else state
        if at_eval:
          finish = functools.partial(
            self._evaluate, done, kept, self._predict(kept)
          )
        else:
          finish = functools.partial(self._save_midway, done, kept, True)
        self._waiting.append(finish)
      if not plan.overlap:
        self._finish_waiting()
        if saves:
          window.restart_clock(done)
      self._stop_if(stopped(), done, state)
    self._finish_waiting()

  def _predict(
    self, state: TrainState
  ) -> dict[str, tuple[jax.Array, np.ndarray]]:
    """Predicts the validation split, with the moving averages as well."""
    networks = {'student': self._program.student(state)}
    if state.ema:
      networks['ema'] = self._program.student(state, ema=True)
    if not self._validation.size:
      return {}
    return {
      name: predict.predict_split(
        network, self._validation, self._config.eval.batch_size
      )
      for name, network in networks.items()
    }

  def _finish_waiting(self) -> None:
    while self._waiting:
      self._waiting.pop(0)()

  def _stop_if(self, signal: str | None, done: int, state: TrainState) -> None:
    if signal is None:
      return
    self._finish_waiting()
    if self._saved != done:
      self._save_midway(done, state, scheduled=False)
    self._checkpoints.wait()
    raise signals.Interrupted(
      f'stopped by {signal}: start the same command again, and {self._workdir} '
      f'continues from step {self._saved} of {self._plan.total_steps}'
    )

  def _report(self, boundaries: Sequence[int]) -> None:
    """Writes the training metrics of the windows that end there."""
    for closed in self._window.close(boundaries):
      learning_rate = float(self._program.schedule(closed.end - 1))
      self._log.write(
        'train',
        closed.end,
        {
          'epoch': self._plan.epoch(closed.end),
          **closed.averages,
          'learning_rate': learning_rate,
        },
        **closed.timings,
      )
      if closed.wrong:
        raise self._diverged(*closed.wrong)

  def _evaluate(
    self,
    done: int,
    state: TrainState,
    predictions: Mapping[str, tuple[jax.Array, np.ndarray]],
  ) -> None:
    """Writes what a validation gave, and saves the state."""
    accuracy, loss = None, None
    if predictions:
      measured = metrics.classification(*predictions['student'])
      accuracy, loss = measured['accuracy'], measured['loss']
      if 'ema' in predictions:
        averages = metrics.classification(*predictions['ema'])
        measured |= {
          f'ema_{name}': averages[name] for name in ('accuracy', 'loss')
        }
      self._log.write(
        'validation', done, {'epoch': self._plan.epoch(done), **measured}
      )
      # So that no checkpoint holds what cannot be continued from.
      if not math.isfinite(loss):
        raise self._diverged(done, f'the validation loss is {loss}')
    self._save(done, state, accuracy, loss, scheduled=True)

  def _save_midway(self, done: int, state: TrainState, scheduled: bool) -> None:
    """Saves a state that is not validated, and what its window has so far."""
    # Else the end of the window will stop the run.
    if not metrics_window.find_wrong(self._window.fetch(), done):
      self._save(done, state, None, None, scheduled)

  def _save(
    self,
    done: int,
    state: TrainState,
    accuracy: float | None,
    loss: float | None,
    scheduled: bool,
  ) -> None:
    progress = {
      'step': done,
      'epoch': self._plan.epoch(done),
      'scheduled': scheduled,
      'validation_accuracy': accuracy,
      'validation_loss': loss,
      'wall_time_s': time.perf_counter() - self._start_time,
      # So that a run continued here averages over the same steps as one that
      # was never cut off.
      'window': {
        name: values.tolist() for name, values in self._window.fetch().items()
      },
      'skipped_in_a_row': self._window.skipped_in_a_row,
      'metrics_lines': self._log.lines,
    }
    self._checkpoints.save(state, {**self._metadata, **progress})
    self._saved = done

  def _diverged(self, done: int, what: str) -> FloatingPointError:
    learning_rate = float(self._program.schedule(done - 1))
    go_on = (
      f'The last good checkpoint is that of step {self._saved}'
      if self._saved
      else 'There is no checkpoint before that'
    )
    advice = (
      'Lower config.train.learning_rate, or set config.train.clip_norm, in '
      'another run directory'
    )
    if self._config.train.nonfinite == 'stop':
      advice += (
        ", or start again with config.train.nonfinite set to 'skip': it "
        f'continues from step {self._saved} and leaves such steps out'
      )
    return FloatingPointError(
      f'{what} at step {done} of {self._workdir}, learning rate '
      f'{learning_rate:g}. {go_on}. {advice}'
    )


@xla.jit
def _copy(state: TrainState) -> TrainState:
  return jax.tree.map(jnp.copy, state)


def _metadata(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  teacher: Teacher | None,
  initial: initial_lib.Initial | None,
) -> dict[str, Any]:
  """What every checkpoint of the run says of it."""
  return {
    'config': run_directory.as_json(config),
    'model': config_lib.model_arguments(config, len(dataset.class_names)),
    'image_shape': list(dataset.image_shape),
    'class_names': list(dataset.class_names),
    'normalization': {
      'mean': dataset.mean.tolist(),
      'std': dataset.std.tolist(),
    },
    'data_digest': dataset.digest,
    'teacher_digest': teacher and teacher.report['digest'],
    'init_from': initial and initial.report,
  }
