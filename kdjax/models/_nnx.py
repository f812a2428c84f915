"""Flax NNX modules as networks."""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models import _adapter
from kdjax.models._adapter import Arrays, Call, Made

# Where a module that is captured leaves its output, for the forward pass alone.
_OUTPUT = 'kdjax_output'


class Adapter(_adapter.Adapter):
  """A Flax NNX module, called as `model(images)`.

  It computes as after its own `train()` or `eval()`.
  """

  offers: ClassVar[tuple[str, ...]] = 'image_shape', 'rngs'
  base: ClassVar[type[Any]] = nnx.Module

  def create(self, key: jax.Array, image_shape: tuple[int, ...]) -> Made:
    """Makes the variables; see `_adapter.Adapter`."""
    module = self.construct(image_shape=image_shape, rngs=nnx.Rngs(key))
    self.check_call(module, 'model(images)', 'images')
    variables = _flat(module)
    self.check_states(
      [
        f'{name} ({_kind(variable)})'
        for name, variable in variables.items()
        if not isinstance(variable, (nnx.Param, nnx.BatchStat, nnx.RngState))
      ],
      'nnx.Param, nnx.BatchStat and random streams',
    )
    return Made(
      _values(variables, nnx.Param), _values(variables, nnx.BatchStat)
    )

  def compute(self, call: Call) -> tuple[Any, Arrays, dict[str, Any]]:
    """Applies the module; see `_adapter.Adapter`."""
    module = self._with_variables(call)
    (module.train if call.train else module.eval)()
    captured = {
      name: inner for name, inner in _modules(module) if call.wants(name)
    }
    for inner in captured.values():
      kind: Any = type(inner)
      object.__setattr__(inner, '__class__', _recording(kind))
    logits = module(call.images)
    outputs = {
      name: getattr(inner, _OUTPUT).get_value()
      for name, inner in captured.items()
      if hasattr(inner, _OUTPUT)
    }
    return logits, _values(_flat(module), nnx.BatchStat), outputs

  def module_names(self, call: Call) -> list[str]:
    """Lists modules; see `_adapter.Adapter`."""
    return [name for name, _ in _modules(self._with_variables(call))]

  def _with_variables(self, call: Call) -> Any:
    """Makes the module with the variables and the key of a forward pass."""
    graph, state = nnx.split(
      nnx.eval_shape(
        lambda: self.construct(
          image_shape=call.images.shape[1:], rngs=nnx.Rngs(0)
        )
      )
    )
    arrays = {**call.made.params, **call.made.batch_stats}
    filled = []
    for index, (path, variable) in enumerate(nnx.to_flat_state(state)):
      shape = variable.get_value().shape
      if isinstance(variable, nnx.RngKey):
        value = jax.random.fold_in(call.key, index)
        value = jax.random.split(value, shape) if shape else value
      elif isinstance(variable, nnx.RngCount):
        value = jnp.zeros(shape, variable.get_value().dtype)
      else:
        value = arrays['/'.join(map(str, path))]
      filled.append((path, variable.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _modules(root: Any) -> Iterator[tuple[str, Any]]:
  """Yields the path of every module that can be called, and the module."""
  for path, module in nnx.iter_modules(root):
    if path and callable(module):
      yield '/'.join(map(str, path)), module


def _flat(module: Any) -> dict[str, Any]:
  """Returns the variables of a module by their path."""
  return {
    '/'.join(map(str, path)): variable
    for path, variable in nnx.to_flat_state(nnx.state(module))
  }


def _kind(variable: Any) -> str:
  is_variable = isinstance(variable, nnx.Variable)
  return type(variable).__name__ if is_variable else 'array'


def _values(variables: dict[str, Any], kind: type[Any]) -> Arrays:
  return {
    name: variable.get_value()
    for name, variable in variables.items()
    if isinstance(variable, kind)
  }


@functools.cache
def _recording(kind: type[Any]) -> type[Any]:
  """Makes a class of modules that keep what they return.

  They keep it in a variable, which NNX carries out of its transformations.
  """

  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    output = kind.__call__(self, *args, **kwargs)
    setattr(self, _OUTPUT, nnx.Intermediate(output))
    return output

  return _adapter.subclass(kind, call)
