"""A folder of images, one folder for each class.

    data_dir/train/CLASS/*.jpg
    data_dir/validation/CLASS/*.jpg   (or val; may be missing)
    data_dir/test/CLASS/*.jpg         (may be missing where validation is not)

Images may have any size and mode; they become RGB. Classes are the names of the
folders in `train`, sorted, and so are the files in each. What begins with a dot
is ignored.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from kdjax.data.sources import Source

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')

_LAYOUT = (
  'expected DATA_DIR/train/CLASS/*.jpg, and the same in DATA_DIR/validation '
  '(or val), DATA_DIR/test or both'
)


def load(data_dir: str | None) -> Source:
  """Lists a folder of images.

  Args:
    data_dir: the folder.

  Returns:
    The data set. Its split `test` is the folder `test`; where there is none,
    `validation` is, and there is no validation split.

  Raises:
    ValueError: no folder is given; or a split or a class has no images, the
      splits have different classes, or there is a file that is not an image.
    FileNotFoundError: there is no such folder, or it has no such splits.
  """
  if data_dir is None:
    raise ValueError(
      'config.data.name is image_folder: set config.data.data_dir to the '
      f'folder; {_LAYOUT}'
    )
  root = os.path.expanduser(data_dir)
  if not os.path.isdir(root):
    raise FileNotFoundError(
      f'there is no folder {root} (config.data.data_dir); {_LAYOUT}'
    )
  found = [name for name, _ in _entries(root)]
  if 'validation' in found and 'val' in found:
    raise ValueError(
      f'{root} has both validation and val, which mean the same: remove one'
    )
  held_out = [name for name in ('test', 'validation', 'val') if name in found]
  if 'train' not in found or not held_out:
    raise FileNotFoundError(
      f'{root} holds {", ".join(found) or "nothing"}; {_LAYOUT}'
    )
  classes = _classes(os.path.join(root, 'train'))
  for split in held_out:
    _check_same_classes(root, split, classes)
  test, *validation = (_list(root, split, classes) for split in held_out)
  return Source(
    train=_list(root, 'train', classes),
    validation=validation[0] if validation else None,
    test=test,
    class_names=classes,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
  """One split, as `kdjax.data.sources.Files` has it.

  Attributes:
    root: the folder of all splits.
    files: path of each image in it, as the bytes of the file system: a million
      strings would take more memory than all else.
    labels: class of each image, int32 `[size]`.
  """

  root: str
  files: np.ndarray
  labels: np.ndarray
  channels: int = 3
  shape: None = None

  def __len__(self) -> int:
    return len(self.files)

  def read(self, indices: Sequence[int]) -> Iterator[tuple[str, int]]:
    for index in indices:
      yield self.name(index), int(self.labels[index])

  def name(self, index: int) -> str:
    return os.path.join(self.root, os.fsdecode(self.files[index]))

  def paths(self) -> tuple[str, Sequence[str]]:
    return self.root, [os.fsdecode(file) for file in self.files]


def _entries(folder: str) -> list[tuple[str, bool]]:
  """Lists the names in a folder, sorted, and whether each is a folder."""
  with os.scandir(folder) as entries:
    return sorted(
      (entry.name, entry.is_dir())
      for entry in entries
      if not entry.name.startswith('.')
    )


def _classes(folder: str) -> tuple[str, ...]:
  """Lists the folders of the classes in that of a split."""
  entries = _entries(folder)
  for name, is_folder in entries:
    if not is_folder:
      raise ValueError(
        f'{os.path.join(folder, name)} is a file among the folders of the '
        f'classes; {_LAYOUT}. Move it'
      )
  if not entries:
    raise ValueError(f'{folder} is empty; {_LAYOUT}')
  return tuple(name for name, _ in entries)


def _check_same_classes(
  root: str, split: str, expected: tuple[str, ...]
) -> None:
  found = _classes(os.path.join(root, split))
  if found != expected:
    missing, unknown = (
      ', '.join(sorted(names)) or 'none'
      for names in (set(expected) - set(found), set(found) - set(expected))
    )
    raise ValueError(
      f'{os.path.join(root, split)} has other classes than '
      f'{os.path.join(root, "train")}: missing: {missing}; only there: '
      f'{unknown}. Every split must have a folder for each class'
    )


def _list(root: str, split: str, classes: tuple[str, ...]) -> _Images:
  """Lists the images of a split."""
  files: list[bytes] = []
  labels: list[int] = []
  for label, name in enumerate(classes):
    folder = os.path.join(root, split, name)
    entries = _entries(folder)
    if not entries:
      raise ValueError(
        f'{folder} has no images; expected some of '
        f'{", ".join(EXTENSIONS)}. Remove the class from all splits, or add '
        'images'
      )
    for file, is_folder in entries:
      if is_folder or not file.lower().endswith(EXTENSIONS):
        raise ValueError(
          f'{os.path.join(folder, file)} is not an image: expected only files '
          f'that end with {", ".join(EXTENSIONS)} in the folder of a class. '
          'Remove it'
        )
      files.append(os.fsencode(os.path.join(split, name, file)))
    labels += [label] * len(entries)
  return _Images(root, np.array(files), np.array(labels, np.int32))
