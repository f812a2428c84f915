"""Predictions of single examples, as files for other programs."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from kdjax.evaluation import metrics
from kdjax.system import atomic, escape

_COLUMNS = ('prediction', 'confidence', 'loss')
_TEACHER_COLUMNS = ('teacher_prediction', 'teacher_confidence')
_CLASSES = ('label', 'prediction', 'teacher_prediction')
_SUFFIXES = ('.csv', '.npz')


def prepare(path: pathlib.Path) -> None:
  """Checks a file's name and makes its directory, before anything is computed.

  Args:
    path: where `write` will be asked to write.

  Raises:
    ValueError: the name ends in neither `.csv` nor `.npz`.
  """
  if path.suffix not in _SUFFIXES:
    raise ValueError(
      f'cannot write predictions to {path}: expected a file name that ends in '
      f'{" or ".join(_SUFFIXES)}'
    )
  path.parent.mkdir(parents=True, exist_ok=True)


def write(
  path: pathlib.Path,
  class_names: Sequence[str],
  predictions: Mapping[str, np.ndarray],
  checkpoint: str = 'best',
  files: Sequence[str] = (),
) -> None:
  """Writes what a run's student predicts for each test example.

  The columns are `index` (the place in the split), `label`, `prediction`,
  `confidence` (the prediction's probability), `loss` (cross-entropy, nats) and,
  with a teacher, `teacher_prediction` and `teacher_confidence`.

  Args:
    path: a `.csv`, with a header and classes by name, or a `.npz`, with an
      array for each column and classes by index, and also `class_names`,
      `logits` and, with a teacher, `teacher_logits`.
    class_names: name of each class.
    predictions: those of the run, as `kdjax.training.final_test.evaluate` or
      `kdjax.storage.run_directory.read_predictions` returns them.
    checkpoint: whose to write, 'best' or 'last'.
    files: the file of each example, for a column `file` in place of `index`.

  Raises:
    ValueError: the name ends in neither `.csv` nor `.npz`.
  """
  prepare(path)
  labels, logits = predictions['labels'], predictions[checkpoint]
  teacher_logits = predictions.get('teacher')
  values = jax.device_get(metrics.per_example(logits, labels, teacher_logits))
  names = _COLUMNS if teacher_logits is None else _COLUMNS + _TEACHER_COLUMNS
  indices = np.arange(len(labels))
  columns = {
    **({'file': np.array(files)} if files else {'index': indices}),
    'label': labels,
    **{name: values[name] for name in names},
  }
  if path.suffix == '.npz':
    arrays = columns | {'class_names': np.array(class_names), 'logits': logits}
    if teacher_logits is not None:
      arrays['teacher_logits'] = teacher_logits
    with atomic.replacing(path) as file:
      np.savez_compressed(file, allow_pickle=False, **arrays)
    return
  for name in _CLASSES:
    if name in columns:
      columns[name] = np.array(class_names)[columns[name]]
  text = io.StringIO(newline='')
  writer = csv.writer(text)
  writer.writerow(columns)
  for row in zip(*columns.values(), strict=True):
    writer.writerow(map(escape.csv_cell, row))
  atomic.write(path, text.getvalue().encode())
