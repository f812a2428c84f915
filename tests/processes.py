"""Commands in processes of their own, as a user starts them."""

import contextlib
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kdjax.storage import checkpoint, metrics_log
from kdjax.training import compiled

ROOT = pathlib.Path(__file__).resolve().parents[1]


def command(*flags, module='kdjax.main'):
  return [sys.executable, '-m', module, *flags]


def run(*flags, module='kdjax.main', cwd=ROOT, **options):
  return subprocess.run(
    command(*flags, module=module),
    cwd=cwd,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def metrics_of(workdir):
  """The metrics of a run, without what depends on the machine's speed."""
  records = metrics_log.read_records(workdir)
  for record in records:
    for timing in ('images_per_second', 'seconds_left'):
      record.pop(timing, None)
  return records


def outcome(result):
  """All that a run results in, but its times and where it was made."""
  return {name: result[name] for name in ('best', 'last', 'data')}


@contextlib.contextmanager
def cut_off(dispatch):
  """Interrupts a run of this process before one of its dispatches, from 1."""
  take, count = compiled.Program.run, 0

  def run(self, state, steps_done):
    nonlocal count
    count += 1
    if count == dispatch:
      raise KeyboardInterrupt
    return take(self, state, steps_done)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiled.Program, 'run', run)
    with pytest.raises(KeyboardInterrupt):
      yield


def losses_of(workdir):
  """The training loss of each logged step."""
  return [
    record['loss']
    for record in metrics_of(workdir)
    if record['kind'] == 'train'
  ]


def state_of(workdir, which):
  """Every array of a checkpoint, read with Orbax alone."""
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(checkpoint.find(workdir, which) / 'state')
  # Without a file that kdjax does not need, Orbax takes a key for its data.
  return jax.tree.map(
    lambda leaf: (
      jax.random.key_data(leaf)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    state,
  )


def assert_same_run(workdir, whole):
  """Whether two runs computed the same, bit for bit."""
  assert metrics_of(workdir) == metrics_of(whole)
  results = [
    json.loads((path / 'result.json').read_text()) for path in (workdir, whole)
  ]
  for which in ('best', 'last'):
    assert results[0][which] == results[1][which]
    ours, theirs = (state_of(path, which) for path in (workdir, whole))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
