"""The real loop on a small problem, in this process."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

from kdjax import data
from kdjax.evaluation import metrics
from kdjax.evaluation import predict as predict_lib
from kdjax.models import features
from kdjax.storage import checkpoint, metrics_log, run_directory
from kdjax.training import final_test, loop, step, train
from kdjax.training import teacher as teacher_lib


def lines(workdir, kind=None):
  records = metrics_log.read_records(workdir)
  return [record for record in records if kind in (None, record['kind'])]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A teacher, trained because there was none, and the student it taught."""
  root = tmp_path_factory.mktemp('runs')
  return root, train.train_and_evaluate(tiny.config(), root / 'feature')


def test_a_run_leaves_what_it_promises(runs):
  root, result = runs
  workdir = root / 'feature'
  assert run_directory.read_result(workdir) == result
  assert run_directory.read_config(workdir).to_dict() == result['config']
  assert list((workdir / 'tensorboard').glob('events.out.tfevents.*'))
  assert result['method'] == 'feature'
  assert result['seed'] == 0
  assert result['hyperparameters'] == {'ce_weight': 0.3, 'feature_weight': 0.7}
  assert result['data'] | {'digest': ''} == {
    'name': 'digits',
    'digest': '',
    'train': 160,
    'validation': 144,
    'test': 360,
  }
  assert result['student']['model'] == tiny.NETWORK
  assert result['teacher']['model'] == tiny.NETWORK
  assert result['student']['parameters'] < result['teacher']['parameters']
  assert (result['last']['step'], result['last']['epoch']) == (15, 3)
  for which in ('best', 'last'):
    test = result[which]['test']
    assert test['count'] == 360
    assert 0 <= test['accuracy'] <= 1
    assert 0 <= test['agreement'] <= 1
    assert test['kl_to_teacher'] >= 0
  assert set(result['versions']) >= {'kdjax', 'jax', 'flax', 'optax'}


def test_the_metrics_are_those_of_the_predictions_that_are_kept(runs):
  root, result = runs
  predictions = run_directory.read_predictions(root / 'feature')
  assert {
    name: (array.dtype.name, array.shape) for name, array in predictions.items()
  } == {
    'labels': ('int32', (360,)),
    **dict.fromkeys(('best', 'last', 'teacher'), ('float32', (360, 10))),
  }
  labels, teacher = predictions['labels'], predictions['teacher']
  for which in ('best', 'last'):
    measured = metrics.classification(predictions[which], labels, teacher)
    assert measured == result[which]['test']
  measured = metrics.classification(teacher, labels)
  assert measured == result['teacher']['test']


def test_it_learns(runs):
  root, result = runs
  # Chance is 10 %.
  assert result['teacher']['test']['accuracy'] > 0.3
  train_lines = lines(root / 'feature', 'train')
  assert train_lines[-1]['loss'] < 0.9 * train_lines[0]['loss']


def test_metrics_are_written_at_the_steps_asked_for(runs):
  root, _ = runs
  workdir = root / 'feature'
  # Every second step, and at the end of each epoch of five.
  steps = [record['step'] for record in lines(workdir, 'train')]
  assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15]
  validation = lines(workdir, 'validation')
  assert [record['step'] for record in validation] == [5, 10, 15]
  assert all(record['count'] == 144 for record in validation)
  assert all(0 <= record['calibration_error'] <= 1 for record in validation)
  first = lines(workdir, 'train')[0]
  expected = {'loss', 'accuracy', 'learning_rate', 'images_per_second'}
  expected |= {'teacher_agreement', 'cross_entropy', 'feature_mse/stage4'}
  expected |= {'nll'}
  assert expected <= set(first)


def test_the_best_checkpoint_is_the_one_of_the_best_validation(runs):
  root, result = runs
  validation = lines(root / 'feature', 'validation')
  best = max(
    validation, key=lambda record: (record['accuracy'], record['step'])
  )
  assert result['best']['step'] == best['step']
  assert result['best']['validation_accuracy'] == best['accuracy']


def test_the_result_is_that_of_the_restored_student(runs):
  root, result = runs
  network = checkpoint.restore(root / 'feature')
  dataset = data.load(tiny.config().data)
  logits, _ = jax.jit(
    lambda variables, images: features.forward(
      network.model, variables, images, train=False
    )
  )(network.variables, dataset.test.images)
  measured = metrics.classification(logits.logits, dataset.test.labels)
  for name in ('accuracy', 'loss'):
    np.testing.assert_allclose(
      measured[name], result['best']['test'][name], rtol=1e-4
    )


def test_connectors_are_not_part_of_the_student(runs):
  root, _ = runs
  _, variables = checkpoint.restore(root / 'feature')
  assert set(variables) == {'params', 'batch_stats', 'normalization'}
  assert set(variables['params']) == {
    *('conv1', 'bn1', 'fc'),
    *(f'stage{i}' for i in range(1, 5)),
  }


def test_a_teacher_is_used_again_and_stays_as_it_is(runs, caplog):
  root, first = runs
  before = checkpoint.restore(root / 'teacher')
  config = tiny.config('response')
  config.train.max_steps = 3
  config.teacher.train.max_steps = 0
  with caplog.at_level('INFO', 'kdjax'):
    result = train.train_and_evaluate(config, root / 'response')
  assert 'training the teacher first' not in caplog.text
  assert result['teacher']['digest'] == first['teacher']['digest']
  assert result['teacher']['test'] == first['teacher']['test']
  assert result['last']['step'] == 3
  jax.tree.map(
    np.testing.assert_array_equal,
    before.variables,
    checkpoint.restore(root / 'teacher').variables,
  )


def test_a_finished_run_says_so_and_is_evaluated(runs, caplog):
  root, result = runs
  before = (root / 'feature' / 'metrics.jsonl').read_bytes()
  with caplog.at_level('INFO', 'kdjax'):
    again = train.train_and_evaluate(tiny.config(), root / 'feature')
  assert 'has finished' in caplog.text
  assert again == result
  evaluated, predictions = final_test.evaluate(root / 'feature')
  assert evaluated == result
  for name, kept in run_directory.read_predictions(root / 'feature').items():
    np.testing.assert_array_equal(predictions[name], kept)
  assert (root / 'feature' / 'metrics.jsonl').read_bytes() == before


def test_another_configuration_in_the_same_directory_is_refused(runs):
  root, _ = runs
  config = tiny.config()
  config.train.learning_rate = 0.02
  config.seed = 1
  with pytest.raises(ValueError, match='another configuration') as error:
    train.train_and_evaluate(config, root / 'feature')
  assert 'train.learning_rate: 0.01 there, 0.02 now' in str(error.value)
  assert 'seed: 0 there, 1 now' in str(error.value)


def test_what_changes_no_result_may_change(runs, monkeypatch):
  root, result = runs
  config = tiny.config()
  config.log.every_steps = 7
  config.eval.batch_size = 7
  config.checkpoint.keep = 5
  config.method.response.temperature = 9.0
  config.teacher.path = str(root / 'teacher')
  predict, sizes = predict_lib.predict_images, set()

  def recording(network, images, batch_size):
    sizes.add(batch_size)
    return predict(network, images, batch_size)

  monkeypatch.setattr(predict_lib, 'predict_images', recording)
  again = train.train_and_evaluate(config, root / 'feature')
  assert sizes == {7}
  np.testing.assert_allclose(
    again['best']['test']['loss'], result['best']['test']['loss'], rtol=1e-5
  )


def test_a_teacher_of_other_images_is_refused(runs, tmp_path, monkeypatch):
  root, _ = runs
  load = data.load

  def coloured(config):
    dataset = load(config)
    images = np.repeat(dataset.train.images, 3, axis=-1)
    return dataset._replace(train=dataset.train._replace(images=images))

  monkeypatch.setattr(data, 'load', coloured)
  config = tiny.config()
  config.teacher.path = str(root / 'teacher')
  with pytest.raises(
    ValueError, match=r'takes grey \(1 channel\) images, those of'
  ):
    train.train_and_evaluate(config, tmp_path / 'run')


def test_a_teacher_of_other_classes_is_refused(runs, tmp_path, monkeypatch):
  root, _ = runs
  load = data.load

  def renamed(config):
    return load(config)._replace(class_names=tuple('abcdefghij'))

  monkeypatch.setattr(data, 'load', renamed)
  config = tiny.config()
  config.teacher.path = str(root / 'teacher')
  with pytest.raises(ValueError, match=r'knows the classes 0, 1, .* a, b, c'):
    train.train_and_evaluate(config, tmp_path / 'run')


def test_the_teachers_own_directory_is_refused(tmp_path):
  with pytest.raises(ValueError, match='where the teacher of its neighbours'):
    train.train_and_evaluate(tiny.config(), tmp_path / 'teacher')


def test_networks_that_do_not_fit_are_refused_before_the_teacher_is_trained(
  tmp_path,
):
  config = tiny.config()
  config.teacher.stem = 'imagenet'
  with pytest.raises(ValueError, match='same stem'):
    train.train_and_evaluate(config, tmp_path / 'run')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('section', 'field', 'value', 'message'),
  [
    ('teacher', 'width', 6, 'student.width: 8 there, 6 now'),
    ('teacher.train', 'epochs', 9, 'train.epochs: 8 there, 9 now'),
    ('data', 'crop_padding', 2, 'data.crop_padding: 1 there, 2 now'),
  ],
)
def test_another_teacher_than_the_one_asked_for_is_refused(
  runs, section, field, value, message
):
  root, _ = runs
  config = tiny.config()
  target = config
  for part in section.split('.'):
    target = target[part]
  target[field] = value
  with pytest.raises(ValueError, match='not the one that this run') as error:
    train.train_and_evaluate(config, root / 'other_settings')
  assert message in str(error.value)
  assert f'--config.teacher.path={root / "teacher"}' in str(error.value)
  assert not (root / 'other_settings').exists()


def test_a_teacher_of_another_recipe_is_used_with_a_warning(runs, caplog):
  root, _ = runs
  config = tiny.config('response')
  config.teacher.train.learning_rate = 0.02
  config.teacher.train.max_steps = 0
  config.train.max_steps = 1
  with caplog.at_level('WARNING', 'kdjax'):
    train.train_and_evaluate(config, root / 'other_recipe')
  assert 'train.learning_rate: 0.01 there, 0.02 now' in caplog.text


def test_a_teacher_that_has_not_finished_is_refused(runs, tmp_path):
  root, _ = runs
  unfinished = tmp_path / 'unfinished'
  shutil.copytree(root / 'teacher', unfinished)
  (unfinished / 'result.json').unlink()
  config = tiny.config()
  config.teacher.path = str(unfinished)
  with pytest.raises(ValueError, match='has not finished, it is at step 40'):
    train.train_and_evaluate(config, tmp_path / 'run')
  # One of its checkpoints, named, is another matter.
  one = checkpoint.find(unfinished, 'last')
  assert teacher_lib.load(one, config).report['step'] == 40


def test_teacher_computes_in_the_students_dtype_unless_told(runs):
  root, _ = runs
  config = tiny.config()
  config.student.dtype = 'bfloat16'
  network = teacher_lib.load(root / 'teacher', config).network
  assert network.model.dtype == np.dtype('bfloat16')
  config.teacher.dtype = 'float32'
  network = teacher_lib.load(root / 'teacher', config).network
  assert network.model.dtype == np.dtype('float32')


def copy_unfinished(root, tmp_path):
  """The student's run as if it had been killed after two of three epochs."""
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')
  workdir = tmp_path / 'feature'
  shutil.copytree(root / 'feature', workdir)
  (workdir / 'result.json').unlink()
  shutil.rmtree(workdir / 'checkpoints' / '15')
  return workdir


def test_a_run_is_not_continued_on_other_data(runs, tmp_path, monkeypatch):
  root, _ = runs
  workdir = copy_unfinished(root, tmp_path)
  load = data.load
  monkeypatch.setattr(data, 'load', lambda c: load(c)._replace(digest='other'))
  with pytest.raises(ValueError, match=r'begun with another data.* now other'):
    train.train_and_evaluate(tiny.config(), workdir)


def test_a_run_is_neither_continued_nor_evaluated_with_another_teacher(
  runs, tmp_path, monkeypatch
):
  root, _ = runs
  workdir = copy_unfinished(root, tmp_path)
  load = teacher_lib.load

  def other(*args):
    teacher = load(*args)
    return teacher._replace(report=teacher.report | {'digest': 'other'})

  monkeypatch.setattr(teacher_lib, 'load', other)
  for path in (workdir, root / 'feature'):
    with pytest.raises(ValueError, match=r'begun with another teacher.* other'):
      train.train_and_evaluate(tiny.config(), path)


def test_runs_that_were_moved_together_are_evaluated(runs, tmp_path):
  root, result = runs
  for name in ('teacher', 'feature'):
    shutil.copytree(root / name, tmp_path / 'moved' / name)
    path = tmp_path / 'moved' / name
    text = json.dumps(run_directory.read_result(path))
    run_directory.write_result(
      path, json.loads(text.replace(str(root), '/gone'))
    )
  moved, _ = final_test.evaluate(tmp_path / 'moved' / 'feature')
  assert moved['best'] == result['best']
  assert moved['teacher']['test'] == result['teacher']['test']


@pytest.mark.parametrize('lost', ['', 'state'])
def test_a_lost_checkpoint_is_not_replaced_by_another(runs, tmp_path, lost):
  root, result = runs
  workdir = tmp_path / 'feature'
  shutil.copytree(root / 'feature', workdir)
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')
  kept = sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  last = result['last']['step']
  assert kept[-1] == last
  assert len(kept) > 1
  shutil.rmtree(workdir / 'checkpoints' / str(last) / lost)
  message = rf'last checkpoint .* expected that of step {last}, .* Put a sound'
  with pytest.raises(FileNotFoundError, match=message):
    checkpoint.find(workdir, 'last')
  with pytest.raises(FileNotFoundError, match='checkpoint of the finished run'):
    train.train_and_evaluate(tiny.config(), workdir)
  # Trained once more, it comes to the same.
  (workdir / 'result.json').unlink()
  again = train.train_and_evaluate(tiny.config(), workdir)
  assert again['last'] == result['last']
  assert again['best'] == result['best']


def test_a_teacher_that_was_moved_is_named_in_the_configuration(runs, tmp_path):
  root, result = runs
  workdir = tmp_path / 'moved' / 'feature'
  shutil.copytree(root / 'feature', workdir)
  content = run_directory.read_result(workdir)
  content['teacher']['path'] = '/gone/teacher'
  run_directory.write_result(workdir, content)
  with pytest.raises(
    FileNotFoundError, match=r'teacher\.path=PATH, where it is'
  ):
    final_test.evaluate(workdir)
  config = tiny.config()
  config.teacher.path = str(root / 'teacher')
  again = train.train_and_evaluate(config, workdir)
  assert again['best'] == result['best']


def test_files_of_a_run_that_do_not_agree_are_told(runs, tmp_path):
  root, result = runs
  workdir = tmp_path / 'feature'
  shutil.copytree(root / 'feature', workdir)
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')
  other = json.loads(json.dumps(result))
  other['config']['train']['label_smoothing'] = 0.5
  run_directory.write_result(workdir, other)
  with pytest.raises(ValueError, match=r'do not agree .*\n  train\.label_smoo'):
    final_test.evaluate(workdir)
  # What the checkpoints know of a configuration that is lost.
  (workdir / 'config.json').unlink()
  config = tiny.config()
  config.seed = 3
  with pytest.raises(ValueError, match=r'no config\.json, .*\n  seed: 0 there'):
    train.train_and_evaluate(config, workdir)


def test_a_result_that_is_missing_is_made_without_training(
  runs, tmp_path, monkeypatch
):
  root, result = runs
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')
  shutil.copytree(root / 'feature', tmp_path / 'feature')
  (tmp_path / 'feature' / 'result.json').unlink()
  (tmp_path / 'feature' / 'predictions.npz').unlink()

  def no_log(*_, **__):
    raise AssertionError('it trains')

  monkeypatch.setattr(loop, 'RunLog', no_log)
  again = train.train_and_evaluate(tiny.config(), tmp_path / 'feature')
  assert again['best'] == result['best']
  assert run_directory.read_predictions(tmp_path / 'feature')


def test_a_missing_teacher_is_said_so(tmp_path):
  config = tiny.config()
  config.teacher.path = str(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='nowhere'):
    train.train_and_evaluate(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
  config = tiny.config('scratch')
  config.train.batch_size = 161
  with pytest.raises(ValueError, match=r'is 161, .* only 160 training'):
    train.train_and_evaluate(config, tmp_path)


def test_evaluating_an_unfinished_run_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='no run in'):
    final_test.evaluate(tmp_path)
  run_directory.write_config(tmp_path, tiny.config())
  with pytest.raises(FileNotFoundError, match='has not finished'):
    final_test.evaluate(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = tiny.config('scratch')
  config.train.update(optimizer='sgd', learning_rate=1e30, warmup_epochs=0.0)
  with pytest.raises(FloatingPointError, match=r'is .* at step \d'):
    train.train_and_evaluate(config, tmp_path)
  assert run_directory.read_result(tmp_path) is None
  # JSON as others read it, in which there is no NaN.
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert 'NaN' not in text
  assert 'Infinity' not in text
  assert 'null' in text


def test_a_last_update_that_overflows_is_not_saved(tmp_path, monkeypatch):
  """The loss of a step is from before its update; validation is after it."""
  classification = metrics.classification

  def overflown(*args):
    return classification(*args) | {'loss': float('nan')}

  monkeypatch.setattr(metrics, 'classification', overflown)
  config = tiny.config('scratch')
  with pytest.raises(FloatingPointError, match='the validation loss is nan'):
    train.train_and_evaluate(config, tmp_path)
  with pytest.raises(FileNotFoundError):
    checkpoint.find(tmp_path)


def test_everything_compiles_once(tmp_path, monkeypatch):
  """Across epochs and evaluations: the step and the prediction, each once."""
  traces = {'step': 0, 'prediction': 0}
  make_train_step, forward = step.make_train_step, features.forward

  def counting_make(*args, **kwargs):
    train_step = make_train_step(*args, **kwargs)

    def counted(*arguments):
      traces['step'] += 1
      return train_step(*arguments)

    return counted

  def counting_forward(model, variables, images, **options):
    traces['prediction'] += images.shape[0] == 48
    return forward(model, variables, images, **options)

  monkeypatch.setattr(step, 'make_train_step', counting_make)
  monkeypatch.setattr(features, 'forward', counting_forward)
  config = tiny.config('scratch')
  # 144 validation images and 360 test images: one shape for each.
  config.eval.batch_size = 48
  config.student.width = 5
  train.train_and_evaluate(config, tmp_path)
  # Validation and test sets have shapes of their own; each is traced once,
  # whatever the number of epochs and batches.
  assert traces == {'step': 1, 'prediction': 2}


def test_without_validation_the_last_epoch_is_the_best(tmp_path, monkeypatch):
  predict, calls = predict_lib.predict_images, []

  def recording(*args):
    calls.append(args)
    return predict(*args)

  monkeypatch.setattr(predict_lib, 'predict_images', recording)
  config = tiny.config('scratch')
  config.data.validation_fraction = 0.0
  config.train.max_steps = 7
  result = train.train_and_evaluate(config, tmp_path)
  assert result['best'] == result['last']
  # One checkpoint, computed once.
  assert len(calls) == 1
  predictions = run_directory.read_predictions(tmp_path)
  assert set(predictions) == {'labels', 'best', 'last'}
  np.testing.assert_array_equal(predictions['best'], predictions['last'])
  assert result['last']['validation_accuracy'] is None
  assert not lines(tmp_path, 'validation')
  assert pathlib.Path(checkpoint.find(tmp_path)).name == '7'
