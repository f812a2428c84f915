"""A folder of images, one folder for each class.

    data_dir/train/CLASS/*.jpg        (or training)
    data_dir/validation/CLASS/*.jpg   (or valid, val; may be missing)
    data_dir/test/CLASS/*.jpg         (or testing; may be missing)

or data_dir/CLASS/*.jpg. Where both test and validation are missing, a fifth of
each class is held out as the test split. The names of the splits are read in
any case (`Train`). Images may have any size and mode; they become RGB. Classes
are the names of the folders in `train`, sorted, and so are the files in each,
those of folders in it after its own. What begins with a dot and what systems
leave in folders (`Thumbs.db`) is ignored.
"""

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kdjax.data.images import EXTENSIONS
from kdjax.data.sources import Source, _splits
from kdjax.data.sources._base import ImageFiles

logger = logging.getLogger('kdjax')

_LAYOUT = (
  'expected DATA_DIR/train/CLASS/*.jpg, and the same in DATA_DIR/validation '
  '(or valid, val), DATA_DIR/test, both or neither; or DATA_DIR/CLASS/*.jpg'
)
# Of Windows, macOS and Synology; those of others begin with a dot.
_SYSTEM_FILES = (
  'thumbs.db',
  'ehthumbs.db',
  'desktop.ini',
  '__macosx',
  'icon\r',
  '@eadir',
)


def load(data_dir: str | None) -> Source:
  """Lists a folder of images.

  Args:
    data_dir: the folder.

  Returns:
    The data set. Its split `test` is the folder `test`; where there is none,
    `validation` is, and there is no validation split; where both are missing, a
    fifth of each class is held out.

  Raises:
    ValueError: no folder is given; or a split or a class has no images, the
      splits have different classes, or there is a file that is not an image.
    FileNotFoundError: there is no such folder, or it has no such splits.
    NotADirectoryError: it is a file.
  """
  root = _splits.locate('image_folder', data_dir, _LAYOUT)
  if not os.path.isdir(root):
    raise NotADirectoryError(
      f'{root} (config.data.data_dir) is a file: unpack it, and name the '
      f'folder; {_LAYOUT}'
    )
  folders = _find_splits(root)
  train = folders.pop('train')
  classes = list_classes(_join(root, train))
  _warn_of_similar(_join(root, train), classes)
  # Before anything is listed, which may take long.
  matched = {
    split: (folder, _match(root, train, classes, folder))
    for split, folder in folders.items()
  }
  splits = {'train': (train, list(classes)), **matched}
  return _splits.source(
    {split: _list(root, *each) for split, each in splits.items()}, classes, root
  )


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
  """Yields all files in a folder and in those below.

  Args:
    folder: its path.
    above: real paths of the folders that are being listed.

  Yields:
    The path of each file in `folder`: sorted, those of a folder before those of
    the folders in it. A folder that is named as an image counts as a file, for
    reading it says what is wrong. System files are left out.

  Raises:
    ValueError: a link leads back to a folder that it is in.
    OSError: a folder cannot be listed.
  """
  here = os.path.realpath(folder)
  if any(
    os.path.join(each, '').startswith(os.path.join(here, '')) for each in above
  ):
    raise ValueError(
      f'{folder} is a link to a folder that it is in, {here}: remove it'
    )
  folders = []
  for name, is_folder in _entries(folder):
    if is_folder and not is_image(name):
      folders.append(name)
    else:
      yield name
  for name in folders:
    for file in walk(os.path.join(folder, name), (*above, here)):
      yield os.path.join(name, file)


def is_image(file: str) -> bool:
  """Whether a file is an image, by its name."""
  return file.lower().endswith(EXTENSIONS)


def _entries(folder: str) -> list[tuple[str, bool]]:
  """Lists the names in a folder, sorted, and whether each is a folder."""
  with os.scandir(folder) as entries:
    return sorted(
      (entry.name, _is_folder(entry))
      for entry in entries
      if not entry.name.startswith('.')
      and entry.name.lower() not in _SYSTEM_FILES
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:
    # A link to itself; reading it says so.
    return False


def _find_splits(root: str) -> dict[str, str]:
  """Finds the folder of each split: train, test, validation."""
  entries = _entries(root)
  found: dict[str, str] = {}
  ignored = []
  for name in [name for name, is_folder in entries if is_folder]:
    split = _splits.NAMES.get(name.lower())
    if split is None:
      ignored.append(name)
    elif split in found:
      raise ValueError(
        f'{root} has both {found[split]} and {name}, which mean the same: '
        'remove one'
      )
    else:
      found[split] = name
  if set(found) == {'train'} and ignored:
    # A class of trains, among others, holds images.
    inside = _entries(os.path.join(root, found['train']))
    if inside and not any(is_folder for _, is_folder in inside):
      found = {}
  if not found and ignored:
    _check_flat(root, ignored)
    return {'train': ''}
  if 'train' not in found:
    names = _listed([name for name, _ in entries]) or 'nothing'
    raise FileNotFoundError(f'{root} holds {names}; {_LAYOUT}')
  if ignored:
    logger.warning(
      '%s holds folders that are no splits, and are not read: %s',
      root,
      _listed(ignored),
    )
  return found


def _check_flat(root: str, folders: Sequence[str]) -> None:
  """Checks that folders, none of them a split, may be those of classes."""
  for path in (os.path.join(root, name) for name in folders):
    if any(_splits.NAMES.get(name.lower()) for name, _ in _entries(path)):
      raise FileNotFoundError(
        f'{root} holds {_listed(folders)}; {_LAYOUT}. {path} holds splits: set '
        'config.data.data_dir to it'
      )
  logger.info(
    '%s has no folders of splits: its %d folders are classes',
    root,
    len(folders),
  )


def _join(root: str, split: str) -> str:
  """Returns the folder of a split, which may be that of all."""
  return os.path.join(root, split) if split else root


def _listed(names: Sequence[str], most: int = 5) -> str:
  shown = ', '.join(names[:most])
  more = len(names) - most
  return f'{shown} and {more} more' if more > 0 else shown


def list_classes(folder: str) -> tuple[str, ...]:
  """Lists the folders of the classes in that of a split."""
  entries = _entries(folder)
  for name, is_folder in entries:
    if not is_folder:
      path = os.path.join(folder, name)
      what = 'a broken link' if os.path.islink(path) else 'a file'
      raise ValueError(
        f'{path} is {what} among the folders of the classes; {_LAYOUT}. Move it'
      )
  if not entries:
    raise ValueError(f'{folder} is empty; {_LAYOUT}')
  if len(entries) == 1:
    path = os.path.join(folder, entries[0][0])
    inside = [name for name, is_folder in _entries(path) if is_folder]
    hint = (
      f'. If its folders ({_listed(inside)}) are the classes, move them up '
      f'into {folder}'
    )
    raise ValueError(
      f'{folder} has one folder, {entries[0][0]}: expected one for each of at '
      f'least two classes{hint if inside else ""}'
    )
  return tuple(name for name, _ in entries)


def _without_case(name: str) -> str:
  """Returns what names have in common that look alike, or nearly so."""
  return unicodedata.normalize('NFC', name).casefold()


def _warn_of_similar(folder: str, classes: Sequence[str]) -> None:
  """Checks that names of classes can be told apart, and warns of case."""
  seen: dict[str, str] = {}
  for name in classes:
    other = seen.setdefault(_without_case(name), name)
    if other == name:
      continue
    if unicodedata.normalize('NFC', other) == unicodedata.normalize(
      'NFC', name
    ):
      raise ValueError(
        f'{folder} has the class {name} twice, in two forms of Unicode '
        f'({other!a} and {name!a}): move the images of one to the '
        'other'
      )
    logger.warning(
      '%s has the classes %s and %s, which differ by case only: they are two',
      folder,
      other,
      name,
    )


def _match(
  root: str, train: str, classes: Sequence[str], split: str
) -> list[str]:
  """Finds the folder of each class in another split.

  Names may differ by case or by form of Unicode, as after a copy from another
  system, where only one can be meant.
  """
  found = list_classes(os.path.join(root, split))
  missing = sorted(set(classes) - set(found))
  unknown = sorted(set(found) - set(classes))
  matched = {}
  for name in missing:
    same, others = (
      [each for each in names if _without_case(each) == _without_case(name)]
      for names in (unknown, missing)
    )
    if len(same) == len(others) == 1:
      matched[name] = same[0]
  missing = sorted(set(missing) - set(matched))
  unknown = sorted(set(unknown) - set(matched.values()))
  if missing or unknown:
    raise ValueError(
      f'{os.path.join(root, split)} has other classes than '
      f'{os.path.join(root, train)}: missing: {_listed(missing) or "none"}; '
      f'only there: {_listed(unknown) or "none"}. Every split must have a '
      'folder for each class'
    )
  if matched:
    logger.warning(
      '%s has names of classes that differ from those of %s by case or form of '
      'Unicode only, and are taken for the same: %s',
      os.path.join(root, split),
      os.path.join(root, train),
      _listed([f'{there!a} for {name!a}' for name, there in matched.items()]),
    )
  return [matched.get(name, name) for name in classes]


def _list(root: str, split: str, classes: Iterable[str]) -> ImageFiles:
  """Lists the images of a split.

  Args:
    root: the folder of all splits.
    split: the folder of this one.
    classes: the folder of each class in it, by label.

  Returns:
    The images.
  """
  files: list[bytes] = []
  labels: list[int] = []
  wrong: list[str] = []
  for label, name in enumerate(classes):
    folder = os.path.join(root, split, name)
    found = list(walk(folder))
    _check_no_split(folder, found)
    images = [file for file in found if is_image(file)]
    wrong += [
      os.path.join(folder, each) for each in found if not is_image(each)
    ]
    if not found:
      raise ValueError(
        f'{folder} has no images; expected some of '
        f'{", ".join(EXTENSIONS)}. Remove the class from all splits, or add '
        'images'
      )
    files += [os.fsencode(os.path.join(split, name, file)) for file in images]
    labels += [label] * len(images)
  if wrong:
    more = len(wrong) - 1
    what = f'and {more} more files are no images' if more else 'is not an image'
    raise ValueError(
      f'{wrong[0]} {what}: expected only files that end with '
      f'{", ".join(EXTENSIONS)} in the folder of a class. Remove or '
      f'convert {"them" if more else "it"}'
    )
  below = sum(
    file.count(os.fsencode(os.sep)) > 1 + bool(split) for file in files
  )
  if below:
    logger.info(
      '%s: %d of %d images are in folders within those of their classes',
      _join(root, split),
      below,
      len(files),
    )
  return ImageFiles(root, np.array(files), np.array(labels, np.int32))


def _check_no_split(folder: str, files: Sequence[str]) -> None:
  """Checks that the folder of a class does not itself hold splits."""
  parts = [file.split(os.sep)[:-1] for file in files if os.sep in file]
  wrong = [
    os.path.join(folder, *names)
    for names in parts
    if any(name.lower() in _splits.NAMES for name in names)
  ]
  # There may be a class of trains.
  if os.path.basename(folder).lower() in _splits.NAMES and len(parts) == len(
    files
  ):
    wrong += [folder] * bool(parts)
  if wrong:
    raise ValueError(
      f'{wrong[0]} is a split within a split: expected folders named train, '
      'validation (valid, val) and test in config.data.data_dir only, and the '
      'classes in them. Move or rename it'
    )
