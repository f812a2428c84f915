"""Directories of weights of Hugging Face and timm."""

import json

import numpy as np
import pytest
import reference
import safetensors.numpy
import torch_files
from test_weights import assert_same, prefixed, state_of

from kdjax.storage import networks, run_directory, weights
from kdjax.storage.weights import directory

RESCALED = {'do_rescale': True, 'rescale_factor': 1 / 255}
PROCESSOR = {
  'image_mean': [0.5, 0.25, 0.125],
  'image_std': [0.25, 0.5, 1.0],
  'size': {'shortest_edge': 64},
  'crop_pct': 0.875,
  **RESCALED,
}
LABELS = {'id2label': {'0': 'cat', '1': 'dog', '2': 'owl'}}


def halves(state):
  names = list(state)
  return [
    {name: state[name] for name in part} for part in (names[::2], names[1::2])
  ]


def make(path, layout='model.safetensors', config=None, processor=None):
  """Writes a directory, and gives the weights that are in it."""
  path.mkdir()
  state = state_of()
  kind = '.safetensors' if 'safetensors' in layout else '.bin'
  files = {layout: state}
  if layout.endswith('.json'):
    files = {
      f'{i}{kind}': part for i, part in enumerate(halves(state), start=1)
    }
    index = {name: file for file, part in files.items() for name in part}
    (path / layout).write_text(json.dumps({'weight_map': index}))
  for name, part in files.items():
    if kind == '.bin':
      torch_files.write_zip(path / name, part)
    else:
      safetensors.numpy.save_file(part, path / name)
  for name, content in (
    ('config.json', config),
    ('preprocessor_config.json', processor),
  ):
    if content is not None:
      (path / name).write_text(json.dumps(content))
  return state


@pytest.mark.parametrize(
  'layout',
  [
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
  ],
)
def test_weights_in_a_directory(tmp_path, layout):
  path = tmp_path / 'net'
  state = make(path, layout, LABELS, PROCESSOR)
  found = weights.load(path)
  assert_same(found.variables, reference.flax_variables(state))
  assert ('in 2 files' in found.recognised[0]) == layout.endswith('.json')
  # It has a config.json, and is no run.
  assert not run_directory.is_run(path)


def test_what_stands_beside_the_weights_becomes_the_card(tmp_path):
  make(tmp_path / 'net', config=LABELS, processor=PROCESSOR)
  found = networks.load(tmp_path / 'net')
  assert found.card['class_names'] == ['cat', 'dog', 'owl']
  assert found.card['preprocessing'] == {
    'image_shape': [64, 64, 3],
    'channels': 3,
    'mean': [0.5, 0.25, 0.125],
    'std': [0.25, 0.5, 1.0],
    'crop': 0.875,
  }
  np.testing.assert_array_equal(
    found.network.variables['normalization']['std'], [0.25, 0.5, 1]
  )
  assert found.recognised[-2].startswith('preprocessor_config.json says mean')


@pytest.mark.parametrize(
  ('processor', 'mean', 'std', 'size', 'crop'),
  [
    ({**PROCESSOR, 'do_normalize': False}, [0] * 3, [1] * 3, 64, 0.875),
    # Pixels of 0 … 255 are normalised.
    (
      {
        'image_mean': [51, 102, 153],
        'image_std': [255] * 3,
        'do_rescale': False,
        'size': {'height': 32, 'width': 32},
      },
      [0.2, 0.4, 0.6],
      [1] * 3,
      32,
      1,
    ),
    (
      {
        'image_mean': [0.5] * 3,
        'image_std': [0.5] * 3,
        'size': {'shortest_edge': 256},
        'crop_size': 224,
        'do_center_crop': True,
      },
      [0.5] * 3,
      [0.5] * 3,
      224,
      0.875,
    ),
    ({**PROCESSOR, 'rescale_offset': True}, None, None, None, 1),
    ({**PROCESSOR, 'image_mean': 'imagenet'}, None, None, None, 1),
    ({}, None, None, None, 1),
  ],
)
def test_image_processors(tmp_path, processor, mean, std, size, crop):
  make(tmp_path / 'net', config={}, processor=processor)
  found = directory.describe(tmp_path / 'net', 3, 3)
  if mean is None:
    assert found.normalization is None
  else:
    np.testing.assert_allclose(found.normalization['mean'], mean)
    np.testing.assert_allclose(found.normalization['std'], std)
  assert found.size == (size and (size, size))
  assert found.crop == crop


def test_a_directory_of_timm(tmp_path):
  timm = {
    'mean': [0.5] * 3,
    'std': [0.25] * 3,
    'input_size': [3, 160, 176],
    'crop_pct': 0.95,
  }
  config = {
    'architecture': 'resnet18',
    'num_classes': 3,
    'label_names': ['a', 'b', 'c'],
    'pretrained_cfg': timm,
  }
  make(tmp_path / 'net', config=config)
  found = directory.describe(tmp_path / 'net', 3, 3)
  assert found[:4] == (
    ['a', 'b', 'c'],
    {'mean': [0.5] * 3, 'std': [0.25] * 3},
    (160, 176),
    0.95,
  )
  for changes in (
    {'architecture': 'resnetblur50'},
    {'model_args': {'act_layer': 'silu'}},
  ):
    text = json.dumps({**config, **changes})
    (tmp_path / 'net' / 'config.json').write_text(text)
    with pytest.raises(ValueError, match='kdjax has no such ResNet'):
      directory.describe(tmp_path / 'net', 3, 3)


@pytest.mark.parametrize(
  ('labels', 'names', 'noted'),
  [
    ({'0': 'LABEL_0', '1': 'LABEL_1', '2': 'LABEL_2'}, None, False),
    ({'0': 'cat', '1': 'dog'}, None, True),
    ({'0': 'cat', '2': 'dog', '3': 'owl'}, None, False),
    ({'0': 'cat', '1': 3, '2': 'owl'}, None, False),
    ({'2': 'owl', '1': 'dog', '0': 'cat'}, ['cat', 'dog', 'owl'], False),
  ],
)
def test_names_of_classes(tmp_path, labels, names, noted):
  make(tmp_path / 'net', config={'id2label': labels})
  found = directory.describe(tmp_path / 'net', 3, 3)
  assert found.class_names == names
  assert bool(found.notes) == noted


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu', expected 'relu'"),
    ({'downsample_in_bottleneck': True}, 'downsample_in_bottleneck is True'),
    ([], 'config.json: expected a dictionary'),
  ],
)
def test_what_weights_do_not_show_is_refused(tmp_path, config, message):
  make(tmp_path / 'net', config=config)
  with pytest.raises(ValueError, match=message):
    networks.load(tmp_path / 'net')


def test_a_file_of_several_that_is_missing(tmp_path):
  path = tmp_path / 'net'
  make(path, 'model.safetensors.index.json')
  (path / '2.safetensors').unlink()
  with pytest.raises(
    FileNotFoundError, match=r'there is no file 2\.safetensors .*index\.json'
  ):
    networks.load(path)
  for index in ({}, {'weight_map': {'a': '../1.safetensors'}}):
    (path / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match='has no weight_map'):
      networks.load(path)


def test_a_directory_with_weights_under_another_name(tmp_path):
  path = tmp_path / 'net'
  make(path)
  (path / 'model.safetensors').rename(path / 'resnet18-best.safetensors')
  with pytest.raises(
    FileNotFoundError, match=r'holds resnet18-best\.safetensors: name that'
  ):
    networks.load(path)


def test_directories_around_the_weights(tmp_path):
  (tmp_path / 'hub' / 'snapshots').mkdir(parents=True)
  make(tmp_path / 'hub' / 'snapshots' / '3f2a')
  with pytest.raises(
    FileNotFoundError, match='holds snapshots/3f2a: name that'
  ):
    networks.load(tmp_path / 'hub')
  (tmp_path / 'hub' / 'model.safetensors').write_bytes(b'')
  with pytest.raises(FileNotFoundError, match='holds hub: name that'):
    networks.load(tmp_path)
  (tmp_path / '__0_0.distcp').write_bytes(b'')
  with pytest.raises(FileNotFoundError, match='dcp_to_torch'):
    networks.load(tmp_path)


def test_a_pointer_of_git_lfs_in_a_directory(tmp_path):
  make(tmp_path / 'net')
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
  (tmp_path / 'net' / 'model.safetensors').write_bytes(pointer)
  with pytest.raises(ValueError, match=r'model\.safetensors: a pointer of Git'):
    networks.load(tmp_path / 'net')


def test_one_logit_becomes_two(tmp_path):
  state = state_of(classes=1)
  torch_files.write_zip(tmp_path / 'net.pth', prefixed(state, 'module.'))
  network, card, recognised = networks.load(
    tmp_path / 'net.pth', known=networks.Known(class_names=['healthy', 'ill'])
  )
  assert card['model']['num_classes'] == 2
  assert 'of which the second, ill, is the positive one' in recognised[-1]
  fc = network.variables['params']['fc']
  np.testing.assert_array_equal(
    fc['kernel'], np.stack([np.zeros(16), state['fc.weight'][0]], axis=1)
  )
  np.testing.assert_array_equal(fc['bias'], [0, state['fc.bias'][0]])
  assert network.model.num_classes == 2
