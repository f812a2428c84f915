"""Kept teacher logits are those of the very images that the student sees."""

import json

import jax
import numpy as np
import pytest
import taken
import tiny
from processes import losses_of

from kdjax import methods
from kdjax.data import augment
from kdjax.models import features
from kdjax.storage import checkpoint
from kdjax.storage.teacher_logits import Replay
from kdjax.training import teacher as teacher_lib
from kdjax.training import train
from kdjax.training.shared import Session
from kdjax.training.state import data_key

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
ABOUT = {'teacher': 'abc', 'seed': 0}


def kept(directory, about=ABOUT, dtype='float32', **changes):
  """Reads or makes epoch 2, whose three steps are LOGITS."""
  call = {'number': 2, 'steps': 3, 'seen': 'pixels', 'compute': lambda: LOGITS}
  return Replay(directory, about, dtype).epoch(**(call | changes))


def never():
  raise AssertionError('it computes')


# What is on disk


def test_an_epoch_is_computed_once(tmp_path):
  np.testing.assert_array_equal(kept(tmp_path / 'replay'), LOGITS)
  again = kept(tmp_path / 'replay', compute=never)
  np.testing.assert_array_equal(again, LOGITS)
  assert again.dtype == np.float32


def test_half_precision_is_half_the_size_and_the_same_for_all(tmp_path):
  first = kept(tmp_path / 'half', dtype='bfloat16')
  np.testing.assert_array_equal(
    first, kept(tmp_path / 'half', dtype='bfloat16', compute=never)
  )
  # Eight bits of precision.
  np.testing.assert_allclose(first, LOGITS, rtol=2**-8)
  assert (first != LOGITS).any()
  with np.load(tmp_path / 'half' / 'epoch_0002.npz') as shard:
    assert shard['logits'].nbytes == LOGITS.nbytes / 2


def test_a_longer_epoch_is_computed_again_and_a_shorter_one_is_not(tmp_path):
  kept(tmp_path, steps=1, compute=lambda: LOGITS[:1])
  assert len(kept(tmp_path)) == 3
  assert len(kept(tmp_path, steps=2, compute=never)) >= 2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'about': {'teacher': 'xyz', 'seed': 0}}, "teacher: 'abc' there, 'xyz' n"),
    ({'about': {'teacher': 'abc', 'seed': 1}}, 'seed: 0 there, 1 now'),
    ({'about': {'teacher': 'abc'}}, 'seed: 0 there, None now'),
    ({'dtype': 'bfloat16'}, "dtype: 'float32' there, 'bfloat16' now"),
    ({'seen': 'others'}, 'other images .* pixels there, others now'),
  ],
)
def test_what_was_made_from_something_else_is_refused(
  tmp_path, changes, message
):
  kept(tmp_path)
  with pytest.raises(ValueError, match=message) as error:
    kept(tmp_path, **changes)
  assert str(tmp_path) in str(error.value)


def test_epochs_that_changed_places_are_refused(tmp_path):
  kept(tmp_path)
  (tmp_path / 'epoch_0002.npz').rename(tmp_path / 'epoch_0000.npz')
  with pytest.raises(ValueError, match='epoch: 2 there, 0 now'):
    kept(tmp_path, number=0)


def test_an_epoch_of_another_directory_is_refused(tmp_path):
  kept(tmp_path / 'one')
  kept(tmp_path / 'two', about={'teacher': 'abc', 'seed': 1})
  (tmp_path / 'one' / 'epoch_0002.npz').replace(
    tmp_path / 'two' / 'epoch_0002.npz'
  )
  with pytest.raises(ValueError, match=r'other images .*key: '):
    kept(tmp_path / 'two', about={'teacher': 'abc', 'seed': 1})


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[: len(content) // 2],
    lambda content: b'',
    lambda content: content.replace(
      LOGITS.tobytes()[:8], LOGITS.tobytes()[8:16]
    ),
  ],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
  kept(tmp_path)
  path = tmp_path / 'epoch_0002.npz'
  content = path.read_bytes()
  path.write_bytes(damage(content))
  assert path.read_bytes() != content
  with pytest.raises(ValueError, match=r'epoch_0002.npz is damaged .*remove'):
    kept(tmp_path)


def test_other_logits_with_a_valid_file_are_refused(tmp_path):
  kept(tmp_path)
  path = tmp_path / 'epoch_0002.npz'
  with np.load(path) as shard:
    arrays = dict(shard)
  np.savez(path, **arrays | {'logits': arrays['logits'][::-1]})
  with pytest.raises(ValueError, match='its checksum differs'):
    kept(tmp_path)


# In a run


def config(**changes):
  """Crops, flips and shuffles; the last step of an epoch leaves some over."""
  run = tiny.config('response')
  run.data.update(train_limit=150, flip=True)
  run.train.epochs = 2
  run.teacher.train.epochs = 1
  run.log.update(tensorboard=False, every_steps=1)
  with run.unlocked():
    run.update_from_flattened_dict(changes)
  return run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The same run three times: live, keeping logits, and replaying them."""
  root = tmp_path_factory.mktemp('replay')
  session = Session()
  replay = {'teacher.replay': str(root / 'replay')}
  for name, changes in (
    ('live', {}),
    ('keeping', replay),
    ('replaying', replay),
  ):
    train.train_and_evaluate(config(**changes), root / name, session)
  return root, session


def test_kept_logits_are_those_of_the_images_that_are_seen(runs):
  """Every example of every step, against the teacher itself."""
  root, session = runs
  run = config()
  dataset = session.dataset(run.data)
  model, variables = teacher_lib.load(root / 'teacher', run).network
  key = data_key(jax.random.key(run.seed))
  train_images, train_labels = jax.device_put(dataset.train)

  @jax.jit
  def live(step, order):
    """Logits of a step's images, and of the same without crop and flip."""
    plain, seen = (
      taken.batch(
        key, step, order, train_images, train_labels, 32, augmentation
      ).images
      for augmentation in (
        augment.Augmentation(),
        augment.Augmentation(crop_padding=1, flip=True),
      )
    )
    return [
      features.forward(model, variables, images, train=False)[0].logits
      for images in (seen, plain)
    ]

  for epoch in range(2):
    order = augment.epoch_order(key, epoch, 150)
    with np.load(root / 'replay' / f'epoch_{epoch:04d}.npz') as shard:
      logits = shard['logits']
    assert logits.shape == (4, 32, 10)
    for step in range(4):
      expected, _ = live(4 * epoch + step, order)
      np.testing.assert_allclose(logits[step], expected, rtol=1e-3, atol=1e-4)
  # And the test would see logits of other crops, or of another order.
  expected, plain = live(0, augment.epoch_order(key, 0, 150))
  assert np.abs(expected - plain).max() > 1e-2
  assert np.abs(expected - expected[::-1]).max() > 1e-2


def test_replayed_logits_train_the_student_that_live_ones_train(runs):
  root, _ = runs
  np.testing.assert_allclose(
    losses_of(root / 'keeping'), losses_of(root / 'live'), rtol=1e-3
  )
  # One compiled teacher made both: the same bits.
  assert losses_of(root / 'replaying') == losses_of(root / 'keeping')
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.restore(root / 'replaying', 'last').variables,
    checkpoint.restore(root / 'keeping', 'last').variables,
  )


def test_other_hyperparameters_replay_the_same_logits(runs, monkeypatch):
  root, session = runs
  monkeypatch.setattr(np, 'savez', never)
  changes = {
    'teacher.replay': str(root / 'replay'),
    'method.response.temperature': 2.0,
  }
  train.train_and_evaluate(config(**changes), root / 'other', session)
  assert losses_of(root / 'other') != losses_of(root / 'keeping')


def test_many_steps_per_dispatch_replay_the_same(runs):
  root, session = runs
  changes = {
    'teacher.replay': str(root / 'replay'),
    'device.steps_per_dispatch': 2,
  }
  train.train_and_evaluate(config(**changes), root / 'many', session)
  np.testing.assert_allclose(
    losses_of(root / 'many'), losses_of(root / 'keeping'), rtol=2e-3
  )


def test_a_stream_shows_its_teacher_the_same(runs):
  root, session = runs
  changes = {'teacher.replay': str(root / 'replay'), 'data.streaming': True}
  # What was kept of images in memory is replayed,
  train.train_and_evaluate(config(**changes), root / 'streamed', session)
  assert losses_of(root / 'streamed') == losses_of(root / 'keeping')
  # and what is kept of a stream is the same.
  changes['teacher.replay'] = str(root / 'replay of a stream')
  train.train_and_evaluate(config(**changes), root / 'keeping too', session)
  assert losses_of(root / 'keeping too') == losses_of(root / 'keeping')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'seed': 1}, 'seed: 0 there, 1 now'),
    ({'train.batch_size': 30}, 'batch_size: 32 there, 30 now'),
    ({'data.crop_padding': 2}, 'crop_padding: 1 there, 2 now'),
    ({'data.flip': False}, 'flip: True there, False now'),
    ({'data.train_limit': 140}, 'data: .* there, .* now'),
    ({'teacher.dtype': 'bfloat16'}, "teacher_dtype: 'float32' there, 'bfloat1"),
    ({'teacher.replay_dtype': 'bfloat16'}, "dtype: 'float32' there"),
  ],
)
def test_a_run_that_shows_other_images_is_refused(runs, changes, message):
  root, session = runs
  run = config(
    **{
      'teacher.replay': str(root / 'replay'),
      'teacher.path': str(root / 'teacher'),
    },
    **changes,
  )
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(run, root / 'refused', session)
  assert not (root / 'refused').exists()


def test_another_teacher_is_refused(runs):
  root, session = runs
  about = json.loads((root / 'replay' / 'replay.json').read_text())
  other = root / 'other_teacher'
  other.mkdir()
  (other / 'replay.json').write_text(json.dumps(about | {'teacher': 'other'}))
  run = config(**{'teacher.replay': str(other)})
  with pytest.raises(ValueError, match="teacher: 'other' there"):
    train.train_and_evaluate(run, root / 'refused', session)


def test_a_method_that_wants_more_than_logits_is_refused(runs):
  root, session = runs
  changes = {'method.name': 'feature', 'teacher.replay': str(root / 'replay')}
  with pytest.raises(ValueError, match=r'keeps logits only.*needs .* stage1'):
    train.train_and_evaluate(config(**changes), root / 'refused', session)
  assert methods.build('response')[0].teacher_features == ()
