"""Arrays of NumPy in `.npz` or `.npy` files.

`config.data.data_dir` is one `.npz` file, whose arrays are named by split and
content, or a folder of such `.npy` or `.npz` files:

    digits.npz          train_images, train_labels, test_images, test_labels
    folder/train_images.npy, train_labels.npy, test_images.npy, …
    folder/train.npz    images, labels        (and test.npz, …)

Content is `images` (or `image`, `x`) or `labels` (`label`, `y`, `targets`); a
split `train`, `validation` (`valid`, `val`) or `test`, in any case, and none is
`train`: Keras's `x_train` and MedMNIST's `val_images` are read as they are.
`class_names`, an array of text, names the classes. What pixels and labels may
be, `kdjax.data.sources._checks` says; a missing test split is held out of
`train`. Arrays in `.npy` files are read as they are needed, and may be larger
than memory where `config.data.streaming` is set.
"""

import logging
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdjax.data.sources import Source, _checks, _splits
from kdjax.system import escape

logger = logging.getLogger('kdjax')

_CONTENT = {
  **dict.fromkeys(('images', 'image', 'x'), 'images'),
  **dict.fromkeys(('labels', 'label', 'y', 'targets'), 'labels'),
}
_EXPECTED = (
  'expected a .npz file with train_images, train_labels, test_images and '
  'test_labels, or a folder with such .npy files'
)


def load(data_dir: str | None) -> Source:
  """Reads arrays.

  Args:
    data_dir: the file or folder.

  Returns:
    The data set.

  Raises:
    ValueError: none is given; a file is damaged or holds Python objects;
      images or labels are missing, or are not what they should be.
    FileNotFoundError: it is not there.
  """
  path = _splits.locate('arrays', data_dir, _EXPECTED)
  found: dict[str, dict[str, tuple[str, Any]]] = {}
  class_names: list[str] | None = None
  others: list[str] = []
  for name, array in _arrays(path):
    words = _splits.words(name)
    content = {_CONTENT[word] for word in words if word in _CONTENT}
    if words[-2:] == ['class', 'names']:
      class_names = [str(one) for one in np.asarray(array).tolist()]
    elif len(content) != 1:
      others.append(name)
    else:
      split = found.setdefault(_splits.of_name(name) or 'train', {})
      kind = content.pop()
      if kind in split:
        raise ValueError(
          f'{path} has both {split[kind][0]} and {name}, which mean the same: '
          'remove one'
        )
      split[kind] = name, array
  for name, arrays in found.items():
    if missing := {'images', 'labels'} - arrays.keys():
      there = escape.listed(each for each, _ in arrays.values())
      raise ValueError(
        f'{path} has no {missing.pop()} of {name}, only {there}; {_EXPECTED}'
      )
  if not found:
    raise ValueError(
      f'{path} holds {escape.listed(others) or "no arrays"}; {_EXPECTED}'
    )
  if others:
    logger.warning('%s: not read: %s', path, escape.listed(others))
  return _checks.source(
    {
      split: (arrays['images'][1], arrays['labels'][1])
      for split, arrays in found.items()
    },
    class_names,
    path,
  )


def _arrays(path: str) -> Iterator[tuple[str, Any]]:
  """Yields the name of each array, and the array."""
  if not os.path.isdir(path):
    yield from _read(path)
    return
  for file in sorted(os.listdir(path)):
    stem, extension = os.path.splitext(file)
    if extension.lower() not in ('.npy', '.npz') or file.startswith('.'):
      continue
    for key, array in _read(os.path.join(path, file)):
      yield f'{stem} {key}'.strip(), array


def _read(path: str) -> Iterator[tuple[str, Any]]:
  """Yields what a file holds; the array of a `.npy` file has no name."""
  try:
    # Nothing that a file names is imported or called.
    with open(path, 'rb') as file:
      is_archive = file.read(2) == b'PK'
      file.seek(0)
      if is_archive:
        with np.load(file, allow_pickle=False) as arrays:
          for key in arrays.files:
            yield key, arrays[key]
        return
    yield '', np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    # NumPy goes on to say how to run what such a file holds.
    reason = str(error).partition('. ')[0]
    raise ValueError(
      f'{path} cannot be read ({reason}): expected arrays of NumPy, and no '
      'objects. Write it again with numpy.savez or numpy.save'
    ) from error
