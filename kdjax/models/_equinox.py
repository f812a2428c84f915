"""Equinox modules as networks."""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from kdjax.models import _adapter
from kdjax.models._adapter import Arrays, Call, Made

AXIS = 'batch'
"""The name of the axis of examples, for `eqx.nn.BatchNorm`."""


class Adapter(_adapter.Adapter):
  """An Equinox module, called for one image, `[channels, height, width]`.

  As `model(image)`, or `model(image, state)` if it has a state, which it then
  returns beside the logits; with `key` if it takes one.
  """

  offers: ClassVar[tuple[str, ...]] = 'image_shape', 'key'
  base: ClassVar[type[Any]] = eqx.Module

  def create(self, key: jax.Array, image_shape: tuple[int, ...]) -> Made:
    """Makes the variables; see `_adapter.Adapter`."""
    model, state = self._construct(key, image_shape)
    extra = _adapter.keywords(type(model).__call__, {'key': 'key'})
    if jax.tree.leaves(state):
      self.check_call(model, 'model(image, state)', 'image', 'state', **extra)
    else:
      self.check_call(model, 'model(image)', 'image', **extra)
    arrays = _arrays(model)
    self.check_states(
      [
        f'{name} ({array.dtype})'
        for name, array in arrays.items()
        if not eqx.is_inexact_array(array)
      ],
      'arrays of floats, or of NumPy',
    )
    names = _state_names(model, state)
    return Made(arrays, dict(zip(names, jax.tree.leaves(state), strict=True)))

  def compute(self, call: Call) -> tuple[Any, Arrays, dict[str, Any]]:
    """Applies the module; see `_adapter.Adapter`."""
    model, state = eqx.filter_eval_shape(
      self._construct, call.key, call.images.shape[1:]
    )
    names = _state_names(model, state)
    model = _with_arrays(model, call.made.params)
    model = eqx.nn.inference_mode(model, value=not call.train)
    state = jax.tree.unflatten(
      jax.tree.structure(state), [call.made.batch_stats[name] for name in names]
    )

    def classify(image: jax.Array, index: jax.Array) -> tuple[Any, Any]:
      outputs: dict[str, Any] = {}
      recording = _record(model, call, outputs)
      # Their number may be symbolic, which `jax.random.split` does not take.
      key = jax.random.fold_in(call.key, index)
      extra = _adapter.keywords(type(model).__call__, {'key': key})
      if names:
        logits, new_state = recording(image, state, **extra)
      else:
        logits, new_state = recording(image, **extra), state
      return (logits, outputs), new_state

    (logits, outputs), state = jax.vmap(
      classify, axis_name=AXIS, out_axes=(0, None)
    )(
      call.images.transpose(0, 3, 1, 2),
      jnp.arange(call.images.shape[0]),
    )
    stats = dict(zip(names, jax.tree.leaves(state), strict=True))
    return logits, stats, {n: _channels_last(x) for n, x in outputs.items()}

  def module_names(self, call: Call) -> list[str]:
    """Lists modules; see `_adapter.Adapter`."""
    model, _ = eqx.filter_eval_shape(
      self._construct, call.key, call.images.shape[1:]
    )
    return [_name(path) for path, inner in _modules(model) if callable(inner)]

  def _construct(
    self, key: jax.Array, image_shape: tuple[int, ...]
  ) -> tuple[Any, Any]:
    """Makes the module and its state."""
    return eqx.nn.make_with_state(self.construct)(
      image_shape=image_shape, key=key
    )


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_index(node: Any) -> bool:
  return isinstance(node, eqx.nn.StateIndex)


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _arrays(model: Any) -> dict[str, Any]:
  """Returns the arrays of a module by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(model)
  return {_name(path): leaf for path, leaf in leaves if _is_array(leaf)}


def _with_arrays(model: Any, arrays: Arrays) -> Any:
  """Puts arrays in the places of those of a module."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: arrays[_name(path)] if _is_array(leaf) else leaf, model
  )


def _state_names(model: Any, state: Any) -> list[str]:
  """Names the arrays of a state by the path of their index in the module."""
  return [
    '/'.join(filter(None, (_name(path), _name(inner))))
    for path, index in jax.tree_util.tree_leaves_with_path(
      model, is_leaf=_is_index
    )
    if _is_index(index)
    for inner, _ in jax.tree_util.tree_leaves_with_path(state.get(index))
  ]


def _modules(root: Any, path: Any = ()) -> Iterator[tuple[Any, Any]]:
  """Yields the path of every module in another one, and the module."""
  for inner, node in jax.tree_util.tree_leaves_with_path(
    root, is_leaf=lambda node: isinstance(node, eqx.Module) and node is not root
  ):
    if isinstance(node, eqx.Module):
      yield (*path, *inner), node
      yield from _modules(node, (*path, *inner))


def _record(model: Any, call: Call, outputs: dict[str, Any]) -> Any:
  """Makes a module like another one whose modules tell what they return.

  Args:
    model: the module.
    call: which of its modules are wanted.
    outputs: what they return is put here, by their path.

  Returns:
    The module.
  """
  wanted = [
    path
    for path, module in _modules(model)
    if callable(module) and call.wants(_name(path))
  ]
  # The innermost first: the others are copied with them.
  for path in sorted(wanted, key=len, reverse=True):
    model = eqx.tree_at(
      functools.partial(_at, path=path),
      model,
      replace_fn=functools.partial(
        _recording, name=_name(path), outputs=outputs
      ),
    )
  return model


def _at(node: Any, path: Any) -> Any:
  """Finds what is at a path of a PyTree."""
  for key in path:
    match key:
      case jax.tree_util.GetAttrKey(name=name):
        node = getattr(node, name)
      case jax.tree_util.SequenceKey(idx=place):
        node = node[place]
      case jax.tree_util.DictKey(key=place):
        node = node[place]
  return node


def _recording(module: Any, name: str, outputs: dict[str, Any]) -> Any:
  """Makes a module like another one that tells what it returns."""
  kind = type(module)

  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    output = kind.__call__(self, *args, **kwargs)
    # What has a state returns it, too.
    outputs[name] = output[0] if isinstance(output, tuple) else output
    return output

  made = object.__new__(_adapter.subclass(kind, call))
  for key, value in vars(module).items():
    object.__setattr__(made, key, value)
  return made


def _channels_last(output: jax.Array) -> jax.Array:
  """Maps `[batch, channels, height, width]` to channels last."""
  return jnp.moveaxis(output, 1, -1) if output.ndim == 4 else output
