"""Arrays of images and labels, checked where they enter.

What is wrong with them would show much later, as a loss that is not a number or
as a network that learns nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.images import MODES
from kdjax.data.sources import _splits
from kdjax.data.sources._base import Source, Split
from kdjax.system import escape

logger = logging.getLogger('kdjax')

_EXPECTED = (
  'expected pixels as uint8 from 0 to 255, or as floating-point numbers from 0 '
  'to 1, of shape [images, height, width, channels] with 1, 3 or 4 channels, '
  'or [images, height, width]'
)
_RENUMBER = (
  'number the classes anew, in all splits alike: '
  'numpy.unique(labels, return_inverse=True)[1]'
)


def source(
  splits: Mapping[str, tuple[Any, Any]],
  class_names: Sequence[str] | None,
  where: str,
) -> Source:
  """Makes a data set of arrays.

  Args:
    splits: images and labels of `train`, and of `validation`, `test`, both or
      neither.
    class_names: name of each class; None for the numbers, or for the labels
      themselves where these are text.
    where: what messages call the data set.

  Returns:
    The data set, see `_splits.source`.

  Raises:
    ValueError: the arrays are no images or no labels, or do not fit together.
  """
  found, names = _arrays(splits, class_names, where)
  return _splits.source(found, names, where)


def check(source: Source, where: str) -> Source:
  """Checks the splits of a data set that are arrays, and warns of all.

  Args:
    source: the data set.
    where: what messages call it.

  Returns:
    It, with images of uint8 and labels of int32.

  Raises:
    ValueError: they are no images or no labels, or do not fit together.
  """
  splits = {
    split: found
    for split, found in source._asdict().items()
    if isinstance(found, Split)
  }
  if splits:
    found, _ = _arrays(splits, source.class_names, where)
    source = source._replace(**found)
  for split in ('train', 'validation', 'test'):
    examples = getattr(source, split)
    if isinstance(examples, Split) and (high := examples.images.max()) <= 1:
      logger.warning(
        'the images of %s of %s go from 0 to %d, which is nearly black: 255 '
        'is white',
        split,
        where,
        high,
      )
    labels = None if examples is None else examples.labels
    if labels is None:
      continue
    absent = np.setdiff1d(np.arange(len(source.class_names)), labels)
    if absent.size:
      logger.warning(
        '%s of %s has no image of %d of %d classes: %s',
        split,
        where,
        len(absent),
        len(source.class_names),
        escape.listed(source.class_names[index] for index in absent),
      )
  return source


def _arrays(
  splits: Mapping[str, tuple[Any, Any]],
  class_names: Sequence[str] | None,
  where: str,
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Checks images and labels of each split; returns them and the classes."""
  found = {
    split: images(pixels, f'the images of {split} of {where}')
    for split, (pixels, _) in splits.items()
  }
  labels, names = encode(
    {split: labels for split, (_, labels) in splits.items()}, class_names, where
  )
  for split, array in found.items():
    if len(array) != len(labels[split]):
      raise ValueError(
        f'{split} of {where} has {len(array):,} images and '
        f'{len(labels[split]):,} labels: expected one label for each image'
      )
    first = found.get('train', array)
    if array.shape[1:] != first.shape[1:]:
      raise ValueError(
        f'the images of {split} of {where} have the shape {array.shape[1:]}, '
        f'and those of train {first.shape[1:]}: bring all to one shape'
      )
  return {split: Split(found[split], labels[split]) for split in found}, names


def images(array: Any, where: str) -> np.ndarray:
  """Checks images, and converts them without loss where that is possible.

  Args:
    array: `[N, H, W, C]`, or `[N, H, W]` of grey ones; uint8, other integers
      from 0 to 255, or floating-point numbers from 0 to 1, which are rounded to
      256 steps.
    where: what messages call them.

  Returns:
    The images, uint8 `[N, H, W, C]`.

  Raises:
    ValueError: they are something else; the message says what, and what to do.
  """
  array = np.asanyarray(array)
  if array.ndim == 3:
    array = array[..., None]
  if array.ndim != 4 or not array.size:
    raise ValueError(f'{where} have the shape {array.shape}: {_EXPECTED}')
  if array.shape[-1] not in MODES:
    hint = (
      '. Their channels are the second axis and not the last: '
      'images.transpose(0, 2, 3, 1)'
      if array.shape[1] in MODES
      else ''
    )
    raise ValueError(f'{where} have the shape {array.shape}: {_EXPECTED}{hint}')
  return array if array.dtype == np.uint8 else _as_bytes(array, where)


def _as_bytes(array: np.ndarray, where: str) -> np.ndarray:
  """Converts pixels of another type to uint8."""
  if array.dtype.kind not in 'iuf':
    raise ValueError(f'{where} are {array.dtype}: {_EXPECTED}')
  if not np.isfinite(array).all():
    rows = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    raise ValueError(
      f'{where} have values that are not finite in {rows.sum():,} images, the '
      f'first of them number {rows.argmax()}: remove or mend these'
    )
  low, high = array.min(), array.max()
  if low >= 0 and high <= 1 and array.dtype.kind == 'f':
    logger.info('%s are scaled from 0 … 1 to 0 … 255 and rounded', where)
    return np.rint(array * 255).astype(np.uint8)
  exact = array.astype(np.uint8) if low >= 0 and high <= 255 else None
  if exact is None or (exact != array).any():
    hint = (
      '. Undo a normalisation that was done to them: mean and standard '
      'deviation are computed and used in training anyway'
      if low < 0
      else ''
    )
    raise ValueError(
      f'{where} are {array.dtype} from {low:g} to {high:g}: {_EXPECTED}{hint}'
    )
  return exact


def encode(
  labels: Mapping[str, Any], class_names: Sequence[str] | None, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Checks the labels of each split, and turns text into numbers.

  Args:
    labels: of each split, `[N]` or `[N, 1]`: numbers of classes from 0, or
      names of classes.
    class_names: name of each class; None for the labels as they are, names
      being sorted, as numbers where all are.
    where: what messages call the data set.

  Returns:
    The labels of each split, int32 `[N]`, and the name of each class.

  Raises:
    ValueError: they are no labels, or leave numbers out.
  """
  found = {
    split: _vector(array, f'the labels of {split} of {where}')
    for split, array in labels.items()
  }
  if class_names and len(set(class_names)) < len(class_names):
    raise ValueError(
      f'{where} names a class twice ({escape.listed(class_names)}): expected a '
      'name of its own for each class'
    )
  known = found['train'] if 'train' in found else next(iter(found.values()))
  if known.dtype.kind == 'U':
    names = tuple(class_names or _sorted(np.unique(known).tolist()))
    encoded = {
      split: _numbers(array, names, f'the labels of {split} of {where}')
      for split, array in found.items()
    }
  else:
    encoded = {}
    for split, array in found.items():
      what = f'the labels of {split} of {where}'
      if array.dtype.kind == 'U':
        raise ValueError(f'{what} are text, and those of train are numbers')
      _check_range(
        array, len(class_names) if class_names else known.max() + 1, what
      )
      encoded[split] = array.astype(np.int32)
    if not class_names:
      _check_gaps(known, where)
    names = tuple(class_names or map(str, range(int(known.max()) + 1)))
  return encoded, names


def _vector(labels: Any, where: str) -> np.ndarray:
  """Returns labels as int64 or text, `[N]`."""
  array = np.asarray(labels)
  if array.ndim == 2 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim == 2 and array.dtype.kind in 'biuf':
    is_one_hot = np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()
    raise ValueError(
      f'{where} have the shape {array.shape}: expected the number of one class '
      'for each image, of shape [images]'
      + ('. They are one-hot: labels.argmax(axis=1)' if is_one_hot else '')
    )
  if array.ndim != 1:
    raise ValueError(f'{where} have the shape {array.shape}: expected [images]')
  if not array.size:
    raise ValueError(f'{where} are empty: add images, or leave the split out')
  if array.dtype.kind == 'O' and all(isinstance(one, str) for one in array):
    array = array.astype(np.str_)
  if array.dtype.kind == 'U':
    if (array == '').any():
      raise ValueError(
        f'{where} are empty text in row {(array == "").argmax()}'
      )
    return array
  if array.dtype.kind == 'f':
    wrong = ~(np.isfinite(array) & (array == np.round(array)))
    if wrong.any():
      raise ValueError(
        f'{where} have {array[wrong.argmax()]} in row {wrong.argmax()}: '
        'expected the number of a class. Remove examples without a label'
      )
  elif array.dtype.kind not in 'biu':
    raise ValueError(
      f'{where} are {array.dtype}: expected numbers of classes from 0, or names'
    )
  return array.astype(np.int64)


def _sorted(names: list[str]) -> list[str]:
  """Sorts names, as numbers where all of them are whole numbers."""
  if all(name.isdecimal() for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def _numbers(
  labels: np.ndarray, names: Sequence[str], where: str
) -> np.ndarray:
  if labels.dtype.kind != 'U':
    raise ValueError(f'{where} are numbers, and those of train are text')
  number = {name: index for index, name in enumerate(names)}
  unique, inverse = np.unique(labels, return_inverse=True)
  unknown = [name for name in unique.tolist() if name not in number]
  if unknown:
    raise ValueError(
      f'{where} have classes that are not among those of train '
      f'({escape.listed(names)}): {escape.listed(unknown)}'
    )
  return np.array([number[name] for name in unique.tolist()], np.int32)[inverse]


def _check_range(labels: np.ndarray, classes: int, where: str) -> None:
  """Checks that labels are from 0 to the number of classes less one."""
  low, high = int(labels.min()), int(labels.max())
  if low >= 0 and high < classes:
    return
  hint = (
    'an example with a negative label has no class: remove it'
    if low < 0
    else 'subtract 1 from all labels, in all splits'
    if low == 1 and high == classes
    else 'name all classes in class_names, or ' + _RENUMBER
  )
  raise ValueError(
    f'{where} go from {low} to {high}: expected 0 to {classes - 1} for '
    f'{classes} classes; {hint}'
  )


def _check_gaps(labels: np.ndarray, where: str) -> None:
  """Checks that the labels of train are all numbers from 0 on."""
  unique = np.unique(labels)
  if unique[-1] == len(unique) - 1:
    return
  if unique[0] == 1 and unique[-1] == len(unique):
    raise ValueError(
      f'the labels of train of {where} go from 1 to {unique[-1]}: expected 0 '
      f'to {unique[-1] - 1}. Subtract 1 from all labels, in all splits'
    )
  # There may be a label of a billion.
  absent = np.setdiff1d(np.arange(min(unique[-1], 10_000)), unique)
  raise ValueError(
    f'the labels of train of {where} leave out {escape.listed(absent)} of 0 to '
    f'{unique[-1]}: expected every number from 0. Give class_names where the '
    f'others are classes without images, or {_RENUMBER}'
  )
