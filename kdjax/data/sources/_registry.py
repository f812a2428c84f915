"""Data sets by name, by import path and by entry point."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.data.sources import _checks
from kdjax.data.sources._base import Source
from kdjax.data.sources._splits import NAMES
from kdjax.system import escape, plugins

ENTRY_POINTS = 'kdjax.data'
"""The group of entry points that other packages name their data sets in."""

_CONTRACT = (
  "expected {'train': (images, labels), 'test': (images, labels)}, with "
  "'validation' and 'class_names' if there are such, or a "
  'kdjax.data.sources.Source'
)


def names() -> tuple[str, ...]:
  """Lists the data sets that have a file of their own here or an entry point.

  Returns:
    Their names, sorted. `load` knows those of TFDS and import paths as well.
  """
  own = {name for name in plugins.names('kdjax.data.sources') if name != 'tfds'}
  return tuple(sorted(own | plugins.entry_points(ENTRY_POINTS).keys()))


def load(name: str, data_dir: str | None, label_column: str = '') -> Source:
  """Finds a data set.

  A function of one's own, by its import path or as an entry point of the group
  `kdjax.data`, is called as `load()`, or as `load(data_dir)` if it takes an
  argument. It returns a `Source`, or arrays by the name of the split:
  `{'train': (images, labels), 'test': (images, labels)}`, where `'validation'`
  may be added and `'test'` left out, and `'class_names'` may name the classes.

  Args:
    name: one of `names()`; the import path of a function,
      `package.module:load`; or a data set of TFDS as TFDS writes it:
      `name[/config][:version]`.
    data_dir: folder of the data set, or of those that TFDS has prepared; None
      is TFDS's own, `~/tensorflow_datasets`. A data set that comes with a
      library ignores it.
    label_column: which column of a table has the labels; '' for the usual one.

  Returns:
    The data set. Nothing is decoded yet of one that lies in files.

  Raises:
    ValueError: the name is unknown, or the data set is of a kind that kdjax
      cannot use; the message says why and what to do.
    FileNotFoundError: the data set is not in `data_dir`, and could not be
      fetched or prepared; the message says how to do it by hand.
  """
  options = {'label_column': label_column} if label_column else {}
  # Imported here: a source may need a library that the others do without.
  if is_import_path(name):
    source = _call(name, plugins.attribute(name, 'data set'), data_dir)
  elif name in plugins.names('kdjax.data.sources') and name != 'tfds':
    function = plugins.module('kdjax.data.sources', name).load
    if options.keys() - inspect.signature(function).parameters:
      raise ValueError(
        f'config.data.label_column is {label_column!r}, and {name} has no '
        'columns: set it to the empty text'
      )
    source = function(data_dir, **options)
  elif name in (found := plugins.entry_points(ENTRY_POINTS)):
    source = _call(
      name, plugins.attribute(found[name].value, 'data set'), data_dir
    )
  else:
    source = plugins.module('kdjax.data.sources', 'tfds').load(name, data_dir)
  source = _checks.check(source, name)
  if len(source.class_names) < 2:
    raise ValueError(
      f'{name} has one class, {escape.listed(source.class_names)}: expected '
      'two or more to tell apart'
    )
  return source


def is_import_path(name: str) -> bool:
  """Whether a name is that of a function of one's own, `package.module:load`.

  TFDS has a colon before a version, such as `1.0.0`.
  """
  return name.partition(':')[2].replace('.', '_').isidentifier()


def _call(name: str, function: Callable[..., Any], data_dir: str | None) -> Any:
  """Calls a function of the user's, and makes a `Source` of what it returns."""
  try:
    takes_folder = bool(inspect.signature(function).parameters)
    found = function(data_dir) if takes_folder else function()
  # It may raise anything.
  except Exception as error:
    raise ValueError(
      f"the data set '{name}' cannot be loaded ({type(error).__name__}: "
      f'{error})'
    ) from error
  if isinstance(found, Source):
    return found
  splits = dict(found) if isinstance(found, Mapping) else {}
  class_names = splits.pop('class_names', None)
  pairs = {NAMES.get(str(split), ''): pair for split, pair in splits.items()}
  if 'train' not in pairs or not all(
    split and isinstance(pair, tuple | list) and len(pair) == 2
    for split, pair in pairs.items()
  ):
    what = (
      f'a mapping of {escape.listed(found)}'
      if isinstance(found, Mapping)
      else type(found).__name__
    )
    raise ValueError(f"the data set '{name}' returns {what}: {_CONTRACT}")
  return _checks.source(
    pairs, class_names and [str(one) for one in class_names], name
  )
