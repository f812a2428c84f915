"""A folded network against the one that it was made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models import features, resnet

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
BLOCKS = {'basic': resnet.BasicBlock, 'bottleneck': resnet.Bottleneck}


@functools.cache
def network(block, stem='cifar', dtype='float32'):
  """A small ResNet whose BatchNorms all do something, and its variables."""
  # The second block of the first stage has no projection.
  model = resnet.ResNet(
    BLOCKS[block], (2, 1, 1, 1), 5, stem, width=4, dtype=jnp.dtype(dtype)
  )
  shapes = jax.eval_shape(
    lambda rng: features.init(model, rng, jnp.zeros((1, 16, 16, 3))),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    kind = path[-1].key
    if kind == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape)
    if kind == 'var':
      return rng.uniform(0.3, 3, leaf.shape)
    values = rng.normal(0, 1, leaf.shape)
    if kind == 'scale':
      # As untrained blocks have it: the channel is its bias alone.
      values[0] = 0
    return values

  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.asarray(draw(path, leaf), leaf.dtype), shapes
  )
  normalization = {
    'mean': jnp.array([0.4, 0.5, 0.6]),
    'std': jnp.array([0.2, 0.3, 0.4]),
  }
  return model, {**variables, 'normalization': normalization}


@functools.cache
def pixels():
  return jax.random.randint(jax.random.key(1), (6, 16, 16, 3), 0, 256)


def outputs_of(model, variables, names=STAGES):
  forward = functools.partial(features.forward, model, names=names, train=False)
  outputs, batch_stats = jax.jit(forward)(variables, pixels())
  return outputs, batch_stats


def assert_close_to_largest(found, expected, tolerance):
  assert found.dtype == expected.dtype
  found, expected = (np.asarray(x, np.float32) for x in (found, expected))
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=tolerance * np.abs(expected).max()
  )


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 3e-2)]
)
@pytest.mark.parametrize('stem', ['imagenet', 'cifar'])
@pytest.mark.parametrize('block', BLOCKS)
def test_folded_network_gives_the_same_outputs(block, stem, dtype, tolerance):
  model, variables = network(block, stem, dtype)
  names = (*STAGES, 'stage1/block2', 'fc')
  expected, _ = outputs_of(model, variables, names)
  found, batch_stats = outputs_of(*models.fold(model, variables, names), names)
  assert batch_stats == {}
  assert found.features.keys() == expected.features.keys()
  assert_close_to_largest(found.logits, expected.logits, tolerance)
  for name in names:
    assert_close_to_largest(
      found.features[name], expected.features[name], tolerance
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('block', BLOCKS)
def test_folded_variables_are_those_of_a_folded_network(block, dtype):
  model, variables = network(block, dtype=dtype)
  before = jax.tree.map(jnp.copy, variables)
  folded, found = models.fold(model, variables)
  jax.tree.map(np.testing.assert_array_equal, variables, before)
  assert folded == model.clone(folded=True)
  assert found['batch_stats'] == {}
  assert found['normalization'] is variables['normalization']
  expected = jax.eval_shape(
    lambda rng: features.init(folded, rng, pixels()), jax.random.key(0)
  )
  assert expected['batch_stats'] == {}
  assert jax.tree.map(jnp.shape, found['params']) == jax.tree.map(
    jnp.shape, expected['params']
  )
  # Convolutions are stored as they are used; logits are always float32.
  dtypes = jax.tree.map(lambda x: x.dtype.name, found['params'])
  assert dtypes.pop('fc') == {'kernel': 'float32', 'bias': 'float32'}
  assert set(jax.tree.leaves(dtypes)) == {dtype}


def test_a_folded_network_may_be_folded_again():
  once = models.fold(*network('basic'))
  model, variables = models.fold(*once)
  assert model == once[0]
  jax.tree.map(np.testing.assert_array_equal, variables, once[1])


def test_a_folded_network_cannot_be_trained():
  model, variables = models.fold(*network('basic'))
  with pytest.raises(ValueError, match='folded network cannot be trained'):
    features.forward(model, variables, pixels(), train=True)


@pytest.mark.parametrize(
  'name',
  [
    *('conv1', 'bn1'),
    *('stage1/block2/conv3', 'stage1/block2/bn3'),
    *('stage2/block1/downsample_conv', 'stage2/block1/downsample_bn'),
  ],
)
def test_a_name_that_would_mean_something_else_prevents_folding(name):
  model, variables = network('bottleneck')
  found = models.fold(model, variables, ('stage1', name))
  assert found[0] is model
  assert found[1] is variables


@pytest.mark.parametrize('block', BLOCKS)
def test_every_name_that_does_not_prevent_it_means_the_same(block):
  model, variables = network(block)
  names = features.feature_names(model, variables, pixels())
  kept = [
    name for name in names if models.fold(model, variables, (name,))[0].folded
  ]
  assert len(kept) == 14  # 4 stages, 4 sums before a ReLU, 5 blocks, fc.
  expected, _ = outputs_of(model, variables, kept)
  found, _ = outputs_of(*models.fold(model, variables, kept), kept)
  for name in kept:
    assert_close_to_largest(found.features[name], expected.features[name], 1e-5)


def test_a_model_without_such_a_method_stays_as_it_is():
  model = nn.Dense(3)
  variables = {'params': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}}
  found = models.fold(model, variables)
  assert found[0] is model
  assert found[1] is variables


def test_folding_needs_no_promotion(no_promotion):
  model, variables = network('basic', dtype='bfloat16')
  model.fold(variables)
