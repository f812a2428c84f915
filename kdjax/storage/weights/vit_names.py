"""Names and shapes of vision transformers' weights, as timm and as Flax has.

Those of `kdjax.models.vit`: timm's `vit_tiny_patch16_224`, DeiT without a
distillation token, and others of these widths, patches and twelve blocks.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.storage.weights import resnet_names, stored_tensors
from kdjax.system import escape

# By channels of a token and height of a patch.
NETWORKS: Mapping[tuple[int, int], str] = {
  (192, 4): 'vit_tiny_patch4',
  (192, 16): 'vit_tiny_patch16',
  (384, 4): 'vit_small_patch4',
  (384, 16): 'vit_small_patch16',
}
_DEPTH = 12
_FIRST = 'patch_embed.proj.weight'
_TOKEN, _PLACES = 'cls_token', 'pos_embed'


class Network(NamedTuple):
  """A vision transformer as its weights' shapes tell it.

  Attributes:
    model: `name` and `num_classes` (None without a classifier).
    channels: of the images.
    image_size: height and width of the images, which are square, in pixels.
    shapes: the shape of each tensor by its canonical name, in timm's order.
  """

  model: dict[str, Any]
  channels: int
  image_size: tuple[int, int]
  shapes: dict[str, tuple[int, ...]]


def is_in(file: stored_tensors.Stored) -> bool:
  """Whether there is a vision transformer among the tensors of a file."""
  return bool(_roots(file))


def are_of(variables: Mapping[str, Any]) -> bool:
  """Whether variables of Flax are those of a vision transformer."""
  return _PLACES in variables['params']


def find(
  file: stored_tensors.Stored, *, headless: bool = False
) -> resnet_names.Found:
  """Finds the vision transformer among the tensors of a file.

  Args:
    file: what is in the file.
    headless: whether a last layer is left out that is not one linear layer.

  Returns:
    The network, whose tensors have all the names, shapes and dtypes that they
    should have, and no others.

  Raises:
    ValueError: there are several; it is another network; or tensors are of a
      dtype that is not known.
  """
  roots = _roots(file)
  if len(roots) > 1:
    raise ValueError(
      f'{len(roots)} vision transformers ({escape.listed(roots)}): save the '
      'one that is meant alone, torch.save(NETWORK.state_dict(), …)'
    )
  root = roots[0]
  original = {
    name.removeprefix(root): name
    for name in file.tensors
    if name.startswith(root)
  }
  head = [name for name in original if name.startswith('head.')]
  if headless and sorted(head) != ['head.bias', 'head.weight']:
    original = {k: name for k, name in original.items() if k not in head}
  tensors = {name: file.tensors[place] for name, place in original.items()}
  network = recognise(
    {name: tensor.shape for name, tensor in tensors.items()}, original
  )
  converted = resnet_names.check_dtypes(tensors, original)
  classes = network.model['num_classes']
  height, width = network.image_size
  notes = [
    f"{file.format}, timm's names",
    f'{network.model["name"]}, images of {height}×{width} pixels, '
    f'{network.channels} channels, '
    f'{f"{classes} classes" if classes is not None else "no classifier"}',
  ]
  taken = original.values()
  for what, names in (
    ('prefix taken off', [root] if root else []),
    ('ignored', [n for n in (*file.tensors, *file.others) if n not in taken]),
    ('objects, not read and not executed', file.classes),
    ('converted to float32', converted),
  ):
    if names:
      notes.append(f'{what}: {escape.listed(names)}')
  ordered = {name: tensors[name] for name in network.shapes}
  return resnet_names.Found(network, ordered, original, tuple(notes), {})


def _roots(file: stored_tensors.Stored) -> list[str]:
  """Lists what stands before the names of each one."""
  return [
    name.removesuffix(_FIRST)
    for name in file.tensors
    if name.endswith(_FIRST)
    and name.removesuffix(_FIRST) + _PLACES in file.tensors
  ]


def recognise(
  shapes: Mapping[str, tuple[int, ...]],
  original: Mapping[str, str] | None = None,
) -> Network:
  """Tells which vision transformer has tensors of these shapes.

  Args:
    shapes: by canonical name.
    original: names in a file by canonical name.

  Returns:
    The network.

  Raises:
    ValueError: it is none of those in `NETWORKS`.
  """
  stem, places = shapes.get(_FIRST, ()), shapes.get(_PLACES, ())
  patch = stem[-1] if len(stem) == 4 else 0
  width = places[-1] if len(places) == 3 else 0
  name = NETWORKS.get((width, patch))
  side = math.isqrt(max(places[1] - 1, 0)) if width else 0
  if name is None or not side or side**2 + 1 != places[1]:
    raise ValueError(
      f'a vision transformer with {_FIRST} {stem} and {_PLACES} {places}: '
      f'expected one of {", ".join(NETWORKS.values())}, with one class token '
      'and square images'
    )
  head = shapes.get('head.weight', ())
  num_classes = head[0] if head else None
  model = {'name': name, 'num_classes': num_classes}
  expected = dict(_shapes(width, stem, side, num_classes))
  resnet_names.compare(name, shapes, expected, original or {}, "timm's")
  size = side * patch
  return Network(model, stem[1], (size, size), expected)


def _shapes(
  width: int, stem: tuple[int, ...], side: int, num_classes: int | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields names and shapes of all tensors, in timm's order."""

  def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f'{name}.weight', shape
    yield f'{name}.bias', shape[:1]

  yield _TOKEN, (1, 1, width)
  yield _PLACES, (1, 1 + side**2, width)
  yield from layer('patch_embed.proj', width, *stem[1:])
  for index in range(_DEPTH):
    block = f'blocks.{index}'
    yield from layer(f'{block}.norm1', width)
    yield from layer(f'{block}.attn.qkv', 3 * width, width)
    yield from layer(f'{block}.attn.proj', width, width)
    yield from layer(f'{block}.norm2', width)
    yield from layer(f'{block}.mlp.fc1', 4 * width, width)
    yield from layer(f'{block}.mlp.fc2', width, 4 * width)
  yield from layer('norm', width)
  if num_classes is not None:
    yield from layer('head', num_classes, width)


def to_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Nests and transposes arrays as Flax does.

  Args:
    arrays: by canonical name, in PyTorch's layouts.

  Returns:
    `{'params': …, 'batch_stats': {}}` of new arrays, float32.
  """
  params: dict[str, Any] = {}
  for name, array in arrays.items():
    *path, leaf = _flax_path(name, array.ndim)
    place = params
    for key in path:
      place = place.setdefault(key, {})
    place[leaf] = np.array(
      resnet_names.to_flax_layout(array), np.float32, order='C'
    )
  return {'params': params, 'batch_stats': {}}


def from_flax(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Renames arrays canonically, and brings them into PyTorch's layouts.

  Args:
    variables: `{'params': …}` of one of kdjax's vision transformers.

  Returns:
    Arrays by name, in timm's order.

  Raises:
    ValueError: it is none of them.
  """
  arrays = {
    _canonical('.'.join(path)): resnet_names.to_torch_layout(np.asarray(leaf))
    for path, leaf in resnet_names.flat(variables['params'])
  }
  network = recognise({name: array.shape for name, array in arrays.items()})
  return {name: arrays[name] for name in network.shapes}


def _flax_path(name: str, rank: int) -> list[str]:
  name = re.sub(r'^head\.', 'fc.', name)
  name = name.replace('patch_embed.proj.', 'patch_embed.')
  name = re.sub(
    r'^blocks\.(\d+)\.(?:mlp\.)?', lambda m: f'block{int(m[1]) + 1}.', name
  )
  weight = 'kernel' if rank > 1 else 'scale'
  return re.sub(r'\.weight$', f'.{weight}', name).split('.')


def _canonical(name: str) -> str:
  name = re.sub(r'^fc\.', 'head.', name)
  name = name.replace('patch_embed.', 'patch_embed.proj.')
  name = re.sub(
    r'^block(\d+)\.(?=(fc)?)',
    lambda m: f'blocks.{int(m[1]) - 1}.{"mlp." if m[2] else ""}',
    name,
  )
  return re.sub(r'\.(?:kernel|scale)$', '.weight', name)
