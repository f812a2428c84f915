"""A run in parts, with rematerialisation and moving averages, cut off once."""

import shutil

import jax
import numpy as np
import pytest
import tiny

from kdjax import config as config_lib
from kdjax.evaluation import tables
from kdjax.storage import checkpoint, digests, metrics_log, run_directory
from kdjax.training import final_test, train

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def config():
  config = tiny.config('scratch')
  config.train.update(epochs=2, accumulate=2, ema_decay=0.9)
  config.device.remat = STAGES
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('aids') / 'run'
  return workdir, train.train_and_evaluate(config(), workdir)


def validation(workdir):
  records = metrics_log.read_records(workdir)
  return [record for record in records if record['kind'] == 'validation']


def test_averages_are_validated_and_measured_beside_the_weights(run):
  workdir, result = run
  for record in validation(workdir):
    assert 0 <= record['ema_accuracy'] <= 1
    assert record['ema_loss'] != record['loss']
  predictions = run_directory.read_predictions(workdir)
  for which in ('best', 'last'):
    averages = checkpoint.restore(workdir, which, ema=True)
    assert result[which]['ema']['digest'] == digests.digest(averages.variables)
    assert result[which]['ema']['digest'] != result[which]['digest']
    labels, logits = predictions['labels'], predictions[f'{which}_ema']
    accuracy = (logits.argmax(-1) == labels).mean()
    assert result[which]['ema']['test']['accuracy'] == pytest.approx(accuracy)
  assert [line.split('  ')[0] for line in tables.table(result).split('\n')][
    2:
  ] == [
    f'{tiny.NETWORK} (scratch), best epoch',
    f'{tiny.NETWORK} (scratch), best epoch, EMA',
    f'{tiny.NETWORK} (scratch), last epoch',
    f'{tiny.NETWORK} (scratch), last epoch, EMA',
  ]
  again, _ = final_test.evaluate(workdir)
  assert again == result


def test_what_is_saved_says_nothing_of_how_it_was_computed(run):
  workdir, _ = run
  model = checkpoint.restore(workdir).model
  assert model.remat == ()
  assert 'remat' not in checkpoint.read_metadata(workdir)['model']


def test_a_run_cut_off_ends_with_the_same_averages(run, tmp_path):
  workdir, result = run
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  (copy / 'result.json').unlink()
  shutil.rmtree(copy / 'checkpoints' / '10')
  again = train.train_and_evaluate(config(), copy)
  assert again['last']['digest'] == result['last']['digest']
  assert again['last']['ema'] == result['last']['ema']
  assert [
    (record['step'], record['ema_loss']) for record in validation(copy)
  ] == [(record['step'], record['ema_loss']) for record in validation(workdir)]
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.restore(copy, 'last', ema=True).variables,
    checkpoint.restore(workdir, 'last', ema=True).variables,
  )


def test_rematerialisation_may_change_in_a_run_and_the_others_may_not(run):
  workdir, _ = run
  other = config()
  other.device.remat = ()
  assert not run_directory.differences(workdir, other)
  other.train.accumulate = 1
  other.train.ema_decay = 0.0
  assert set(run_directory.differences(workdir, other)) == {
    'train.accumulate',
    'train.ema_decay',
  }


def test_a_teacher_is_trained_in_parts_too_but_not_averaged():
  teacher = config_lib.teacher_run(config())
  assert (teacher.train.accumulate, teacher.train.ema_decay) == (2, 0)
  assert teacher.device.remat == STAGES


def test_stages_that_are_not_there_are_refused_before_anything_is_trained(
  tmp_path,
):
  config = tiny.config()
  config.device.remat = ('stage5',)
  with pytest.raises(ValueError, match='cannot rematerialise stage5'):
    train.train_and_evaluate(config, tmp_path / 'run')
  assert not list(tmp_path.iterdir())
