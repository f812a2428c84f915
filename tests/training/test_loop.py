"""What the loop does when something comes in between, in this process."""

import contextlib
import gc
import json
import os
import pathlib
import resource
import shutil
import signal
import threading
import time
import types

import jax
import numpy as np
import pytest
import tiny
from processes import assert_same_run, metrics_of

from kdjax.storage import checkpoint, metrics_log
from kdjax.system import lock, signals
from kdjax.training import (
  compiled,
  loop,
  metrics_window,
  setup,
  step,
  trackers,
  train,
)
from kdjax.training import plan as plan_lib
from kdjax.training import shared as shared_lib
from kdjax.training.hooks import Clock
from kdjax.training.metrics_window import Window
from kdjax.training.run_log import RunLog


def config(**changes):
  """Epochs of five steps, windows of three, and dispatches of two: at odds."""
  config = tiny.config('scratch')
  config.log.update(every_steps=3, tensorboard=False)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """Starts runs as on an accelerator, which share one compiled program."""
  plan, shared = plan_lib.plan, shared_lib.Session()
  with pytest.MonkeyPatch.context() as patch:
    changes = {'overlap': True, 'steps_per_dispatch': 2}
    patch.setattr(
      plan_lib, 'plan', lambda *args: plan(*args)._replace(**changes)
    )
    yield lambda workdir, **changes: train.train_and_evaluate(
      config(**changes), workdir, shared
    )


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  start(workdir)
  return workdir


@pytest.fixture
def meanwhile(monkeypatch):
  """Has something happen, once, while a run makes the dispatch after a step."""
  original = compiled.Program.run

  def at(step, happens):
    def run(self, state, steps_done):
      result = original(self, state, steps_done)
      if steps_done != step:
        return result
      monkeypatch.setattr(compiled.Program, 'run', original)
      return happens(*result) or result

    monkeypatch.setattr(compiled.Program, 'run', run)

  return at


def terminate(*_):
  os.kill(os.getpid(), signal.SIGTERM)


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


@pytest.mark.parametrize(
  ('before', 'saved', 'left'),
  [
    (0, 2, [2]),
    # Where it is validated anyway.
    (4, 5, [5]),
    # Within a window: of its three steps the last is made after the start.
    (5, 7, [5, 7]),
  ],
)
def test_a_run_that_is_stopped_continues(
  start, undisturbed, tmp_path, meanwhile, before, saved, left
):
  meanwhile(before, terminate)
  message = f'SIGTERM: start the same .* continues from step {saved} of 15'
  with pytest.raises(signals.Interrupted, match=message):
    start(tmp_path)
  assert steps_of(tmp_path) == left
  start(tmp_path)
  assert_same_run(tmp_path, undisturbed)


def test_trackers_get_each_line_and_the_result(
  start, tmp_path, meanwhile, monkeypatch
):
  opened = []

  class Tracker:
    lacks_earlier = False

    def __init__(self):
      self.steps, self.failed = [], None
      opened.append(self)

    def write(self, record):
      self.steps.append((record['kind'], record['step']))

    def close(self, failed=False):
      self.failed = failed

  monkeypatch.setattr(trackers, 'start', lambda *_: [Tracker()])
  meanwhile(5, terminate)
  with pytest.raises(signals.Interrupted):
    start(tmp_path)
  result = start(tmp_path)
  first, second, tested = opened
  assert [first.failed, second.failed, tested.failed] == [True, False, False]
  assert first.steps + second.steps == [
    (record['kind'], record['step'])
    for record in metrics_log.read_records(tmp_path)
  ]
  assert tested.steps == [
    ('test', result['best']['step']),
    ('test_last', 15),
  ]


def test_times_go_on_with_the_run(start, tmp_path, meanwhile, monkeypatch):
  now = {'wall_time_s': 20.0, 'compile_time_s': 10.0}
  monkeypatch.setattr(Clock, '_now', staticmethod(lambda: dict(now)))

  def stop(*_):
    now.update(wall_time_s=120.0, compile_time_s=50.0)
    terminate()

  meanwhile(5, stop)
  with pytest.raises(signals.Interrupted):
    start(tmp_path)
  now.update(wall_time_s=220.0, compile_time_s=70.0)

  def work(*_):
    now.update(wall_time_s=250.0, compile_time_s=75.0)

  meanwhile(12, work)
  student = start(tmp_path)['student']
  assert (student['wall_time_s'], student['compile_time_s']) == (130.0, 45.0)


def test_a_run_is_stopped_before_its_first_step(start, tmp_path, monkeypatch):
  monkeypatch.setattr(compiled.Program, 'compile', terminate)
  with pytest.raises(signals.Interrupted, match='from step 0 of 15'):
    start(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()


def test_a_signal_after_the_last_step_is_not_lost(start, tmp_path, monkeypatch):
  close = checkpoint.Checkpoints.__exit__

  def terminate_and_close(*args):
    terminate()
    close(*args)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, '__exit__', terminate_and_close)
    with pytest.raises(signals.Interrupted, match='SIGTERM: start the same'):
      start(tmp_path)
  assert steps_of(tmp_path)[-1] == 15


def test_checkpoints_between_validations_change_nothing(
  start, undisturbed, tmp_path
):
  changes = {'checkpoint.every_steps': 2, 'checkpoint.keep': 30}
  start(tmp_path, **changes)
  # At the end of what reaches or passes a multiple of two.
  assert steps_of(tmp_path) == [2, 4, 5, 7, 9, 10, 12, 14, 15]
  assert_same_run(tmp_path, undisturbed)
  midway = checkpoint.read_metadata(tmp_path / 'checkpoints' / '14')
  assert midway['validation_accuracy'] is None
  # Steps 13 and 14 have no line yet.
  assert [len(values) for values in midway['window'].values()] == [2] * 4


def poison(state, step_metrics):
  """The second step of a dispatch has no finite gradient."""
  gradient_norm = np.asarray(step_metrics['gradient_norm']).copy()
  gradient_norm[1] = np.inf
  return state, {**step_metrics, 'gradient_norm': gradient_norm}


@pytest.mark.parametrize(
  ('before', 'every', 'saved'),
  [
    (7, 0, 5),
    (7, 1, 7),
    # Its window goes on after the next checkpoint would be made.
    (5, 1, 5),
  ],
)
def test_the_step_that_is_not_finite_is_named(
  start, tmp_path, meanwhile, before, every, saved
):
  meanwhile(before, poison)
  with pytest.raises(FloatingPointError) as error:
    start(tmp_path, **{'checkpoint.every_steps': every})
  said = str(error.value)
  step_named = f'at step {before + 2} of {tmp_path}, learning rate'
  assert f'the gradient_norm is inf {step_named}' in said
  assert f'The last good checkpoint is that of step {saved}.' in said
  assert f"nonfinite set to 'skip': it continues from step {saved}" in said
  # Nothing after it is kept, however often checkpoints are made.
  assert steps_of(tmp_path)[-1] == saved
  last = metrics_of(tmp_path)[-1]
  assert (last['step'], last['gradient_norm']) == (9, None)


@pytest.mark.parametrize('nonfinite', ['stop', 'skip'])
def test_the_program_skips_what_it_is_told_to(nonfinite, monkeypatch):
  asked = []
  monkeypatch.setattr(
    step,
    'make_train_step',
    lambda *arguments: asked.append(arguments[-1].skip_nonfinite),
  )
  chosen = config(**{'train.nonfinite': nonfinite})
  run = setup.resolve(chosen, pathlib.Path('run'), shared_lib.Session())
  compiled.Program(run)
  assert asked == [nonfinite == 'skip']


def window_of(pending=None, done=0, in_a_row=0):
  plan = types.SimpleNamespace(batch_size=4, total_steps=200)
  return Window(plan, done, pending or {}, in_a_row)


def metrics_with(*skipped):
  """Metrics of some steps, of which some are skipped."""
  skipped = np.float32(skipped)
  value = np.float32(1 + np.arange(len(skipped))) * (1 - skipped)
  return {'loss': value, 'gradient_norm': 2 * value, 'skipped': skipped}


def test_skipped_steps_are_no_part_of_an_average():
  window = window_of()
  window.add(metrics_with(0, 1, 0, 1, 1))
  some, none = window.close([3, 5])
  assert some.averages == {
    'loss': 2.0,
    'gradient_norm': 4.0,
    'skipped': 1 / 3,
  }
  assert none.averages['skipped'] == 1
  assert np.isnan(
    [none.averages[name] for name in ('loss', 'gradient_norm')]
  ).all()
  assert some.wrong is none.wrong is None


@pytest.mark.parametrize('skips', ['before', 'after'])
def test_what_is_not_finite_may_be_treated_otherwise_midway(skips):
  # Two steps, a checkpoint, and one step after it.
  old, new = metrics_with(0, 1), metrics_with(0)
  if skips == 'before':
    del new['skipped']
  else:
    old = metrics_with(0, 0)
    del old['skipped']
    new = metrics_with(1)
  window = window_of(jax.tree.map(np.ndarray.tolist, old), done=2)
  window.add(new)
  (closed,) = window.close([3])
  assert closed.averages['skipped'] == pytest.approx(1 / 3)
  assert closed.averages['loss'] == (1 if skips == 'before' else 1.5)
  assert closed.wrong is None


def test_a_run_that_skips_one_step_after_the_other_is_given_up():
  limit = metrics_window._MOST_SKIPPED
  window = window_of(in_a_row=limit - 4)
  # A step that is kept begins the count anew.
  window.add(metrics_with(1, 1, 1, 0, 1, 1))
  first, second = window.close([3, 6])
  assert first.wrong is second.wrong is None
  assert window.skipped_in_a_row == 2
  # A checkpoint within a window counts its steps once.
  window.add(metrics_with(*[1] * (limit - 4)))
  pending = jax.tree.map(np.ndarray.tolist, window.fetch())
  window = window_of(pending, 2 + limit, window.skipped_in_a_row)
  window.add(metrics_with(1, 1, 0))
  (closed,) = window.close([5 + limit])
  assert closed.wrong == (
    4 + limit,
    'loss or gradient were not finite in 50 steps in a row, the last of them',
  )
  # So that it counts as diverged, whatever the other steps gave.
  assert np.isnan(closed.averages['loss'])


def test_a_full_disk_is_told_of_and_costs_nothing(
  start, undisturbed, tmp_path, meanwhile
):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(*_):
    while not (tmp_path / 'checkpoints' / '5').exists():
      time.sleep(0.01)
    # No file may grow beyond this: less than that of a checkpoint's arrays.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

  meanwhile(7, fill)
  try:
    # What TensorStore says of a short write differs with where it falls.
    with pytest.raises(OSError, match=r'File too large|OUT_OF_RANGE') as error:
      start(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  said = str(error.value)
  assert f'checkpoint of step 10 in {tmp_path}/checkpoints: ' in said
  assert said.endswith('then start the same command again')
  assert checkpoint.find(tmp_path, 'last').name == '5'
  start(tmp_path)
  assert_same_run(tmp_path, undisturbed)


def test_metrics_that_cannot_be_written_are_told_of(tmp_path):
  @contextlib.contextmanager
  def full():
    with RunLog(
      tmp_path, start_step=0, total_steps=9, tensorboard=False
    ) as log:
      log._file.close()
      log._file = open('/dev/full', 'w')  # noqa: SIM115
      yield log

  def write():
    with full() as log:
      log.write('train', 3, {'loss': 1.0, 'accuracy': 0.5})

  with pytest.raises(OSError, match=r'metrics of step 3 in .*: .*No space'):
    write()

  def close():
    with full() as log:
      log._file.write('what is still to be written')

  with pytest.raises(OSError, match=r'last metrics in .*: .*No space'):
    close()


def test_tensorboard_loses_nothing_and_bears_a_full_disk(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  threads = threading.enumerate()

  # Its file grows faster than that of the metrics.
  values = {'loss': 1.0, 'accuracy': 0.5, **{f'm{n}': 1.0 for n in range(40)}}

  def write():
    with RunLog(tmp_path, start_step=0, total_steps=9, tensorboard=True) as log:
      log.write('train', 1, values)
      (events,) = (tmp_path / 'tensorboard').iterdir()
      # On the disk already, should the run be killed now.
      assert b'train/accuracy' in events.read_bytes()
      first = events.stat().st_size
      log.write('train', 3, values)
      # More than what the other file will have.
      size = events.stat().st_size * 3 // 2 - first // 2
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
      log.write('train', 6, values)

  try:
    with pytest.raises(OSError, match=r'metrics of step 6 in .*too large'):
      write()
    # With nothing left that would be written at the end.
    gc.collect()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  # The first bar of a process, shown or not, starts a thread of tqdm's.
  left = set(threading.enumerate()) - set(threads)
  assert {type(thread).__name__ for thread in left} <= {'TMonitor'}
  assert len(metrics_log.read_records(tmp_path)) == 3


def test_a_directory_that_cannot_be_made_is_named(start, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(
    NotADirectoryError, match=r'file is a file: choose another'
  ):
    start(tmp_path / 'file' / 'run')


def test_a_teacher_that_another_process_trains_is_waited_for(tmp_path):
  with (
    lock.hold(tmp_path / 'teacher', 'the run'),
    pytest.raises(BlockingIOError, match=r'the teacher in .*/teacher is being'),
  ):
    train.train_and_evaluate(tiny.config('feature'), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_what_another_process_made_meanwhile_is_not_made_again(
  start, undisturbed, tmp_path, monkeypatch
):
  hold = lock.hold

  @contextlib.contextmanager
  def hold_late(*args):
    directory, *_ = args
    with hold(*args):
      shutil.copytree(undisturbed, directory, dirs_exist_ok=True)
      yield

  monkeypatch.setattr(lock, 'hold', hold_late)
  monkeypatch.setattr(loop, 'train', None)
  found = start(tmp_path / 'same')
  made = json.loads((undisturbed / 'result.json').read_text())
  assert found['best'] == made['best']
  with pytest.raises(ValueError, match=r'another configuration:\n  seed'):
    start(tmp_path / 'other', seed=1)


def test_a_damaged_newest_checkpoint_is_made_again(
  start, undisturbed, tmp_path, meanwhile, caplog
):
  meanwhile(12, terminate)
  with pytest.raises(signals.Interrupted, match='from step 14'):
    start(tmp_path)
  saved = checkpoint.read_metadata(tmp_path, 'last')
  assert saved['metrics_lines'] == len(metrics_log.read_records(tmp_path))
  path = tmp_path / 'checkpoints' / '14' / 'metadata' / 'metadata'
  changed = json.loads(path.read_text()) | {'wall_time_s': 0.0}
  path.write_text(json.dumps(changed))
  start(tmp_path)
  assert 'the run goes back to step 10' in caplog.text
  assert_same_run(tmp_path, undisturbed)
