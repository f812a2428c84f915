"""Models by name. A new one is one new file here that lists it in `MODELS`.

Or it is anywhere that Python can import it from, by its import path.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models import features, import_path
from kdjax.system import plugins
from kdjax.system.hints import did_you_mean

# Options of ResNets that models of other kinds are not given.
_OFFERED = 'stem', 'width'


def names() -> list[str]:
  """Lists the names that `build` knows."""
  return sorted(_models()[0])


def build(
  name: str, *, num_classes: int, dtype: Any = jnp.float32, **options: Any
) -> nn.Module:
  """Builds a model by name.

  Args:
    name: one of `names()`: 'resnet18', 'resnet50', …; or an import path,
      `package.module:attribute`, of a subclass of `flax.linen.Module`,
      `flax.nnx.Module` or `equinox.Module`, of a function that is annotated to
      return one, or of a `functools.partial` of either. That code is imported
      and called. Of `num_classes`, `dtype`, `stem` and `width` it is given
      those that it takes; NNX and Equinox also of `image_shape` and `rngs` or
      `key`.
    num_classes: number of logits.
    dtype: dtype of the computation, a dtype or its name. Parameters, BatchNorm
      statistics and logits are float32.
    **options: the model's own fields; ResNets of four stages take `stem`
      ('imagenet' or 'cifar') and `width`, which others ignore.

  Returns:
    A Flax module, called as `model(images, train=…)`, that returns logits.

  Raises:
    ValueError: the name, the dtype, or an option is unknown; or what an import
      path names is neither.
  """
  models, broken = _models()
  if name not in models and ':' not in name:
    raise ValueError(
      f"unknown model '{name}'{did_you_mean(name, models)}: expected one of "
      f'{", ".join(sorted(models))}, or package.module:attribute'
      + ''.join(f'; {reason}' for reason in broken)
    )
  try:
    dtype = jnp.dtype(dtype)
  except TypeError as error:
    raise ValueError(
      f"'{dtype}' is no dtype: expected 'float32' or 'bfloat16'"
    ) from error
  if dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(
      f'{name} computes in float32 or bfloat16, not in {dtype.name}'
    )
  if name not in models:
    offered = {'num_classes': num_classes, 'dtype': dtype}
    for option in _OFFERED:
      if option in options:
        offered[option] = options.pop(option)
    return import_path.build(name, offered, options)
  known = inspect.signature(models[name]).parameters
  options = {
    option: value
    for option, value in options.items()
    if option in known or option not in _OFFERED
  }
  try:
    return models[name](num_classes=num_classes, dtype=dtype, **options)
  except TypeError as error:
    raise ValueError(
      f'{name} does not take the options {sorted(options)}: {error}'
    ) from error


def fold(
  model: nn.Module, variables: Mapping[str, Any], names: Sequence[str] = ()
) -> tuple[nn.Module, Mapping[str, Any]]:
  """Folds BatchNorm into convolutions, for a network that only predicts.

  Its outputs stay the same up to rounding. Jacob et al., 2018,
  https://arxiv.org/abs/1712.05877, section 3.2. A model that can be folded has
  a method `fold(variables, names)` that does so.

  Args:
    model: a Flax module.
    variables: its collections, concrete arrays.
    names: modules whose outputs will be captured.

  Returns:
    The folded model and its collections, whose kernels and biases are in the
    dtype that the model computes in; both as they are if the model has no such
    method, or if a name would no longer mean the same: that of a convolution or
    of a BatchNorm.
  """
  method = getattr(model, 'fold', None)
  return method(variables, names) if method else (model, variables)


def rematerialize(model: nn.Module, names: Sequence[str]) -> nn.Module:
  """Recomputes activations of modules in the backward pass (rematerialization).

  That changes memory and time, and results by rounding only. Chen et al., 2016,
  https://arxiv.org/abs/1604.06174. A model that can do so has a method
  `rematerialize(names)`.

  Args:
    model: a Flax module.
    names: modules whose activations are not kept; their outputs are.

  Returns:
    The model, whose variables and features are named as they were.

  Raises:
    ValueError: the model cannot do so for one of the names, or at all.
  """
  if not names:
    return model
  method = getattr(model, 'rematerialize', None)
  if method is None:
    raise ValueError(
      f'{features.name_of(model)} has no method `rematerialize`, so none of '
      'its modules can compute activations again: set config.device.remat to ()'
    )
  return method(names)


def _models() -> tuple[dict[str, Any], list[str]]:
  """Returns all models by name, and which modules cannot be imported."""
  models: dict[str, Any] = {}
  broken = []
  for name in plugins.names(__package__):
    try:
      models |= getattr(plugins.module(__package__, name), 'MODELS', {})
    # A module that is half written concerns its own models alone.
    except Exception as error:
      broken.append(
        f'kdjax/models/{name}.py cannot be imported ({type(error).__name__}: '
        f'{error})'
      )
  return models, broken
