"""Variables of a Flax module that another program has saved.

Either a directory in which Orbax has saved the PyTree `{'params': …,
'batch_stats': …}`, the latter if there is such, or a `.safetensors` file whose
arrays are named by their path in it, `params/Dense_0/kernel`.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from kdjax import checkpoint, features, weights
from kdjax.weights.stored import listed

_SUFFIX = '.safetensors'


def are_in(path: str | os.PathLike[str]) -> bool:
  """Whether a path holds variables of a Flax module, by what they are called.

  Args:
    path: any path.

  Returns:
    Whether it is a directory or a file as above.

  Raises:
    ValueError: it is a safetensors file, and is damaged.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return checkpoint.is_tree(path)
  return path.suffix == _SUFFIX and any(
    name.startswith('params/') for name in weights.read(path).tensors
  )


def load(
  path: str | os.PathLike[str],
  model: nn.Module,
  images: jax.ShapeDtypeStruct,
) -> dict[str, Any]:
  """Loads the variables of a model.

  Args:
    path: where `are_in` found them.
    model: the model that they are of.
    images: shape and dtype of its images, `[batch, height, width, channels]`.

  Returns:
    Its collections, `params` and `batch_stats`, arrays of NumPy.

  Raises:
    ValueError: arrays are missing, too many, of another shape or dtype, or not
      finite, each named; or what is there is damaged.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  expected = describe_model(model, images)
  if path.is_dir():
    found = checkpoint.describe_tree(path)
  else:
    stored = dict(weights.read(path).tensors)
    found = checkpoint.describe(stored)
  check_same(
    path,
    type(model).__name__,
    expected,
    found,
    'Is it the model that config.teacher.name means, with the same width, '
    'stem, number of classes and images?',
  )
  if path.is_dir():
    arrays = _flatten(checkpoint.read_tree(path))
  else:
    arrays = {name: tensor.read() for name, tensor in stored.items()}
  check_finite(path, arrays)
  return {
    'params': {},
    'batch_stats': {},
    **flax.traverse_util.unflatten_dict(arrays, sep='/'),
  }


def describe_model(
  model: nn.Module, images: jax.ShapeDtypeStruct
) -> dict[str, str]:
  """Describes the variables that a model makes, making none.

  Args:
    model: a Flax module called as `model(images, train=…)`.
    images: shape and dtype of its images, `[batch, height, width, channels]`.

  Returns:
    What `kdjax.checkpoint.describe` says of them.
  """
  made = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  return checkpoint.describe(made)


def check_finite(
  path: str | os.PathLike[str], arrays: Mapping[str, Any]
) -> None:
  """Checks that arrays hold numbers.

  Args:
    path: where they are.
    arrays: arrays, in dictionaries of any depth.

  Raises:
    ValueError: some do not; the message names them.
  """
  if wrong := [
    name
    for name, array in _flatten(arrays).items()
    if not np.isfinite(array).all()
  ]:
    raise ValueError(
      f'{path} has values that are not finite in {listed(sorted(wrong))}'
    )


def check_same(
  path: str | os.PathLike[str],
  model: str,
  expected: Mapping[str, str],
  found: Mapping[str, str],
  advice: str,
) -> None:
  """Checks that arrays are those of a model.

  Args:
    path: where they are.
    model: what the model is called.
    expected: what `kdjax.checkpoint.describe` says of its arrays.
    found: the same of what is there.
    advice: what to do if they are not.

  Raises:
    ValueError: they are not; the message names those that differ.
  """
  lines = []
  if missing := sorted(expected.keys() - found.keys()):
    lines.append(f'missing: {listed(missing)}')
  if extra := sorted(found.keys() - expected.keys()):
    lines.append(f'unknown: {listed(extra)}')
  if other := [
    f'{name} ({found[name]}, expected {expected[name]})'
    for name in sorted(expected.keys() & found.keys())
    if expected[name] != found[name]
  ]:
    lines.append(f'of another shape or dtype: {listed(other)}')
  if lines:
    shown = '\n  '.join(lines)
    raise ValueError(
      f'the arrays in {path} are not those of {model}:\n  {shown}\n{advice}'
    )


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(dict(tree), sep='/')
