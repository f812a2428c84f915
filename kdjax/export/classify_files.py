"""Classifies image files, some at once."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.images import EXTENSIONS, UnreadableError
from kdjax.data.sources.image_folder import is_image, walk
from kdjax.evaluation import tables
from kdjax.export.predictor import Student
from kdjax.system import escape
from kdjax.system.logs import logger


def count(paths: Sequence[str]) -> int:
  """Counts the files, also in folders, that may be images by their names.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: a folder holds no images.
  """
  return sum(map(_count, paths))


class Classified(NamedTuple):
  """Some files.

  Attributes:
    files: those that could be read.
    probabilities: of the classes, float32 `[files, classes]`.
    left_out: the others, and why each is left out.
    images: how many of all have the name of an image.
  """

  files: list[str]
  probabilities: np.ndarray
  left_out: dict[str, str]
  images: int


def classify(
  student: Student, files: Iterable[str], batch_size: int
) -> Iterator[Classified]:
  """Classifies images, some at once.

  What is no image, or cannot be read, is named in a warning and left out.

  Args:
    student: the network.
    files: the files.
    batch_size: how many of them to read at once.

  Yields:
    Those of each batch, in their order.
  """
  # Images of different sizes do not fit into one batch.
  size = batch_size if student.image_shape else 1
  files = iter(files)
  while batch := list(itertools.islice(files, size)):
    images, left_out = {}, {}
    for file in batch:
      try:
        images[file] = _read(student, file)
      except (UnreadableError, OSError) as error:
        left_out[file] = escape.printable(str(error))
        logger.warning('left out: %s', left_out[file])
    classes = student.card['model']['num_classes']
    probabilities = (
      student(np.stack(list(images.values())))
      if images
      else np.zeros((0, classes), np.float32)
    )
    yield Classified(
      list(images), probabilities, left_out, sum(map(is_image, batch))
    )


def _read(student: Student, file: str) -> np.ndarray:
  """Reads an image; raises UnreadableError or OSError where it cannot."""
  if not is_image(file):
    raise UnreadableError(f'{file} does not end with {", ".join(EXTENSIONS)}')
  try:
    return student.read(file)
  except MemoryError:
    raise UnreadableError(f'there is not enough memory for {file}') from None


def describe(
  student: Student, classified: Classified, top: int, *, as_json: bool
) -> str:
  """Lists the likeliest classes of some files.

  Args:
    student: the network.
    classified: the files.
    top: how many classes to show of each.
    as_json: whether to return a line of JSON for each file, those that were
      left out included, not a table.

  Returns:
    The text; empty where there is nothing to tell.
  """
  predicted = [_best(student, row, top) for row in classified.probabilities]
  if as_json:
    return _json(classified, predicted)
  return _table(classified.files, predicted) if predicted else ''


def _count(path: str) -> int:
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no file or folder {escape.printable(path)}'
    )
  count = sum(map(is_image, files_of(path)))
  if not count and os.path.isdir(path):
    raise ValueError(
      f'{escape.printable(path)} holds no images: expected files that end with '
      f'{", ".join(EXTENSIONS)}'
    )
  return count


def files_of(path: str) -> Iterator[str]:
  """Yields a file, or all in a folder and those below, sorted."""
  if not os.path.isdir(path):
    yield path
    return
  for file in walk(path):
    yield os.path.join(path, file)


_Best = list[tuple[str, float]]


def _best(student: Student, probabilities: np.ndarray, top: int) -> _Best:
  """Returns the likeliest classes and their probabilities."""
  classes = np.argsort(-probabilities, kind='stable')[:top]
  names = student.class_names
  return [
    (names[i] if names else str(i), float(probabilities[i])) for i in classes
  ]


def _json(classified: Classified, predicted: Sequence[_Best]) -> str:
  lines: list[dict[str, Any]] = [
    {
      'file': escape.unicode(file),
      'predictions': [
        {'class': escape.unicode(name), 'probability': probability}
        for name, probability in best
      ],
    }
    for file, best in zip(classified.files, predicted, strict=True)
  ]
  lines += [
    {'file': escape.unicode(file), 'error': escape.unicode(reason)}
    for file, reason in classified.left_out.items()
  ]
  return '\n'.join(map(json.dumps, lines))


def _table(files: Sequence[str], predicted: Sequence[_Best]) -> str:
  header = ['file']
  for place in range(1, len(predicted[0]) + 1):
    header += [f'class {place}', 'probability']
  lines = [header]
  for file, best in zip(files, predicted, strict=True):
    lines.append([file])
    for name, probability in best:
      lines[-1] += [name, f'{probability:.2%}']
  return tables.align(lines)
