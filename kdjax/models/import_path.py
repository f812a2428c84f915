"""Models that are named by where Python finds them."""

import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from kdjax.models import _adapter
from kdjax.system import plugins

# Modules of libraries, and what makes networks of them.
_ADAPTERS = {
  'flax.nnx': 'kdjax.models._nnx',
  'equinox': 'kdjax.models._equinox',
}


def build(
  path: str, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> nn.Module:
  """Builds a model by its import path.

  Args:
    path: `package.module:attribute`, a class of modules of Flax (linen or NNX)
      or Equinox, a function that is annotated to return one (`-> nn.Module`),
      or a `functools.partial` of either. It may come from a file: nothing else
      is called.
    offered: arguments that it is given where it takes them. What a partial has
      set stays so.
    options: arguments that it must take.

  Returns:
    The module, a linen one: those of other libraries are wrapped, and made
    when they are applied.

  Raises:
    ValueError: it cannot be imported, is something else, cannot be called, or
      returns no Flax module that is called as `model(images, train=…)`.
  """
  make, adapter = _import(path)
  try:
    taken = _adapter.keywords(make, offered) | dict(options)
    if adapter is None:
      model = make(**taken)
    else:
      later = _adapter.keywords(make, dict.fromkeys(adapter.offers))
      _adapter.signature(make).bind(**later, **taken)
      model = adapter(path, make, tuple(taken.items()))
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


def _import(
  path: str,
) -> tuple[Callable[..., Any], type[_adapter.Adapter] | None]:
  """Finds what makes a model, and the adapter of another library's modules."""
  made = found = plugins.attribute(path, 'model')
  while isinstance(made, functools.partial):
    made = made.func
  if isinstance(made, types.FunctionType):
    made = _returned(path, made)
  if isinstance(made, type):
    if issubclass(made, nn.Module):
      return found, None
    for library, adapter in _ADAPTERS.items():
      # A library that nobody has imported has made no class.
      loaded = sys.modules.get(library)
      if loaded and issubclass(made, loaded.Module):
        return found, importlib.import_module(adapter).Adapter
  raise ValueError(
    f"'{path}' is {found!r}: expected a subclass of flax.linen.Module, "
    'flax.nnx.Module or equinox.Module, a function that is annotated to return '
    'one (-> nn.Module), or a functools.partial of either'
  )


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
