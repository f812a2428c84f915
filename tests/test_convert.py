"""Conversion of weights from the shell."""

import functools
import json

import jax
import numpy as np
import processes
import pytest
import safetensors
import safetensors.numpy
from tiny import MODEL

from kdjax import digests, features, models, pretrained, weights

run = functools.partial(processes.run, module='kdjax.convert')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Weights of others, with a prefix."""
  folder = tmp_path_factory.mktemp('convert')
  model = models.build(**MODEL)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.uint8)
  variables = features.init(model, jax.random.key(0), images)
  weights.save(folder / 'plain.safetensors', variables, {})
  tensors = safetensors.numpy.load_file(folder / 'plain.safetensors')
  safetensors.numpy.save_file(
    {f'module.{name}': tensor for name, tensor in tensors.items()},
    folder / 'source.safetensors',
  )
  (folder / 'names.txt').write_text('one\ntwo\nthree\n')
  return folder


def test_a_file_becomes_one_that_says_all_of_itself(source):
  done = run(
    str(source / 'source.safetensors'),
    str(source / 'made' / 'new.safetensors'),
    '--mean=0.5',
    '--std=0.25',
    '--image_size=8',
    f'--class_names={source / "names.txt"}',
  )
  assert done.returncode == 0, done.stderr
  assert 'resnet10, cifar stem, width 4, 3 classes' in done.stdout
  assert 'prefix taken off: module.' in done.stdout
  assert 'unknown' not in done.stdout
  network, card, _ = pretrained.load(source / 'made' / 'new.safetensors')
  assert card['class_names'] == ['one', 'two', 'three']
  assert card['preprocessing'] == {
    'image_shape': [8, 8, 1],
    'channels': 1,
    'mean': [0.5],
    'std': [0.25],
    'crop': 1.0,
  }
  variables = dict(network.variables)
  assert variables.pop('normalization') == {'mean': 0.5, 'std': 0.25}
  plain = pretrained.load(source / 'plain.safetensors').network.variables
  assert digests.digest(variables) == digests.digest(dict(plain))
  # Others read it by torchvision's names, and the card in its header.
  with safetensors.safe_open(source / 'made/new.safetensors', 'numpy') as file:
    assert file.get_tensor('layer1.0.conv1.weight').shape == (4, 4, 3, 3)
    assert json.loads(file.metadata()['kdjax'])['model']['name'] == 'resnet10'


def test_a_directory_is_orbax_and_goes_back(source):
  plain, folder = source / 'plain.safetensors', source / 'folder'
  done = run(str(plain), str(folder))
  assert done.returncode == 0, done.stderr
  assert 'unknown: how its images are normalised' in done.stdout
  assert 'unknown: the names of its classes' in done.stdout
  done = run(str(folder), str(source / 'back.safetensors'))
  assert done.returncode == 0, done.stderr
  ours, theirs = (
    safetensors.numpy.load_file(path)
    for path in (plain, source / 'back.safetensors')
  )
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name])


@pytest.mark.parametrize(
  ('destination', 'flags', 'message'),
  [
    ('plain.safetensors', [], 'exists: replace it with --overwrite'),
    ('', ['--overwrite'], 'a directory that kdjax did not make'),
    ('x', ['--mean=imagenet', '--std=imagenet'], 'images of 1 channels'),
    ('x', ['--class_names=README.md'], 'and the network knows 3'),
  ],
)
def test_what_makes_no_sense_is_refused(source, destination, flags, message):
  done = run(
    str(source / 'plain.safetensors'), str(source / destination), *flags
  )
  assert done.returncode == 1
  assert message in done.stderr
  assert not (source / 'x').exists()
