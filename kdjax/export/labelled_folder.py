"""Measures a network on a folder of labelled images, `FOLDER/CLASS/*.jpg`."""

import os
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.sources import image_folder
from kdjax.evaluation import metrics, tables
from kdjax.export import classify_files
from kdjax.export.predictor import Student
from kdjax.system import logs

# More classes would not fit beside each other.
_MOST_CONFUSED = 12


class Measured(NamedTuple):
  """A network on labelled images.

  Attributes:
    files: those that could be read.
    labels: index of each file's class among the network's, int32 `[files]`.
    logits: logarithms of the probabilities, float32 `[files, classes]`.
    class_names: names of the network's classes.
    left_out: how many files could not be read.
  """

  files: list[str]
  labels: np.ndarray
  logits: np.ndarray
  class_names: tuple[str, ...]
  left_out: int


def classify(student: Student, folder: str, batch_size: int) -> Measured:
  """Classifies the images of a folder with a folder for each class.

  Args:
    student: the network.
    folder: the folder. Its folders have the names of the network's classes, not
      necessarily all; where these have no names, they are as many, and sorted.
    batch_size: how many images to read at once.

  Returns:
    What the network says of each. What is no image, or cannot be read, is named
    in a warning and left out.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a folder has the name of no class, or there are no images.
  """
  folders = image_folder.list_classes(folder)
  class_names = student.class_names or folders
  indices = _match(folder, folders, class_names, student)
  files: list[str] = []
  labels: list[int] = []
  rows: list[np.ndarray] = []
  left_out = 0
  paths = {
    path: index
    for name, index in zip(folders, indices, strict=True)
    for path in classify_files.files_of(os.path.join(folder, name))
  }
  with logs.progress(len(paths), 'images') as bar:
    for some in classify_files.classify(student, paths, batch_size):
      files += some.files
      labels += [paths[file] for file in some.files]
      rows.append(some.probabilities)
      left_out += len(some.left_out)
      bar.update(len(some.files) + len(some.left_out))
  if not files:
    raise ValueError(f'none of the images in {folder} can be read')
  # The smallest probability that float32 tells from zero, for finite logits.
  logits = np.log(np.maximum(np.concatenate(rows), np.finfo(np.float32).tiny))
  return Measured(
    files, np.array(labels, np.int32), logits, tuple(class_names), left_out
  )


def _match(
  folder: str,
  folders: Sequence[str],
  class_names: Sequence[str],
  student: Student,
) -> list[int]:
  """Returns the index of the class of each folder."""
  # File systems write letters with accents in one of two ways.
  known = {
    unicodedata.normalize('NFC', name): i for i, name in enumerate(class_names)
  }
  names = [unicodedata.normalize('NFC', name) for name in folders]
  unknown = [name for name in names if name not in known]
  count = student.card['model']['num_classes']
  if unknown or len(class_names) != count:
    expected = (
      ', '.join(class_names[:10])
      if student.class_names
      else (f'{count} folders, sorted as the classes are, which have no names')
    )
    raise ValueError(
      f'{folder} has the folders {", ".join((unknown or names)[:5])}, and the '
      f'network no such classes: expected {expected}'
    )
  return [known[name] for name in names]


def table(measured: Measured) -> str:
  """Formats accuracies, and which classes are taken for which.

  Args:
    measured: what `classify` returned.

  Returns:
    A table of the metrics; one of the classes, with the number of images, the
    share that is recognised, and what they are most often taken for instead;
    and, of at most twelve classes, the confusion matrix.
  """
  found: dict[str, Any] = metrics.classification(
    measured.logits, measured.labels
  )
  shown = [each for each in tables.SHOWN if found.get(each[1]) is not None]
  first = tables.align(
    [
      ('images', *(heading for heading, _, _ in shown)),
      (
        f'{found["count"]:,}',
        *(format(found[name], spec) for _, name, spec in shown),
      ),
    ]
  )
  names = measured.class_names
  matrix = np.zeros((len(names), len(names)), int)
  np.add.at(matrix, (measured.labels, measured.logits.argmax(axis=-1)), 1)
  lines = [('class', 'images', 'recognised', 'else taken for')]
  for index, row in enumerate(matrix):
    if row.sum():
      others = np.where(np.arange(len(names)) == index, 0, row)
      worst = int(others.argmax())
      lines.append(
        (
          names[index],
          f'{row.sum():,}',
          f'{row[index] / row.sum():.2%}',
          f'{names[worst]} ({others[worst]:,})' if others[worst] else '-',
        )
      )
  parts = [first, tables.align(lines)]
  if len(names) <= _MOST_CONFUSED:
    parts.append(
      tables.align(
        [
          ('class \\ predicted', *names),
          *(
            (name, *map(str, row))
            for name, row in zip(names, matrix, strict=True)
          ),
        ]
      )
    )
  return '\n\n'.join(parts)
