"""SHA-256 of arrays and of JSON, by which they are known again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

SHA256 = 'sha256'
"""Where JSON has the SHA-256 of all the rest of it."""


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a PyTree by their paths, `params/head/kernel`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def digest(tree: Any) -> str:
  """Returns the SHA-256 of all arrays in a PyTree and of their places in it."""
  state = hashlib.sha256()
  for name, leaf in _leaves(tree):
    state.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
    state.update(_bytes(leaf))
  return state.hexdigest()


def describe(tree: Any) -> dict[str, dict[str, Any]]:
  """Describes each array in a PyTree so that a change of any bit shows.

  Args:
    tree: a PyTree of arrays; keys are described by their data.

  Returns:
    By the path of each array its `dtype`, `shape` and `sha256`, as JSON.
  """
  return {
    name: {
      'dtype': leaf.dtype.name,
      'shape': list(leaf.shape),
      'sha256': hashlib.sha256(_bytes(leaf)).hexdigest(),
    }
    for name, leaf in _leaves(tree)
  }


def of_json(content: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of JSON, however it is laid out in its file."""
  text = json.dumps(content, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def add_digest(content: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the SHA-256 of JSON to it."""
  return {**content, SHA256: of_json(content)}


def digest_matches(content: Mapping[str, Any]) -> bool:
  """Whether JSON is as `add_digest` returned it."""
  rest = {key: content[key] for key in content if key != SHA256}
  return content.get(SHA256) == of_json(rest)


def _bytes(array: np.ndarray) -> memoryview:
  """Returns the bytes of an array without a copy."""
  return array.reshape(-1).view(np.uint8).data


def without_keys(tree: Any) -> Any:
  """Puts the data of random keys in the place of the keys in a PyTree."""

  def data(leaf: Any) -> Any:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf

  return jax.tree.map(data, tree)


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the path of each array, and the array on the host."""
  host = jax.device_get(without_keys(tree))
  for name, leaf in leaves_by_path(host).items():
    yield name, np.asarray(leaf, order='C')
