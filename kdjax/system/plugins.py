"""Finds plug-ins: the modules of a package, so that one new file is enough."""

import importlib
import pkgutil
from types import ModuleType


def names(package: str) -> tuple[str, ...]:
  """Lists the public modules of a package without importing them.

  Args:
    package: dotted name of the package, as in `__name__`.

  Returns:
    The sorted names of the modules directly inside it that have no leading
    underscore.
  """
  path = importlib.import_module(package).__path__
  found = (module.name for module in pkgutil.iter_modules(path))
  return tuple(sorted(name for name in found if not name.startswith('_')))


def module(package: str, name: str) -> ModuleType:
  """Imports one of them.

  Args:
    package: dotted name of the package.
    name: one of `names(package)`.

  Returns:
    The module.
  """
  return importlib.import_module(f'{package}.{name}')
