"""Models that are named by where Python finds them."""

import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn


def build(
  path: str, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> nn.Module:
  """Builds a model by its import path.

  Args:
    path: `package.module:attribute`, a class, function or `functools.partial`
      that returns a Flax module.
    offered: arguments that it is given where it takes them. What a partial has
      set stays so.
    options: arguments that it must take.

  Returns:
    The module.

  Raises:
    ValueError: it cannot be imported or called, or gives something else than a
      Flax module that is called as `model(images, train=…)`.
  """
  make = _import(path)
  set_already = make.keywords if isinstance(make, functools.partial) else {}
  try:
    parameters = inspect.signature(make).parameters
    takes_all = any(
      parameter.kind is parameter.VAR_KEYWORD
      for parameter in parameters.values()
    )
    taken = {
      name: value
      for name, value in offered.items()
      if (takes_all or name in parameters) and name not in set_already
    }
    model = make(**taken, **options)
  except TypeError as error:
    raise ValueError(
      f"'{path}' cannot be called with what it takes of {', '.join(offered)}: "
      f'{error}'
    ) from error
  if not isinstance(model, nn.Module):
    raise ValueError(
      f"'{path}' gives {type(model).__name__}, expected a module of flax.linen"
    )
  call: Any = getattr(model, '__call__', None)  # noqa: B004
  try:
    inspect.signature(call).bind('images', train=False)
  except TypeError as error:
    raise ValueError(
      f"'{path}' gives {type(model).__name__}, whose __call__ cannot be called "
      f'as model(images, train=…): {error}'
    ) from error
  try:
    hash(model)
  except TypeError as error:
    raise ValueError(
      f"'{path}' gives {type(model).__name__} with a field that cannot be "
      f'hashed ({error}): use tuples in place of lists'
    ) from error
  return model


def _import(path: str) -> Callable[..., Any]:
  module, _, attribute = path.partition(':')
  try:
    found = operator.attrgetter(attribute)(importlib.import_module(module))
  # Importing runs code that may raise anything.
  except Exception as error:
    raise ValueError(
      f"the model '{path}' cannot be imported "
      f'({type(error).__name__}: {error}): expected package.module:attribute, '
      'found by Python from where it was started, or on its path (PYTHONPATH)'
    ) from error
  if not callable(found):
    raise ValueError(
      f"'{path}' is {type(found).__name__}, expected a class or function that "
      'returns a module of flax.linen'
    )
  return found
