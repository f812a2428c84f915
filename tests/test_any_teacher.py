"""Teachers of all kinds, in whole runs on the digits."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny
from flax import traverse_util

import kdjax
from kdjax import measure, pretrained, results, train
from kdjax.session import Session

NET = 'small_cnn:SmallCNN'


def config(method, **changes):
  """A run whose networks are both small and no ResNets."""
  run = tiny.config(method)
  run.student.update(name='small_cnn:dropping', width=4)
  run.teacher.update(name=NET, width=8)
  run.method.feature.student_features = ('conv1', 'conv2')
  run.method.feature.teacher_features = ('conv1', 'conv2')
  run.train.epochs = 2
  run.teacher.train.epochs = 4
  run.log.tensorboard = False
  with run.unlocked():
    run.update_from_flattened_dict(changes)
  return run


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('any_teacher')


@pytest.fixture(scope='module')
def session():
  return Session()


@pytest.fixture(scope='module')
def trained(root, session):
  """A response run; its teacher was trained first."""
  return train.train_and_evaluate(config('response'), root / 'own', session)


# Networks in one's own code


def test_networks_of_ones_own_are_trained_restored_and_measured(root, trained):
  assert trained['teacher']['model'] == NET
  assert trained['student']['model'] == 'small_cnn:dropping'
  # 1·8·9+8, 8·16·9+16, 16·10+10
  assert trained['teacher']['parameters'] == 80 + 1168 + 170
  again, _ = measure.evaluate(root / 'own')
  for which in ('teacher', 'best', 'last'):
    assert again[which] == trained[which]
  model, variables = kdjax.checkpoint.restore(root / 'teacher')
  assert (model.width, model.num_classes) == (8, 10)
  assert variables['batch_stats'] == {}
  assert NET in results.table(trained)


def test_features_of_ones_own_network_teach_too(root, session, trained):
  result = train.train_and_evaluate(
    config('feature'), root / 'feature', session
  )
  assert result['teacher']['digest'] == trained['teacher']['digest']
  # It goes on from its last checkpoint, which is that of its end.
  (root / 'feature' / 'result.json').unlink()
  again = train.train_and_evaluate(config('feature'), root / 'feature', session)
  assert again['last'] == result['last']


def test_a_wrong_feature_is_found_before_the_teacher_is_trained(
  tmp_path, session
):
  run = config('feature', **{'method.feature.teacher_features': ('a', 'b')})
  with pytest.raises(ValueError, match='SmallCNN has no module named a, b'):
    train.train_and_evaluate(run, tmp_path / 'run', session)
  assert not (tmp_path / 'teacher').exists()


# Variables that another program has saved


@pytest.fixture(scope='module')
def saved(root, trained):
  """The teacher's variables as Flax knows them, in both kinds of files."""
  variables = kdjax.checkpoint.restore(root / 'teacher').variables
  params = {'params': jax.device_get(variables['params'])}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(root / 'orbax', params)
  safetensors.numpy.save_file(
    dict(traverse_util.flatten_dict(params, sep='/')),
    root / 'flax.safetensors',
  )
  return variables['normalization']


@pytest.mark.parametrize('name', ['orbax', 'flax.safetensors'])
def test_ready_variables_teach_as_the_network_they_are_of(
  root, session, trained, saved, name
):
  run = config('response', **{'teacher.path': str(root / name)})
  result = train.train_and_evaluate(run, root / f'by {name}', session)
  # Their images are normalised as the data that it was trained on.
  assert result['teacher']['digest'] == trained['teacher']['digest']
  assert result['teacher']['test'] == trained['teacher']['test']
  assert result['teacher']['wall_time_s'] is None
  assert result['last'] == trained['last']
  again, _ = measure.evaluate(root / f'by {name}')
  assert again['teacher'] == result['teacher']


def test_ready_variables_may_be_normalised_otherwise(root, session, saved):
  run = config(
    'feature',
    **{
      'teacher.path': str(root / 'orbax'),
      'teacher.mean': (0.25,),
      'teacher.std': (0.5,),
    },
  )
  result = train.train_and_evaluate(run, root / 'otherwise', session)
  assert (result['teacher']['mean'], result['teacher']['std']) == (
    [0.25],
    [0.5],
  )
  assert saved['mean'] != np.float32(0.25)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'teacher.width': 4}, r'conv1/kernel \(float32\[3, 3, 1, 8\], expected'),
    ({'teacher.name': 'resnet10'}, 'not those of ResNet:\n  missing: '),
    ({'teacher.name': 'small_cnn:Other'}, "'small_cnn:Other' cannot be import"),
  ],
)
def test_ready_variables_of_another_network_are_refused(
  root, session, saved, changes, message
):
  run = config('response', **{'teacher.path': str(root / 'orbax')}, **changes)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(run, root / 'refused', session)
  assert not (root / 'refused').exists()


def test_ready_variables_that_nobody_names_are_refused(root, saved):
  with pytest.raises(ValueError, match='does not say of which: it can only be'):
    pretrained.load(root / 'orbax')
