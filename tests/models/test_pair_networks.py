"""The networks of published pairs: sizes, and PyTorch's outputs."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from kdjax import models
from kdjax.models import features
from kdjax.storage.weights import resnet_names, vit_names

ARRAYS = reference.networks()
NAMES = ARRAYS['names'].tolist()
CONVOLUTIONAL = [name for name in NAMES if not name.startswith('vit')]
FOUR = ('stage1', 'stage2', 'stage3', 'stage4')
THREE = FOUR[:3]
_LEAVES = {'kernel': 'weight', 'scale': 'weight'} | {
  kind: f'running_{kind}' for kind in ('mean', 'var')
}


def stages_of(name):
  return FOUR if name.startswith(('vgg', 'mobile', 'vit')) else THREE


@functools.cache
def shapes_of(name, num_classes=10, side=32):
  """Shapes of a network's variables, and of its logits and stages."""
  model = models.build(name, num_classes=num_classes)
  images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  outputs = features.output_shapes(model, variables, images, stages_of(name))
  return variables, outputs


def variables_of(name):
  """The variables that PyTorch's outputs were computed with."""
  shapes, _ = shapes_of(name)
  if name.startswith('vit'):
    arrays = vit_names.from_flax(jax.tree.map(zeros, shapes))
    arrays = {key: tensor(key, array.shape) for key, array in arrays.items()}
    return vit_names.to_flax(arrays)
  leaves = {}
  for path, leaf in flax.traverse_util.flatten_dict(dict(shapes)).items():
    *module, kind = path[1:]
    shape = resnet_names.to_torch_layout(zeros(leaf)).shape
    array = tensor('.'.join((*module, _LEAVES.get(kind, kind))), shape)
    leaves[path] = resnet_names.to_flax_layout(array)
  return flax.traverse_util.unflatten_dict(leaves)


def zeros(leaf):
  return np.zeros(leaf.shape, np.float32)


def tensor(name, shape):
  return reference.module('weights').tensor(name, shape, fan_in=True)


def assert_close(found, key, tolerance):
  expected = ARRAYS[key]
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=tolerance * np.abs(expected).max()
  )


# Sizes and shapes


@pytest.mark.parametrize(
  ('name', 'expected'), reference.module('network_sizes').PARAMETERS.items()
)
def test_number_of_parameters_is_the_published_one(name, expected):
  vit = name.startswith('vit')
  shapes, _ = shapes_of(name, 1000 if vit else 100, 224 if vit else 32)
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes['params'])]
  assert sum(sizes) == expected


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('resnet20', [(32, 16), (16, 32), (8, 64)]),
    ('resnet8x4', [(32, 64), (16, 128), (8, 256)]),
    ('wrn_16_2', [(32, 32), (16, 64), (8, 128)]),
    ('vgg8', [(32, 64), (16, 128), (8, 256), (4, 512)]),
    ('mobilenetv2', [(16, 12), (8, 16), (4, 48), (2, 1280)]),
    ('shufflenetv1', [(16, 240), (8, 480), (4, 960)]),
    ('shufflenetv2', [(16, 116), (8, 232), (4, 1024)]),
    ('vit_tiny_patch4', 4 * [(8, 192)]),
  ],
)
def test_stages_have_the_published_shapes(name, expected):
  _, outputs = shapes_of(name)
  assert outputs.logits.shape == (2, 10)
  found = [outputs.features[stage].shape for stage in stages_of(name)]
  assert found == [(2, side, side, width) for side, width in expected]


@pytest.mark.parametrize('name', CONVOLUTIONAL)
def test_the_last_layer_is_given_the_mean_of_the_last_stage(name):
  variables, outputs = shapes_of(name)
  assert variables['params']['fc']['kernel'].shape == (
    outputs.features[stages_of(name)[-1]].shape[-1],
    10,
  )


def test_stem_and_width_of_resnets_are_ignored():
  own = models.build('wrn_16_2', num_classes=10)
  assert models.build('wrn_16_2', num_classes=10, stem='x', width=8) == own
  with pytest.raises(ValueError, match=r"wrn_16_2 does not.*\['depth'\]"):
    models.build('wrn_16_2', num_classes=10, depth=8)


def test_images_that_a_vit_cannot_take_are_refused():
  model = models.build('vit_tiny_patch16', num_classes=10)
  with pytest.raises(ValueError, match='24×24 pixels cannot be divided'):
    shapes_of('vit_tiny_patch16', side=24)
  variables, _ = shapes_of('vit_tiny_patch16')
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  with pytest.raises(ValueError, match=r'of 4 patches .* the images have 16'):
    features.output_shapes(model, variables, images, ())


@pytest.mark.parametrize('name', [*CONVOLUTIONAL, 'vit_tiny_patch4'])
def test_bfloat16_computes_stages_and_keeps_logits_and_variables_float32(name):
  model = models.build(name, num_classes=10, dtype='bfloat16')
  variables, _ = shapes_of(name)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  outputs = features.output_shapes(model, variables, images, stages_of(name))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype('float32')
  }
  assert outputs.logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in outputs.features.values()} == {
    jnp.dtype('bfloat16')
  }


# Against PyTorch


@functools.cache
def outputs_of(name):
  """Outputs in both modes, the gradient of the first convolution, as NumPy."""
  variables = variables_of(name)
  model = models.build(name, num_classes=10)
  vit = name.startswith('vit')

  # Compiled once, and without XLA's optimisations, which take longer.
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def run(variables, evaluated, trained):
    outputs, _ = features.forward(
      model, variables, evaluated, names=stages_of(name), train=False
    )

    def loss(params):
      found, _ = features.forward(
        model, {**variables, 'params': params}, trained, train=True
      )
      rows = jnp.arange(1, 1 + len(trained))[:, None]
      return (rows * jnp.sin(found.logits)).sum(), found.logits

    gradients, logits = jax.grad(loss, has_aux=True)(variables['params'])
    return outputs, logits, gradients

  trained = ARRAYS['eval_images' if vit else 'train_images']
  outputs, logits, gradients = jax.device_get(
    run(variables, ARRAYS['eval_images'], trained)
  )
  place = gradients['stage1'] if name.startswith('vgg') else gradients
  kernel = place['patch_embed' if vit else 'conv1']['kernel'][..., :16]
  return outputs, logits, kernel


each = pytest.mark.parametrize('name', NAMES)


@pytest.mark.parametrize('name', [*CONVOLUTIONAL[:2], 'vit_tiny_patch4'])
def test_the_weights_are_those_of_the_reference(name):
  """PyTorch's order is that of its modules, so only the sum is compared."""
  leaves = jax.tree.leaves(variables_of(name))
  assert len(leaves) == ARRAYS[f'{name}/count']
  assert math.isclose(
    sum(np.abs(leaf).sum(dtype=np.float64) for leaf in leaves),
    ARRAYS[f'{name}/sum'],
    rel_tol=1e-9,
  )


@each
def test_evaluation_mode_gives_pytorchs_logits_and_stages(name):
  outputs, *_ = outputs_of(name)
  assert_close(outputs.logits, f'{name}/eval_logits', 1e-5)
  for stage, feature in outputs.features.items():
    key = f'{name}/eval_{stage}'
    assert_close(feature.mean(axis=(1, 2)), f'{key}/channels', 1e-5)
    assert_close(feature.mean(axis=3), f'{key}/positions', 1e-5)


@each
def test_training_mode_gives_pytorchs_logits_and_gradient(name):
  _, logits, gradient = outputs_of(name)
  assert_close(logits, f'{name}/train_logits', 2e-4)
  # An activation that rounding moves across zero changes the gradient by more
  # than rounding does: in ShuffleNetV1 by 0.02 of its norm.
  expected = ARRAYS[f'{name}/train_gradient']
  difference = np.linalg.norm(gradient - expected)
  assert difference < 0.05 * np.linalg.norm(expected)


# Folded


@pytest.mark.parametrize('name', ['vgg8', 'mobilenetv2', 'shufflenetv2'])
def test_a_folded_network_gives_what_it_gave(name):
  variables = variables_of(name)
  model, folded = models.fold(
    models.build(name, num_classes=10), variables, FOUR[:1]
  )
  assert model.folded
  assert not folded['batch_stats']
  outputs, _ = jax.jit(
    functools.partial(
      features.forward, model, names=stages_of(name), train=False
    ),
    compiler_options={'xla_backend_optimization_level': 0},
  )(folded, ARRAYS['eval_images'])
  assert_close(outputs.logits, f'{name}/eval_logits', 1e-5)
  with pytest.raises(ValueError, match='cannot be trained'):
    features.forward(model, folded, ARRAYS['train_images'], train=True)
