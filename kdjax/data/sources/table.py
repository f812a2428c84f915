"""A table of the paths of images and their classes, as CSV or TSV.

    path,label
    cats/1.jpg,cat
    dogs/2.jpg,dog

`config.data.data_dir` is one such file, or a folder with one for each split
(`train.csv`, `validation.csv`, `test.csv`, also `val` and `valid`) or with one
for all. A column `split` divides a file; a missing test split is held out of
`train`. The first line names the columns: `path` (or `file`, `file_name`,
`filename`, `filepath`, `image`, `image_path`) and `label` (`class`, `category`,
`target`), or the one that `config.data.label_column` names. Paths are relative
to the folder of the table. Labels are text: classes are theirs, sorted, as
numbers where all are numbers. Columns are separated by commas, semicolons or
tabs, whichever the first line has most of.
"""

import csv
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.images import EXTENSIONS
from kdjax.data.sources import Source, _checks, _splits
from kdjax.data.sources._base import ImageFiles
from kdjax.system import escape

logger = logging.getLogger('kdjax')

_PATHS = (
  *('path', 'file', 'file_name', 'filename', 'filepath', 'image'),
  'image_path',
)
_LABELS = ('label', 'class', 'category', 'target')
_TABLES = ('.csv', '.tsv')
_EXPECTED = (
  'expected a .csv or .tsv file whose first line is path,label, or a folder '
  'with train.csv and test.csv'
)


class _Row(NamedTuple):
  """A line of a table: an image, its class, and its split if the table says."""

  path: str
  label: str
  split: str | None


def load(data_dir: str | None, label_column: str = '') -> Source:
  """Reads tables.

  Args:
    data_dir: the table, or the folder of tables.
    label_column: name of the column of the labels; '' for a usual one.

  Returns:
    The data set; no image is read yet.

  Raises:
    ValueError: none is given; a column is missing, a line is not whole, or the
      splits have different classes.
    FileNotFoundError: it or its first image is not there.
  """
  place = _splits.locate('table', data_dir, _EXPECTED)
  root = place if os.path.isdir(place) else os.path.dirname(place) or '.'
  rows: dict[str, list[_Row]] = {}
  for path in _tables(place):
    of_file = _splits.of_name(os.path.basename(path)) or 'train'
    for row in _read(path, label_column):
      rows.setdefault(row.split or of_file, []).append(row)
  labels, class_names = _checks.encode(
    {split: [row.label for row in found] for split, found in rows.items()},
    None,
    place,
  )
  splits = {
    split: ImageFiles(
      root,
      np.array([os.fsencode(row.path) for row in found]),
      labels[split],
      paths_tell=False,
    )
    for split, found in rows.items()
  }
  for files in splits.values():
    _check_first(files, place)
  return _splits.source(splits, class_names, place)


def _tables(place: str) -> list[str]:
  """Lists the tables in a folder, or the one that is named."""
  if not os.path.isdir(place):
    return [place]
  found = sorted(
    file
    for file in os.listdir(place)
    if file.lower().endswith(_TABLES) and not file.startswith('.')
  )
  named = [file for file in found if _splits.of_name(file)]
  splits = [_splits.of_name(file) for file in named]
  if not found or (len(found) > 1 and not named):
    raise FileNotFoundError(
      f'{place} holds {escape.listed(found) or "no table"}; {_EXPECTED}'
    )
  for file, split in zip(named, splits, strict=True):
    other = named[splits.index(split)]
    if other != file:
      raise ValueError(
        f'{place} has both {other} and {file}, which mean the same: remove one'
      )
  if others := [file for file in found if file not in (named or found)]:
    logger.warning('%s: not read: %s', place, escape.listed(others))
  return [os.path.join(place, file) for file in named or found]


def _read(path: str, label_column: str) -> list[_Row]:
  """Reads the lines of a table."""
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      first = file.readline()
      file.seek(0)
      delimiter = max(',;\t', key=first.count)
      header, *lines = csv.reader(file, delimiter=delimiter, strict=True)
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'{path} cannot be read ({error}): save it as CSV in UTF-8'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path} is empty; {_EXPECTED}') from error
  names = [name.strip().lower() for name in header]
  path_at = _column(path, names, _PATHS)
  label_at = _column(
    path, names, (label_column.lower(),) if label_column else _LABELS
  )
  split_at = names.index('split') if 'split' in names else None
  rows = []
  for number, line in enumerate(lines, 2):
    if not line:
      continue
    if len(line) != len(names) or not line[path_at] or not line[label_at]:
      raise ValueError(
        f'{path}, row {number}, is {delimiter.join(line)!a}: expected '
        f'{len(names)} columns, {", ".join(names)}, with a path and a label. '
        'Complete or remove it'
      )
    split = None
    if split_at is not None:
      split = _splits.NAMES.get(line[split_at].strip().lower())
      if split is None:
        raise ValueError(
          f'{path}, row {number}, has the split {line[split_at]!a}: expected '
          'train, validation (valid, val) or test'
        )
    rows.append(_Row(line[path_at].strip(), line[label_at].strip(), split))
  if not rows:
    raise ValueError(f'{path} has no line but the first; {_EXPECTED}')
  return rows


def _column(path: str, names: Sequence[str], wanted: Sequence[str]) -> int:
  """Finds a column by one of its names."""
  found = [name for name in names if name in wanted]
  if len(found) != 1:
    raise ValueError(
      f'{path} has the columns {escape.listed(names)}: expected exactly one of '
      f'{", ".join(wanted)}. Name the columns in the first line; '
      'config.data.label_column chooses that of the labels'
    )
  return names.index(found[0])


def _check_first(files: ImageFiles, place: str) -> None:
  """Checks that the first image of a split is there."""
  first = files.name(0)
  if not os.path.exists(first):
    raise FileNotFoundError(
      f'{place} names {first}, which is not there: expected paths relative to '
      f'{files.root}, with an ending such as {EXTENSIONS[0]}'
    )
