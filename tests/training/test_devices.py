import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import topology
from processes import losses_of

from kdjax.storage import checkpoint, metrics_log, run_directory
from kdjax.system import devices
from kdjax.training import train
from kdjax.training.shared import Session

SCRIPT = pathlib.Path(topology.__file__)
TOPOLOGIES = ('eight', 'processes')


def start(workdir, count, *arguments):
  """Starts a process that simulates so many devices."""
  flags = (
    f'--xla_force_host_platform_device_count={count} '
    f'{os.environ.get("XLA_FLAGS", "")}'
  )
  return subprocess.Popen(
    [sys.executable, SCRIPT, workdir, *arguments],
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*processes):
  for process in processes:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Runs on 1 device, on 8, and on 2 in each of 2 processes.

  Each continues a run of the one before it, and the first one of the last.
  """
  root = tmp_path_factory.mktemp('topologies')
  session = Session()
  (root / 'one').mkdir()
  logits = np.random.default_rng(0).normal(size=(1437, 10))
  np.savez(root / 'one' / 'logits.npz', ids=np.arange(1437), logits=logits)
  topology.run_all(root / 'one', session)
  topology.losses_of_methods(root / 'one')
  finish(start(root / 'eight', 8, root / 'one'))
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  finish(
    *(
      start(root / 'processes', 2, root / 'eight', address, '2', str(i))
      for i in range(2)
    )
  )
  interrupted = root / 'processes' / 'interrupted'
  train.train_and_evaluate(
    topology.config(topology.CONTINUED, root / 'one'), interrupted, session
  )
  return root


def difference(run, other):
  """Returns the largest difference of two runs' parameters, and the scale."""
  ours, theirs = (
    jax.tree.leaves(checkpoint.restore(path, 'last').variables['params'])
    for path in (run, other)
  )
  return (
    max(abs(a - b).max() for a, b in zip(ours, theirs, strict=True)),
    max(abs(a).max() for a in ours),
  )


@pytest.mark.parametrize('method', topology.METHODS)
@pytest.mark.parametrize('kind', TOPOLOGIES)
def test_result_does_not_depend_on_the_devices(root, kind, method):
  one, other = root / 'one' / method, root / kind / method
  expected = losses_of(one)
  assert len(expected) == topology.STEPS
  np.testing.assert_allclose(losses_of(other), expected, rtol=1e-5)
  largest, scale = difference(one, other)
  assert 0 < largest < 1e-4 * scale


def test_losses_of_whole_batches_do_not_depend_on_the_devices(root):
  """Losses, states and gradients, of every method that has such a loss."""
  with (
    np.load(root / 'one' / 'losses.npz') as one,
    np.load(root / 'eight' / 'losses.npz') as eight,
  ):
    assert {'sp', 'rkd', 'crd', 'mlkd', 'crld'} <= {
      name.partition('/')[0] for name in one
    }
    for name in one:
      scale = abs(one[name]).max() + 1e-6
      np.testing.assert_allclose(
        eight[name], one[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name
      )


def test_logits_that_are_known_are_divided_as_the_images_are(root):
  expected = losses_of(root / 'one' / 'known')
  assert len(expected) == 5
  found = losses_of(root / 'processes' / 'known')
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'run', ['eight/continued', 'processes/continued', 'processes/interrupted']
)
def test_run_continues_on_other_devices(root, run):
  continued, one = root / run, root / 'one' / topology.CONTINUED
  np.testing.assert_allclose(losses_of(continued), losses_of(one), rtol=1e-5)
  largest, scale = difference(one, continued)
  assert largest < 1e-4 * scale


def test_processes_write_once(root):
  run = root / 'processes' / 'feature'
  steps = [
    record['step']
    for record in metrics_log.read_records(run)
    if record['kind'] == 'train'
  ]
  assert steps == list(range(1, topology.STEPS + 1))
  assert run_directory.read_result(run)['device_count'] == 4


@pytest.mark.parametrize('index', [0, 1])
def test_all_processes_stop_when_one_is_told_to(root, index):
  path = root / 'processes' / f'errors{index}.json'
  said = json.loads(path.read_text())['interrupted']
  step = re.search(r'continues from step (\d+) of 10$', said)[1]
  assert 0 < int(step) < topology.STEPS


def test_uneven_batch_is_refused(root):
  errors = json.loads((root / 'eight' / 'errors0.json').read_text())
  assert 'batch_size is 33' in errors['uneven']
  assert '8 devices' in errors['uneven']


@pytest.mark.parametrize('index', [0, 1])
def test_processes_that_disagree_are_refused(root, index):
  path = root / 'processes' / f'errors{index}.json'
  errors = json.loads(path.read_text())
  assert 'do not agree' in errors['differing']
  assert 'rate: 0.05 in process 0, 1.05 in process 1' in errors['differing']
  where = '' if index else 'in process 1: '
  assert errors['one is wrong'] == (
    f'{where}config.train.epochs is 0: expected from 1 to 1,000,000'
  )
  assert 'one process' in errors['replay']
  assert not (root / 'processes' / 'refused').exists()


def test_nothing_but_sums_is_exchanged(root):
  """A step exchanges sums, and neither images nor activations."""
  exchanged = json.loads((root / 'eight' / 'exchanged.json').read_text())
  assert set(exchanged) == {'all-reduce'}


def no_cluster(*_, **__):
  """Stands for JAX where it detects no cluster; this process has begun."""
  raise ValueError('coordinator_address should be defined.')


def test_without_a_cluster_a_process_is_alone(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', no_cluster)
  devices.start()


def test_asking_for_a_cluster_where_there_is_none(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', no_cluster)
  with pytest.raises(ValueError, match='Give --coordinator_address'):
    devices.start(distributed=True)
  with pytest.raises(ValueError, match='Give --coordinator_address'):
    devices.start(num_processes=2)


def test_processes_given_to_a_run_that_is_not_to_be_distributed():
  with pytest.raises(ValueError, match='not to be distributed'):
    devices.start('localhost:1', distributed=False)


def test_a_cluster_is_joined(monkeypatch):
  joined = []
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *arguments, **_: joined.append(arguments),
  )
  devices.start()
  devices.start('localhost:1', 2, 1)
  devices.start(distributed=False)
  assert joined == [(), ('localhost:1', 2, 1)]
