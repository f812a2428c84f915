"""What a run does between its steps: logging, validation, checkpoints."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.evaluation import metrics, predict
from kdjax.storage import checkpoint
from kdjax.system import devices, signals, xla
from kdjax.training import metrics_window
from kdjax.training.compiled import Program
from kdjax.training.metrics_window import Window
from kdjax.training.run import Run
from kdjax.training.run_log import RunLog, SilentLog
from kdjax.training.state import TrainState

# Logits and labels of the validation split, of the student and of its moving
# averages.
_Predictions = Mapping[str, tuple[jax.Array, np.ndarray]]


class Clock:
  """How long a run takes, as if it had never been cut off; from now on."""

  def __init__(self) -> None:
    self._start = self._now()

  def go_on(self, saved: Mapping[str, Any]) -> None:
    """Adds the times that a checkpoint has, if it has them."""
    for name in self._start:
      self._start[name] -= saved.get(name, 0.0)

  def times(self) -> dict[str, float]:
    """Returns `wall_time_s`, and what of it was spent in `compile_time_s`."""
    return {name: now - self._start[name] for name, now in self._now().items()}

  @staticmethod
  def _now() -> dict[str, float]:
    return {
      'wall_time_s': time.perf_counter(),
      'compile_time_s': xla.compile_seconds(),
    }


class Saver:
  """Saves checkpoints with all that a run needs to continue.

  Args:
    checkpoints: where they go.
    metadata: what each of them says of the run.
    window: the training metrics since the last line of the log.
    log: the log.
    clock: how long the run has taken.

  Attributes:
    saved: the step of the last checkpoint.
  """

  def __init__(
    self,
    checkpoints: checkpoint.Checkpoints,
    metadata: Mapping[str, Any],
    window: Window,
    log: RunLog | SilentLog,
    clock: Clock,
  ):
    self._checkpoints = checkpoints
    self._metadata = metadata
    self._window = window
    self._log = log
    self._clock = clock
    self.saved = 0

  def save(
    self, done: int, state: TrainState, scheduled: bool, **progress: Any
  ) -> None:
    """Saves a state.

    Args:
      done: its step.
      state: the state.
      scheduled: whether the configuration has it saved at this step.
      **progress: `epoch`, `validation_accuracy` and `validation_loss`.
    """
    progress |= {
      'step': done,
      'scheduled': scheduled,
      **self._clock.times(),
      # So that a run continued here averages over the same steps as one that
      # was never cut off.
      'window': {
        name: values.tolist() for name, values in self._window.fetch().items()
      },
      'skipped_in_a_row': self._window.skipped_in_a_row,
      'metrics_lines': self._log.lines,
    }
    self._checkpoints.save(state, {**self._metadata, **progress})
    self.saved = done

  def wait(self) -> None:
    """Waits until the last checkpoint is on the disk."""
    self._checkpoints.wait()


class Hooks:
  """All of that, in the order in which it has to happen.

  What waits for the device is done once the next steps are under way, so that
  it need not wait for the host; but images of a validation split that is
  streamed are read before the next steps.

  Args:
    run: the run.
    program: its program.
    window: the training metrics since the last line of the log.
    log: the log.
    saver: saves the checkpoints.
  """

  def __init__(
    self,
    run: Run,
    program: Program,
    window: Window,
    log: RunLog | SilentLog,
    saver: Saver,
  ):
    self._run = run
    self._plan = run.plan
    self._program = program
    self._window = window
    self._log = log
    self._saver = saver
    self._validation = predict.on_devices(run.dataset.validation)
    self._waiting: list[Callable[[], None]] = []
    self._first_shown = False

  def after_steps(
    self,
    before: int,
    done: int,
    state: TrainState,
    step_metrics: Mapping[str, jax.Array],
  ) -> None:
    """Does what is due after some steps, or leaves it for `finish`.

    Args:
      before: steps done before them.
      done: steps done.
      state: the state, whose buffers the next steps reuse.
      step_metrics: the metrics of each of the steps.
    """
    plan, settings = self._plan, self._run.config
    self._window.add(step_metrics)
    self._log.advance(done - before)
    if not self._first_shown:
      self._first_shown = True
      self._waiting.append(lambda: self._log.show_loss(step_metrics['loss']))
    validates = plan.validates(done)
    every = settings.checkpoint.every_steps
    saves = validates or (every and done // every > before // every)
    # A validation ends a window.
    boundaries = [
      end
      for end in range(before + 1, done + 1)
      if end % settings.log.every_steps == 0 or (validates and end == done)
    ]
    if boundaries:
      self._waiting.append(functools.partial(self._report, boundaries))
    if saves:
      # The next steps reuse the state's own buffers.
      kept = _copy(state) if plan.overlap else state
      if validates:
        finish = functools.partial(
          self._validate, done, kept, self._predict(kept)
        )
      else:
        finish = functools.partial(self._save_midway, done, kept, True)
      self._waiting.append(finish)
    if not plan.overlap:
      self.finish()
      if saves:
        self._window.restart_clock(done)

  def finish(self) -> None:
    """Does what waits for the device."""
    while self._waiting:
      self._waiting.pop(0)()

  def stop_if(self, signal: str | None, done: int, state: TrainState) -> None:
    """Saves the state and stops, if a signal came.

    Args:
      signal: its name, if one came.
      done: steps done.
      state: the state.

    Raises:
      signals.Interrupted: it came; the state is saved.
    """
    if signal is None:
      return
    self.finish()
    if self._saver.saved != done:
      self._save_midway(done, state, scheduled=False)
    self._saver.wait()
    raise signals.Interrupted(
      f'stopped by {signal}: start the same command again, and '
      f'{self._run.workdir} continues from step {self._saver.saved} of '
      f'{self._plan.total_steps}'
    )

  def _report(self, boundaries: Sequence[int]) -> None:
    """Writes the training metrics of the windows that end there."""
    for closed in self._window.close(boundaries):
      learning_rate = float(self._program.schedule(closed.end - 1))
      averages = {**closed.averages, 'learning_rate': learning_rate}
      self._write('train', closed.end, averages, closed.timings)
      if closed.wrong:
        raise self._diverged(*closed.wrong)

  def _predict(self, state: TrainState) -> _Predictions:
    """Predicts the validation split, with the moving averages as well."""
    networks = {'student': self._program.student(state)}
    if state.ema:
      networks['ema'] = self._program.student(state, ema=True)
    if not self._validation.size:
      return {}
    batch_size = self._run.config.eval.batch_size
    return {
      name: predict.predict_split(network, self._validation, batch_size)
      for name, network in networks.items()
    }

  def _validate(
    self, done: int, state: TrainState, predictions: _Predictions
  ) -> None:
    """Writes what a validation measured, and saves the state."""
    accuracy, loss = None, None
    if predictions:
      measured = metrics.classification(*predictions['student'])
      accuracy, loss = measured['accuracy'], measured['loss']
      if 'ema' in predictions:
        averages = metrics.classification(*predictions['ema'])
        measured |= {
          f'ema_{name}': averages[name] for name in ('accuracy', 'loss')
        }
      self._write('validation', done, measured, {})
      # So that no checkpoint holds what cannot be continued from.
      if not math.isfinite(loss):
        raise self._diverged(done, f'the validation loss is {loss}')
    self._save(done, state, True, accuracy, loss)

  def _write(
    self,
    kind: str,
    done: int,
    metrics: Mapping[str, float],
    timings: Mapping[str, float],
  ) -> None:
    """Writes metrics to the log, and hands them to the user's callbacks."""
    epoch = self._plan.epoch(done)
    self._log.write(kind, done, {'epoch': epoch, **metrics}, **timings)
    if devices.is_first():
      callbacks = self._run.callbacks
      call = callbacks.on_log if kind == 'train' else callbacks.on_evaluation
      values = {'step': done, 'epoch': epoch, **metrics, **timings}
      call(self._run.workdir, values)

  def _save_midway(self, done: int, state: TrainState, scheduled: bool) -> None:
    """Saves a state that is not validated, and what its window has so far."""
    # Else the end of the window will stop the run.
    if not metrics_window.find_wrong(self._window.fetch(), done):
      self._save(done, state, scheduled)

  def _save(
    self,
    done: int,
    state: TrainState,
    scheduled: bool,
    accuracy: float | None = None,
    loss: float | None = None,
  ) -> None:
    self._saver.save(
      done,
      state,
      scheduled,
      epoch=self._plan.epoch(done),
      validation_accuracy=accuracy,
      validation_loss=loss,
    )

  def _diverged(self, done: int, what: str) -> FloatingPointError:
    learning_rate = float(self._program.schedule(done - 1))
    saved = self._saver.saved
    go_on = (
      f'The last good checkpoint is that of step {saved}'
      if saved
      else 'There is no checkpoint before that'
    )
    advice = (
      'Lower config.train.learning_rate, or set config.train.clip_norm, in '
      'another run directory'
    )
    if self._run.config.train.nonfinite == 'stop':
      advice += (
        ", or start again with config.train.nonfinite set to 'skip': it "
        f'continues from step {saved} and leaves such steps out'
      )
    return FloatingPointError(
      f'{what} at step {done} of {self._run.workdir}, learning rate '
      f'{learning_rate:g}. {go_on}. {advice}'
    )


@xla.jit
def _copy(state: TrainState) -> TrainState:
  return jax.tree.map(jnp.copy, state)
