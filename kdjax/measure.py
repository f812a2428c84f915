"""Measures a run's checkpoints, and its teacher, on the test split."""

import functools
import os
import pathlib
from typing import Any

import jax
import ml_collections
import optax

from kdjax import checkpoint, data, metrics, results, step
from kdjax import teacher as teacher_lib


def evaluate(
  workdir: str | os.PathLike[str], *, data_dir: str | None = None
) -> dict[str, Any]:
  """Evaluates a finished run's checkpoints again.

  Args:
    workdir: the run directory.
    data_dir: where the data is, if no longer where the run read it.

  Returns:
    The content of `result.json`, with what was measured now.

  Raises:
    FileNotFoundError: the directory holds no finished run, or its teacher or
      data are gone.
    ValueError: the data are not those of the run.
  """
  workdir = pathlib.Path(workdir)
  config = results.read_config(workdir)
  result = results.read_result(workdir)
  if result is None:
    raise FileNotFoundError(
      f'the run in {workdir} has not finished; start kdjax.main again with the '
      'same --config and --workdir to continue it'
    )
  if data_dir is not None:
    config.data.data_dir = data_dir
  dataset = data.load(config.data)
  if dataset.digest != result['data']['digest']:
    raise ValueError(
      f'{dataset.name} is not the data that {workdir} was trained on: SHA-256 '
      f'{dataset.digest}, expected {result["data"]["digest"]}'
    )
  teacher = None
  if result['teacher']:
    teacher = teacher_lib.load(result['teacher']['path'], config.teacher)
  measured = measure(workdir, config, dataset, teacher)
  student = result['student'] | measured['student']
  return result | measured | {'student': student}


def measure(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  teacher: teacher_lib.Teacher | None,
) -> dict[str, Any]:
  """Measures the best and the last checkpoint of a run, and its teacher.

  Args:
    workdir: the run directory.
    config: its configuration.
    dataset: its data set, whose test split is read.
    teacher: its teacher, if it has one.

  Returns:
    `best` and `last` with `step`, `epoch`, `validation_accuracy` and, under
    `test`, what `kdjax.metrics.classification` gives; `student` with the number
    of `parameters` and the `digest` of the last checkpoint; and `teacher`, its
    report and its `test`, or None.
  """
  images, labels = jax.device_put(dataset.test.images), dataset.test.labels
  predict = functools.partial(
    step.predict, images=images, batch_size=config.eval.batch_size
  )
  measured: dict[str, Any] = {'teacher': None}
  teacher_logits = None
  if teacher:
    teacher_logits = predict(teacher.network)
    measured['teacher'] = teacher.report | {
      'test': metrics.classification(teacher_logits, labels)
    }
  for which in ('best', 'last'):
    directory = checkpoint.find(workdir, which)
    network = checkpoint.restore(directory)
    metadata = checkpoint.read_metadata(directory)
    measured[which] = {
      **{
        key: metadata[key] for key in ('step', 'epoch', 'validation_accuracy')
      },
      'test': metrics.classification(predict(network), labels, teacher_logits),
    }
  measured['student'] = {
    'parameters': optax.tree.size(network.variables['params']),
    'digest': results.digest(network.variables),
  }
  return measured
