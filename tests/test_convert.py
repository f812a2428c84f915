"""Conversion of weights from the shell."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import processes
import pytest
import safetensors
import safetensors.numpy
from tiny import MODEL

from kdjax import models
from kdjax.models import features
from kdjax.storage import digests, networks, weights

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
  network, card, _ = networks.load(source / 'made' / 'new.safetensors')
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
  plain = networks.load(source / 'plain.safetensors').network.variables
  assert digests.digest(variables) == digests.digest(dict(plain))
  # Others read it by torchvision's names, and the card in its header.
  with safetensors.safe_open(source / 'made/new.safetensors', 'numpy') as file:
    assert file.get_tensor('layer1.0.conv1.weight').shape == (4, 4, 3, 3)
    assert json.loads(file.metadata()['kdjax'])['model']['name'] == 'resnet10'


# Several commands in one process, for each start takes seconds.
SCRIPT = """
import json, sys
import numpy as np
from absl import flags
from absl.testing import flagsaver
from kdjax import convert
from kdjax.export import formats

sound = formats.write_orbax

def damaging(path, network, card, platforms):
  fc = {**network.variables['params']['fc'], 'bias': np.ones(3, np.float32)}
  params = {**network.variables['params'], 'fc': fc}
  variables = {**network.variables, 'params': params}
  sound(path, network._replace(variables=variables), card, platforms)

for writer, *argv in json.loads(sys.argv[1]):
  formats.WRITERS['orbax'] = globals()[writer]
  with flagsaver.flagsaver():
    try:
      convert.main(flags.FLAGS(['convert', *argv]))
    except SystemExit as error:
      print(error)
  print('---')
"""

COMMANDS = (
  ('sound plain.safetensors folder', 'unknown: how its images are normalised'),
  ('sound folder back.safetensors', 'folder: written by kdjax'),
  ('sound plain.safetensors folder', 'exists: replace it with --overwrite'),
  ('damaging plain.safetensors folder --overwrite', 'Nothing was converted'),
  ('damaging plain.safetensors x', 'Nothing was converted'),
  ('sound folder again.safetensors', 'unknown: the names of its classes'),
  (
    'sound plain.safetensors folder --overwrite --mean=0.5 --std=0.25',
    'folder: resnet10, 3 classes',
  ),
  ('sound plain.safetensors . --overwrite', 'that kdjax did not make'),
  ('sound plain.safetensors x --mean=imagenet --std=imagenet', 'of 1 channels'),
  ('sound plain.safetensors x --class_names=two.txt', 'the network knows 3'),
  (
    'sound plain.safetensors x --mean=127.5 --std=127.5',
    'divided by 255, 0.5 and 0.5',
  ),
  ('sound plain.safetensors x --stem=imagenet', 'those of the stem cifar'),
  ('sound plain.safetensors pool.safetensors --stem=cifar_pool', '3 classes'),
  ('sound pool.safetensors pool', '3 classes'),
)


def test_directories_go_back_and_are_replaced_by_what_is_sound(source):
  (source / 'two.txt').write_text('one\ntwo\n')
  commands = json.dumps([command.split() for command, _ in COMMANDS])
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, commands],
    cwd=source,
    env={**os.environ, 'PYTHONPATH': str(processes.ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  *said, end = done.stdout.split('---\n')
  assert not end
  for text, (command, expected) in zip(said, COMMANDS, strict=True):
    assert expected in text, command
  ours, *theirs = (
    safetensors.numpy.load_file(source / f'{name}.safetensors')
    for name in ('plain', 'back', 'again')
  )
  for back in theirs:
    assert ours.keys() == back.keys()
    for name, tensor in ours.items():
      np.testing.assert_array_equal(tensor, back[name])
  card = networks.load(source / 'folder').card
  assert card['preprocessing']['mean'] == [0.5]
  assert not (source / 'x').exists()
  assert not list(source.glob('.export-*'))
