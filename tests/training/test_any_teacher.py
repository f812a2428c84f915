"""Teachers of all kinds, in whole runs on the digits."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny
from flax import traverse_util

import kdjax
from kdjax import config as config_lib
from kdjax.evaluation import predict, tables
from kdjax.storage import networks, run_directory
from kdjax.training import checks, final_test, teacher_checks, train
from kdjax.training import teacher as teacher_lib
from kdjax.training.shared import Session

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
  again, _ = final_test.evaluate(root / 'own')
  for which in ('teacher', 'best', 'last'):
    assert again[which] == trained[which]
  model, variables = kdjax.checkpoint.restore(root / 'teacher')
  assert (model.width, model.num_classes) == (8, 10)
  assert variables['batch_stats'] == {}
  assert NET in tables.table(trained)


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
  again, _ = final_test.evaluate(root / f'by {name}')
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


def test_probabilities_of_a_network_become_logits(root, session, saved, caplog):
  images = session.dataset(config('response').data).validation.images[:50]
  assumed = {'num_classes': 10, 'image_shape': [8, 8, 1]}
  assumed |= {name: values.tolist() for name, values in saved.items()}

  def load(path, **changes):
    teacher = teacher_lib.load(
      path, config('response', **changes), assumed=assumed
    )
    return teacher, np.asarray(
      predict.predict_images(teacher.network, images, 50)
    )

  logits, expected = load(root / 'orbax')
  assert 'probabilities' not in caplog.text
  ending = {'teacher.name': 'small_cnn:Probabilities'}
  with caplog.at_level('INFO', 'kdjax'):
    probabilities, found = load(root / 'orbax', **ending)
  assert 'are probabilities, not logits; their logarithm is' in caplog.text
  expected = jax.nn.log_softmax(expected)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert probabilities.report['digest'] != logits.report['digest']
  # Of a member, too.
  _, found = load((root / 'orbax',), **ending)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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
    networks.load(root / 'orbax')


# Several networks that teach as one


def of_members(root, *names, **changes):
  members = tuple(str(root / name) for name in names)
  return config('response', **{'teacher.ensemble': members}, **changes)


def softmax(logits):
  exponentials = np.exp(np.float64(logits))
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_an_ensemble_teaches_what_its_members_say(root, session, trained):
  """Its members are the teacher and the first student: of other widths."""
  run = of_members(root, 'teacher', 'own')
  workdir = root / 'ensemble'
  result = train.train_and_evaluate(run, workdir, session)
  alone = run_directory.read_predictions(root / 'own')
  np.testing.assert_allclose(
    run_directory.read_predictions(workdir)['teacher'],
    np.log((softmax(alone['teacher']) + softmax(alone['best'])) / 2),
    rtol=1e-4,
    atol=1e-4,
  )

  teacher = result['teacher']
  assert teacher['model'] == f'{NET} + small_cnn:dropping'
  assert [member['path'] for member in teacher['members']] == [
    str(root / 'teacher'),
    str(root / 'own'),
  ]
  assert teacher['parameters'] == (
    trained['teacher']['parameters'] + trained['student']['parameters']
  )
  times = [member['wall_time_s'] for member in teacher['members']]
  assert teacher['wall_time_s'] == sum(times)
  assert teacher['model'] in tables.table(result)
  again, _ = final_test.evaluate(workdir)
  assert again['teacher'] == teacher
  # What it averages is part of what it is.
  other = run_directory.read_config(workdir)
  other.teacher.average = 'logits'
  with pytest.raises(ValueError, match=r'teacher\.average: .* now'):
    final_test.evaluate(workdir, other)


def test_features_of_members_teach_too(root, session, trained):
  run = of_members(root, 'teacher', 'own', **{'method.name': 'feature'})
  run.method.feature.teacher_features = ('member2/conv1', 'member1/conv2')
  train.train_and_evaluate(run, root / 'member features', session)
  kept = kdjax.storage.checkpoint.restore_method(root / 'member features')
  # conv1 of the student, which has 4 channels, with conv1 of `own`, which has 4
  assert kept['conv1->member2/conv1']['kernel'].shape == (1, 1, 4, 4)
  assert kept['conv2->member1/conv2']['kernel'].shape == (1, 1, 8, 16)
  run.method.feature.teacher_features = ('conv1', 'member3/conv2')
  with pytest.raises(ValueError, match=r'no module named conv1, member3/conv2'):
    train.train_and_evaluate(run, root / 'refused features', session)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'teacher.ensemble': ('a',), 'teacher.path': 'b'}, 'name every member th'),
    ({'teacher.ensemble': (('a', 'b'), 'c')}, 'no ensembles as members'),
    ({'teacher.ensemble': ('a', '')}, 'expected a tuple of paths'),
    ({'teacher.average': 'votes'}, "'votes': expected 'probabilities' or 'lo"),
  ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config_lib.validate(config('response', **changes))


def test_an_ensemble_of_one_is_not_that_one(root, session, trained):
  run, path = config('response'), str(root / 'teacher')
  alone = session.teacher(path, run)
  digest = session.teacher((path,), run).report['digest']
  assert digest != alone.report['digest']


def test_a_member_that_knows_nothing_is_noticed(root, session, saved, caplog):
  run = of_members(
    root,
    'teacher',
    'orbax',
    **{'teacher.mean': (-9.0,), 'teacher.std': (0.1,)},
  )
  assumed = {'num_classes': 10, 'image_shape': [8, 8, 1]}
  members = tuple(run.teacher.ensemble)
  teacher = teacher_lib.load(members, run, assumed=assumed)
  teacher_checks.check_accuracy(teacher, session.dataset(run.data), 100)
  assert f'the teacher in {root / "orbax"} classifies' in caplog.text
  # That one has its own mean.
  assert f'the teacher in {root / "teacher"} classifies' not in caplog.text


def test_a_member_does_not_count_twice(root, session):
  run = of_members(root, 'teacher', 'teacher')
  with pytest.raises(ValueError, match='any_teacher0/teacher twice'):
    session.teacher(tuple(run.teacher.ensemble), run)


def test_a_member_that_is_missing_is_named(root, session, trained):
  run = of_members(root, 'teacher', 'nothing')
  with pytest.raises(FileNotFoundError, match='any_teacher0/nothing'):
    train.train_and_evaluate(run, root / 'refused', session)


def test_a_member_with_other_classes_is_named(root, session, trained):
  run = of_members(root, 'teacher', 'own')
  teacher = session.teacher(tuple(run.teacher.ensemble), run)
  dataset = session.dataset(run.data)
  checks.check_compatible(teacher, dataset)
  teacher.report['members'][1]['class_names'] = ['a', 'b']
  with pytest.raises(ValueError, match=r'any_teacher0/own knows the classes a'):
    checks.check_compatible(teacher, dataset)
