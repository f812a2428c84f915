"""Variables of a Flax module that another program has saved.

They are `{'params': …, 'batch_stats': …}`, the latter if there is such, or the
content of `params` alone, or a whole training state that has them among other
things, which are left out. They are in a directory in which Orbax has saved
them, also as one item of a step of a `CheckpointManager`, or in the directory
of such steps, of which the newest is taken; or in a file of
`flax.serialization` (msgpack); or in a safetensors file whose arrays are named
by their path, `params/Dense_0/kernel`.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np

from kdjax.models import features
from kdjax.storage import digests, weights
from kdjax.storage import trees as trees_lib
from kdjax.storage.weights import directory, stored_tensors
from kdjax.system.escape import listed

# Names that programs give what they save with a `CheckpointManager`, the
# likeliest first.
_ITEMS = 'default', 'state', 'train_state', 'model', 'variables'
_STEP = re.compile(r'(?:.*[_-])?(\d+)', re.ASCII)
# In the name of what Orbax has not finished writing.
_UNFINISHED = 'orbax-checkpoint-tmp'
_COLLECTIONS = 'params', 'batch_stats'


class _Source(NamedTuple):
  """Where variables are, in PyTrees of Orbax or in a file."""

  # By the name that their content has in the whole; '' if it is the whole.
  trees: dict[str, pathlib.Path]
  file: weights.Stored | None
  notes: tuple[str, ...]


def are_in(path: str | os.PathLike[str]) -> bool:
  """Whether a path holds variables of a Flax module, as its content tells.

  Raises:
    ValueError: it is a file, and is damaged.
    OSError: it cannot be read.
  """
  return _find(pathlib.Path(path)) is not None


def _flax_file(path: pathlib.Path) -> weights.Stored | None:
  """Reads what is in a file or a directory of weights, if they are of Flax."""
  if path.is_file() or directory.is_one(path):
    file = weights.read(path)
    by_path = any(name.startswith('params/') for name in file.tensors)
    if by_path or file.format.startswith('Flax'):
      return file
  return None


def _find_trees(path: pathlib.Path) -> _Source | None:
  """Finds PyTrees of Orbax in a directory, or in its newest step."""
  if trees_lib.is_tree(path):
    return _Source({'': path}, None, ('Orbax',))
  steps = {
    int(match[1]): child
    for child in path.iterdir()
    if (match := _STEP.fullmatch(child.name))
    and _UNFINISHED not in child.name
    and _items(child)
  }
  notes = ['Orbax']
  if steps:
    newest = max(steps)
    path = steps[newest]
    others = listed(sorted(steps.keys() - {newest}))
    notes.append(
      f'the newest step, {newest}, in {path}'
      + (f'; others: {others}' if others else '')
    )
  items = _items(path)
  if not items:
    inner = path / 'checkpoints'
    return _find_trees(inner) if inner.is_dir() else None
  if 'params' in items:
    trees = {name: items[name] for name in _COLLECTIONS if name in items}
  else:
    name = next((name for name in _ITEMS if name in items), '')
    if not name and len(items) > 1:
      raise ValueError(
        f'{path} holds {listed(sorted(items))}, and nothing says which of them '
        'are the variables: name one, as '
        f'{path / min(items)}'
      )
    trees = {'': items[name or min(items)]}
  used = [tree.name for tree in trees.values() if tree != path]
  if used:
    notes.append(f'item {listed(used)}')
  if unused := sorted(items.keys() - {*used}):
    notes.append(f'items not taken: {listed(unused)}')
  return _Source(trees, None, tuple(notes))


def _items(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Lists the PyTrees in one step, by name."""
  if trees_lib.is_tree(path):
    return {'': path}
  if not path.is_dir():
    return {}
  return {
    child.name: child for child in path.iterdir() if trees_lib.is_tree(child)
  }


def load(
  path: str | os.PathLike[str], model: nn.Module, images: jax.ShapeDtypeStruct
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Loads the variables of a model.

  Args:
    path: where `are_in` found them.
    model: the model that they are of.
    images: shape and dtype of its images, `[batch, height, width, channels]`.

  Returns:
    Its collections, `params` and `batch_stats`, arrays of NumPy; and what a
    person may want to know of where they are, a line each.

  Raises:
    ValueError: arrays are missing, too many, of another shape or dtype, or not
      finite, each named; or what is there is damaged.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  expected = describe_model(model, images)
  source = _find(path)
  assert source, path
  described = _describe(source)
  names, left_out = _variables_among(described)
  found = {ours: described[theirs] for ours, theirs in names.items()}
  trees_lib.check_same(
    path,
    features.name_of(model),
    expected,
    found,
    'Is it the model that config.teacher.name means, with the same width, '
    'stem, number of classes and images?',
  )
  arrays = _read(source, names)
  check_finite(path, arrays)
  variables = flax.traverse_util.unflatten_dict(arrays, sep='/')
  notes = (f'left out: {listed(left_out)}',) if left_out else ()
  return {key: {} for key in _COLLECTIONS} | variables, source.notes + notes


def save(
  path: str | os.PathLike[str],
  variables: Mapping[str, Any],
  metadata: Mapping[str, str],
) -> None:
  """Writes variables as safetensors, each array named by its path.

  Args:
    path: the file, which is there as a whole or not at all.
    variables: a model's collections.
    metadata: the header.

  Raises:
    OSError: it cannot be written; what was there still is.
  """
  arrays = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  host = {name: np.array(array) for name, array in arrays.items()}
  weights.save_arrays(path, host, {'format': 'flax', **metadata})


def _find(path: pathlib.Path) -> _Source | None:
  if path.is_dir() and (source := _find_trees(path)):
    return source
  file = _flax_file(path)
  return file and _Source({}, file, (file.format,))


def _describe(source: _Source) -> dict[str, str]:
  """Describes all that is there, by its path."""
  if source.file:
    others = dict.fromkeys(source.file.others, 'no array')
    return {**trees_lib.describe(dict(source.file.tensors)), **others}
  return {
    f'{prefix}/{name}' if prefix else name: what
    for prefix, tree in source.trees.items()
    for name, what in trees_lib.describe_saved(tree).items()
  }


def _read(source: _Source, names: Mapping[str, str]) -> dict[str, np.ndarray]:
  """Reads arrays; `names` has those that they have there by those wanted."""
  if source.file:
    tensors = source.file.tensors
    return {ours: tensors[theirs].read() for ours, theirs in names.items()}
  read: dict[str, np.ndarray] = {}
  for prefix, tree in source.trees.items():
    start = f'{prefix}/' if prefix else ''
    wanted = {
      theirs.removeprefix(start)
      for theirs in names.values()
      if theirs.startswith(start)
    }
    arrays = trees_lib.read_arrays(tree, wanted)
    read |= {f'{start}{name}': array for name, array in arrays.items()}
  return {ours: read[theirs] for ours, theirs in names.items()}


def _variables_among(
  described: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
  """Returns the paths of a module's variables by theirs in it, and the rest."""
  root = ''
  paths = [name.split('/') for name in described]
  # Around a state there may be dictionaries of one entry, or a state's own.
  while not any(path[0] == 'params' for path in paths):
    inner = [
      key
      for key in dict.fromkeys(path[0] for path in paths)
      if any(path[0] == key and 'params' in path[1:3] for path in paths)
    ]
    if len(inner) != 1:
      # The content of params alone.
      return {f'params/{name}': name for name in described}, []
    root += f'{inner[0]}/'
    paths = [path[1:] for path in paths if path[0] == inner[0] and path[1:]]
  # A state whose params are all of a module's variables.
  inside = {path[1] for path in paths if path[0] == 'params' and path[1:]}
  if 'params' in inside and inside <= {*_COLLECTIONS}:
    root += 'params/'
  names = {
    name.removeprefix(root): name
    for name in described
    if name.startswith(root)
    and name.removeprefix(root).partition('/')[0] in _COLLECTIONS
  }
  left_out = dict.fromkeys(
    _beginning(name, root) for name in described if name not in names.values()
  )
  return names, [*left_out]


def _beginning(name: str, root: str) -> str:
  """Cuts a path where it is known to differ from a prefix."""
  words = name.split('/')
  common = stored_tensors.count_common(words, root.split('/'))
  return '/'.join(words[: common + 1])


def describe_model(
  model: nn.Module, images: jax.ShapeDtypeStruct
) -> dict[str, str]:
  """Describes the variables that a model makes, as `trees.describe`.

  Args:
    model: a Flax module called as `model(images, train=…)`.
    images: shape and dtype of its images, `[batch, height, width, channels]`.
  """
  rng = jax.random.key(0)
  made = jax.eval_shape(lambda rng: features.init(model, rng, images), rng)
  return trees_lib.describe(made)


def check_finite(
  path: str | os.PathLike[str], arrays: Mapping[str, Any]
) -> None:
  """Checks that a PyTree of arrays at a path holds numbers.

  Raises:
    ValueError: some do not; the message names them.
  """
  if wrong := [
    name
    for name, array in digests.leaves_by_path(dict(arrays)).items()
    if not np.isfinite(array).all()
  ]:
    raise ValueError(
      f'{path} has values that are not finite in {listed(sorted(wrong))}'
    )
