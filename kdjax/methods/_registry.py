"""Distillation methods by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.methods._base import Method
from kdjax.system import float32, plugins
from kdjax.system.hints import did_you_mean

ENTRY_POINTS = 'kdjax.methods'
"""The group of entry points that other packages name their methods in."""


def names() -> list[str]:
  """Lists the names that `build` knows: kdjax's and those of entry points."""
  own = plugins.names(__package__)
  return sorted({*own, *plugins.entry_points(ENTRY_POINTS)})


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
    value = settings.get(scalar, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f'{name}.{scalar} is {value!r}: expected a number')
    value = float(value)
    if not (low <= value <= high and float32.holds(value)):
      raise ValueError(
        f'{name}.{scalar} is {value}: expected a value from {low} to {high} '
        'that float32 holds'
      )
    hyperparameters[scalar] = value
  return method, hyperparameters


def _factory(name: str) -> Callable[..., Method]:
  """Finds the function that makes a method.

  Raises:
    ValueError: there is no such method, it cannot be imported, or it is no
      function that makes a Method.
  """
  if name in plugins.names(__package__):
    try:
      return getattr(plugins.module(__package__, name), name)
    # Importing runs code that may raise anything.
    except Exception as error:
      raise ValueError(
        f"the method '{name}' cannot be imported ({type(error).__name__}: "
        f'{error}): expected kdjax/methods/{name}.py with a function {name}'
      ) from error
  points = plugins.entry_points(ENTRY_POINTS)
  if ':' not in name and name not in points:
    raise ValueError(
      f"unknown method '{name}'{did_you_mean(name, names())}: expected one of "
      f'{", ".join(names())}, or an import path, package.module:function'
    )
  path = points[name].value if name in points else name
  factory = plugins.attribute(path, 'method')
  try:
    made = factory()
  except Exception as error:
    raise ValueError(
      f"the method '{name}' cannot be made ({type(error).__name__}: {error}): "
      'expected a function whose arguments have defaults'
    ) from error
  if not isinstance(made, Method):
    raise ValueError(
      f"'{name}' returns {type(made).__name__}: expected a kdjax.methods.Method"
    )
  return factory
