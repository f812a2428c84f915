"""Vision transformers in others' files, there and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import safetensors.numpy
import torch_files

from kdjax import models
from kdjax.models import features
from kdjax.storage import networks, weights
from kdjax.storage.weights import vit_names

PATCHES = 4


@functools.cache
def state(num_classes=5, patches=PATCHES):
  """A state dictionary of timm's `vit_tiny_patch16_224`, of small images."""
  stem = (192, 16, 16)
  shapes = vit_names._shapes(
    192, (stem[0], 3, *stem[1:]), int(patches**0.5), num_classes
  )
  return {name: reference.tensor(name, shape) for name, shape in shapes}


def write(path, tensors):
  if path.suffix == '.safetensors':
    path.write_bytes(safetensors.numpy.save(dict(tensors)))
  else:
    torch_files.write_zip(path, tensors)
  return path


@pytest.mark.parametrize('name', ['x.safetensors', 'x.pth'])
@pytest.mark.parametrize('prefix', ['', 'model.module.'])
def test_a_file_is_read_and_written_with_timms_names(tmp_path, name, prefix):
  tensors = {f'{prefix}{key}': array for key, array in state().items()}
  imported = weights.load(write(tmp_path / name, tensors))
  assert imported.model == {'name': 'vit_tiny_patch16', 'num_classes': 5}
  assert imported.image_size == (32, 32)
  assert imported.channels == 3
  weights.save(tmp_path / 'again.safetensors', imported.variables, {})
  again = weights.read(tmp_path / 'again.safetensors')
  assert {key: tensor.shape for key, tensor in again.tensors.items()} == {
    key: array.shape for key, array in state().items()
  }
  for key, array in state().items():
    np.testing.assert_array_equal(again.tensors[key].read(), array)


def test_variables_are_those_of_the_model(tmp_path):
  imported = weights.load(write(tmp_path / 'x.pth', state()))
  model = models.build(**imported.model)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  expected = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, imported.variables) == jax.tree.map(
    np.shape, expected
  )
  # A convolution's and a matrix's layout, and one that has none.
  params = imported.variables['params']
  np.testing.assert_array_equal(
    params['patch_embed']['kernel'][2, 1, 0],
    state()['patch_embed.proj.weight'][:, 0, 2, 1],
  )
  np.testing.assert_array_equal(
    params['block12']['fc2']['kernel'], state()['blocks.11.mlp.fc2.weight'].T
  )
  np.testing.assert_array_equal(params['pos_embed'], state()['pos_embed'])


def test_a_network_knows_the_size_of_its_images(tmp_path):
  found = networks.load(write(tmp_path / 'x.safetensors', state()))
  assert found.card['preprocessing']['image_shape'] == [32, 32, 3]
  assert found.recognised[1] == (
    'vit_tiny_patch16, images of 32×32 pixels, 3 channels, 5 classes'
  )


def test_a_body_alone_is_read_where_a_head_is_not_wanted(tmp_path):
  tensors = {key: x for key, x in state().items() if key != 'head.bias'}
  path = write(tmp_path / 'x.pth', tensors)
  with pytest.raises(ValueError, match=r"timm's names\): head\.bias"):
    weights.load(path)
  found = weights.load(path, headless=True)
  assert found.model['num_classes'] is None
  assert 'fc' not in found.variables['params']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'dist_token': np.zeros((1, 1, 192), np.float32)}, 'too many: dist_token'),
    (
      {'pos_embed': np.zeros((1, 6, 192), np.float32)},
      r'pos_embed \(1, 6, 192\).*one class token and square images',
    ),
    (
      {'blocks.3.norm1.bias': np.zeros(4, np.float32)},
      r'of another shape: .*norm1\.bias \(4,\), expected \(192,\)',
    ),
    ({'norm.weight': np.full(192, np.nan, np.float32)}, 'NaN or infinite'),
    ({'norm.weight': np.zeros(192, np.int64)}, r'norm\.weight \(int64\)'),
  ],
)
def test_another_network_is_refused(tmp_path, change, message):
  path = write(tmp_path / 'x.safetensors', {**state(), **change})
  with pytest.raises(ValueError, match=message):
    weights.load(path)


def test_two_networks_are_refused(tmp_path):
  tensors = {
    f'{who}.{key}': array
    for who in ('student', 'teacher')
    for key, array in state().items()
  }
  with pytest.raises(ValueError, match=r'2 vision transformers .*student'):
    weights.load(write(tmp_path / 'x.safetensors', tensors))
