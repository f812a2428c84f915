"""Teachers of all kinds, in whole runs on the digits."""

import pytest
import tiny

import kdjax
from kdjax import measure, results, train
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
