"""Cards of networks, whoever wrote them."""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import kdjax
from kdjax import models
from kdjax.export import formats
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import (
  card,
  checkpoint,
  networks,
  program_files,
  trees,
  weights,
)
from kdjax.training.state import TrainState

KNOWN = {
  'kdjax': '1.0',
  'model': tiny.MODEL,
  'class_names': ['a', 'b', 'c'],
  'preprocessing': {
    'image_shape': [8, 8, 1],
    'channels': 1,
    'mean': [0.5],
    'std': [0.25],
    'crop': 1.0,
  },
  'metrics': {},
  'provenance': {},
}
ABSENT = object()


def changed(place, value):
  """The card with another value in one place; ABSENT: with none."""
  found = json.loads(json.dumps(KNOWN))
  *parents, key = place.split('.')
  inner = found
  for parent in parents:
    inner = inner[parent]
  inner[key] = value
  if value is ABSENT:
    del inner[key]
  return found


@pytest.fixture(scope='module')
def network():
  model = models.build(**tiny.MODEL)
  variables = features.init(model, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  return Network(
    model, networks.with_normalization(variables, [0.5], [0.25], 1)
  )


def save_run(path, network, **metadata):
  """Writes a run with one checkpoint."""
  student = network.variables['params']
  state = TrainState(
    step=jnp.int32(1),
    params={'student': student, 'method': {}},
    batch_stats=network.variables['batch_stats'],
    method_state={},
    opt_state=(),
    rng=jax.random.key(0),
    ema=None,
  )
  known = {
    'model': tiny.MODEL,
    'normalization': {'mean': [0.5], 'std': [0.25]},
    'validation_accuracy': None,
    'class_names': ['a', 'b', 'c'],
    'image_shape': [8, 8, 1],
    'step': 1,
  }
  with checkpoint.Checkpoints(path, keep=1) as checkpoints:
    checkpoints.save(state, known | metadata)
  return path


def write_program(path, network, content):
  program_files.write(path, b'no program', content)


def write_orbax(path, network, content):
  checkpoint.save_network(path, network, content)


def write_safetensors(path, network, content):
  formats.write_safetensors(path, network, content, ())


# What writes a file, by its name, and where the card is.
READERS = {
  'x.orbax': (write_orbax, r'x\.orbax/model_card\.json'),
  'x.safetensors': (write_safetensors, r'x\.safetensors'),
  'x.stablehlo': (write_program, r'x\.stablehlo\.json'),
  'x.onnx': (write_program, r'x\.onnx\.json'),
}


def test_a_card_is_read_as_it_was_written():
  assert card.read(card.to_json(KNOWN, more=1), 'x') == {**KNOWN, 'more': 1}
  for place in ('class_names', 'preprocessing.image_shape', 'kdjax'):
    card.check(changed(place, None), 'x')
  card.check(changed('model.dtype', ABSENT), 'x')


@pytest.mark.parametrize(
  ('place', 'value'),
  [
    *((f'{place}', ABSENT) for place in KNOWN),
    *((f'preprocessing.{place}', ABSENT) for place in KNOWN['preprocessing']),
    ('kdjax', 3),
    ('model', 'resnet10'),
    ('model.name', ABSENT),
    ('model.num_classes', ABSENT),
    ('model.name', 3),
    ('model.num_classes', '3'),
    ('model.num_classes', None),
    ('model.num_classes', True),
    ('model.num_classes', 10**30),
    ('model.stem', 3),
    ('model.width', False),
    ('model.width', -1),
    ('model.width', 4.0),
    ('model.dtype', 'int8'),
    ('model.dtype', ['float32']),
    ('model.args', ['touch', 'x']),
    ('class_names', ['a', 'b']),
    ('class_names', 'abc'),
    ('class_names', ['a', 'b', 3]),
    ('metrics', []),
    ('provenance', None),
    ('preprocessing', [1]),
    ('preprocessing.image_shape', [8, 8]),
    ('preprocessing.image_shape', [8, 8, 3]),
    ('preprocessing.image_shape', [8, 0, 1]),
    ('preprocessing.image_shape', [8, 8.0, 1]),
    ('preprocessing.image_shape', 8),
    ('preprocessing.channels', 0),
    ('preprocessing.channels', 1.0),
    ('preprocessing.mean', None),
    ('preprocessing.std', None),
    ('preprocessing.mean', [float('nan')]),
    ('preprocessing.mean', [0.5, 0.5]),
    ('preprocessing.std', [0]),
    ('preprocessing.std', ['1']),
    ('preprocessing.crop', 0),
    ('preprocessing.crop', 1.5),
    ('preprocessing.crop', float('nan')),
    ('preprocessing.crop', True),
  ],
)
def test_what_is_missing_or_wrong_is_named(place, value):
  key = place.rpartition('.')[2]
  with pytest.raises(ValueError, match=f'the/file.*{key}'):
    card.check(changed(place, value), 'the/file')


@pytest.mark.parametrize('name', READERS)
def test_every_reader_checks_its_card(network, tmp_path, name):
  write, shown = READERS[name]
  path = tmp_path / name
  bad = changed('preprocessing.crop', 2)
  write(path, network, bad)
  with pytest.raises(ValueError, match=f'{shown}: .*crop is 2'):
    kdjax.load_student(path)


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '3',
    '{}',
    '[' * 100_000,
    '{"a":' * 100_000,
    '\ud800',
    json.dumps(KNOWN),
    card.to_json(KNOWN).replace('"a"', '"b"'),
  ],
)
def test_what_is_no_card_is_refused(text):
  with pytest.raises(ValueError, match='the model card in x'):
    card.read(text, 'x')


# Nothing in a file is called


@pytest.mark.parametrize('load', [networks.load, checkpoint.restore])
@pytest.mark.parametrize(
  ('model', 'message'),
  [
    (
      {'name': 'subprocess:Popen', 'args': ['touch', 'x']},
      "its model has 'args",
    ),
    ({'name': 'subprocess:Popen'}, "'subprocess:Popen' is <class"),
    ({'name': 'os:abort'}, "'os:abort' is <built-in function abort>"),
  ],
)
def test_a_file_cannot_have_anything_called(
  network, tmp_path, model, message, load
):
  model = {'num_classes': 3, **model}
  save_run(tmp_path / 'run', network, model=model)
  with pytest.raises(ValueError, match=message):
    load(tmp_path / 'run')
  if load is networks.load:
    write_orbax(tmp_path / 'out', network, {**KNOWN, 'model': model})
    with pytest.raises(ValueError, match=message):
      load(tmp_path / 'out')


# Arrays are those of the card


@pytest.mark.parametrize(
  ('place', 'value', 'message'),
  [
    ('model.num_classes', 4, 'num_classes 4, expected 3'),
    ('model.name', 'resnet18', 'name resnet18, expected resnet10'),
    ('model.width', 8, 'width 8, expected 4'),
    ('preprocessing.channels', 3, 'channels 3, expected 1'),
  ],
)
def test_a_card_of_other_tensors_is_refused(
  network, tmp_path, place, value, message
):
  content = changed(place, value)
  content['class_names'] = None
  content['preprocessing'].update(image_shape=None, mean=None, std=None)
  write_safetensors(tmp_path / 'x.safetensors', network, content)
  with pytest.raises(ValueError, match=message):
    networks.load(tmp_path / 'x.safetensors')


def test_arrays_of_another_network_are_refused_unread(
  network, tmp_path, monkeypatch
):
  content = changed('model.num_classes', 4)
  content['class_names'] = None
  write_orbax(tmp_path / 'out', network, content)
  with monkeypatch.context() as patch:
    patch.setattr(trees, 'read', None)
    with pytest.raises(ValueError, match=r'fc/bias \(float32\[3\], expected'):
      networks.load(tmp_path / 'out')
  save_run(tmp_path / 'run', network, model=content['model'], class_names=None)
  with pytest.raises(ValueError, match=r'fc/bias \(float32\[3\], expected'):
    networks.load(tmp_path / 'run')
  content['model']['stem'] = 'none'
  write_orbax(tmp_path / 'other', network, content)
  with pytest.raises(ValueError, match="'none'"):
    networks.load(tmp_path / 'other')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(network, tmp_path, value):
  variables = jax.tree.map(lambda x: x, network.variables)
  variables['params']['fc']['bias'] *= value
  wrong = network._replace(variables=variables)
  write_orbax(tmp_path / 'out', wrong, KNOWN)
  save_run(tmp_path / 'run', wrong)
  for name in ('out', 'run'):
    with pytest.raises(ValueError, match='not finite in params/fc/bias'):
      networks.load(tmp_path / name)


# What is asked for


def test_what_only_a_run_has_is_asked_of_a_run_only(network, tmp_path):
  write_orbax(tmp_path / 'out', network, KNOWN)
  weights.save(tmp_path / 'x.safetensors', network.variables, {})
  for name in ('out', 'x.safetensors'):
    with pytest.raises(ValueError, match=f'{name} is one network, not a run'):
      networks.load(tmp_path / name, 'last')
    with pytest.raises(ValueError, match='is not known to be moving averages'):
      networks.load(tmp_path / name, ema=True)


def test_a_program_is_no_weights_and_a_directory_no_program(network, tmp_path):
  write_program(tmp_path / 'x.onnx', network, KNOWN)
  with pytest.raises(ValueError, match='a program, which holds no weights'):
    networks.load(tmp_path / 'x.onnx')
  write_orbax(tmp_path / 'out.onnx', network, KNOWN)
  assert kdjax.load_student(tmp_path / 'out.onnx').class_names == tuple('abc')


# Programs


def test_a_program_that_cannot_be_read_is_named(network, tmp_path, monkeypatch):
  path = tmp_path / 'x.stablehlo'
  write_program(path, network, KNOWN)
  content = json.loads((tmp_path / 'x.stablehlo.json').read_text())
  assert content['program'] == hashlib.sha256(b'no program').hexdigest()
  with pytest.raises(ValueError, match=r'cannot read .*x\.stablehlo \('):
    kdjax.load_student(path)
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  monkeypatch.delitem(
    sys.modules, 'jax._src.export.serialization', raising=False
  )
  with pytest.raises(ValueError, match=r'not installed: pip install flatbuf'):
    kdjax.load_student(path)


def test_onnx_says_what_it_needs(network, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  write_program(tmp_path / 'x.onnx', network, KNOWN)
  with pytest.raises(ValueError, match='pip install onnxruntime'):
    kdjax.load_student(tmp_path / 'x.onnx')
