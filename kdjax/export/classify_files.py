"""Classifies image files, some at once."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence

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


def classify(
  student: Student,
  paths: Sequence[str],
  *,
  top: int,
  as_json: bool,
  batch_size: int,
) -> Iterator[tuple[int, str]]:
  """Classifies images.

  What is no image, or cannot be read, is named in a warning and left out.

  Args:
    student: the network.
    paths: files, and folders of files.
    top: how many classes to show of each image.
    as_json: whether to return a line of JSON for each image, not a table.
    batch_size: how many images to read at once.

  Yields:
    How many images were tried, and the text for those of them that could be
    read; empty if none could.
  """
  # Images of different sizes do not fit into one batch.
  size = batch_size if student.image_shape else 1
  files = itertools.chain.from_iterable(map(_files, paths))
  while batch := list(itertools.islice(files, size)):
    tried, read, images = 0, [], []
    for file in batch:
      if is_image(file):
        tried += 1
        image = _read(student, file)
        if image is not None:
          read.append(file)
          images.append(image)
      else:
        endings = ', '.join(EXTENSIONS)
        logger.warning(
          'left out: %s does not end with %s', escape.printable(file), endings
        )
    text = ''
    if images:
      predicted = [
        _best(student, row, top) for row in student(np.stack(images))
      ]
      text = (_json if as_json else _table)(read, predicted)
    yield tried, text


def _read(student: Student, file: str) -> np.ndarray | None:
  """Reads an image; None, with a warning, if it cannot be read."""
  try:
    return student.read(file)
  except (UnreadableError, OSError) as error:
    logger.warning('left out: %s', escape.printable(str(error)))
  except MemoryError:
    logger.warning(
      'left out: there is not enough memory for %s', escape.printable(file)
    )
  return None


def _count(path: str) -> int:
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no file or folder {escape.printable(path)}'
    )
  count = sum(map(is_image, _files(path)))
  if not count and os.path.isdir(path):
    raise ValueError(
      f'{escape.printable(path)} holds no images: expected files that end with '
      f'{", ".join(EXTENSIONS)}'
    )
  return count


def _files(path: str) -> Iterator[str]:
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


def _json(files: Sequence[str], predicted: Sequence[_Best]) -> str:
  return '\n'.join(
    json.dumps(
      {
        'file': escape.unicode(file),
        'predictions': [
          {'class': escape.unicode(name), 'probability': probability}
          for name, probability in best
        ],
      }
    )
    for file, best in zip(files, predicted, strict=True)
  )


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
