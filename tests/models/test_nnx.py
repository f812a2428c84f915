"""Flax NNX modules, named by where Python finds them."""

import functools
import sys
import types

import flax
import jax
import jax.numpy as jnp
import nnx_cnn
import numpy as np
import pytest
import safetensors
import whole_run
from flax import nnx

from kdjax import models
from kdjax.models import ensemble, features

IMAGES = jax.ShapeDtypeStruct((6, 8, 8, 1), jnp.uint8)
NAMES = [
  *(f'blocks/{i}{part}' for i in range(2) for part in ('', '/conv', '/norm')),
  *('dropout1', 'dropout2', 'fc'),
]


@pytest.fixture(scope='module')
def images():
  return jax.random.uniform(jax.random.key(1), IMAGES.shape)


@pytest.fixture(scope='module')
def network():
  model = models.build('nnx_cnn:Cnn', num_classes=5, stem='cifar', width=4)
  return model, features.init(model, jax.random.key(0), IMAGES)


def forward(network, images, seed=0, names=(), train=False):
  rngs = {'dropout': jax.random.key(seed)}
  return features.forward(*network, images, names=names, train=train, rngs=rngs)


def collection(module, kind):
  """The variables of a module of one kind, as a network has them."""
  return flax.traverse_util.unflatten_dict(
    {
      tuple(map(str, path)): variable.get_value()
      for path, variable in nnx.to_flat_state(nnx.state(module, kind))
    }
  )


@pytest.mark.parametrize('train', [False, True])
def test_it_computes_what_the_module_does(images, train):
  model = models.build('nnx_cnn:Cnn', num_classes=5, width=4, **{'rate': 0.0})
  module = nnx_cnn.Cnn(5, (8, 8, 1), 4, 0.0, rngs=nnx.Rngs(3))
  # Statistics that are not those at the beginning.
  module(3 * images)
  variables = {
    'params': collection(module, nnx.Param),
    'batch_stats': collection(module, nnx.BatchStat),
  }
  (module.train if train else module.eval)()
  found, stats = forward((model, variables), images, names=NAMES, train=train)
  between = module.blocks[0](images)
  np.testing.assert_allclose(found.features['blocks/0'], between, atol=1e-5)
  module.blocks[0].norm.mean.set_value(
    variables['batch_stats']['blocks']['0']['norm']['mean']
  )
  module.blocks[0].norm.var.set_value(
    variables['batch_stats']['blocks']['0']['norm']['var']
  )
  np.testing.assert_allclose(found.logits, module(images), atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    stats,
    collection(module, nnx.BatchStat),
  )


def test_its_variables_are_made_from_the_key(network):
  model, variables = network
  other = features.init(model, jax.random.key(1), IMAGES)
  kernels = [tree['params']['fc']['kernel'] for tree in (variables, other)]
  assert kernels[0].shape == (8, 5)
  assert (kernels[0] != kernels[1]).any()
  # As one who makes it by hand has them.
  module = nnx_cnn.Cnn(5, (8, 8, 1), 4, rngs=nnx.Rngs(0))
  assert jax.tree.structure(collection(module, nnx.Param)) == (
    jax.tree.structure(variables['params'])
  )


def test_its_features_are_the_modules_by_their_path(network, images):
  assert features.feature_names(*network, images) == NAMES
  outputs, _ = forward(network, images, names=NAMES)
  assert outputs.features['blocks/0/conv'].shape == (6, 4, 4, 4)
  np.testing.assert_array_equal(outputs.features['fc'], outputs.logits)
  with pytest.raises(
    ValueError, match=r'nnx_cnn:Cnn has no module named stage'
  ):
    forward(network, images, names=('stage1',))
  # In an ensemble they have a member's name before theirs.
  networks = [
    (model, {**variables, 'normalization': {'mean': 0.0, 'std': 1 / 255}})
    for model, variables in [network] * 2
  ]
  both = ensemble.join(networks, 'logits')
  found, _ = features.forward(
    *both, images, names=('member2/blocks/0',), train=False
  )
  np.testing.assert_allclose(
    found.features['member2/blocks/0'],
    outputs.features['blocks/0'],
    rtol=1e-4,
    atol=1e-6,
  )


def test_its_dropouts_draw_by_themselves_in_training_only(images, monkeypatch):
  class Dropping(nnx.Module):
    def __init__(self, num_classes, *, rngs):
      self.shape = 6, num_classes
      self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, images):
      return sum(drop(jnp.ones(self.shape)) for drop in self.drops)

  monkeypatch.setattr(nnx_cnn, 'Dropping', Dropping, raising=False)
  model = models.build('nnx_cnn:Dropping', num_classes=5)
  network = model, features.init(model, jax.random.key(0), IMAGES)

  def dropped(train, seed):
    names = 'drops/0', 'drops/1'
    found, _ = forward(network, images, seed, names, train)
    return [found.features[name] == 0 for name in names]

  first, second = dropped(True, 0)
  assert (first != second).any()
  assert (first != dropped(True, 1)[0]).any()
  np.testing.assert_array_equal(first, dropped(True, 0)[0])
  assert not dropped(False, 0)[0].any()


def test_a_module_in_a_transformation_is_captured(images, monkeypatch):
  class Saving(nnx_cnn.Cnn):
    def __call__(self, images):
      x = nnx.remat(lambda block, x: block(x))(self.blocks[0], images)
      return self.fc(self.blocks[1](x).mean(axis=(1, 2)))

  monkeypatch.setitem(sys.modules, 'mine', types.ModuleType('mine'))
  sys.modules['mine'].Saving = Saving
  model = models.build('mine:Saving', num_classes=5, width=4)
  variables = features.init(model, jax.random.key(0), IMAGES)

  def mean(params):
    outputs, stats = features.forward(
      model,
      {**variables, 'params': params},
      images,
      names=('blocks/0', 'blocks/0/conv'),
      train=True,
    )
    return outputs.features['blocks/0'].mean(), (outputs.features, stats)

  (_, (found, stats)), gradients = jax.value_and_grad(mean, has_aux=True)(
    variables['params']
  )
  assert found['blocks/0/conv'].shape == (6, 4, 4, 4)
  assert gradients['blocks']['0']['conv']['kernel'].any()
  assert stats['blocks']['0']['norm']['mean'].any()


def test_a_module_that_cannot_be_captured_hides_no_names(images, monkeypatch):
  class Inside(nnx_cnn.Cnn):
    def __call__(self, images):
      x = jax.lax.map(lambda x: self.dropout1(x), images)
      return self.fc(x.mean(axis=(1, 2)).repeat(2 * 4, axis=1))

  monkeypatch.setattr(nnx_cnn, 'Inside', Inside, raising=False)
  model = models.build('nnx_cnn:Inside', num_classes=5, width=4)
  variables = features.init(model, jax.random.key(0), IMAGES)
  with pytest.raises(ValueError, match='no module named stage1; it has blocks'):
    forward((model, variables), images, names=('stage1',))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (
      'Remembering',
      r'arrays seen \(Cache\), table \(array\): expected nnx\.Param',
    ),
    ('Late', r"Late, whose __call__ .* as model\(images\): missing .*'labels'"),
    ('needy', "'nnx_cnn:needy' cannot be called.*'depth'"),
    ('broken', r'cannot be called with num_classes .*OSError: its own'),
    ('text', 'returns str, expected a subclass of flax.Module'),
    ('silent', 'makes Module, whose __call__ cannot be called'),
  ],
)
def test_what_cannot_be_trained_is_refused(monkeypatch, name, message):
  def needy(depth) -> nnx.Module:
    return depth

  def broken(num_classes) -> nnx.Module:
    raise OSError('its own')

  def text() -> nnx.Module:
    return 'text'

  def silent() -> nnx.Module:
    return nnx.Module()

  for function in (needy, broken, text, silent):
    monkeypatch.setattr(nnx_cnn, function.__name__, function, raising=False)
  with pytest.raises(ValueError, match=message):
    features.init(
      models.build(f'nnx_cnn:{name}', num_classes=5), jax.random.key(0), IMAGES
    )


def test_its_class_names_its_last_layer(network, monkeypatch):
  assert network[0].head == 'fc'
  monkeypatch.setattr(nnx_cnn.Cnn, 'head', 'classifier', raising=False)
  monkeypatch.setattr(
    nnx_cnn, 'part', functools.partial(nnx_cnn.Cnn, rate=0.0), raising=False
  )
  model = models.build('nnx_cnn:part', num_classes=5, width=4)
  assert model.head == 'classifier'
  features.init(model, jax.random.key(0), IMAGES)


def test_options_are_given(network):
  model = models.build('nnx_cnn:Cnn', num_classes=5, width=4, rate=0.0)
  assert dict(model.arguments) == {'num_classes': 5, 'width': 4, 'rate': 0.0}
  assert model != network[0]
  assert network[0] == models.build('nnx_cnn:Cnn', num_classes=5, width=4)
  with pytest.raises(ValueError, match=r"cannot be called.*'depth'"):
    models.build('nnx_cnn:Cnn', num_classes=5, depth=3)
  with pytest.raises(ValueError, match='with a field that cannot be hashed'):
    models.build('nnx_cnn:Cnn', num_classes=5, rate=[3])


# In whole runs


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('nnx')
  config = whole_run.config('nnx_cnn:Cnn', 'nnx_cnn:teacher')
  return root, whole_run.check(root, config)


def test_it_teaches_and_is_taught_and_exported(run):
  root, result = run
  assert result['student']['model'] == 'nnx_cnn:Cnn'
  assert result['teacher']['model'] == 'nnx_cnn:teacher'
  names = whole_run.trained_names(root)
  assert 'params/blocks/0/conv/kernel' in names
  path = root / 'whole' / 'export' / 'student.safetensors'
  with safetensors.safe_open(path, framework='numpy') as file:
    assert sorted(file.keys()) == names


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'method.feature.student_features': ('stage1', 'stage2')},
      'nnx_cnn:Cnn has no module named stage1, stage2; it has blocks/0,',
    ),
    (
      {'method.feature.teacher_features': ('stage1', 'stage2')},
      'nnx_cnn:teacher has no module named stage1, stage2; it has blocks/0,',
    ),
    ({'student.name': 'nnx_cnn:three'}, 'returns 3 logits, and there are 10'),
    ({'teacher.name': 'nnx_cnn:three'}, 'returns 3 logits, and there are 10'),
    ({'student.name': 'nnx_cnn:Late'}, r'cannot be called as model\(images\)'),
    ({'teacher.name': 'nnx_cnn:Late'}, r'cannot be called as model\(images\)'),
  ],
)
def test_networks_that_do_not_fit_are_refused_before_the_teacher_is_trained(
  tmp_path, monkeypatch, changes, message
):
  def three(image_shape, width, rngs) -> nnx.Module:
    return nnx_cnn.Cnn(3, image_shape, width, rngs=rngs)

  monkeypatch.setattr(nnx_cnn, 'three', three, raising=False)
  config = whole_run.config('nnx_cnn:Cnn', 'nnx_cnn:teacher')
  whole_run.check_refused(tmp_path, config, changes, message)
