"""Training processes that are killed, stopped or robbed of their files."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time

import pytest
import tiny
from processes import ROOT, assert_same_run, command, run

from kdjax.storage import checkpoint
from kdjax.system import lock
from kdjax.system.command import INTERRUPTED

# Epochs of five steps, windows of three and a checkpoint for two: all at odds.
FLAGS = (
  *tiny.FLAGS,
  '--mode=scratch',
  '--config.log.every_steps=3',
  '--config.checkpoint.every_steps=2',
)


@contextlib.contextmanager
def training(workdir, *flags):
  """A training process, and whatever it starts; all are gone at the end."""
  with (
    workdir.with_suffix('.log').open('a') as log,
    subprocess.Popen(
      command(*FLAGS, f'--workdir={workdir}', *flags),
      cwd=ROOT,
      stdout=log,
      stderr=log,
      start_new_session=True,
    ) as process,
  ):
    try:
      yield process
    finally:
      process.kill()
      process.wait()
  with pytest.raises(ProcessLookupError):
    os.killpg(process.pid, 0)


def steps_of(workdir):
  """Steps of the complete checkpoints."""
  found = (workdir / 'checkpoints').glob('[0-9]*')
  return sorted(int(path.name) for path in found if path.name.isdecimal())


def names_in(workdir):
  """Names of what a run has left; those of TensorBoard's files say when."""
  found = (*workdir.iterdir(), *(workdir / 'checkpoints').iterdir())
  return {str(path.relative_to(workdir)) for path in found}


def saves(workdir):
  """Waits for a checkpoint of at least that step to be under way, or done."""
  before = steps_of(workdir)[-1:]

  def reached(step):
    found = (workdir / 'checkpoints').glob('[0-9]*')
    steps = {int(re.match(r'\d+', path.name)[0]) for path in found}
    return any(n >= step for n in steps - set(before))

  return reached


def logs(workdir):
  """Waits for metrics of at least that step, later than those there are."""

  def logged():
    with contextlib.suppress(FileNotFoundError):
      text = (workdir / 'metrics.jsonl').read_text()
      return max(map(int, re.findall(r'"step": (\d+),', text)), default=0)
    return 0

  before = logged()
  return lambda step: logged() >= max(step, before + 1)


def wait_for(process, condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, 'it has ended'
    assert time.monotonic() < deadline
    time.sleep(0.001)


def damage_newest(workdir, generator):
  """Truncates, flips a bit of, or deletes a file of the newest checkpoint."""
  newest = workdir / 'checkpoints' / str(steps_of(workdir)[-1])
  file = generator.choice(sorted(p for p in newest.rglob('*') if p.is_file()))
  content = bytearray(file.read_bytes())
  how = generator.choice(['truncated', 'flipped', 'deleted'])
  if how == 'deleted':
    file.unlink()
  else:
    position = generator.randrange(len(content)) if content else 0
    if how == 'truncated':
      del content[position:]
    elif content:
      content[position] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
  return f'{file.relative_to(workdir)} {how}'


@pytest.fixture(scope='module')
def kills(request):
  return request.config.getoption('--faults')


@pytest.fixture(scope='module')
def epochs(kills):
  """As many as let every kill find the run a step further."""
  return max(8, kills)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, epochs):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = run(*FLAGS, f'--config.train.epochs={epochs}', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_survives(undisturbed, tmp_path, kills, epochs):
  """Killed anywhere, its newest checkpoint damaged, and told to stop.

  `--faults=N` kills it N times; after every second one the newest checkpoint is
  damaged.
  """
  generator = random.Random(kills)
  workdir = tmp_path / 'run'
  flags = (f'--config.train.epochs={epochs}',)
  steps = 5 * epochs
  events = []
  targets = sorted(generator.randrange(steps - 10) for _ in range(kills))
  for number, step in enumerate(targets, 1):
    how = generator.choice([saves, logs]) if number % 4 else None
    reached = how and how(workdir)
    with training(workdir, *flags) as process:
      if reached:
        wait_for(process, lambda reached=reached, step=step: reached(step))
        time.sleep(generator.uniform(0, 0.1))
      else:
        # While it starts, restores or compiles.
        time.sleep(generator.uniform(0, 8))
      assert process.poll() is None
      process.kill()
    name = how.__name__ if how else 'starts'
    events.append(f'killed while it {name}, at {step}: {steps_of(workdir)}')
    if number % 2 == 0 and len(steps_of(workdir)) > 1:
      events.append(damage_newest(workdir, generator))
  print('\n'.join(events))
  damaged = sum('killed' not in event for event in events)
  assert damaged >= kills // 4

  reached = saves(workdir)
  with training(workdir, *flags) as process:
    wait_for(process, lambda: reached(steps - 8))
    # While it is at work nobody else is.
    message = f'is being made by process {process.pid} on '
    with (
      pytest.raises(BlockingIOError, match=message),
      lock.hold(workdir, 'the run'),
    ):
      pass
    process.send_signal(signal.SIGTERM)
    assert process.wait() == INTERRUPTED
  said = workdir.with_suffix('.log').read_text().splitlines()[-1]
  newest = steps_of(workdir)[-1]
  assert said == (
    f'stopped by SIGTERM: start the same command again, and {workdir} '
    f'continues from step {newest} of {steps}'
  )

  done = run(*FLAGS, *flags, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  assert_same_run(workdir, undisturbed)
  # The same checkpoints as well, and nothing half written.
  assert names_in(workdir) - {'damaged'} == names_in(undisturbed)
  assert checkpoint.find(workdir, 'last').name == str(steps)
