"""Measures a run's checkpoints, and its teacher, on the test split."""

import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from kdjax import data
from kdjax.evaluation import metrics, predict
from kdjax.models.network import Network
from kdjax.storage import checkpoint, digests, run_directory
from kdjax.training import teacher as teacher_lib
from kdjax.training import teacher_checks
from kdjax.training.shared import Session


def evaluate(
  workdir: str | os.PathLike[str],
  config: ml_collections.ConfigDict | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Evaluates a finished run's checkpoints again.

  Args:
    workdir: the run directory.
    config: its configuration, with other values for fields that change no
      result; by default that in the directory.

  Returns:
    The content of `result.json`, with what was measured now, and the
    predictions, as `measure` returns them. Neither is written.

  Raises:
    FileNotFoundError: the directory holds no finished run, or its teacher or
      data are gone.
    ValueError: data or teacher are not those of the run.
  """
  workdir = pathlib.Path(workdir)
  config = config or run_directory.read_config(workdir)
  result = run_directory.read_result(workdir)
  if result is None:
    raise FileNotFoundError(
      f'the run in {workdir} has not finished; start kdjax.main again with the '
      'same --config and --workdir to continue it'
    )
  if differing := run_directory.config_differences(result['config'], config):
    shown = '\n  '.join(differing.values())
    raise ValueError(
      f'config.json and result.json in {workdir} do not agree (there: '
      f'result.json):\n  {shown}\nPut sound copies of both there'
    )
  dataset = data.load(config.data)
  run_directory.check_same_digest(
    workdir, 'data', result['data']['digest'], dataset.digest
  )
  teacher = None
  if trained_with := result['teacher']:
    teacher = teacher_lib.reload(workdir, config, trained_with)
  measured, predictions = measure(
    workdir, dataset, teacher, config.eval.batch_size, Session()
  )
  student = result['student'] | measured['student']
  return result | measured | {'student': student}, predictions


def measure(
  workdir: pathlib.Path,
  dataset: data.Dataset,
  teacher: teacher_lib.Teacher | None,
  batch_size: int,
  session: Session,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Measures the best and the last checkpoint of a run, and its teacher.

  Args:
    workdir: the run directory.
    dataset: its data set, whose test split is read.
    teacher: its teacher, if it has one.
    batch_size: how many images to compute at once.
    session: what the run shares with others.

  Returns:
    What was measured: `best` and `last` with `step`, `epoch`,
    `validation_accuracy`, `validation_loss`, the student's `digest` and, under
    `test`, what `metrics.classification` returns; where the run kept moving
    averages of the student, `ema` in both, with the averages' `digest` and
    `test`; `student` with the number of `parameters`; and `teacher`, its report
    and its `test`, empty where its logits are not known, or None.

    And what it was measured from: `labels`, int32 `[size]`, and the logits of
    `best`, `last` and, where there are such, `best_ema`, `last_ema` and
    `teacher`, float32 `[size, classes]`.
  """
  images = predict.on_devices(dataset.test)
  measured: dict[str, Any] = {'teacher': None}
  predictions: dict[str, np.ndarray] = {}
  if teacher:
    measured['teacher'] = teacher.report | {'test': {}}
    known = session.test_logits(teacher, dataset, batch_size)
    if known is not None:
      predictions['teacher'] = known

  def test(network: Network) -> tuple[dict[str, Any], np.ndarray]:
    found, labels = predict.predict_split(network, images, batch_size)
    logits, predictions['labels'] = jax.device_get(found), labels
    report = {
      'digest': digests.digest(network.variables),
      'test': metrics.classification(
        logits, labels, predictions.get('teacher')
      ),
    }
    return report, logits

  tested: dict[pathlib.Path, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
  for which in ('best', 'last'):
    directory = checkpoint.find(workdir, which)
    if directory not in tested:
      network = checkpoint.restore(directory)
      metadata = checkpoint.read_metadata(directory)
      report, logits = test(network)
      report |= {
        'step': metadata['step'],
        'epoch': metadata['epoch'],
        'validation_accuracy': metadata['validation_accuracy'],
        'validation_loss': metadata.get('validation_loss'),
      }
      by_suffix = {'': logits}
      if metadata['config']['train'].get('ema_decay'):
        averages = checkpoint.restore(directory, ema=True)
        report['ema'], by_suffix['_ema'] = test(averages)
      tested[directory] = report, by_suffix
    measured[which], by_suffix = tested[directory]
    predictions |= {which + suffix: by_suffix[suffix] for suffix in by_suffix}
  if 'teacher' in predictions:
    measured['teacher']['test'] = metrics.classification(
      predictions['teacher'], predictions['labels']
    )
    if teacher and teacher.logits:
      teacher_checks.check_test_logits(
        teacher, predictions['teacher'], predictions['labels']
      )
  measured['student'] = {
    'parameters': optax.tree.size(network.variables['params'])
  }
  return measured, predictions
