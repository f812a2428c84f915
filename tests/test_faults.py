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

from kdjax import checkpoint
from kdjax.command import INTERRUPTED

# Epochs of five steps, windows of three and a checkpoint for two: all at odds.
FLAGS = (
  *tiny.FLAGS,
  '--mode=scratch',
  '--config.train.epochs=8',
  '--config.log.every_steps=3',
  '--config.checkpoint.every_steps=2',
)
STEPS = 40


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


def is_saving(workdir, step):
  """Whether a checkpoint of that step, or a later one, is being written."""
  names = [path.name for path in (workdir / 'checkpoints').glob('*tmp*')]
  return any(int(re.match(r'\d+', name)[0]) >= step for name in names)


def has_logged(workdir, step):
  with contextlib.suppress(FileNotFoundError):
    text = (workdir / 'metrics.jsonl').read_text()
    return any(int(n) >= step for n in re.findall(r'"step": (\d+),', text))
  return False


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
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = run(*FLAGS, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_survives(undisturbed, tmp_path, request):
  """Killed anywhere, its newest checkpoint damaged, and told to stop.

  `--faults=N` kills it N times; after every second one the newest checkpoint is
  damaged.
  """
  kills = request.config.getoption('--faults')
  generator = random.Random(kills)
  workdir = tmp_path / 'run'
  events = []
  targets = sorted(generator.randrange(STEPS - 6) for _ in range(kills))
  for number, step in enumerate(targets, 1):
    with training(workdir) as process:
      if number % 4:
        reached = generator.choice([is_saving, has_logged])
        wait_for(process, lambda at=reached, step=step: at(workdir, step))
        time.sleep(generator.uniform(0, 0.1))
        how = reached.__name__
      else:
        # While it starts, restores or compiles.
        time.sleep(generator.uniform(0, 8))
        how = 'at any time'
      assert process.poll() is None
      process.kill()
    events.append(f'killed {how} {step}: {steps_of(workdir)}')
    if number % 2 == 0 and len(steps_of(workdir)) > 1:
      events.append(damage_newest(workdir, generator))
  print('\n'.join(events))
  assert sum('killed' not in event for event in events) >= kills // 2 - 1

  with training(workdir) as process:
    wait_for(process, lambda: is_saving(workdir, STEPS - 6))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == INTERRUPTED
  said = workdir.with_suffix('.log').read_text().splitlines()[-1]
  newest = steps_of(workdir)[-1]
  assert newest < STEPS
  assert said == (
    f'stopped by SIGTERM: start the same command again, and {workdir} '
    f'continues from step {newest} of {STEPS}'
  )

  done = run(*FLAGS, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  assert f'continuing {workdir} from step {newest}' in done.stderr
  assert_same_run(workdir, undisturbed)
  assert checkpoint.find(workdir, 'last').name == str(STEPS)
