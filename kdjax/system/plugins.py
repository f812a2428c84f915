"""Finds plug-ins: the modules of a package, so that one new file is enough.

And those of the user, by import path or by the entry points of packages.
"""

import importlib
import importlib.metadata
import operator
import pkgutil
from types import ModuleType
from typing import Any


def names(package: str) -> tuple[str, ...]:
  """Lists the public modules directly in a package, sorted, importing none."""
  path = importlib.import_module(package).__path__
  found = (module.name for module in pkgutil.iter_modules(path))
  return tuple(sorted(name for name in found if not name.startswith('_')))


def module(package: str, name: str) -> ModuleType:
  """Imports one of `names(package)`."""
  return importlib.import_module(f'{package}.{name}')


def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
  """Finds what installed packages offer in a group, importing none of it."""
  found = importlib.metadata.entry_points(group=group)
  return {point.name: point for point in found}


def attribute(path: str, what: str) -> Any:
  """Imports something of the user's.

  Args:
    path: `package.module:attribute`.
    what: what it is to be, for the message.

  Returns:
    It.

  Raises:
    ValueError: it cannot be imported.
  """
  name, _, inside = path.partition(':')
  try:
    return operator.attrgetter(inside)(importlib.import_module(name))
  # Importing runs code that may raise anything.
  except Exception as error:
    raise ValueError(
      f"the {what} '{path}' cannot be imported "
      f'({type(error).__name__}: {error}): expected package.module:attribute, '
      'found by Python from where it was started, or on its path (PYTHONPATH)'
    ) from error
