"""A run's predictions and its table."""

import json

import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax.evaluation import metrics, tables
from kdjax.storage import run_directory

PREDICTIONS = {
  'labels': np.int32([1, 0]),
  'best': np.float32([[0.5, 1], [2, -1]]),
}


def test_predictions_are_read_as_they_were_written(tmp_path):
  assert run_directory.read_predictions(tmp_path) is None
  run_directory.write_predictions(tmp_path, PREDICTIONS)
  found = run_directory.read_predictions(tmp_path)
  assert set(found) == set(PREDICTIONS)
  for name, array in PREDICTIONS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)
  assert [path.name for path in tmp_path.iterdir()] == ['predictions.npz']


def test_fields_that_a_run_did_not_know_are_as_by_default(tmp_path):
  config = config_lib.default()
  run_directory.write_config(tmp_path, config)
  path = tmp_path / 'config.json'
  found = json.loads(path.read_text())
  found['train']['epochs'] = 3
  del found['data']['streaming'], found['device']
  # As an earlier version wrote it.
  del found['version'], found['sha256']
  path.write_text(json.dumps(found))
  config.train.epochs = 3
  assert run_directory.read_config(tmp_path).to_dict() == run_directory.as_json(
    config
  )


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch):
  def cut_off(file, **_):
    file.write(b'half')
    raise OSError('disk full')

  run_directory.write_predictions(tmp_path, PREDICTIONS)
  monkeypatch.setattr(np, 'savez_compressed', cut_off)
  with pytest.raises(OSError, match='disk full'):
    run_directory.write_predictions(tmp_path, {'labels': np.int32([0])})
  found = run_directory.read_predictions(tmp_path)
  np.testing.assert_array_equal(found['labels'], PREDICTIONS['labels'])


def test_means_over_classes_are_shown_where_they_differ():
  shared = {'parameters': 1234, 'wall_time_s': 5.6}
  test = {'accuracy': 0.5, 'loss': 1.25, 'balanced_accuracy': 0.5}

  def header(**changes):
    text = tables.table(
      {
        'method': 'scratch',
        'student': shared | {'model': 'small'},
        'best': {'test': test},
        'last': {'test': test | changes},
      }
    )
    return text.splitlines()[0]

  assert 'balanced' not in header(balanced_accuracy=0.501)
  assert 'balanced  macro F1' in header(balanced_accuracy=0.49)


def test_the_table_has_every_metric_and_a_dash_for_what_is_missing():
  older = {'accuracy': 0.5, 'loss': 1.25, 'count': 2}
  newer = older | {
    'calibration_error': 0.0625,
    'agreement': 0.75,
    'kl_to_teacher': 0.125,
  }
  shared = {'parameters': 1234, 'wall_time_s': 5.6}
  lines = tables.table(
    {
      'method': 'response',
      'teacher': shared | {'model': 'big', 'test': older},
      'student': shared | {'model': 'small'},
      'best': {'test': newer},
      'last': {'test': newer | {'calibration_error': None}},
    }
  ).splitlines()
  assert lines[0].split()[2:8] == [
    *('accuracy', 'NLL', 'ECE', 'agreement', 'teacher', 'KL')
  ]
  assert [line.split()[-8:] for line in lines[2:]] == [
    ['50.00%', '1.2500', '-', '-', '-', '1,234', '6', 's'],
    ['50.00%', '1.2500', '6.25%', '75.00%', '0.1250', '1,234', '6', 's'],
    ['50.00%', '1.2500', '-', '75.00%', '0.1250', '1,234', '6', 's'],
  ]


def epoch(accuracy, loss):
  return {'validation_accuracy': accuracy, 'validation_loss': loss}


def test_settings_are_scored_by_accuracy_then_by_loss():
  score = metrics.validation_score
  assert score([epoch(0.9, 2.0)]) > score([epoch(0.8, 1.0)])
  assert score([epoch(0.9, 1.0)]) > score([epoch(0.9, 2.0)])
  # The mean over seeds: 0.85 with losses of 1.5, as 0.8 and 0.9 with 1 and 2.
  one, other = [epoch(0.85, 1.5)] * 2, [epoch(0.8, 1.0), epoch(0.9, 2.0)]
  assert score(one) == score(other) == (0.85, -1.5)
  assert score([epoch(0.9, 1.0), epoch(None, None)]) is None
  assert score([epoch(0.9, 1.0), {'error': 'failed'}]) is None
  assert score([]) is None
  # As older versions wrote it.
  assert score([{'validation_accuracy': 0.9}]) == (0.9, 0.0)
