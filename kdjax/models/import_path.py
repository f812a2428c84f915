"""Models that are named by where Python finds them."""

import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn


def build(
  path: str, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> nn.Module:
  """Builds a model by its import path.

  Args:
    path: `package.module:attribute`, a class of Flax modules, a function that
      is annotated to return one (`-> nn.Module`), or a `functools.partial` of
      either. It may come from a file: nothing else is called.
    offered: arguments that it is given where it takes them. What a partial has
      set stays so.
    options: arguments that it must take.

  Returns:
    The module.

  Raises:
    ValueError: it cannot be imported, is something else, cannot be called, or
      returns no Flax module that is called as `model(images, train=…)`.
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
  # It is a user's, and may raise anything.
  except Exception as error:
    raise ValueError(
      f"'{path}' cannot be called with what it takes of {', '.join(offered)} "
      f'({type(error).__name__}: {error})'
    ) from error
  _check_model(path, model)
  return model


def _check_model(path: str, model: Any) -> None:
  """Checks that a user's function returned a Flax module to train."""
  # The base class itself is no network: Flax recurses when it looks at one.
  if not isinstance(model, nn.Module) or type(model) is nn.Module:
    raise ValueError(
      f"'{path}' returns {type(model).__name__}, expected a subclass of "
      'flax.linen.Module'
    )
  call: Any = getattr(model, '__call__', None)  # noqa: B004
  try:
    inspect.signature(call).bind('images', train=False)
  except TypeError as error:
    raise ValueError(
      f"'{path}' returns {type(model).__name__}, whose __call__ cannot be "
      f'called as model(images, train=…): {error}'
    ) from error
  try:
    hash(model)
  except TypeError as error:
    raise ValueError(
      f"'{path}' returns {type(model).__name__} with a field that cannot be "
      f'hashed ({error}): use tuples in place of lists'
    ) from error


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
  made = found
  while isinstance(made, functools.partial):
    made = made.func
  if isinstance(made, types.FunctionType):
    made = _returned(path, made)
  if not (isinstance(made, type) and issubclass(made, nn.Module)):
    raise ValueError(
      f"'{path}' is {found!r}: expected a subclass of flax.linen.Module, a "
      'function that is annotated to return one (-> nn.Module), or a '
      'functools.partial of either'
    )
  return found


def _returned(path: str, function: types.FunctionType) -> Any:
  """Returns what a function says that it returns."""
  try:
    return typing.get_type_hints(function).get('return')
  # Annotations may be any expressions.
  except Exception as error:
    raise ValueError(
      f"the annotations of '{path}' cannot be resolved "
      f'({type(error).__name__}: {error})'
    ) from error
