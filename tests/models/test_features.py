"""Named features, with small models that know nothing of distillation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import features

IMAGES = jnp.asarray(
  np.random.default_rng(0).uniform(0, 255, (5, 2, 2, 3)), jnp.float32
)
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])


class Block(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Dense(self.width, name='inner')(x))


class Plain(nn.Module):
  """Without batch statistics; one module inside another; one called twice."""

  @nn.compact
  def __call__(self, images, train):
    del train
    x = Block(4, name='stage1')(images)
    x = Block(3, name='stage2')(x)
    twice = nn.Dense(3, name='twice')
    x = twice(twice(x))
    return nn.Dense(2, name='fc')(x.mean(axis=(1, 2)))


class Normalized(nn.Module):
  """With batch statistics."""

  @nn.compact
  def __call__(self, images, train):
    x = nn.BatchNorm(not train, momentum=0.9, name='bn')(images)
    return nn.Dense(2, name='fc')(x.mean(axis=(1, 2)))


@pytest.fixture(scope='module')
def plain():
  return Plain(), features.init(Plain(), jax.random.key(0), IMAGES)


@pytest.fixture(scope='module')
def normalized():
  return Normalized(), features.init(Normalized(), jax.random.key(0), IMAGES)


def dense(variables, path, x):
  """Applies a layer by hand."""
  params = variables['params']
  for name in path.split('/'):
    params = params[name]
  return np.asarray(x) @ params['kernel'] + params['bias']


# normalize


@pytest.mark.parametrize('dtype', [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_normalize_scales_pixels_channel_by_channel(dtype):
  images = jnp.asarray([[[[0, 51, 255]]], [[[255, 102, 0]]]], dtype)
  found = features.normalize(images, MEAN, STD)
  assert found.dtype == jnp.float32
  expected = [[-0.5 / 0.2, -0.2 / 0.25, 0.7 / 0.5], [0.5 / 0.2, 0, -0.3 / 0.5]]
  np.testing.assert_allclose(
    found.reshape(2, 3), expected, rtol=1e-6, atol=1e-6
  )


def test_normalize_with_float64_statistics_under_jit_equals_eager():
  np.testing.assert_allclose(
    jax.jit(features.normalize)(IMAGES, MEAN, STD),
    features.normalize(IMAGES, MEAN, STD),
    rtol=1e-6,
    atol=1e-6,
  )


# init


def test_init_gives_the_collections_of_the_model(plain, normalized):
  _, variables = plain
  assert variables['batch_stats'] == {}
  assert set(variables) == {'params', 'batch_stats'}
  _, variables = normalized
  assert set(variables) == {'params', 'batch_stats'}
  np.testing.assert_array_equal(variables['batch_stats']['bn']['mean'], 0)
  np.testing.assert_array_equal(variables['batch_stats']['bn']['var'], 1)


def test_init_needs_only_the_shape_of_the_images(plain):
  model, variables = plain
  shape = jax.ShapeDtypeStruct(IMAGES.shape, jnp.uint8)
  again = features.init(model, jax.random.key(0), shape)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


# forward


def test_forward_captures_modules_by_path(plain):
  model, variables = plain
  names = ('stage2', 'stage1', 'stage1/inner', 'fc')
  outputs, _ = features.forward(
    model, variables, IMAGES, names=names, train=False
  )
  inner = dense(variables, 'stage1/inner', IMAGES)
  stage1 = np.maximum(inner, 0)
  stage2 = np.maximum(dense(variables, 'stage2/inner', stage1), 0)
  found = outputs.features
  assert set(found) == set(names)
  np.testing.assert_allclose(found['stage1/inner'], inner, rtol=1e-5)
  np.testing.assert_allclose(found['stage1'], stage1, rtol=1e-5)
  np.testing.assert_allclose(found['stage2'], stage2, rtol=1e-5)
  np.testing.assert_array_equal(found['fc'], outputs.logits)


def test_forward_captures_the_last_call_of_a_module_called_twice(plain):
  model, variables = plain
  outputs, _ = features.forward(
    model, variables, IMAGES, names=('stage2', 'twice'), train=False
  )
  once = dense(variables, 'twice', outputs.features['stage2'])
  np.testing.assert_allclose(
    outputs.features['twice'], dense(variables, 'twice', once), rtol=1e-5
  )


def test_capturing_changes_nothing_and_no_names_capture_nothing(plain):
  model, variables = plain
  expected = model.apply(variables, IMAGES, train=False)
  for names in ((), ('stage1', 'stage2')):
    outputs, _ = features.forward(
      model, variables, IMAGES, names=names, train=True
    )
    assert set(outputs.features) == set(names)
    np.testing.assert_array_equal(outputs.logits, expected)


def test_gradients_flow_through_captured_features(plain):
  model, variables = plain

  def total(params, name):
    outputs, _ = features.forward(
      model, {'params': params}, IMAGES, names=(name,), train=True
    )
    return outputs.features[name].sum()

  gradients = jax.grad(total)(variables['params'], 'stage1')
  assert jnp.abs(gradients['stage1']['inner']['kernel']).max() > 0
  np.testing.assert_array_equal(gradients['stage2']['inner']['kernel'], 0)


@pytest.mark.parametrize('train', [False, True])
def test_forward_under_jit_equals_eager(normalized, train):
  model, variables = normalized
  variables = {**variables, 'normalization': {'mean': MEAN, 'std': STD}}

  def run(variables, images):
    return features.forward(
      model, variables, images, names=('bn',), train=train
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    jax.jit(run)(variables, IMAGES),
    run(variables, IMAGES),
  )


@pytest.mark.parametrize('train', [False, True])
def test_a_missing_name_raises_an_error_that_lists_the_names(plain, train):
  model, variables = plain
  with pytest.raises(ValueError, match='Plain has no module named') as error:
    features.forward(
      model,
      variables,
      IMAGES,
      names=('stage1', 'stage3', 'inner'),
      train=train,
    )
  missing, existing = str(error.value).split('; it has ')
  assert missing.endswith('stage3, inner')
  assert existing.split(', ') == features.feature_names(
    model, variables, IMAGES
  )


def test_a_missing_name_raises_that_error_under_jit_too(plain):
  model, variables = plain
  with pytest.raises(ValueError, match=r'named stage3; it has .*stage2'):
    jax.jit(
      lambda variables, images: features.forward(
        model, variables, images, names=('stage3',), train=False
      )
    )(variables, IMAGES)


def test_the_model_itself_is_no_feature(plain):
  model, variables = plain
  with pytest.raises(ValueError, match='has no module named'):
    features.forward(model, variables, IMAGES, names=('',), train=False)


# Batch statistics


def test_training_updates_batch_stats(normalized):
  model, variables = normalized
  outputs, batch_stats = features.forward(model, variables, IMAGES, train=True)
  pixels = np.asarray(IMAGES).reshape(-1, 3)
  found = batch_stats['bn']
  np.testing.assert_allclose(found['mean'], 0.1 * pixels.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    found['var'], 0.9 + 0.1 * pixels.var(axis=0), rtol=1e-5
  )
  # Normalised by the batch's own statistics.
  x = ((pixels - pixels.mean(axis=0)) / pixels.std(axis=0)).reshape(5, 4, 3)
  np.testing.assert_allclose(
    outputs.logits, dense(variables, 'fc', x.mean(axis=1)), atol=1e-4
  )


def test_evaluation_uses_batch_stats_and_returns_them_unchanged(normalized):
  model, variables = normalized
  statistics = {'bn': {'mean': jnp.full(3, 100.0), 'var': jnp.full(3, 400.0)}}
  outputs, batch_stats = features.forward(
    model, {**variables, 'batch_stats': statistics}, IMAGES, train=False
  )
  jax.tree.map(np.testing.assert_array_equal, batch_stats, statistics)
  x = ((np.asarray(IMAGES) - 100) / 20).mean(axis=(1, 2))
  np.testing.assert_allclose(
    outputs.logits, dense(variables, 'fc', x), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('train', [False, True])
def test_models_without_batch_stats_have_none(plain, train):
  model, variables = plain
  for given in (variables, {'params': variables['params']}):
    _, batch_stats = features.forward(model, given, IMAGES, train=train)
    assert batch_stats == {}


# The normalization collection


@pytest.mark.parametrize('train', [False, True])
def test_images_are_normalised_with_the_networks_own_statistics(
  normalized, train
):
  model, variables = normalized
  own = {'mean': jnp.asarray(MEAN), 'std': jnp.asarray(STD)}
  given = {**variables, 'normalization': own}
  found = features.forward(
    model, given, IMAGES.astype(jnp.uint8), names=('bn',), train=train
  )
  images = features.normalize(IMAGES.astype(jnp.uint8), **own)
  expected = features.forward(
    model, variables, images, names=('bn',), train=train
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # It stays out of the statistics that are returned.
  assert set(found[1]) == {'bn'}
  assert 'normalization' in given


def test_missing_names_are_listed_with_a_normalization_too(normalized):
  model, variables = normalized
  own = {'mean': jnp.asarray(MEAN), 'std': jnp.asarray(STD)}
  with pytest.raises(ValueError, match='no module named stage1; it has bn, fc'):
    features.forward(
      model,
      {**variables, 'normalization': own},
      IMAGES.astype(jnp.uint8),
      names=('stage1',),
      train=False,
    )


# feature_names and output_shapes


def test_feature_names_are_the_sorted_paths_that_forward_can_capture(plain):
  model, variables = plain
  names = features.feature_names(model, variables, IMAGES)
  assert names == [
    'fc',
    'stage1',
    'stage1/inner',
    'stage2',
    'stage2/inner',
    'twice',
  ]
  outputs, _ = features.forward(
    model, variables, IMAGES, names=names, train=False
  )
  assert set(outputs.features) == set(names)


def test_names_and_shapes_need_only_shapes(plain):
  model, variables = plain
  shapes = jax.eval_shape(lambda: variables)
  images = jax.ShapeDtypeStruct((7, 4, 2, 3), jnp.float32)
  assert features.feature_names(model, shapes, images) == (
    features.feature_names(model, variables, IMAGES)
  )
  outputs = features.output_shapes(
    model, shapes, images, ('stage1', 'stage2/inner')
  )
  assert outputs.logits.shape == (7, 2)
  assert outputs.logits.dtype == jnp.float32
  assert {name: x.shape for name, x in outputs.features.items()} == {
    'stage1': (7, 4, 2, 4),
    'stage2/inner': (7, 4, 2, 3),
  }
  leaves = jax.tree.leaves(outputs)
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)


def test_output_shapes_are_those_of_forward(normalized):
  model, variables = normalized
  shapes = features.output_shapes(model, variables, IMAGES, ('bn',))
  outputs, _ = features.forward(
    model, variables, IMAGES, names=('bn',), train=True
  )
  expected = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs
  )
  assert shapes == expected


def test_output_shapes_of_a_missing_name_raise(plain):
  model, variables = plain
  with pytest.raises(ValueError, match='no module named stage9'):
    features.output_shapes(model, variables, IMAGES, ('stage9',))
