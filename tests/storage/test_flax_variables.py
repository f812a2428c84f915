"""Variables of Flax modules that other programs have saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import small_cnn
from flax import serialization, traverse_util
from flax.training import train_state
from tiny import MODEL

from kdjax import models
from kdjax.models import features
from kdjax.storage import flax_variables

IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8)
CNN = small_cnn.SmallCNN(10)
RESNET = models.build(**MODEL)


@pytest.fixture(scope='module')
def known():
  """What is saved of each network."""
  found = {
    model: jax.device_get(features.init(model, jax.random.key(0), IMAGES))
    for model in (CNN, RESNET)
  }
  # As Flax gives them, those without BatchNorm have no statistics.
  del found[CNN]['batch_stats']
  return found


def save(path, tree):
  """Writes a tree as what the suffix says."""
  if path.suffix == '.safetensors':
    flat = traverse_util.flatten_dict(tree, sep='/')
    safetensors.numpy.save_file(dict(flat), path)
    return path
  if path.suffix == '.msgpack':
    path.write_bytes(serialization.to_bytes(tree))
    return path
  kind = ocp.StandardCheckpointer if path.suffix else ocp.PyTreeCheckpointer
  with kind() as checkpointer:
    checkpointer.save(path, tree)
  return path


@pytest.mark.parametrize('model', [CNN, RESNET])
@pytest.mark.parametrize(
  'name', ['a.safetensors', 'a.msgpack', 'standard.orbax', 'pytree']
)
def test_they_are_recognised_and_read_as_they_were(
  known, tmp_path, model, name
):
  path = save(tmp_path / name, known[model])
  assert flax_variables.are_in(path)
  found, _ = flax_variables.load(path, model, IMAGES)
  jax.tree.map(
    np.testing.assert_array_equal, found, {'batch_stats': {}, **known[model]}
  )


def test_other_things_are_not_taken_for_them(tmp_path):
  (tmp_path / 'run').mkdir()
  assert not flax_variables.are_in(tmp_path / 'run')
  assert not flax_variables.are_in(tmp_path / 'nothing')
  safetensors.numpy.save_file(
    {'conv1.weight': np.zeros(1)}, tmp_path / 'torch.safetensors'
  )
  assert not flax_variables.are_in(tmp_path / 'torch.safetensors')


@pytest.mark.parametrize('name', ['a.safetensors', 'pytree'])
def test_what_does_not_fit_is_named_before_it_is_read(known, tmp_path, name):
  params = known[CNN]['params']
  path = save(
    tmp_path / name,
    {
      'params': {
        'conv1': params['conv1'],
        'conv2': {
          'kernel': params['conv2']['kernel'][..., :3],
          'bias': params['conv2']['bias'].astype(np.float16),
        },
        'head': {'kernel': params['head']['kernel']},
        'more': {'kernel': np.full(2, np.nan, np.float32)},
      }
    },
  )
  with pytest.raises(ValueError, match='are not those of SmallCNN') as error:
    flax_variables.load(path, CNN, IMAGES)
  lines = str(error.value).splitlines()
  assert lines[1:4] == [
    '  missing: params/head/bias',
    '  unknown: params/more/kernel',
    '  of another shape or dtype: params/conv2/bias (float16[16], expected '
    'float32[16]), params/conv2/kernel (float32[3, 3, 8, 3], expected '
    'float32[3, 3, 8, 16])',
  ]


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(known, tmp_path, value):
  tree = jax.tree.map(np.array, known[CNN])
  tree['params']['head']['bias'][3] = value
  path = save(tmp_path / 'a.safetensors', tree)
  with pytest.raises(ValueError, match='not finite in params/head/bias'):
    flax_variables.load(path, CNN, IMAGES)


def test_a_damaged_directory_is_named(known, tmp_path):
  path = save(tmp_path / 'pytree', known[CNN])
  for file in path.rglob('d/*'):
    file.write_bytes(file.read_bytes()[:20])
  with pytest.raises(ValueError, match=r'pytree cannot be read as a') as error:
    flax_variables.load(path, CNN, IMAGES)
  # It is not kdjax's, which does not know what it is worth.
  assert 'Remove' not in str(error.value)


def state_of(known):
  """A whole training state, as Flax's examples have it."""

  class TrainState(train_state.TrainState):
    batch_stats: dict

  return TrainState.create(
    apply_fn=RESNET.apply, tx=optax.adam(0.1), **known[RESNET]
  )


def assert_read(path, model, known, *notes):
  assert flax_variables.are_in(path)
  found, said = flax_variables.load(path, model, IMAGES)
  jax.tree.map(
    np.testing.assert_array_equal, found, {'batch_stats': {}, **known[model]}
  )
  assert said[1:] == notes


@pytest.mark.parametrize('name', ['state.msgpack', 'state.orbax'])
def test_of_a_training_state_the_variables_are_taken(known, tmp_path, name):
  path = save(tmp_path / name, state_of(known))
  assert_read(path, RESNET, known, 'left out: opt_state, step')


@pytest.mark.parametrize(
  ('wrap', 'model', 'notes'),
  [
    (lambda v: v['params'], CNN, ()),
    (lambda v: {'model': v, 'epoch': np.int32(3)}, CNN, ('left out: epoch',)),
    (lambda v: {'params': v}, RESNET, ()),
    (
      lambda v: {'state': {'params': v, 'ema': v['params']}},
      RESNET,
      ('left out: state/ema',),
    ),
  ],
)
def test_variables_in_other_dictionaries(known, tmp_path, wrap, model, notes):
  path = save(tmp_path / 'a.msgpack', wrap(known[model]))
  assert_read(path, model, known, *notes)


def test_the_suffix_does_not_matter(known, tmp_path):
  for suffix in ('safetensors', 'msgpack'):
    path = save(tmp_path / f'a.{suffix}', known[CNN])
    assert_read(path.rename(tmp_path / 'a.bin'), CNN, known)


def test_a_directory_of_hugging_face_with_flax_weights(known, tmp_path):
  save(tmp_path / 'flax_model.msgpack', known[CNN])
  (tmp_path / 'config.json').write_text('{}')
  assert_read(tmp_path, CNN, known)


def test_the_newest_step_of_a_manager_is_taken(known, tmp_path):
  root = tmp_path / 'checkpoints'
  with ocp.CheckpointManager(root) as manager:
    for step in (3, 20):
      tree = known[CNN] if step == 20 else {'params': {}, 'x': np.zeros(1)}
      manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          metadata=ocp.args.JsonSave({'lr': 0.1}),
          data=ocp.args.StandardSave({'position': np.int32(step)}),
        ),
      )
  # What was being written when a program was killed.
  (root / '30.orbax-checkpoint-tmp-40' / 'state').mkdir(parents=True)
  (root / '30.orbax-checkpoint-tmp-40' / 'state' / '_METADATA').write_text('{}')
  item = 'item state', 'items not taken: data'
  newest = f'the newest step, 20, in {root}/20; others: 3'
  for path in (tmp_path, root):
    assert_read(path, CNN, known, newest, *item)
  assert_read(root / '20', CNN, known, *item)
  assert_read(root / '20' / 'state', CNN, known)


def test_items_of_their_own_for_params_and_statistics(known, tmp_path):
  with ocp.CheckpointManager(tmp_path / 'a') as manager:
    saved = {k: ocp.args.StandardSave(v) for k, v in known[RESNET].items()}
    saved['opt_state'] = ocp.args.StandardSave({'mu': np.zeros(1)})
    manager.save(7, args=ocp.args.Composite(**saved))
  path = tmp_path / 'a' / '7'
  item = 'item params, batch_stats', 'items not taken: opt_state'
  assert_read(path, RESNET, known, *item)
  (path / 'params').rename(path / 'weights')
  with pytest.raises(ValueError, match='7 holds batch_stats, opt_state, weigh'):
    flax_variables.are_in(path)
