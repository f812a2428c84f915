"""Programs whose weights have fewer bits, and files that are renewed."""

import datetime
import functools
import json

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest
import tiny
from processes import run

import kdjax
from kdjax import models
from kdjax.export import formats, predictor, write
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import networks, program_files
from kdjax.training import train


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'run'
  config = tiny.config('scratch')
  config.student.width = 16
  train.train_and_evaluate(config, path)
  return path


def export(workdir, weights):
  options = write.Options(weights=weights, overwrite=True, images=64)
  write.export(workdir, ['stablehlo'], options=options)
  stem = 'student' if weights == 'float32' else f'student-{weights}'
  return workdir / 'export' / f'{stem}.stablehlo'


def test_fewer_bits_make_a_smaller_program_that_predicts_the_same(workdir):
  sizes = {}
  images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
  expected = kdjax.load_student(workdir)(images)
  for weights, most in ('float32', 1e-5), ('float16', 1e-3), ('int8', 0.05):
    path = export(workdir, weights)
    sizes[weights] = path.stat().st_size
    student = kdjax.load_student(path)
    assert student.card.get('weights', 'float32') == weights
    difference = np.abs(student(images) - expected).max()
    assert difference < most, weights
    assert weights == 'float32' or difference > 1e-7
  network, _, _ = networks.load(workdir)
  weights = sum(leaf.size for leaf in jax.tree.leaves(network.variables))
  # Four, two and one byte for each.
  assert 1.6 * weights < sizes['float32'] - sizes['float16'] < 2.1 * weights
  assert 0.7 * weights < sizes['float16'] - sizes['int8'] < 1.1 * weights


def test_int8_rounds_to_multiples_of_the_largest_weight_of_an_output():
  kernel = np.array([[0.5, -2.0], [0.1, 0.015]], np.float32)
  packed = formats._pack('int8', kernel)
  np.testing.assert_array_equal(packed.values, [[127, -127], [25, 1]])
  np.testing.assert_allclose(packed.scale, [0.5 / 127, 2 / 127])
  np.testing.assert_allclose(
    formats._unpack(packed), [[0.5, -2.0], [25 * 0.5 / 127, 2 / 127]], rtol=1e-6
  )
  # An output without weights.
  zero = formats._pack('int8', np.zeros((2, 1), np.float32))
  np.testing.assert_array_equal(formats._unpack(zero), [[0], [0]])
  bias = np.ones(2, np.float32)
  assert formats._pack('int8', bias) is bias


def test_a_program_that_rounding_ruins_is_refused(workdir, monkeypatch):
  pack = formats._pack
  monkeypatch.setattr(
    formats, '_pack', lambda stored, leaf: pack(stored, -10 * leaf)
  )
  with pytest.raises(ValueError, match='as stablehlo is not the network'):
    export(workdir, 'int8')


@pytest.mark.parametrize('name', ['orbax', 'safetensors'])
def test_files_of_weights_are_not_reduced(workdir, name, tmp_path):
  options = write.Options(weights='int8')
  with pytest.raises(ValueError, match=f'{name} keeps the weights as they are'):
    write.export(workdir, [name], tmp_path / f'x.{name}', options)


def test_a_program_says_how_long_it_is_promised_to_be_read(workdir):
  card = kdjax.load_student(export(workdir, 'float32')).card
  known = card['program_format']
  written = datetime.date.fromisoformat(known['written'])
  until = datetime.date.fromisoformat(known['promised_until'])
  assert (until - written).days == 180
  assert known['jax'] == jax.__version__


def test_a_program_is_renewed(workdir, tmp_path):
  path = export(workdir, 'float32')
  card_file = program_files.card_of(path)
  card = json.loads(card_file.read_text())
  old = card | {'program_format': {'promised_until': '2020-01-01'}}
  del old['sha256'], old['program']
  program_files.write(path, path.read_bytes(), old)
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
  expected = kdjax.load_student(path)(images)
  done = run(f'--renew={path}', module='kdjax.export')
  assert done.returncode == 0, done.stderr
  renewed = kdjax.load_student(path)
  np.testing.assert_allclose(renewed(images), expected, rtol=1e-6)
  assert renewed.card['program_format']['promised_until'] > '2026'
  # What cannot be read any more says what was promised.
  program_files.write(path, b'another version', old)
  with pytest.raises(ValueError, match=r'promised to read it until 2020-01-01'):
    kdjax.load_student(path)


def test_a_card_holds_no_paths(workdir, monkeypatch):
  metadata = {
    'config': {
      'data': {'name': 'digits', 'data_dir': '/home/me/data'},
      'teacher': {'path': '/home/me/runs/teacher', 'ensemble': ['/home/me/a']},
      'method': {'custom': {}},
    },
    'model': tiny.MODEL,
    'class_names': list('abc'),
    'image_shape': [8, 8, 1],
    'normalization': {'mean': [0.5], 'std': [0.25]},
  }
  card = networks._card(metadata, ema=False)
  assert '/home' not in json.dumps(card)
  config = card['provenance']['config']
  assert config['teacher'] == {'path': 'teacher', 'ensemble': ['a']}
  assert config['method'] == {'custom': {}}
  assert predictor.image_shape(card) == (8, 8, 1)


@pytest.mark.parametrize(
  'name',
  ['vit_tiny_patch4', 'mobilenetv2', 'shufflenetv2', 'vgg8', 'wrn_16_1'],
)
def test_networks_are_programs_of_any_number_of_images(name):
  model = models.build(name, num_classes=3)
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.uint8)
  shapes = jax.eval_shape(
    lambda: features.init(model, jax.random.key(0), images)
  )
  variables = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes
  )
  function = jax.jit(functools.partial(predictor.classify, model, variables))
  size = jax.export.symbolic_shape('size, 16, 16, 3')
  exported = jax.export.export(function)(jax.ShapeDtypeStruct(size, np.uint8))
  assert exported.out_avals[0].shape == (size[0], 3)


class Counting(nn.Module):
  """A network that asks for the number of images as if it were known."""

  num_classes: int

  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def test_a_network_that_counts_its_images_is_told_how(tmp_path):
  model = Counting(3)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.uint8)
  variables = features.init(model, jax.random.key(0), images)
  card = {
    'model': {'name': 'mine:Counting'},
    'preprocessing': {'image_shape': [8, 8, 1]},
  }
  with pytest.raises(ValueError, match=r'take x\.shape\[0\], not len\(x\)'):
    formats.write_stablehlo(
      tmp_path / 'x', Network(model, variables), card, ['cpu']
    )


@pytest.mark.filterwarnings('ignore')
def test_onnx_has_its_card_inside_and_fewer_bits(workdir, tmp_path):
  pytest.importorskip('jax2onnx')
  onnx = pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
  expected = kdjax.load_student(workdir)(images)
  sizes = []
  for weights in ('float32', 'int8'):
    path = tmp_path / f'{weights}.onnx'
    options = write.Options(weights=weights, images=64)
    write.export(workdir, ['onnx'], path, options)
    found = kdjax.load_student(path)(images)
    np.testing.assert_allclose(found, expected, atol=0.05)
    properties = {
      each.key: each.value for each in onnx.load(path).metadata_props
    }
    inside = json.loads(properties['kdjax'])
    assert inside['class_names'] == list('0123456789')
    assert inside.get('weights', 'float32') == weights
    sizes.append(path.stat().st_size)
  assert sizes[1] < 0.4 * sizes[0]
