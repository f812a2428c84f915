"""Distillation methods by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.methods._base import Method
from kdjax.system import float32, plugins


def names() -> list[str]:
  """Lists the names that `build` knows."""
  return list(plugins.names('kdjax.methods'))


def defaults(name: str) -> dict[str, Any]:
  """Returns the settings of a method, options and hyperparameters, by default.

  Args:
    name: one of `names()`.

  Returns:
    Each setting's default value by its name.

  Raises:
    ValueError: the name is unknown.
  """
  factory = _factory(name)
  options = {
    option: parameter.default
    for option, parameter in inspect.signature(factory).parameters.items()
  }
  scalars = {
    scalar: hyperparameter.default
    for scalar, hyperparameter in factory().hyperparameters.items()
  }
  return options | scalars


def build(
  name: str, settings: Mapping[str, Any] | None = None
) -> tuple[Method, dict[str, float]]:
  """Builds a method and splits its settings.

  Args:
    name: one of `names()`.
    settings: options and hyperparameters by name; those left out have their
      defaults.

  Returns:
    The method, and the value of each of its hyperparameters.

  Raises:
    ValueError: the name or a setting is unknown, or a value out of range.
  """
  usual = defaults(name)
  settings = settings or {}
  factory = _factory(name)
  options = {
    option: settings.get(option, usual[option])
    for option in inspect.signature(factory).parameters
  }
  method = factory(**options)
  # Options may decide what hyperparameters there are.
  known = [*options, *method.hyperparameters]
  unknown = settings.keys() - usual.keys() - set(known)
  if unknown:
    raise ValueError(
      f"method '{name}' has no setting {', '.join(sorted(unknown))}; it has "
      f'{", ".join(known) or "none"}'
    )
  hyperparameters = {}
  for scalar, (default, low, high) in method.hyperparameters.items():
    value = float(settings.get(scalar, default))
    if not (low <= value <= high and float32.holds(value)):
      raise ValueError(
        f'{name}.{scalar} is {value}: expected a value from {low} to {high} '
        'that float32 holds'
      )
    hyperparameters[scalar] = value
  return method, hyperparameters


def _factory(name: str) -> Callable[..., Method]:
  if ':' in name:
    return _imported(name)
  if name not in names():
    raise ValueError(
      f"unknown method '{name}': expected one of {', '.join(names())}, or an "
      'import path, package.module:function'
    )
  return getattr(plugins.module('kdjax.methods', name), name)


def _imported(path: str) -> Callable[..., Method]:
  """Imports a method of the user's.

  Raises:
    ValueError: it cannot be imported, or is no function that makes a Method.
  """
  factory = plugins.attribute(path, 'method')
  try:
    made = factory()
  # It may raise anything.
  except Exception as error:
    raise ValueError(
      f"the method '{path}' cannot be made ({type(error).__name__}: {error}): "
      'expected a function that needs no arguments'
    ) from error
  if not isinstance(made, Method):
    raise ValueError(
      f"'{path}' returns {type(made).__name__}: expected a kdjax.methods.Method"
    )
  return factory
