"""Equinox modules, named by where Python finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
import tiny
import whole_run

from kdjax import models
from kdjax.models import features
from kdjax.training import optimizer

eqx = pytest.importorskip('equinox', reason='needs the extra `equinox`')
equinox_cnn = pytest.importorskip('equinox_cnn')

IMAGES = jax.ShapeDtypeStruct((6, 8, 8, 1), jnp.uint8)
NAMES = [
  *(f'blocks/{i}{part}' for i in range(2) for part in ('', '/conv', '/norm')),
  *('dropout', 'fc'),
]


@pytest.fixture(scope='module')
def images():
  return jax.random.uniform(jax.random.key(1), IMAGES.shape)


def build(name='Cnn', **options):
  model = models.build(f'equinox_cnn:{name}', num_classes=5, **options)
  return model, features.init(model, jax.random.key(0), IMAGES)


@pytest.fixture(scope='module')
def network():
  return build(stem='cifar', width=4)


def forward(network, images, seed=0, names=(), train=False):
  rngs = {'dropout': jax.random.key(seed)}
  return features.forward(*network, images, names=names, train=train, rngs=rngs)


@pytest.mark.parametrize('train', [False, True])
def test_it_computes_what_the_module_does(images, train):
  model, variables = build(width=4, rate=0.0)
  # Statistics that are not those at the beginning.
  _, stats = forward((model, variables), 3 * images, train=True)
  variables['batch_stats'] = stats
  module, state = eqx.nn.make_with_state(equinox_cnn.Cnn)(
    5, (8, 8, 1), 4, 0.0, key=jax.random.key(3)
  )

  def of_network(path, leaf):
    if not eqx.is_array(leaf):
      return leaf
    found = variables['params']
    for key in jax.tree_util.keystr(path, simple=True, separator='/').split(
      '/'
    ):
      found = found[key]
    return found

  module = jax.tree_util.tree_map_with_path(of_network, module)
  for i, block in enumerate(module.blocks):
    norm = stats['blocks'][str(i)]['norm']
    state = state.set(block.norm.batch_counter, norm['batch_counter'])
    pair = norm['batch_state_index']
    state = state.set(block.norm.batch_state_index, (pair['0'], pair['1']))
  module = eqx.nn.inference_mode(module, value=not train)
  expected, after = jax.vmap(
    lambda image, state: module(image, state, key=jax.random.key(0)),
    in_axes=(0, None),
    out_axes=(0, None),
    axis_name='batch',
  )(images.transpose(0, 3, 1, 2), state)
  found, stats = forward((model, variables), images, names=('fc',), train=train)
  np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)
  for i, block in enumerate(module.blocks):
    norm = stats['blocks'][str(i)]['norm']
    assert norm['batch_counter'] == 1 + train
    mean, var = after.get(block.norm.batch_state_index)
    pair = norm['batch_state_index']
    np.testing.assert_allclose(pair['0'], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pair['1'], var, rtol=1e-5)


def test_its_features_are_the_modules_by_their_path(network, images):
  assert features.feature_names(*network, images) == NAMES
  outputs, _ = forward(network, images, names=NAMES)
  # Channels come last, as those of other networks do.
  assert outputs.features['blocks/0'].shape == (6, 4, 4, 4)
  assert outputs.features['blocks/1'].shape == (6, 2, 2, 8)
  np.testing.assert_array_equal(outputs.features['fc'], outputs.logits)
  np.testing.assert_array_equal(
    outputs.features['blocks/0'],
    jax.nn.relu(outputs.features['blocks/0/norm']),
  )
  # What captures them changes nothing else.
  alone, _ = forward(network, images)
  np.testing.assert_allclose(alone.logits, outputs.logits, rtol=1e-5)
  with pytest.raises(
    ValueError, match='equinox_cnn:Cnn has no module named st'
  ):
    forward(network, images, names=('stage1',))


def test_a_module_without_state_or_key(images):
  plain = build('Plain', width=4)
  assert plain[1]['batch_stats'] == {}
  outputs, stats = forward(
    plain, images, names=('layers/layers/1',), train=True
  )
  assert outputs.features['layers/layers/1'].shape == (6, 3, 3, 4)
  assert stats == {}


def test_its_dropout_draws_for_each_example_in_training_only(network, images):
  def dropped(train, seed):
    same = jnp.broadcast_to(images[:1], images.shape)
    found, _ = forward(network, same, seed, ('dropout',), train)
    return np.asarray(found.features['dropout'] == 0)

  assert (dropped(True, 0)[0] != dropped(True, 0)[1]).any()
  assert (dropped(True, 0) != dropped(True, 1)).any()
  np.testing.assert_array_equal(dropped(False, 0), dropped(False, 1))


def test_its_weights_decay_and_its_norms_do_not(network):
  params = {'student': network[1]['params'], 'method': {}}
  config = tiny.config().train
  config.update(weight_decay=0.5, optimizer='sgd', warmup_epochs=0)
  transformation, _ = optimizer.build(config, steps_per_epoch=1, total_steps=10)
  zeros = optax.tree.zeros_like(params)
  updates, _ = transformation.update(zeros, transformation.init(params), params)
  block = updates['student']['blocks']['0']
  assert block['conv']['weight'].any()
  assert updates['student']['fc']['weight'].any()
  assert not block['norm']['weight'].any()


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('Counting', r'arrays table \(int32\): expected arrays of floats'),
    ('Late', r"Late, whose __call__ .* as model\(image\): missing .*'labels'"),
    ('Stateless', r'whose __call__ cannot be called as model\(image, state\)'),
    ('broken', r'cannot be called with num_classes .*OSError: its own'),
    ('text', 'returns str, expected a subclass of equinox.Module'),
  ],
)
def test_what_cannot_be_trained_is_refused(monkeypatch, name, message):
  class Stateless(equinox_cnn.Cnn):
    def __call__(self, image):
      return image

  def broken(num_classes) -> eqx.Module:
    raise OSError('its own')

  def text() -> eqx.Module:
    return 'text'

  for made in (Stateless, broken, text):
    monkeypatch.setattr(equinox_cnn, made.__name__, made, raising=False)
  with pytest.raises(ValueError, match=message):
    build(name)


# In whole runs


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('equinox')
  config = whole_run.config('equinox_cnn:Cnn', 'equinox_cnn:teacher')
  return root, whole_run.check(root, config)


def test_it_teaches_and_is_taught_and_exported(run):
  root, result = run
  assert result['student']['model'] == 'equinox_cnn:Cnn'
  assert result['teacher']['model'] == 'equinox_cnn:teacher'
  names = whole_run.trained_names(root)
  assert 'params/blocks/0/conv/weight' in names
  assert 'batch_stats/blocks/1/norm/batch_counter' in names
  path = root / 'whole' / 'export' / 'student.safetensors'
  with safetensors.safe_open(path, framework='numpy') as file:
    assert sorted(file.keys()) == names


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'method.feature.student_features': ('stage1', 'stage2')},
      'equinox_cnn:Cnn has no module named stage1, stage2; it has blocks/0,',
    ),
    ({'student.name': 'equinox_cnn:three'}, 'returns 3 logits, and there are '),
    (
      {'teacher.name': 'equinox_cnn:Late'},
      r'called as model\(image\): miss',
    ),
  ],
)
def test_networks_that_do_not_fit_are_refused_before_the_teacher_is_trained(
  tmp_path, monkeypatch, changes, message
):
  def three(image_shape, width, key) -> eqx.Module:
    return equinox_cnn.Cnn(3, image_shape, width, key=key)

  monkeypatch.setattr(equinox_cnn, 'three', three, raising=False)
  config = whole_run.config('equinox_cnn:Cnn', 'equinox_cnn:teacher')
  whole_run.check_refused(tmp_path, config, changes, message)
