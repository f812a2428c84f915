"""Teachers and students that begin with a network that exists already."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from kdjax import config as config_lib
from kdjax.evaluation import predict
from kdjax.storage import checkpoint, digests, networks, weights
from kdjax.training import (
  final_test,
  initial_weights,
  teacher_checks,
  train,
)
from kdjax.training import teacher as teacher_lib
from kdjax.training.shared import Session


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A teacher of the digits: a run, and files of its weights."""
  root = tmp_path_factory.mktemp('pretrained')
  config = config_lib.teacher_run(tiny.resnet_config())
  config.log.tensorboard = False
  train.train_and_evaluate(config, root / 'run')
  _, variables = jax.device_get(checkpoint.restore(root / 'run'))
  weights.save(root / 'teacher.safetensors', variables, {})
  without_head = dict(variables['params'])
  del without_head['fc']
  weights.save(root / 'headless', variables | {'params': without_head}, {})
  return root


def short(method='feature', **teacher):
  config = tiny.resnet_config(method)
  config.train.max_steps = 2
  config.log.tensorboard = False
  config.teacher.update(teacher)
  return config


def of_three(root):
  """The weights with a head for three classes."""
  _, variables = jax.device_get(checkpoint.restore(root / 'run'))
  fc = variables['params']['fc']
  fc = {name: value[..., :3] for name, value in fc.items()}
  path = root / 'three.safetensors'
  params = variables['params'] | {'fc': fc}
  weights.save(path, variables | {'params': params}, {})
  return path


def test_a_run_and_a_file_of_its_weights_are_one_network(root):
  run = networks.load(root / 'run')
  file = networks.load(root / 'teacher.safetensors')
  model = {'stem': 'cifar', 'width': 8, 'name': 'resnet10', 'num_classes': 10}
  assert run.card['model'] == file.card['model'] == model | {'dtype': 'float32'}
  assert run.card['preprocessing']['image_shape'] == [8, 8, 1]
  assert file.card['preprocessing'] == {
    'image_shape': None,
    'channels': 1,
    'mean': None,
    'std': None,
    'crop': 1.0,
  }
  ours = dict(run.network.variables)
  assert 'normalization' in ours
  del ours['normalization']
  assert digests.digest(ours) == digests.digest(dict(file.network.variables))
  json.dumps([run.card, file.card])


def test_an_imported_teacher_teaches_without_being_trained(
  root, tmp_path, caplog
):
  config = short(path=str(root / 'teacher.safetensors'))
  with caplog.at_level('INFO', 'kdjax'):
    result = train.train_and_evaluate(config, tmp_path / 'imported')
  assert [path.name for path in tmp_path.iterdir()] == ['imported']
  assert 'mean and standard deviation are those of this run' in caplog.text
  assert '% of 144 held-out images' in caplog.text
  report = result['teacher']
  assert (report['step'], report['wall_time_s'], report['num_classes']) == (
    None,
    None,
    10,
  )
  # The same as its run, which has the same images' mean and deviation.
  file, run = (
    teacher_lib.load(root / name, config, ('stage1',), report)
    for name in ('teacher.safetensors', 'run')
  )
  assert report['digest'] == file.report['digest'] == run.report['digest']
  assert file.network.model == run.network.model
  jax.tree.map(
    np.testing.assert_array_equal, file.network.variables, run.network.variables
  )
  # And it is found again.
  again, _ = final_test.evaluate(tmp_path / 'imported')
  assert again['teacher'] == report


def test_a_teacher_that_knows_nothing_of_the_data_is_noticed(
  root, tmp_path, caplog
):
  _, variables = jax.device_get(checkpoint.restore(root / 'run'))
  fc = variables['params']['fc']
  rolled = {name: np.roll(value, 3, axis=-1) for name, value in fc.items()}
  params = variables['params'] | {'fc': rolled}
  weights.save(tmp_path / 'x.safetensors', variables | {'params': params}, {})
  train.train_and_evaluate(
    short(path=str(tmp_path / 'x.safetensors')), tmp_path / 'run'
  )
  assert 'are its classes the same, in the same order' in caplog.text


def test_normalization_is_taken_from_where_it_is_known(root):
  path = root / 'teacher.safetensors'
  config = tiny.resnet_config()
  with pytest.raises(ValueError, match='does not say how its images are norm'):
    teacher_lib.load(path, config)
  assumed = {'mean': [0.5], 'std': [0.25]}
  report = teacher_lib.load(path, config, assumed=assumed).report
  assert (report['mean'], report['std']) == ([0.5], [0.25])
  config.teacher.update(mean=(0.125,), std=(2.0,))
  report = teacher_lib.load(path, config, assumed=assumed).report
  assert (report['mean'], report['std']) == ([0.125], [2.0])
  # What says it itself is not overruled.
  run = teacher_lib.load(root / 'run', config)
  assert run.report['mean'] == [pytest.approx(0.30607, abs=1e-5)]
  with pytest.raises(ValueError, match=r'/run says itself mean \[0\.30.*leave'):
    teacher_checks.check_asked(run, config)
  config.teacher.update(mean=(0.30607,), std=(0.37637,))
  teacher_checks.check_asked(run, config)
  config.teacher.update(mean=(0.1, 0.2), std=(1.0, 1.0))
  with pytest.raises(
    ValueError, match=r'of 1 channels, and the mean of config\.teacher\.mean'
  ):
    teacher_lib.load(path, config)
  config.teacher.update(mean=(0.1,), std=(0.0,))
  with pytest.raises(ValueError, match='positive'):
    teacher_lib.load(path, config)


def test_a_stem_that_weights_do_not_show_is_said(root):
  path, config = root / 'teacher.safetensors', tiny.resnet_config()
  assumed = {'mean': [0.5], 'std': [0.25]}
  plain = teacher_lib.load(path, config, assumed=assumed)
  assert plain.assumed == ('normalization', 'stem')
  config.teacher.stem = 'cifar_pool'
  pooled = teacher_lib.load(path, config, assumed=assumed)
  assert pooled.assumed == ('normalization',)
  assert pooled.network.model.stem == 'cifar_pool'
  # The weights are the same, and what they teach is not.
  assert pooled.report['digest'] != plain.report['digest']
  teacher_checks.check_asked(pooled, config)
  config.teacher.stem = 'imagenet'
  other = teacher_lib.load(path, config, assumed=assumed)
  with pytest.raises(
    ValueError, match='are those of cifar or cifar_pool: give'
  ):
    teacher_checks.check_asked(other, config)
  # What kdjax has trained has the stem that it had.
  teacher_checks.check_asked(teacher_lib.load(root / 'run', config), config)


def test_a_student_may_have_a_max_pool_that_weights_do_not_show(root):
  config = tiny.resnet_config()
  config.teacher.update(
    path=str(root / 'headless'), head='fresh', stem='cifar_pool'
  )
  run = config_lib.teacher_run(config)
  found = initial_weights.load(run.student)
  run = initial_weights.complete(run, found.student)
  assert (run.student.stem, run.student.width) == ('cifar_pool', 8)
  dataset = Session().dataset(run.data)
  initial_weights.check(found, run, dataset)
  run.student.stem = 'imagenet'
  with pytest.raises(ValueError, match=r'config\.student\.stem=cifar'):
    initial_weights.check(found, run, dataset)


def test_classes_in_another_order_are_put_in_that_of_the_data(root, caplog):
  path, config = root / 'run', tiny.resnet_config()
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
  run = teacher_lib.load(path, config)
  names = [*'0123456798']
  with caplog.at_level('INFO', 'kdjax'):
    moved = teacher_lib.load(path, config, assumed={'class_names': names})
  assert 'in another order than the data set (counted from 0, 9 is its 9' in (
    caplog.text
  )
  assert moved.report['class_names'] == names
  assert moved.report['digest'] != run.report['digest']
  expected, found = (
    np.asarray(predict.predict_images(each.network, images, 4))
    for each in (run, moved)
  )
  np.testing.assert_array_equal(found, expected[:, [*range(8), 9, 8]])
  # Found again by what a result says of it.
  again = teacher_lib.load(path, config, assumed=moved.report)
  assert again.report == moved.report
  assumed = {'class_names': names, 'image_shape': [8, 8, 1]}
  with pytest.raises(
    ValueError, match='its feature fc, one value for each cla'
  ):
    teacher_lib.load(path, config, ('fc',), assumed)


@pytest.mark.parametrize(
  ('mean', 'std'),
  [
    ((float('nan'),), (1.0,)),
    ((0.5,), (float('inf'),)),
    ((0.5,), (1e-300,)),
    ((10**400,), (1.0,)),
    (('0.5',), (1.0,)),
    ((None,), (1.0,)),
    ((0.5,), (True,)),
    (0.5, 1.0),
    ((), ()),
  ],
)
def test_what_is_no_normalization_is_refused(mean, std):
  with pytest.raises(ValueError, match='expected 1 finite numbers for each'):
    networks.with_normalization({}, mean, std, 1)


def test_a_thousand_classes_are_taken_for_imagenet(root, tmp_path):
  _, variables = jax.device_get(checkpoint.restore(root / 'run'))
  fc = variables['params']['fc']
  many = {name: np.resize(x, (*x.shape[:-1], 1000)) for name, x in fc.items()}
  kernel = variables['params']['conv1']['kernel']
  params = variables['params'] | {
    'fc': many,
    'conv1': {'kernel': np.repeat(kernel, 3, axis=2)},
  }
  weights.save(tmp_path / 'x.safetensors', variables | {'params': params}, {})
  report = teacher_lib.load(
    tmp_path / 'x.safetensors', tiny.resnet_config()
  ).report
  np.testing.assert_allclose(report['mean'], [0.485, 0.456, 0.406])
  np.testing.assert_allclose(report['std'], [0.229, 0.224, 0.225])


def test_another_number_of_classes_is_refused(root, tmp_path):
  config = short(path=str(of_three(root)))
  with pytest.raises(
    ValueError, match=r'knows 3 classes, digits has 10.*teacher\.head=fresh'
  ):
    train.train_and_evaluate(config, tmp_path / 'run')


def test_a_teacher_with_a_fresh_head_is_trained_first(
  root, tmp_path, monkeypatch
):
  path = tmp_path / 'three.safetensors'
  shutil.copy(of_three(root), path)
  config = short(path=str(path), head='fresh')
  config.teacher.train.max_steps = 3
  result = train.train_and_evaluate(config, tmp_path / 'run')
  taught = json.loads((tmp_path / 'teacher' / 'result.json').read_text())
  assert taught['student']['init_from']['path'] == str(path)
  assert taught['config']['student']['width'] == 8
  assert result['teacher']['digest'] in (
    taught['best']['digest'],
    taught['last']['digest'],
  )

  def find(path):
    config.teacher.path = str(path)
    return train.prepare_teacher(config, tmp_path / 'again', Session())

  # Taken up again, by whatever name it is called.
  monkeypatch.chdir(tmp_path)
  assert find('three.safetensors') == tmp_path / 'teacher'
  # Not by a run that asks for another beginning.
  digest = taught['student']['init_from']['digest']
  with pytest.raises(
    ValueError, match=rf"student\.init_from: '{digest}' there"
  ):
    find(root / 'headless')
  path.unlink()
  assert find('three.safetensors') == tmp_path / 'teacher'


@pytest.mark.parametrize(
  ('source', 'head'),
  [('run', 'keep'), ('teacher.safetensors', 'fresh'), ('headless', 'fresh')],
)
def test_a_student_begins_with_what_it_is_given(root, tmp_path, source, head):
  config = tiny.resnet_config('scratch')
  config.student.update(
    name='', stem='', width=0, init_from=str(root / source), head=head
  )
  # Adam's steps are as large as the learning rate, whatever the gradient.
  config.train.update(learning_rate=1e-7, max_steps=1, ema_decay=0.5)
  config.log.tensorboard = False
  result = train.train_and_evaluate(config, tmp_path / 'run')
  assert result['config']['student']['name'] == 'resnet10'
  assert result['config']['student']['width'] == 8
  assert result['student']['init_from']['model'] == 'resnet10'
  _, found = checkpoint.restore(tmp_path / 'run')
  _, expected = checkpoint.restore(root / 'run')
  found, expected = (dict(tree['params']) for tree in (found, expected))
  heads = found.pop('fc')['kernel'], expected.pop('fc')['kernel']
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
    found,
    expected,
  )
  assert np.allclose(*heads, atol=1e-6) == (head == 'keep')


def test_a_run_knows_by_content_what_it_began_with(root, tmp_path, monkeypatch):
  source, other = tmp_path / 'source', tmp_path / 'other'
  shutil.copy(root / 'teacher.safetensors', source)
  _, variables = jax.device_get(checkpoint.restore(root / 'run'))
  params = variables['params'] | {
    'fc': jax.tree.map(np.negative, variables['params']['fc'])
  }
  weights.save(other, variables | {'params': params}, {})

  def run(path, name='run'):
    config = tiny.resnet_config('scratch')
    config.student.update(name='', stem='', width=0, init_from=str(path))
    config.train.update(learning_rate=1e-7, max_steps=2)
    config.checkpoint.every_steps = 1
    config.log.tensorboard = False
    return train.train_and_evaluate(config, tmp_path / name)

  step = train.compiled.Program.run

  def cut(self, state, done):
    if done == 1:
      raise InterruptedError
    return step(self, state, done)

  with monkeypatch.context() as patch:
    patch.setattr(train.compiled.Program, 'run', cut)
    with pytest.raises(InterruptedError):
      run(source)
  # Begun, it goes on without it, and not with another.
  with pytest.raises(
    ValueError, match=r'begun with another config\.student\.in'
  ):
    run(other)
  source.rename(tmp_path / 'moved')
  result = run(source)
  digest = digests.digest(
    {name: variables[name] for name in ('params', 'batch_stats')}
  )
  began = {'path': str(source), 'digest': digest, 'model': 'resnet10'}
  assert result['student']['init_from'] == began
  assert result['config']['student']['width'] == 8
  # So it does once it has finished.
  monkeypatch.chdir(tmp_path)
  for path in (source, 'moved'):
    assert run(path)['student']['init_from'] == began
  with pytest.raises(
    ValueError, match=r'begun with another config\.student\.in'
  ):
    run(other)
  # What has not begun needs it.
  with pytest.raises(FileNotFoundError, match='source'):
    run(source, 'new')


def test_weights_that_do_not_fit_are_refused(root, tmp_path):
  config = tiny.resnet_config('scratch')
  config.student.init_from = str(root / 'run')
  with pytest.raises(ValueError, match=r'give --config\.student\.width=8'):
    train.train_and_evaluate(config, tmp_path / 'run')
  config.student.update(width=8, init_from=str(of_three(root)))
  with pytest.raises(
    ValueError,
    match=r'fc/bias \(float32\[3\], expected float32\[10\]\)(.|\n)*fresh',
  ):
    train.train_and_evaluate(config, tmp_path / 'run')
  config.student.init_from = str(tmp_path / 'missing.safetensors')
  with pytest.raises(FileNotFoundError, match='missing'):
    train.train_and_evaluate(config, tmp_path / 'run')
  config.student.init_from = str(root / 'headless')
  with pytest.raises(ValueError, match='holds no last layer'):
    train.train_and_evaluate(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
