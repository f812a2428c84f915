"""Run directories as a run leaves them, written without training."""

import json

import numpy as np

from kdjax import config as config_lib
from kdjax.storage import run_directory

DATA = {
  'name': 'digits',
  'digest': 'd' * 64,
  'train': 1293,
  'validation': 144,
  'test': 4,
}
LABELS = np.array([0, 1, 1, 0], np.int32)


def logits(*predictions, classes=2):
  """Logits of a network that is nearly sure of some classes."""
  return 4 * np.eye(classes, dtype=np.float32)[list(predictions)]


def teacher(digest='t' * 64, **changes):
  """What a result says of its teacher."""
  return {
    'path': '/runs/teacher',
    'digest': digest,
    'model': 'resnet50',
    'parameters': 23_519_690,
    'wall_time_s': 95.0,
    'step': 160,
    'validation_accuracy': 0.99,
    'data_digest': DATA['digest'],
    'class_names': ['zero', 'one'],
    'test': {
      'accuracy': 0.98,
      'loss': 0.16,
      'calibration_error': 0.02,
      'count': 4,
    },
    **changes,
  }


def config_of(method, seed=0, **settings):
  config = config_lib.default()
  config.method.name = method
  config.seed = seed
  config.data.name = 'digits'
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in settings.items()}
  )
  return config


def write_unfinished(path, method='scratch', *, seed=0, records=(), **settings):
  """Writes a run without a result; settings are named `train__epochs`."""
  config = config_of(method, seed, **settings)
  run_directory.write_config(path, config)
  (path / 'metrics.jsonl').write_text(
    ''.join(json.dumps(record) + '\n' for record in records)
  )
  return config


def write_run(
  path,
  method='scratch',
  *,
  seed=0,
  accuracy=0.9,
  last=None,
  validation=0.9,
  taught_by=None,
  data=None,
  test=None,
  predictions=None,
  result=None,
  **settings,
):
  """Writes a finished run.

  Args:
    path: its directory.
    method: its method; any but scratch has a teacher, by default `teacher()`.
    seed: its seed.
    accuracy: on the test split at the best epoch.
    last: the same at the last epoch.
    validation: validation accuracy at the best epoch.
    taught_by: what the result says of its teacher.
    data: changes to `DATA`.
    test: changes to the numbers on the test split at the best epoch.
    predictions: arrays of `predictions.npz`.
    result: changes to the result.
    **settings: fields of the configuration, named `train__epochs`.
  """
  records = [
    {
      'kind': 'train',
      'step': step,
      'epoch': step / 20,
      'loss': 1.5 - step / 40,
      'nll': 1.0 - step / 80,
      'gradient_norm': 1.0,
      'images_per_second': speed,
    }
    for step, speed in ((20, 100.0), (30, 900.0), (40, 200.0))
  ] + [
    {
      'kind': 'validation',
      'step': 20 * epoch,
      'epoch': float(epoch),
      'accuracy': validation and validation - 0.1 * (2 - epoch),
      'loss': 0.5 / epoch,
    }
    for epoch in (1, 2)
  ]
  config = write_unfinished(
    path, method, seed=seed, records=records, **settings
  )
  if method != 'scratch':
    taught_by = taught_by or teacher()
  numbers = {
    'accuracy': accuracy,
    'loss': 0.3,
    'calibration_error': 0.05,
    'count': 4,
  }
  if taught_by:
    numbers |= {'agreement': 0.95, 'kl_to_teacher': 0.1}
  tested = numbers | (test or {})
  digest = f'{path.parent.name}/{path.name}'
  content = result_of(config, digest, validation, tested, taught_by)
  content['data'] |= data or {}
  content['last']['test'] = numbers | {
    'accuracy': accuracy if last is None else last
  }
  run_directory.write_result(path, content | (result or {}))
  if predictions is not None:
    np.savez(path / 'predictions.npz', **predictions)
  return path


def result_of(config, digest, validation, test, taught_by=None):
  """The content of a result; best and last checkpoint are alike."""

  def tested(which):
    return {
      'step': 40,
      'epoch': 2.0,
      'validation_accuracy': validation,
      'digest': f'{digest} {which}',
      'test': test,
    }

  return {
    'method': config.method.name,
    'seed': config.seed,
    'data': dict(DATA),
    'device': 'cpu',
    'platform': 'cpu',
    'versions': {'kdjax': '0.1.0', 'jax': '0.10.2'},
    'config': run_directory.as_json(config),
    'teacher': taught_by,
    'student': {
      'model': 'resnet18',
      'parameters': 11_172_810,
      'wall_time_s': 57.0,
    },
    'best': tested('best'),
    'last': tested('last'),
  }
