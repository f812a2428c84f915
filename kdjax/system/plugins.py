"""Finds plug-ins: the modules of a package, so that one new file is enough."""

import importlib
import pkgutil
from types import ModuleType


def names(package: str) -> tuple[str, ...]:
  """Lists the public modules directly in a package, sorted, importing none."""
  path = importlib.import_module(package).__path__
  found = (module.name for module in pkgutil.iter_modules(path))
  return tuple(sorted(name for name in found if not name.startswith('_')))


def module(package: str, name: str) -> ModuleType:
  """Imports one of `names(package)`."""
  return importlib.import_module(f'{package}.{name}')
