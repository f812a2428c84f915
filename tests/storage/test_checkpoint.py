"""Saving and restoring, with kdjax and with Orbax alone."""

import dataclasses
import errno
import functools
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tiny import MODEL

from kdjax import methods, models
from kdjax.models import features
from kdjax.storage import checkpoint
from kdjax.training import state as state_lib

IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8)


@pytest.fixture(scope='module')
def state():
  method, _ = methods.build('scratch')
  return state_lib.create_state(
    jax.random.key(0),
    models.build(**MODEL),
    method,
    optax.adam(0.1),
    state_lib.Start(IMAGES),
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
  with checkpoint.Checkpoints(workdir, keep=keep) as checkpoints:
    for done, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(at(state, done), metadata(done, accuracy))
  return sorted(
    int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*')
  )


def restore(workdir, like):
  with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
    return checkpoints.restore(jax.eval_shape(lambda: like))


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def assert_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, state):
  save_all(tmp_path, state, [0.5])
  restored, saved = restore(tmp_path, state)
  assert_equal(restored, at(state, 1))
  assert saved.items() >= metadata(1, 0.5).items()


def test_another_kind_of_device_continues(tmp_path, state):
  save_all(tmp_path, state, [0.5])
  move_to_another_device(checkpoint.find(tmp_path))
  restored, _ = restore(tmp_path, state)
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
    # A state that was not validated is never the best.
    ([0.2, None, None, 0.1, None], [1, 4, 5], 1),
    ([None, 0.0, None], [2, 3], 2),
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


def test_moving_averages_come_back_where_the_run_kept_them(tmp_path, state):
  save_all(tmp_path / 'without', state, [0.5])
  with pytest.raises(ValueError, match=r'no moving averages: .*ema_decay=0'):
    checkpoint.restore(tmp_path / 'without', ema=True)

  averages = {
    'params': jax.tree.map(lambda x: x - 1, state.params['student']),
    'batch_stats': jax.tree.map(lambda x: x - 2, state.batch_stats),
  }
  state = state.replace(ema=averages)
  workdir = tmp_path / 'with'
  save_all(workdir, state, [0.9, 0.1])
  model, found = checkpoint.restore(workdir, ema=True)
  assert model == models.build(**MODEL)
  assert set(found) == {'params', 'batch_stats', 'normalization'}
  for name, expected in averages.items():
    assert_equal(found[name], expected)
  assert_equal(
    checkpoint.restore(workdir).variables['params'],
    at(state, 1).params['student'],
  )
  with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
    restored, _ = checkpoints.restore(jax.eval_shape(lambda: state))
  assert_equal(restored, at(state, 2))


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
  assert (
    "['batch_stats', 'ema', 'method_state', 'opt_state', 'params', 'rng', "
    "'step']" in done.stdout
  )
  assert "'name': 'resnet10'" in done.stdout


class StateOfBefore(flax.struct.PyTreeNode):
  """The state of versions whose methods kept nothing but parameters."""

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  rng: Any
  ema: Any


def test_a_checkpoint_without_the_state_of_a_method_is_restored(
  tmp_path, state
):
  fields = dataclasses.fields(StateOfBefore)
  before = StateOfBefore(
    **{field.name: getattr(state, field.name) for field in fields}
  )
  save_all(tmp_path, before, [0.5])
  restored, _ = restore(tmp_path, state)
  assert_equal(restored, at(state, 1))
  # A method that does keep something cannot start from it.
  keeping = state.replace(method_state={'bank': jnp.zeros(3)})
  with pytest.raises(ValueError, match='method_state'):
    restore(tmp_path, keeping)


def test_another_dtype_or_shape_is_refused(tmp_path, state):

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
  # What is sound is not damaged: nothing older is taken in its place.
  save_all(tmp_path, state, [0.5, 0.6])
  with pytest.raises(ValueError, match=r'float32\[.*bfloat16'):
    restore(tmp_path, narrower)
  with pytest.raises(ValueError, match=r'bn1/mean \(float32\[4\], expected '):
    restore(tmp_path, reshaped)
  with pytest.raises(ValueError, match=r'checkpoints/2 .*\n.*unknown: '):
    restore(tmp_path, smaller)
  assert names(tmp_path) == ['checkpoints']


def damage(path, how):
  """Does to a file what a broken disk or a cut copy does."""
  if how == 'deleted':
    path.unlink()
    return
  content = bytearray(path.read_bytes())
  if how == 'truncated':
    del content[len(content) // 2 :]
  elif content:
    content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.fixture(scope='module')
def two_saved(tmp_path_factory, state):
  workdir = tmp_path_factory.mktemp('two')
  save_all(workdir, state, [0.1, 0.2])
  return workdir


@pytest.mark.parametrize('how', ['truncated', 'flipped', 'deleted'])
def test_no_damage_goes_unseen(tmp_path, state, two_saved, how, caplog):
  """Whichever file is damaged: never anything but what was saved."""
  newest = two_saved / 'checkpoints' / '2'
  files = [
    path.relative_to(newest) for path in newest.rglob('*') if path.is_file()
  ]
  assert len(files) > 8
  went_back = set()
  for number, file in enumerate(files):
    workdir = tmp_path / str(number)
    shutil.copytree(two_saved, workdir)
    damage(workdir / 'checkpoints' / '2' / file, how)
    caplog.clear()
    restored, saved = restore(workdir, state)
    assert_equal(restored, at(state, saved['step']))
    if saved['step'] == 1:
      went_back.add(file.parts[0])
      assert f'{workdir}/checkpoints/2 is damaged: ' in caplog.text
      assert f'is now in {workdir}/damaged/2; the run goes back' in caplog.text
      assert names(workdir / 'checkpoints') == ['1']
  assert went_back >= {'state', 'metadata'}


def test_a_step_is_saved_again_after_it_was_set_aside(
  tmp_path, state, two_saved
):
  shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
  for expected in ('2', '2-2'):
    shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'state' / 'd')
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
      _, saved = checkpoints.restore(jax.eval_shape(lambda: state))
      assert saved['step'] == 1
      assert (tmp_path / 'damaged' / expected / 'metadata').exists()
      checkpoints.save(at(state, 2), metadata(2, 0.2))
  assert checkpoint.find(tmp_path).name == '2'
  assert restore(tmp_path, state)[1]['step'] == 2


def test_where_none_is_sound_nothing_is_changed(tmp_path, state, two_saved):
  shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
  for step_done in '12':
    damage(
      tmp_path / 'checkpoints' / step_done / 'metadata' / 'metadata', 'flipped'
    )
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(
    ValueError, match=r'sound.*\n.*points/2 is.*\n.*points/1 is'
  ):
    restore(tmp_path, state)
  assert sorted(tmp_path.rglob('*')) == before


def test_a_damaged_student_is_refused(tmp_path, two_saved, caplog):
  shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
  # By this a run is known where its metadata cannot be read.
  (tmp_path / 'config.json').write_text('{}')
  newest = tmp_path / 'checkpoints' / '2'
  arrays = newest.glob('state/ocdbt.process_0/d/*')
  largest = max(arrays, key=lambda path: path.stat().st_size)
  damage(largest, 'flipped')
  with pytest.raises(checkpoint.DamagedError, match='checkpoints/2 is damaged'):
    checkpoint.restore(tmp_path)
  damage(newest / 'metadata' / 'metadata', 'truncated')
  # The best of those that are left.
  assert checkpoint.find(tmp_path).name == '1'
  assert f'{newest} is damaged: its metadata cannot be read' in caplog.text
  damage(newest.with_name('1') / 'metadata' / 'metadata', 'truncated')
  for read in (checkpoint.find, checkpoint.restore_method):
    with pytest.raises(
      checkpoint.DamagedError,
      match=r'metadata cannot be read .* Remove it, or put a sound copy there',
    ):
      read(tmp_path)


def test_no_damaged_checkpoint_is_deleted(tmp_path, state, two_saved, caplog):
  shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
  damage(tmp_path / 'checkpoints' / '1' / 'metadata' / 'metadata', 'flipped')
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    _, saved = checkpoints.restore(jax.eval_shape(lambda: state))
    assert saved['step'] == 2
    checkpoints.save(at(state, 3), metadata(3, 0.1))
  assert names(tmp_path / 'checkpoints') == ['2', '3']
  assert names(tmp_path / 'damaged') == ['1']
  assert f'is now in {tmp_path}/damaged/1' in caplog.text


@pytest.mark.parametrize(
  'reading',
  [(pathlib.Path, 'read_bytes'), (ocp.StandardCheckpointer, 'restore')],
)
def test_what_may_pass_is_no_damage(state, two_saved, monkeypatch, reading):
  def fail(*_):
    raise OSError(errno.ESTALE, 'Stale file handle')

  monkeypatch.setattr(*reading, fail)
  before = sorted(two_saved.rglob('*'))
  with pytest.raises(OSError, match=r'cannot be read now.*Stale file handle'):
    restore(two_saved, state)
  assert sorted(two_saved.rglob('*')) == before


def test_a_checkpoint_of_another_version(tmp_path, state, monkeypatch):
  monkeypatch.setattr(checkpoint, '__version__', '0.0.9')
  save_all(tmp_path, state, [0.5])
  monkeypatch.undo()
  with pytest.raises(
    ValueError, match=r'written by kdjax 0\.0\.9, and this is'
  ):
    restore(tmp_path, state)
  # To be used it need not be continued.
  checkpoint.restore(tmp_path)
  # Before there were checksums.
  path = checkpoint.find(tmp_path) / 'metadata' / 'metadata'
  path.write_text(json.dumps(metadata(1, 0.5)))
  with pytest.raises(ValueError, match='written by kdjax an older version'):
    restore(tmp_path, state)
  checkpoint.restore(tmp_path)


def test_no_checkpoint_is_said_so(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint of kdjax in'):
    checkpoint.restore(tmp_path)
  with pytest.raises(FileNotFoundError, match='there is no file or directory'):
    checkpoint.restore(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match="unknown checkpoint 'first'"):
    checkpoint.find(tmp_path, 'first')


def test_what_another_program_has_saved_is_not_called_damaged(tmp_path, state):
  root = tmp_path / 'checkpoints'
  with ocp.CheckpointManager(root) as manager:
    for done in (3, 20):
      manager.save(
        done,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave({'w': np.zeros(2, np.float32)}),
          metadata=ocp.args.JsonSave({'lr': 0.1}),
        ),
      )
  (tmp_path / 'config.json').write_text('{"lr": 0.1}')
  for path in (tmp_path, root, root / '3'):
    assert not checkpoint.is_own(path)
    with pytest.raises(FileNotFoundError, match='no checkpoint of kdjax in'):
      checkpoint.restore(path)
  # Nor is it taken for a run that can be continued, or begun again.
  with pytest.raises(ValueError, match='step 20, which another program has'):
    checkpoint.check_empty(tmp_path)
  checkpoint.check_empty(tmp_path / 'new')
  shutil.rmtree(root)
  save_all(tmp_path, state, [0.5])
  assert checkpoint.is_own(tmp_path)
  assert checkpoint.is_own(root / '1')
  checkpoint.check_empty(tmp_path)


def test_a_path_that_orbax_cannot_open_is_not_called_damaged(tmp_path):
  with pytest.raises(ValueError, match=r'udce9. is not UTF-8 text .*: rename'):
    checkpoint.find(tmp_path / 'caf\udce9')
