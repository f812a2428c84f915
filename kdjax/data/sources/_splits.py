"""The splits of data that come in files of one's own."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data import stratify
from kdjax.data.sources._base import Source

logger = logging.getLogger('kdjax')

NAMES = {
  'train': 'train',
  'training': 'train',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
  'test': 'test',
  'testing': 'test',
}
"""What splits are called, in lower case."""

# Fixed for ever, whatever a run's seed is: a test split belongs to the data.
_SEED = 0
_TEST_FRACTION = 0.2


def words(name: str) -> list[str]:
  """Returns the words of a name, such as that of a file, in lower case."""
  return re.split(r'[\W_]+', name.lower())


def of_name(name: str) -> str | None:
  """Returns the split that a name such as `train-00000.parquet` tells."""
  return next((NAMES[word] for word in words(name) if word in NAMES), None)


def source(
  splits: Mapping[str, Any], class_names: Sequence[str], where: str
) -> Source:
  """Makes a data set of the splits that there are.

  Args:
    splits: `train`, and `validation`, `test`, both or neither: each a `Split`
      or `Files` with `labels` and `take(rows)`.
    class_names: name of each class.
    where: what messages call the data set.

  Returns:
    The data set. Where `test` is missing, `validation` stands in for it; where
    both are, a fifth of the images of each class of `train` is held out, the
    same ones each time.

  Raises:
    ValueError: there is no split to train on, or nothing in it to hold out.
  """
  if 'train' not in splits:
    raise ValueError(
      f'{where} has the splits {", ".join(splits) or "none"}: expected train, '
      'and test, validation or both beside it'
    )
  train = splits['train']
  validation, test = splits.get('validation'), splits.get('test')
  if test is None:
    validation, test = None, validation
  if test is None:
    chosen = stratify.choose(train.labels, _TEST_FRACTION, [_SEED], leave=1)
    if not chosen.size:
      raise ValueError(
        f'{where} has no test split, and only one image of each class: add '
        'images, or a test split'
      )
    rest = np.setdiff1d(np.arange(len(train.labels)), chosen)
    logger.info(
      '%s has no test split: %d of its %d images, a fifth of each class, are '
      'held out for it, the same ones each time',
      where,
      len(chosen),
      len(train.labels),
    )
    test, train = train.take(chosen), train.take(rest)
  return Source(train, validation, test, tuple(class_names))


def locate(name: str, data_dir: str | None, expected: str) -> str:
  """Returns the path of the data.

  Args:
    name: that of the data set.
    data_dir: as it is configured.
    expected: says what there should be.

  Returns:
    The path, which is there.

  Raises:
    ValueError: none is given.
    FileNotFoundError: it is not there.
  """
  if data_dir is None:
    raise ValueError(
      f'config.data.name is {name}: set config.data.data_dir; {expected}'
    )
  path = os.path.expanduser(data_dir)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no {path} (config.data.data_dir); {expected}'
    )
  return path
