"""The training loop of a run, from where it was cut off to its end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from kdjax import config as config_lib
from kdjax.storage import checkpoint, run_directory
from kdjax.system import devices, signals, xla
from kdjax.system.logs import logger
from kdjax.training import initial_weights, trackers
from kdjax.training.compiled import Program
from kdjax.training.hooks import Clock, Hooks, Saver
from kdjax.training.metrics_window import Window
from kdjax.training.run import Run
from kdjax.training.run_log import RunLog, SilentLog
from kdjax.training.state import TrainState


class _Start(NamedTuple):
  """Where a run starts from.

  Attributes:
    state: the state; None if it has to be created.
    done: steps done.
    metadata: what each further checkpoint says of the run.
    saved: what the checkpoint that it continues from says; else empty.
  """

  state: TrainState | None
  done: int
  metadata: dict[str, Any]
  saved: dict[str, Any]


def train(run: Run, program: Program) -> dict[str, float]:
  """Trains to the end, from the newest sound checkpoint if there is one.

  Args:
    run: the run.
    program: its program.

  Returns:
    The seconds that it took over all starts, as `Clock.times`.

  Raises:
    ValueError: the checkpoints there are damaged, or not of this run.
    FloatingPointError: loss or gradient are no longer finite, or were not for
      as many steps in a row as are left out at most.
    OSError: a checkpoint or the metrics cannot be written.
    signals.Interrupted: SIGTERM or SIGINT came; the state is saved.
  """
  clock = Clock()
  keep = run.config.checkpoint.keep
  with (
    signals.held_back() as stopped,
    checkpoint.Checkpoints(run.workdir, keep=keep) as checkpoints,
  ):
    start = _restore(run, program, checkpoints)
    if start.done == run.plan.total_steps:
      return {name: start.saved.get(name, 0.0) for name in clock.times()}
    clock.go_on(start.saved)
    state = program.create_state() if start.state is None else start.state
    logger.info('%s: compiling the training step', run.workdir.name)
    program.compile(state, start.done)
    xla.return_memory()
    _announce(run, program, state)
    with _open_log(run, start, checkpoints) as log:
      window = Window(
        run.plan,
        start.done,
        start.saved.get('window', {}),
        start.saved.get('skipped_in_a_row', 0),
      )
      saver = Saver(checkpoints, start.metadata, window, log, clock)
      saver.saved = start.done
      hooks = Hooks(run, program, window, log, saver)
      _do_steps(program, hooks, state, start.done, stopped)
  # The first process may still be completing the last checkpoint.
  devices.wait_for_all()
  return clock.times()


def _do_steps(
  program: Program,
  hooks: Hooks,
  state: TrainState,
  done: int,
  stopped: Callable[[], str | None],
) -> None:
  """Does the steps that are left.

  Args:
    program: the run's program.
    hooks: what happens between the steps.
    state: the state; its buffers are reused.
    done: its step.
    stopped: as `signals.held_back` yields it.
  """
  hooks.stop_if(stopped(), done, state)
  for before, after in program.plan.remaining(done):
    state, step_metrics = program.run(state, before)
    hooks.finish()
    hooks.after_steps(before, after, state, step_metrics)
    hooks.stop_if(stopped(), after, state)
  hooks.finish()


def _restore(
  run: Run, program: Program, checkpoints: checkpoint.Checkpoints
) -> _Start:
  """Restores the newest sound checkpoint, and checks that it is this run's."""
  metadata = _metadata(run)
  restored = checkpoints.restore(program.state_shapes())
  done = restored[1]['step'] if restored else 0
  devices.check_agree({'step to continue from': done})
  if not restored:
    return _Start(None, 0, metadata, {})
  state, saved = restored
  for what in ('data', 'teacher'):
    digest = f'{what}_digest'
    run_directory.check_same_digest(
      run.workdir, what, saved[digest], metadata[digest]
    )
  # An older checkpoint does not say.
  metadata['init_from'] = began = saved.get('init_from')
  initial_weights.check_same_initial(
    run.workdir, run.config, began, run.initial
  )
  logger.info('continuing %s from step %d', run.workdir, done)
  return _Start(state, done, metadata, saved)


def _metadata(run: Run) -> dict[str, Any]:
  """Describes the run for each of its checkpoints."""
  dataset = run.dataset
  return {
    'config': run_directory.as_json(run.config),
    'model': config_lib.model_arguments(run.config, len(dataset.class_names)),
    'image_shape': list(dataset.image_shape),
    'class_names': list(dataset.class_names),
    'normalization': {
      'mean': dataset.mean.tolist(),
      'std': dataset.std.tolist(),
    },
    'data_digest': dataset.digest,
    'teacher_digest': run.teacher and run.teacher.report['digest'],
    'init_from': run.initial and run.initial.report,
  }


def _announce(run: Run, program: Program, state: TrainState) -> None:
  logger.info(
    '%s: %s (%s), %s parameters, %d images, %d steps on %d × %s; compiled '
    'in %.1f s',
    run.workdir.name,
    run.config.student.name,
    run.config.method.name,
    f'{optax.tree.size(state.params["student"]):,}',
    run.dataset.train.size,
    run.plan.total_steps,
    jax.device_count(),
    jax.devices()[0].device_kind,
    program.compile_time_s,
  )


def _open_log(
  run: Run, start: _Start, checkpoints: checkpoint.Checkpoints
) -> RunLog | SilentLog:
  if not devices.is_first():
    return SilentLog()
  return RunLog(
    run.workdir,
    start_step=start.done,
    total_steps=run.plan.total_steps,
    tensorboard=run.config.log.tensorboard,
    trackers=trackers.start(run.workdir, run.config),
    lines=start.saved.get('metrics_lines'),
    validations=checkpoints.validations(),
  )
