"""Exports of a real student, and what reads them without kdjax."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import flax.linen as nn
import folder
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from processes import run

import kdjax
from kdjax import data, models
from kdjax.evaluation import predict
from kdjax.export import formats, staging, verify, write
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import (
  checkpoint,
  networks,
  program_files,
  run_directory,
  weights,
)
from kdjax.training import train

FORMATS = 'orbax', 'safetensors', 'stablehlo'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A student distilled from a stream of images of many sizes."""
  path = tmp_path_factory.mktemp('export')
  config = tiny.config()
  # Weights are exported by the names of torchvision's ResNets.
  config.student.name = 'resnet10'
  config.data.update(
    name='image_folder',
    data_dir=str(folder.write(path / 'images', count=8)),
    image_size=8,
    streaming=True,
    train_limit=0,
  )
  config.train.update(epochs=1, batch_size=8, ema_decay=0.5)
  config.teacher.train.epochs = 1
  train.train_and_evaluate(config, path / 'run')
  return path / 'run'


@pytest.fixture(scope='module')
def moved(workdir):
  """Where the images are that it was trained on, since then."""
  config = run_directory.read_config(workdir)
  place = workdir.parent / 'moved'
  shutil.move(config.data.data_dir, place)
  return str(place)


@pytest.fixture(scope='module')
def images(workdir, moved):
  config = run_directory.read_config(workdir)
  config.data.data_dir = moved
  return data.in_memory(data.load(config.data).test).images


@pytest.fixture(scope='module')
def exported(workdir, moved):
  """What a command says that exported the student in several formats."""
  done = run(
    f'--workdir={workdir}',
    f'--format={",".join(FORMATS)}',
    f'--data_dir={moved}',
    module='kdjax.export',
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def live(network, images):
  """The probabilities of a network as it is evaluated."""
  return np.asarray(
    jax.nn.softmax(predict.predict_images(network, images, 100))
  )


def path_of(workdir, name):
  return workdir / 'export' / f'student.{name}'


def assert_same_variables(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_command_shows_teacher_student_and_exports(workdir, exported):
  result = run_directory.read_result(workdir)
  table, caption = exported.split('\n\n')
  rows = [line.split() for line in table.splitlines()[2:]]
  teacher, student, *exports = rows
  assert teacher[:2] == ['teacher', tiny.NETWORK]
  assert student[:2] == ['student', 'resnet10']
  assert [row[0] for row in exports] == [f'student.{name}' for name in FORMATS]
  accuracy = result['best']['test']['accuracy']
  for row in (student[1:], *exports):
    _, size, parameters, milliseconds, found, difference = row
    assert float(size) > 0
    assert parameters == f'{result["student"]["parameters"]:,}'
    assert float(milliseconds) > 0
    assert found == f'{accuracy:.2%}'
    assert difference == '-' or float(difference) < 1e-5
  assert teacher[5:] == [f'{result["teacher"]["test"]["accuracy"]:.2%}', '-']
  assert 'on 24 test images' in caption
  assert caption.endswith(f'written to: {workdir / "export"}\n')
  left = {file.name for file in (workdir / 'export').iterdir()}
  assert left == {
    'student.orbax',
    'student.safetensors',
    'student.stablehlo',
    'student.stablehlo.json',
  }


READER = """
import sys
sys.modules['kdjax'] = None
import jax, numpy as np, orbax.checkpoint, safetensors.numpy
from jax import export
folder, output = sys.argv[1:]
images = np.load(output + '/images.npy')
with open(folder + '/student.stablehlo', 'rb') as file:
  program = export.deserialize(bytearray(file.read()))
found = {f'of {n}': program.call(images[:n]) for n in (1, 3, 24)}
with orbax.checkpoint.StandardCheckpointer() as checkpointer:
  tree = checkpointer.restore(folder + '/student.orbax')
for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
  found[jax.tree_util.keystr(path, simple=True, separator='/')] = leaf
found |= safetensors.numpy.load_file(folder + '/student.safetensors')
np.savez(output + '/found.npz', platforms=program.platforms, **found)
"""


def test_exports_need_no_kdjax(workdir, exported, images, tmp_path):
  np.save(tmp_path / 'images.npy', images)
  subprocess.run(
    [sys.executable, '-c', READER, workdir / 'export', tmp_path],
    cwd=tmp_path,
    check=True,
  )
  with np.load(tmp_path / 'found.npz') as arrays:
    found = dict(arrays)
  network = checkpoint.restore(workdir)
  expected = live(network, images)
  assert set(found['platforms']) == {'cpu', 'cuda', 'tpu'}
  for count in (1, 3, 24):
    probabilities = found[f'of {count}']
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected[:count], atol=1e-5)
    np.testing.assert_array_equal(
      probabilities.argmax(1), expected[:count].argmax(1)
    )
  saved = jax.tree_util.tree_leaves_with_path(
    {key: network.variables[key] for key in ('params', 'batch_stats')}
  )
  for path, leaf in saved:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    np.testing.assert_array_equal(found[name], leaf)
  params, stats = (network.variables[key] for key in ('params', 'batch_stats'))
  for name, array in {
    'conv1.weight': params['conv1']['kernel'].transpose(3, 2, 0, 1),
    'layer3.0.downsample.0.weight': params['stage3']['block1'][
      'downsample_conv'
    ]['kernel'].transpose(3, 2, 0, 1),
    'layer3.0.bn2.weight': params['stage3']['block1']['bn2']['scale'],
    'layer4.0.bn1.running_var': stats['stage4']['block1']['bn1']['var'],
    'fc.weight': params['fc']['kernel'].T,
    'fc.bias': params['fc']['bias'],
  }.items():
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize('name', FORMATS)
def test_a_student_is_loaded_from_each(workdir, exported, images, name):
  student = kdjax.load_student(path_of(workdir, name))
  network = checkpoint.restore(workdir)
  np.testing.assert_allclose(student(images), live(network, images), atol=1e-5)
  assert student.class_names == folder.CLASSES
  assert student.image_shape == (8, 8, 3)
  assert student.card['preprocessing']['crop'] == 0.875
  assert student.card == kdjax.load_student(workdir).card
  assert student.card == kdjax.load_student(checkpoint.find(workdir)).card
  result = run_directory.read_result(workdir)
  assert student.card['metrics'] == result['best']['test']
  assert student.card['provenance']['step'] == result['best']['step']
  if name in ('orbax', 'safetensors'):
    again = networks.load(path_of(workdir, name)).network
    assert_same_variables(again.variables, network.variables)


def test_moving_averages_are_exported(workdir, moved, tmp_path):
  output = tmp_path / 'out.safetensors'
  write.export(
    workdir, ['safetensors'], output, write.Options(ema=True, data_dir=moved)
  )
  (_, found), card, _ = networks.load(output)
  assert card['provenance']['ema']
  # Which they are said to be.
  assert kdjax.load_student(output, ema=True).card == card
  with pytest.raises(ValueError, match='is one network, not a run'):
    kdjax.load_student(checkpoint.find(workdir), 'last')
  averages = checkpoint.restore(workdir, ema=True).variables
  assert_same_variables(found, averages)
  result = run_directory.read_result(workdir)['best']
  assert card['metrics'] == result['ema']['test'] != result['test']


def test_an_export_is_exported_on_the_images_that_it_knows_of(
  workdir, exported, moved, tmp_path, caplog
):
  source = path_of(workdir, 'safetensors')

  def export(name, **options):
    output = tmp_path / f'{name}.safetensors'
    return write.export(
      source, ['safetensors'], output, write.Options(**options)
    )

  assert 'on 9 test images' in export('a', data_dir=moved, images=9)
  assert not caplog.text
  others = str(folder.write(tmp_path / 'others', count=1))
  assert 'on 5 images of noise' in export('b', data_dir=others, images=5)
  assert 'was trained on other data (image_folder)' in caplog.text
  export('c', images=1)
  assert 'compared on noise: ' in caplog.text.splitlines()[-1]


def test_an_unfinished_run_is_refused_but_not_its_checkpoint(
  workdir, moved, tmp_path
):
  unfinished = shutil.copytree(
    workdir,
    tmp_path / 'run',
    ignore=shutil.ignore_patterns('result.json', 'export'),
  )
  with pytest.raises(ValueError, match='has not finished'):
    write.export(unfinished, ['orbax'])
  directory = checkpoint.find(unfinished)
  text = write.export(
    directory,
    ['orbax'],
    tmp_path / 'out',
    write.Options(images=9, data_dir=moved),
  )
  assert 'on 9 test images' in text
  assert 'teacher' not in text
  found, *_ = networks.load(tmp_path / 'out')
  assert_same_variables(
    found.variables, checkpoint.restore(directory).variables
  )


@pytest.fixture(scope='module')
def bfloat16(tmp_path_factory):
  """A network without a run, that computes in bfloat16."""
  arguments = {**tiny.MODEL, 'stem': 'imagenet', 'dtype': 'bfloat16'}
  model = models.build(**arguments)
  shape = (16, 12, 3)
  variables = features.init(model, jax.random.key(0), jnp.zeros((1, *shape)))
  rng = np.random.default_rng(0)
  # BatchNorms that do something.
  variables = jax.tree.map(
    lambda x: (
      x + rng.uniform(0, 0.2, x.shape[-1]).astype(x.dtype) if x.ndim == 1 else x
    ),
    variables,
  )
  variables['normalization'] = {
    'mean': np.full(3, 0.4, np.float32),
    'std': np.full(3, 0.3, np.float32),
  }
  card = {
    'kdjax': kdjax.__version__,
    'model': arguments,
    'class_names': ['a', 'b', 'c'],
    'preprocessing': networks.preprocessing(
      shape, 3, variables['normalization']
    ),
    'metrics': {},
    'provenance': {},
  }
  path = tmp_path_factory.mktemp('bfloat16') / 'network'
  network = Network(model, variables)
  checkpoint.save_network(path, network, card)
  return path, network


def test_a_network_without_a_run_is_compared_on_noise(
  bfloat16, tmp_path, caplog
):
  path, network = bfloat16
  outputs = {
    name: tmp_path / f'out.{name}' for name in ('stablehlo', 'safetensors')
  }
  for name, output in outputs.items():
    text = write.export(path, [name], output, write.Options(platforms=['cpu']))
    assert 'on 64 images of noise' in text
  assert 'so there are no test images' in caplog.text
  images = np.random.default_rng(1).integers(0, 256, (9, 16, 12, 3), np.uint8)
  for output in outputs.values():
    student = kdjax.load_student(output)
    assert student.card['model']['dtype'] == 'bfloat16'
    np.testing.assert_allclose(
      student(images), live(network, images), atol=0.03
    )


def wrong(path, network, card, platforms):
  """Writes another network than it is told to."""
  variables = jax.tree.map(lambda x: x, network.variables)
  variables['params']['fc']['bias'] += jnp.arange(3)
  formats.write_orbax(path, network._replace(variables=variables), card, ())


def broken(path, network, card, platforms):
  """Writes a network that computes nothing."""
  variables = jax.tree.map(lambda x: x, network.variables)
  variables['params']['fc']['bias'] *= np.nan
  formats.write_orbax(path, network._replace(variables=variables), card, ())


def full(path, network, card, platforms):
  """Fails half way."""
  (path.parent / 'half').write_text('')
  raise OSError('the disk is full')


@pytest.mark.parametrize(
  ('writer', 'error', 'message'),
  [
    (wrong, ValueError, 'the export as orbax is not the network: on 64 images'),
    (broken, ValueError, 'not finite in params.fc.bias'),
    (full, OSError, 'the disk is full'),
  ],
)
def test_a_wrong_export_is_refused_and_nothing_is_left(
  bfloat16, tmp_path, monkeypatch, writer, error, message
):
  monkeypatch.setitem(formats.WRITERS, 'orbax', writer)
  with pytest.raises(error, match=message):
    write.export(bfloat16[0], ['orbax'], tmp_path / 'new' / 'out')
  assert not list(tmp_path.iterdir())


def unsure(seed, dtype):
  """A network that is sure of none of 100 classes."""
  model = models.build(**{**tiny.MODEL, 'num_classes': 100, 'dtype': dtype})
  variables = features.init(
    model, jax.random.key(seed), jnp.zeros((1, 8, 8, 1))
  )
  variables['params']['fc']['kernel'] *= verify.tolerance({'dtype': dtype})
  variables['normalization'] = {'mean': np.float32([0.4]), 'std': np.float32(1)}
  return Network(model, variables)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_another_network_is_not_taken_for_the_same(dtype):
  network, other = (unsure(seed, dtype) for seed in (0, 1))
  images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
  tolerance = verify.tolerance({'dtype': dtype})
  assert tolerance == {'float32': 1e-4, 'bfloat16': 2.0**-5}[dtype]
  count, accuracy, compared = verify.compare(
    network,
    {
      'itself': lambda images: live(network, images),
      'another': lambda images: live(other, images),
      # As much as rounding does.
      'rounded': lambda images: (
        live(network, images)
        * (1 + tolerance * np.linspace(-0.01, 0.01, 100, dtype=np.float32))
      ),
    },
    [(images, None)],
    tolerance,
  )
  assert (count, accuracy) == (9, None)
  for name in ('itself', 'rounded'):
    verify.check(name, compared[name], count, tolerance)
  # Which the probabilities do not show.
  assert compared['another'].difference < tolerance
  assert not compared['another'].contrary
  with pytest.raises(ValueError, match='is not the network: on 9 images its'):
    verify.check('another', compared['another'], count, tolerance)


def test_a_prediction_changes_only_where_two_classes_are_as_likely(monkeypatch):
  expected = np.array([[0.52, 0.47, 0.01], [0.49, 0.50, 0.01]], np.float32)
  monkeypatch.setattr(predict, 'predict_images', lambda *_: np.log(expected))
  images = np.zeros((2, 8, 8, 1), np.uint8)

  def compare(first, second):
    found = expected + np.array([[-first, first, 0], [second, -second, 0]])
    batches = [(images, np.array([0, 1]))]
    return verify.compare(None, {'x': lambda _: found}, batches, 0.031)[2]['x']

  # Each of both changes by no more than rounding does.
  for compared, differing, contrary, accuracy in (
    (compare(0.03, 0.0), 1, 1, 0.5),
    (compare(0.0, 0.01), 1, 0, 0.5),
  ):
    assert compared.differing == differing
    assert compared.contrary == contrary
    assert compared.accuracy == accuracy
    assert max(compared.difference, compared.log_difference) < 0.031
  verify.check('x', compare(0.0, 0.01), 2, 0.031)
  with pytest.raises(ValueError, match='1 predictions do'):
    verify.check('x', compare(0.03, 0.0), 2, 0.031)


class Branching(nn.Module):
  """What it computes depends on how many images there are."""

  @nn.compact
  def __call__(self, images, train):
    x = images.mean(axis=(1, 2))
    return nn.Dense(3)(x if len(images) % 2 else -x)


def test_what_jax_cannot_export_is_one_error(bfloat16, tmp_path):
  card = networks.load(bfloat16[0]).card
  images = jnp.zeros((1, 16, 12, 3))
  network = Network(
    Branching(), features.init(Branching(), jax.random.key(0), images)
  )
  with pytest.raises(ValueError, match='resnet10 cannot be exported as Stable'):
    formats.write_stablehlo(tmp_path / 'x.stablehlo', network, card, ['cpu'])
  assert not list(tmp_path.iterdir())


@pytest.fixture(params=['exchanged at once', 'one after the other'])
def exchanging(request, monkeypatch):
  """File systems that can exchange two paths, and those that cannot."""
  if request.param == 'one after the other':
    monkeypatch.setattr(staging, '_exchange_in_one_step', lambda *_: False)


def put_over(tmp_path, names):
  """Puts a directory and a file where there are others."""
  with staging.beside(tmp_path) as staged:
    (staged / 'a').mkdir()
    for name in ('a/x', 'b'):
      (staged / name).write_text('new')
    staging.move_into_place(staged, [tmp_path / name for name in names])


@pytest.fixture
def old(tmp_path, exchanging):
  """A directory and a file that are to be replaced."""
  (tmp_path / 'a').mkdir()
  for name in ('a/x', 'b'):
    (tmp_path / name).write_text('old')
  return tmp_path


def texts(path):
  return [(path / name).read_text() for name in ('a/x', 'b')]


def test_what_was_there_comes_back_when_something_fails(old):
  with pytest.raises(FileNotFoundError):
    put_over(old, ['a', 'b', 'missing'])
  assert texts(old) == ['old', 'old']
  assert {path.name for path in old.iterdir()} == {'a', 'b'}


def test_a_signal_waits_until_all_are_in_place(old, monkeypatch):
  exchange = staging._exchange

  def interrupted(*paths):
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(staging, '_exchange', exchange)
    exchange(*paths)

  monkeypatch.setattr(staging, '_exchange', interrupted)
  put_over(old, ['a', 'b'])
  assert texts(old) == ['new', 'new']


class Killed(BaseException):
  """The process is gone: nothing that it would still do happens."""


def killed_at(step, act):
  """Kills the process at a change of a name, or once it is made."""
  count = itertools.count()

  def patched(original):
    def change(*args, **kwargs):
      if next(count) >= step:
        raise Killed
      return original(*args, **kwargs)

    return change

  with pytest.MonkeyPatch.context() as patch:
    for name in ('rename', 'replace', 'unlink', 'rmdir'):
      patch.setattr(os, name, patched(getattr(os, name)))
    at_once = staging._exchange_in_one_step
    patch.setattr(staging, '_exchange_in_one_step', patched(at_once))
    try:
      act()
    except Killed:
      return True
  return False


def test_killed_at_any_step_the_old_or_the_new_is_there(old):
  step = 0
  while killed_at(step, lambda: put_over(old, ['a', 'b'])):
    # Which the next export would find.
    staging._remove_leftovers(old)
    assert {path.name for path in old.iterdir()} == {'a', 'b'}
    assert set(texts(old)) <= {'old', 'new'}
    step += 1
    for name in ('a/x', 'b'):
      (old / name).write_text('old')
  assert step > 3
  assert texts(old) == ['new', 'new']


def test_what_another_export_is_writing_is_left_alone(tmp_path):
  (tmp_path / '.export-killed').mkdir()
  with staging.beside(tmp_path) as one, staging.beside(tmp_path) as other:
    assert {one, other} == set(tmp_path.iterdir())
  assert not list(tmp_path.iterdir())


def test_a_program_has_its_card_wherever_the_export_was_killed(
  tmp_path, monkeypatch, exchanging
):
  path = tmp_path / 'out.stablehlo'
  monkeypatch.setattr(card_lib, 'check', lambda *_: None)

  def export(content):
    with staging.beside(tmp_path) as staged:
      program_files.write(
        staged / path.name, content, {'content': content.decode()}
      )
      write._move_into_place(staged, {'stablehlo': path})

  step, found = 0, set()
  while killed_at(step, lambda: export(b'new')):
    if path.exists():
      program = path.read_bytes()
      assert (
        program_files._read_card(path, program)['content'] == program.decode()
      )
      found.add(program)
    export(b'old')
    step += 1
  assert found == {b'old', b'new'}
  names = {'out.stablehlo', 'out.stablehlo.json'}
  assert {entry.name for entry in tmp_path.iterdir()} == names


def test_an_export_is_replaced_only_when_asked(bfloat16, tmp_path):
  path, network = bfloat16
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'mine').write_text('')
  for overwrite, message in (
    (False, 'exists: replace it with --overwrite'),
    (True, 'is a directory that kdjax.export did not make'),
  ):
    with pytest.raises(FileExistsError, match=message):
      write.export(path, ['orbax'], output, write.Options(overwrite=overwrite))
  assert (output / 'mine').exists()
  shutil.rmtree(output)
  shutil.copytree(path, output)
  (output / 'old').write_text('')
  write.export(path, ['orbax'], output, write.Options(overwrite=True))
  assert not (output / 'old').exists()
  found, *_ = networks.load(output)
  assert_same_variables(found.variables, network.variables)
  assert [entry.name for entry in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize(
  ('names', 'output', 'message'),
  [
    (['onxx'], None, r"unknown formats \['onxx'\]: expected some of orbax"),
    ([], None, 'expected some of orbax'),
    (['orbax'], None, 'say with --output'),
    (['orbax', 'onnx'], 'out', 'is the place of one format'),
    (['stablehlo'], 'out.hlo', r'a name that ends in \.stablehlo'),
    (['orbax'], 'out.onnx', r'a name that ends in \.orbax'),
  ],
)
def test_what_cannot_be_is_refused(bfloat16, tmp_path, names, output, message):
  with pytest.raises(ValueError, match=message):
    write.export(bfloat16[0], names, output and tmp_path / output)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('platforms', [['cpu', 'gpu'], ['tpu'], []])
def test_a_program_is_for_this_platform_too(bfloat16, tmp_path, platforms):
  with pytest.raises(ValueError, match='cpu among them'):
    write.export(
      bfloat16[0],
      ['stablehlo'],
      tmp_path / 'x.stablehlo',
      write.Options(platforms=platforms),
    )


def test_what_is_no_resnet_has_no_names_in_pytorch(bfloat16, tmp_path):
  card = networks.load(bfloat16[0]).card
  arguments = {'name': 'small_cnn:SmallCNN', 'num_classes': 3}
  model = models.build(**arguments)
  images = jnp.zeros((1, *card['preprocessing']['image_shape']))
  variables = features.init(model, jax.random.key(0), images)
  checkpoint.save_network(
    tmp_path / 'cnn',
    Network(model, variables),
    {**card, 'model': arguments},
  )
  with pytest.raises(ValueError, match=r'SmallCNN cannot .* Choose another'):
    write.export(tmp_path / 'cnn', ['safetensors'], tmp_path / 'x.safetensors')
  write.export(tmp_path / 'cnn', ['stablehlo'], tmp_path / 'x.stablehlo')
  assert kdjax.load_student(tmp_path / 'x.stablehlo').class_names == tuple(
    'abc'
  )


def test_weights_alone_are_refused(bfloat16, tmp_path):
  weights.save(tmp_path / 'x.safetensors', bfloat16[1].variables, {})
  with pytest.raises(ValueError, match='how images are normalised'):
    write.export(
      tmp_path / 'x.safetensors', ['stablehlo'], tmp_path / 'x.stablehlo'
    )


def test_a_place_that_cannot_be_written_is_an_error(bfloat16, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='file'):
    write.export(bfloat16[0], ['orbax'], tmp_path / 'file' / 'out')


def test_damage_is_found(workdir, exported, tmp_path):
  folder = shutil.copytree(workdir / 'export', tmp_path / 'export')

  def damage(name, place, change=lambda byte: byte ^ 1):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[place] = change(content[place])
    path.write_bytes(content)

  def refused(name, message):
    with pytest.raises((ValueError, OSError), match=message):
      kdjax.load_student(folder / name)

  damage('student.stablehlo', 5000)
  refused('student.stablehlo', 'the SHA-256 there is not that of the file')
  (folder / 'student.stablehlo.json').write_text('{}')
  refused('student.stablehlo', r'card in .*stablehlo\.json is damaged')
  (folder / 'student.stablehlo.json').unlink()
  refused('student.stablehlo', 'both files belong together')
  damage('student.safetensors', -1)
  refused('student.safetensors', 'its arrays are not those that were written')
  card = folder / 'student.orbax' / 'model_card.json'
  content = json.loads(card.read_text())
  content['class_names'][0] = 'nine'
  card.write_text(json.dumps(content))
  refused('student.orbax', r'model_card\.json is damaged: its SHA-256')
  refused('nowhere.stablehlo', 'No such file')


def test_onnx_says_what_it_lacks(bfloat16, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(ValueError, match=r"pip install 'kdjax\[onnx\]'"):
    write.export(bfloat16[0], ['onnx'], tmp_path / 'x.onnx')


@pytest.mark.filterwarnings('ignore')
def test_onnx_gives_the_same(bfloat16, workdir, moved, images, tmp_path):
  pytest.importorskip('jax2onnx')
  pytest.importorskip('onnxruntime')
  write.export(
    workdir, ['onnx'], tmp_path / 'student.onnx', write.Options(data_dir=moved)
  )
  student = kdjax.load_student(tmp_path / 'student.onnx')
  expected = live(checkpoint.restore(workdir), images)
  for count in (1, 3, 24):
    np.testing.assert_allclose(
      student(images[:count]), expected[:count], atol=1e-5
    )
  # With the other stem.
  write.export(bfloat16[0], ['onnx'], tmp_path / 'other.onnx')
