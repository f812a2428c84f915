"""Which checkpoints a run leaves, wherever it was killed or stopped."""

import contextlib
import functools
import json
import os
import pathlib
import random
import shutil

import numpy as np
import pytest

from kdjax.storage import checkpoint, digests
from kdjax.storage.checkpoint import Saved
from kdjax.training.state import TrainState

# By step what a run saves: its validation accuracy, or None within an epoch.
SCHEDULE = {2: None, 4: 0.7, 6: None, 8: 0.7, 10: 0.2, 12: 0.6}
TOTAL = 12


class Killed(BaseException):
  """The process is gone: nothing that it would still do happens."""


class Disk:
  """Counts what changes the disk, and kills the process at one of these."""

  def __init__(self, patch):
    self.operations, self.kill_at = 0, -1
    for name in ('rename', 'replace', 'mkdir', 'unlink', 'rmdir'):
      patch.setattr(os, name, functools.partial(self._do, getattr(os, name)))

  def _do(self, original, *args, **kwargs):
    if self.operations == self.kill_at:
      raise Killed
    self.operations += 1
    return original(*args, **kwargs)

  def restart(self, kill_at=-1):
    self.operations, self.kill_at = 0, kill_at


class Checkpointer:
  """Writes as Orbax does: elsewhere, and half of it once it is waited for."""

  def __init__(self, _):
    self.writing = None

  def save(self, directory, args):
    self.writing = directory, args.metadata.item
    self.temporary = pathlib.Path(f'{directory}.orbax-checkpoint-tmp')
    self.temporary.mkdir()
    (self.temporary / 'state').mkdir()

  def wait_until_finished(self):
    directory, metadata = self.writing
    (self.temporary / 'metadata').mkdir()
    path = self.temporary / 'metadata' / 'metadata'
    path.write_text(json.dumps(metadata))
    self.temporary.rename(directory)

  def close(self):
    pass


@pytest.fixture
def disk(monkeypatch):
  monkeypatch.setattr(checkpoint.ocp, 'AsyncCheckpointer', Checkpointer)
  monkeypatch.setattr(checkpoint, '_restore_state', lambda _, like, __: like)
  # Arrays are beside the point.
  monkeypatch.setattr(checkpoint, '_check_continues', lambda *_: None)
  monkeypatch.setattr(digests, 'describe', lambda _: {})
  return Disk(monkeypatch)


def state(step):
  return TrainState(np.int32(step), {}, {}, {}, (), None, {})


def train(workdir, keep, stop_at=None):
  """Makes a run, or continues it; a signal stops it after a step."""
  with checkpoint.Checkpoints(workdir, keep=keep) as checkpoints:
    restored = checkpoints.restore(state(0))
    done = restored[1]['step'] if restored else 0
    for step in range(done + 1, TOTAL + 1):
      content = {'step': step, 'validation_accuracy': SCHEDULE.get(step)}
      if step in SCHEDULE:
        checkpoints.save(state(step), content)
      elif step == stop_at:
        checkpoints.save(state(step), content | {'scheduled': False})
      if step == stop_at:
        checkpoints.wait()
        return


def left(workdir):
  return {path.name for path in (workdir / 'checkpoints').iterdir()}


@pytest.mark.parametrize(
  ('keep', 'kept'), [(1, {'8', '12'}), (2, {'8', '10', '12'})]
)
def test_killed_anywhere_it_leaves_what_an_undisturbed_run_does(
  tmp_path, disk, keep, kept
):
  train(tmp_path / 'undisturbed', keep)
  assert left(tmp_path / 'undisturbed') == kept
  operations = disk.operations
  generator = random.Random(keep)
  for kill_at in range(operations):
    workdir = tmp_path / str(kill_at)
    # Once more while it continues, and at some step it is told to stop.
    for again in (kill_at, generator.randrange(operations)):
      disk.restart(again)
      with contextlib.suppress(Killed):
        train(workdir, keep, stop_at=generator.choice([None, 3, 9, 11]))
      disk.restart()
    train(workdir, keep)
    assert left(workdir) == kept, kill_at
  # And nothing is changed where there is nothing left to do.
  disk.restart()
  train(workdir, keep)
  assert not disk.operations


def test_a_run_that_was_stopped_keeps_its_schedule_as_well(tmp_path, disk):
  train(tmp_path, 2, stop_at=9)
  assert left(tmp_path) == {'6', '8', '9'}
  train(tmp_path, 2, stop_at=10)
  assert left(tmp_path) == {'8', '10'}


def test_a_directory_that_was_removed_is_not_made_again(tmp_path, disk):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run', keep=1)
  checkpoints.save(state(1), {'validation_accuracy': None})
  checkpoints.wait()
  shutil.rmtree(tmp_path / 'run')
  with pytest.raises(OSError, match=r'step 2 in .*run/checkpoints: .*removed'):
    checkpoints.save(state(2), {'validation_accuracy': None})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('saved', 'kept'),
  [
    ({}, set()),
    ({1: Saved(None, False)}, {1}),
    ({1: Saved(0.9, True), 2: Saved(0.1, True), 3: Saved(None, True)}, {1, 3}),
    # Equally good: the later one.
    ({1: Saved(0.9, True), 2: Saved(0.9, True), 3: Saved(0.1, True)}, {2, 3}),
    # Where a signal stopped it counts as one to continue from, and no more.
    (
      {1: Saved(0.9, True), 2: Saved(0.1, True), 3: Saved(None, False)},
      {1, 2, 3},
    ),
    ({2: Saved(0.1, True), 3: Saved(None, False), 4: Saved(0.2, True)}, {4}),
  ],
)
def test_what_is_kept_depends_on_what_is_saved_alone(saved, kept):
  assert checkpoint.retained(saved, keep=1) == kept
