"""Variables of Flax modules that other programs have saved."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import small_cnn
from flax import traverse_util
from tiny import MODEL

from kdjax import features, models, variables

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
  kind = ocp.StandardCheckpointer if path.suffix else ocp.PyTreeCheckpointer
  with kind() as checkpointer:
    checkpointer.save(path, tree)
  return path


@pytest.mark.parametrize('model', [CNN, RESNET])
@pytest.mark.parametrize('name', ['a.safetensors', 'standard.orbax', 'pytree'])
def test_they_are_recognised_and_read_as_they_were(
  known, tmp_path, model, name
):
  path = save(tmp_path / name, known[model])
  assert variables.are_in(path)
  found, _ = variables.load(path, model, IMAGES)
  jax.tree.map(
    np.testing.assert_array_equal, found, {'batch_stats': {}, **known[model]}
  )


def test_other_things_are_not_taken_for_them(tmp_path):
  (tmp_path / 'run').mkdir()
  assert not variables.are_in(tmp_path / 'run')
  assert not variables.are_in(tmp_path / 'nothing')
  safetensors.numpy.save_file(
    {'conv1.weight': np.zeros(1)}, tmp_path / 'torch.safetensors'
  )
  assert not variables.are_in(tmp_path / 'torch.safetensors')


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
    variables.load(path, CNN, IMAGES)
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
    variables.load(path, CNN, IMAGES)


def test_a_damaged_directory_is_named(known, tmp_path):
  path = save(tmp_path / 'pytree', known[CNN])
  for file in path.rglob('d/*'):
    file.write_bytes(file.read_bytes()[:20])
  with pytest.raises(ValueError, match=r'pytree cannot be read as a') as error:
    variables.load(path, CNN, IMAGES)
  # It is not kdjax's, which does not know what it is worth.
  assert 'Remove' not in str(error.value)
