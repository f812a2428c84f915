"""Saving and restoring, with kdjax and with Orbax alone."""

import functools
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import MODEL

from kdjax import checkpoint, features, methods, models, step

IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8)


@pytest.fixture(scope='module')
def state():
  method, _ = methods.build('scratch')
  return step.create_state(
    jax.random.key(0), models.build(**MODEL), method, optax.adam(0.1), IMAGES
  )


def metadata(done, accuracy):
  return {
    'model': MODEL,
    'normalization': {'mean': [0.1], 'std': [0.3]},
    'step': done,
    'validation_accuracy': accuracy,
  }


def at(state, done):
  """The state as if so many steps had been made, different at each."""
  params = jax.tree.map(lambda x: x + done, state.params)
  return state.replace(step=jnp.int32(done), params=params)


def save_all(workdir, state, accuracies, keep=2):
  validated = accuracies[0] is not None
  with checkpoint.Checkpoints(
    workdir, keep=keep, validated=validated
  ) as checkpoints:
    for done, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(at(state, done), metadata(done, accuracy), accuracy)
  return sorted(
    int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*')
  )


def assert_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, state):
  save_all(tmp_path, state, [0.5])
  with checkpoint.Checkpoints(tmp_path, keep=2, validated=True) as checkpoints:
    assert checkpoints.latest_step() == 1
    like = jax.eval_shape(lambda: state)
    restored, saved = checkpoints.restore(1, like)
  assert_equal(restored, at(state, 1))
  assert saved == metadata(1, 0.5)


def test_another_kind_of_device_continues(tmp_path, state):
  save_all(tmp_path, state, [0.5])
  move_to_another_device(checkpoint.find(tmp_path))
  with checkpoint.Checkpoints(tmp_path, keep=2, validated=True) as checkpoints:
    restored, _ = checkpoints.restore(1, jax.eval_shape(lambda: state))
  assert_equal(restored, at(state, 1))
  assert_equal(
    checkpoint.restore(tmp_path).variables['params'],
    at(state, 1).params['student'],
  )


@pytest.mark.parametrize('item', ['state', 'metadata'])
def test_a_checkpoint_killed_while_being_deleted_is_passed_over(
  tmp_path, state, item
):
  save_all(tmp_path, state, [0.1, 0.9, 0.3, 0.4])
  shutil.rmtree(tmp_path / 'checkpoints' / '2' / item)
  assert checkpoint.find(tmp_path, 'best').name == '4'


@pytest.mark.parametrize(
  ('accuracies', 'kept', 'best'),
  [
    ([0.1, 0.9, 0.3, 0.4], [2, 3, 4], 2),
    ([0.1, 0.2, 0.3, 0.4], [3, 4], 4),
    # Equally good: the later one.
    ([0.7, 0.7, 0.3, 0.3, 0.1], [2, 4, 5], 2),
    ([None, None, None], [2, 3], 3),
  ],
)
def test_the_last_ones_and_the_best_are_kept(
  tmp_path, state, accuracies, kept, best
):
  assert save_all(tmp_path, state, accuracies) == kept
  assert checkpoint.find(tmp_path, 'best').name == str(best)
  assert checkpoint.find(tmp_path, 'last').name == str(kept[-1])


def test_a_student_is_ready_for_apply(tmp_path, state):
  save_all(tmp_path, state, [0.9, 0.1])
  for path, done in (
    (tmp_path, 1),
    (tmp_path / 'checkpoints' / '2', 2),
    (str(tmp_path), 1),
  ):
    model, variables = checkpoint.restore(path)
    assert model == models.build(**MODEL)
    assert_equal(variables['params'], at(state, done).params['student'])
    assert_equal(variables['batch_stats'], state.batch_stats)
  pixels = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
  normalized = features.normalize(pixels, **variables['normalization'])
  logits = jax.jit(model.apply)(variables, normalized)
  outputs, _ = jax.jit(functools.partial(features.forward, model, train=False))(
    variables, pixels
  )
  np.testing.assert_allclose(logits, outputs.logits, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(
    variables['normalization']['std'], np.float32([0.3])
  )


PLAIN_ORBAX = """
import json, pathlib, sys
import jax, numpy as np
import orbax.checkpoint as ocp

path = pathlib.Path(sys.argv[1]).absolute()
with ocp.PyTreeCheckpointer() as checkpointer:
  saved = checkpointer.metadata(path / 'state').item_metadata
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree
  )
  state = checkpointer.restore(path / 'state', restore_args=as_numpy)
metadata = json.loads((path / 'metadata' / 'metadata').read_text())
kernel = state['params']['student']['conv1']['kernel']
print(kernel.shape, float(kernel.sum()), sorted(state), metadata['model'])
assert not any(name.startswith('kdjax') for name in sys.modules)
"""


def move_to_another_device(directory):
  """Makes a checkpoint look as if a GPU had written it."""
  path = directory / 'state' / '_sharding'
  text = path.read_text()
  assert 'cpu:0' in text
  path.write_text(text.replace('cpu:0', 'cuda:0'))


@pytest.mark.parametrize('written_by', ['this device', 'another device'])
def test_orbax_alone_reads_it(tmp_path, state, written_by):
  save_all(tmp_path, state, [0.5])
  if written_by == 'another device':
    move_to_another_device(checkpoint.find(tmp_path))
  done = subprocess.run(
    [sys.executable, '-c', PLAIN_ORBAX, str(checkpoint.find(tmp_path))],
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  total = float(at(state, 1).params['student']['conv1']['kernel'].sum())
  assert '(3, 3, 1, 4)' in done.stdout
  assert f'{total:.3f}'[:5] in done.stdout
  assert "['batch_stats', 'opt_state', 'params', 'rng', 'step']" in done.stdout
  assert "'name': 'resnet10'" in done.stdout


def test_another_dtype_or_shape_is_refused(tmp_path, state):
  save_all(tmp_path, state, [0.5])

  def change(tree, **to):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        to.get('shape', x.shape), to.get('dtype', x.dtype)
      ),
      tree,
    )

  narrower = state.replace(params=change(state.params, dtype=jnp.bfloat16))
  reshaped = state.replace(batch_stats=change(state.batch_stats, shape=(1,)))
  smaller = state.replace(params={'student': {}, 'method': {}})
  with checkpoint.Checkpoints(tmp_path, keep=2, validated=True) as checkpoints:
    with pytest.raises(ValueError, match=r'saved float32\[.*bfloat16'):
      checkpoints.restore(1, narrower)
    with pytest.raises(ValueError, match=r'bn1/mean: saved float32\[4\]'):
      checkpoints.restore(1, reshaped)
    with pytest.raises(ValueError, match='expected nothing'):
      checkpoints.restore(1, smaller)


def test_no_checkpoint_is_said_so(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
      checkpoint.restore(path)
  with pytest.raises(ValueError, match="unknown checkpoint 'first'"):
    checkpoint.find(tmp_path, 'first')
