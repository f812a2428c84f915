"""Names and shapes of ResNets' weights, as others have them and as Flax has.

The canonical names here are torchvision's.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.weights import stored

# Whether a block has three convolutions, and the blocks of each stage.
NETWORKS: Mapping[tuple[bool, tuple[int, ...]], str] = {
  (False, (1, 1, 1, 1)): 'resnet10',
  (False, (2, 2, 2, 2)): 'resnet18',
  (False, (3, 4, 6, 3)): 'resnet34',
  (True, (3, 4, 6, 3)): 'resnet50',
  (True, (3, 4, 23, 3)): 'resnet101',
}
_STEMS = {(7, 7): 'imagenet', (3, 3): 'cifar'}

# A name that every ResNet has, without what may stand before it.
_FIRST = 'layer1.0.conv1.weight'
_COUNTER = 'num_batches_tracked'
# A network beside another one, where it is the other one that is meant.
_SECOND = re.compile(r'(?:^|[._])(?:teacher|ema|swa|momentum)(?:$|[._])')


class Network(NamedTuple):
  """A ResNet as its weights' shapes tell it.

  Attributes:
    model: `name`, `num_classes` (None without a classifier), `stem`, `width`.
    channels: of the images.
    shapes: the shape of each tensor by its canonical name, in torchvision's
      order, without counters of batches.
  """

  model: dict[str, Any]
  channels: int
  shapes: dict[str, tuple[int, ...]]


class Found(NamedTuple):
  """A ResNet found among the tensors of a file.

  Attributes:
    network: what it is.
    tensors: its tensors by canonical name.
    original: their names in the file.
    recognised: what a person may want to know, a line each.
  """

  network: Network
  tensors: dict[str, stored.Tensor]
  original: dict[str, str]
  recognised: tuple[str, ...]


class _Naming(NamedTuple):
  """How others name the same tensors.

  Attributes:
    whose: whose names they are.
    first: matches the name that torchvision calls `_FIRST`, and captures what
      stands before it.
    canonical: gives a tensor's canonical name.
  """

  whose: str
  first: re.Pattern[str]
  canonical: Callable[[str], str]


def _torchvision(name: str) -> str:
  name = re.sub(r'^(layer\d+\.\d+)\.shortcut\.', r'\1.downsample.', name)
  return re.sub(r'^(?:linear|classifier)\.', 'fc.', name)


def _transformers(name: str) -> str:
  def block(match: re.Match[str]) -> str:
    stage, index, place, kind = match.groups()
    is_conv = kind == 'convolution'
    start = f'layer{int(stage) + 1}.{index}.'
    if place == 'shortcut':
      return f'{start}downsample.{0 if is_conv else 1}.'
    layer = int(place.removeprefix('layer.')) + 1
    return f'{start}{"conv" if is_conv else "bn"}{layer}.'

  name = name.removeprefix('resnet.')
  name = re.sub(r'^embedder\.embedder\.convolution\.', 'conv1.', name)
  name = re.sub(r'^embedder\.embedder\.normalization\.', 'bn1.', name)
  name = re.sub(r'^classifier\.1\.', 'fc.', name)
  return re.sub(
    r'^encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.\d)'
    r'\.(convolution|normalization)\.',
    block,
    name,
  )


def _sequential(name: str) -> str:
  def block(match: re.Match[str]) -> str:
    stage, index, place = match.groups()
    start = f'layer{int(stage) - 1}.{index}.'
    if place == 'shortcut.':
      return f'{start}downsample.'
    # Convolution, norm and ReLU take turns.
    layer, kind = divmod(int(place.removeprefix('residual_function.')[:-1]), 3)
    return f'{start}{("conv", "bn", "relu")[kind]}{layer + 1}.'

  name = re.sub(r'^conv1\.0\.', 'conv1.', name)
  name = re.sub(r'^conv1\.1\.', 'bn1.', name)
  return re.sub(
    r'^conv([2-9])_x\.(\d+)\.(shortcut\.|residual_function\.\d\.)', block, name
  )


_NAMINGS = (
  _Naming(
    "torchvision's names",
    re.compile(r'((?:[^.]+\.)*?)layer1\.0\.conv1\.weight'),
    _torchvision,
  ),
  _Naming(
    "Hugging Face transformers' names",
    re.compile(
      r'((?:[^.]+\.)*?)(?:resnet\.)?'
      r'encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight'
    ),
    _transformers,
  ),
  _Naming(
    'names with conv2_x … conv5_x and residual_function',
    re.compile(r'((?:[^.]+\.)*?)conv2_x\.0\.residual_function\.0\.weight'),
    _sequential,
  ),
)


def find(file: stored.Stored) -> Found:
  """Finds the ResNet among the tensors of a file.

  Whatever stands before all of its names, in dictionaries or with dots, is
  taken off. No tensor is read.

  Args:
    file: what is in the file.

  Returns:
    The network, whose tensors have all the names, shapes and dtypes that they
    should have, and no others.

  Raises:
    ValueError: there is none, or several; it is another network; or tensors are
      of a dtype that is not known.
  """
  naming, root, second = _choose(file)
  other_roots = tuple(r for r in second if r.startswith(root))
  original: dict[str, str] = {}
  for name in file.tensors:
    if not name.startswith(root) or name.startswith(other_roots):
      continue
    if name.endswith(f'.{_COUNTER}'):
      continue
    canonical = naming.canonical(name.removeprefix(root))
    if canonical in original:
      raise ValueError(
        f'{stored.listed([original[canonical], name])} are the same tensor of '
        'a ResNet twice'
      )
    original[canonical] = name
  tensors = {name: file.tensors[place] for name, place in original.items()}
  network = recognise(
    {name: tensor.shape for name, tensor in tensors.items()}, original
  )
  converted = _check_dtypes(tensors, original)
  model = network.model
  head = model['num_classes']
  notes = [
    f'{file.format}, {naming.whose}',
    f'{model["name"]}, {model["stem"]} stem, width {model["width"]}, '
    f'{f"{head} classes" if head is not None else "no classifier"}, '
    f'{network.channels} channel{"" if network.channels == 1 else "s"}',
  ]
  if root:
    notes.append(f'prefix taken off: {stored.listed([root])}')
  if second:
    notes.append(f'other networks, not taken: {stored.listed(second)}')
  if ignored := _outside(file, root, tuple(second)):
    notes.append(f'ignored: {stored.listed(ignored)}')
  if converted:
    notes.append(f'converted to float32: {", ".join(converted)}')
  ordered = {name: tensors[name] for name in network.shapes}
  return Found(network, ordered, original, tuple(notes))


def _choose(file: stored.Stored) -> tuple[_Naming, str, list[str]]:
  """Gives the names, the prefix, and other networks' prefixes."""
  roots: dict[str, _Naming] = {}
  for name in file.tensors:
    for naming in _NAMINGS:
      if match := naming.first.fullmatch(name):
        roots.setdefault(match[1], naming)
  if not roots:
    raise ValueError(
      f'no ResNet: none of its {len(file.tensors)} tensors is called '
      f'{_FIRST}, as in torchvision, or as in Hugging Face transformers. '
      f'Found: {stored.listed(file.tensors) or "nothing"}'
    )
  first = [root for root in roots if not _SECOND.search(root)] or list(roots)
  if len(first) > 1:
    raise ValueError(
      f'{len(first)} networks, and nothing says which is meant: '
      f'{stored.listed(first)}; save one of them alone'
    )
  [root] = first
  return roots[root], root, [other for other in roots if other != root]


def _outside(
  file: stored.Stored, root: str, second: tuple[str, ...]
) -> list[str]:
  """Names what is not part of a network, as briefly as possible."""
  parts = root.split('.')[:-1]
  outside: dict[str, None] = {}
  for name in (*file.tensors, *file.others):
    if name.startswith(second):
      continue
    words = name.split('.')
    common = 0
    while words[common : common + 1] == parts[common : common + 1] != []:
      common += 1
    if common < len(parts):
      outside['.'.join(words[: common + 1])] = None
    elif name not in file.tensors:
      outside[name] = None
  return list(outside)


def _check_dtypes(
  tensors: Mapping[str, stored.Tensor], original: Mapping[str, str]
) -> list[str]:
  """Gives the dtypes that have to be converted."""
  dtypes = {name: tensor.dtype.name for name, tensor in tensors.items()}
  known = ('float32', 'float16', 'bfloat16', 'float64')
  if unknown := [
    f'{original[name]} ({dtype})'
    for name, dtype in dtypes.items()
    if dtype not in known
  ]:
    raise ValueError(
      f'expected {", ".join(known)}; found {stored.listed(unknown)}'
    )
  return sorted({*dtypes.values()} - {'float32'})


def recognise(
  shapes: Mapping[str, tuple[int, ...]],
  original: Mapping[str, str] | None = None,
) -> Network:
  """Tells which ResNet has tensors of these names and shapes.

  Args:
    shapes: shapes by canonical name, without counters of batches.
    original: how the tensors are called where they come from.

  Returns:
    The network.

  Raises:
    ValueError: none that is known; what differs is named.
  """
  if empty := [
    (original or {}).get(key, key)
    for key, shape in shapes.items()
    if 0 in shape
  ]:
    raise ValueError(f'tensors without elements: {stored.listed(empty)}')
  blocks = [0, 0, 0, 0]
  for key in shapes:
    if match := re.match(r'layer(\d{1,4})\.(\d{1,4})\.', key):
      stage, index = int(match[1]), int(match[2])
      if not 1 <= stage <= 4:
        raise ValueError(f'it has a stage {stage}: expected stages 1 to 4')
      blocks[stage - 1] = max(blocks[stage - 1], index + 1)
  if 0 in blocks:
    raise ValueError(
      f'its stages have {blocks} blocks: expected four stages (the narrow '
      "ResNets for CIFAR, such as ResNet-56, have three and are not kdjax's)"
    )
  is_bottleneck = 'layer1.0.conv3.weight' in shapes
  name = NETWORKS.get((is_bottleneck, tuple(blocks)))
  if name is None:
    known = ', '.join(
      f'{each} ({list(counts)}{", bottleneck" if three else ""})'
      for (three, counts), each in NETWORKS.items()
    )
    raise ValueError(
      f'its stages have {blocks}{" bottleneck" if is_bottleneck else ""} '
      f'blocks, which is none of {known}'
    )

  stem = shapes.get('conv1.weight', ())
  kernel = stem[2:] if len(stem) == 4 else (7, 7)
  if kernel not in _STEMS:
    raise ValueError(
      f'its first convolution is {kernel[0]}×{kernel[1]}: expected 7×7 or 3×3'
    )
  first, head = shapes.get(_FIRST, ()), shapes.get('fc.weight', ())
  width = stem[0] if len(stem) == 4 else first[1] if len(first) == 4 else 64
  has_head = any(key.startswith('fc.') for key in shapes)
  model = {
    'name': name,
    'num_classes': (head[0] if len(head) == 2 else 1000) if has_head else None,
    'stem': _STEMS[kernel],
    'width': width,
  }
  channels = stem[1] if len(stem) == 4 else 3
  expected = dict(_shapes(model, is_bottleneck, blocks, kernel, channels))
  _compare(name, shapes, expected, original or {})
  return Network(model, channels, expected)


def _shapes(
  model: Mapping[str, Any],
  is_bottleneck: bool,
  blocks: list[int],
  kernel: tuple[int, ...],
  channels: int,
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields names and shapes of all tensors, in torchvision's order."""

  def conv_norm(
    conv: str, norm: str, shape: tuple[int, ...]
  ) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f'{conv}.weight', shape
    for kind in ('weight', 'bias', 'running_mean', 'running_var'):
      yield f'{norm}.{kind}', shape[:1]

  width = model['width']
  yield from conv_norm('conv1', 'bn1', (width, channels, *kernel))
  before = width
  for stage, count in enumerate(blocks):
    inner = width * 2**stage
    layers = [(inner, 3), (inner, 3)]
    if is_bottleneck:
      layers = [(inner, 1), (inner, 3), (4 * inner, 1)]
    out = layers[-1][0]
    for index in range(count):
      block = f'layer{stage + 1}.{index}.'
      x = before
      for number, (size, side) in enumerate(layers, 1):
        yield from conv_norm(
          f'{block}conv{number}', f'{block}bn{number}', (size, x, side, side)
        )
        x = size
      if index == 0 and (stage > 0 or before != out):
        yield from conv_norm(
          f'{block}downsample.0', f'{block}downsample.1', (out, before, 1, 1)
        )
      before = out
  if model['num_classes'] is not None:
    yield 'fc.weight', (model['num_classes'], before)
    yield 'fc.bias', (model['num_classes'],)


def _compare(
  name: str,
  found: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  original: Mapping[str, str],
) -> None:
  """Raises an error that names all differences."""
  missing = [key for key in expected if key not in found]
  extra = [original.get(key, key) for key in found if key not in expected]
  wrong = [
    f'{original.get(key, key)} {found[key]}, expected {shape}'
    for key, shape in expected.items()
    if key in found and found[key] != shape
  ]
  differences = [
    f'{len(names)} {what}: {stored.listed(names)}'
    for what, names in (
      ("missing (by torchvision's names)", missing),
      ('too many', extra),
      ('of another shape', wrong),
    )
    if names
  ]
  if differences:
    raise ValueError(
      f'most like a {name}, but not one. Tensors ' + '; '.join(differences)
    )


def to_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Nests and transposes arrays as Flax does.

  Args:
    arrays: by canonical name, in PyTorch's layouts.

  Returns:
    `{'params': …, 'batch_stats': …}` of new arrays, float32.
  """
  variables: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, array in arrays.items():
    collection, *path, leaf = _flax_path(name, array.ndim)
    place = variables[collection]
    for key in path:
      place = place.setdefault(key, {})
    place[leaf] = np.array(_to_flax_layout(array), np.float32, order='C')
  return variables


def from_flax(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Gives arrays their canonical names and PyTorch's layouts.

  Args:
    variables: `{'params': …, 'batch_stats': …}` of one of kdjax's ResNets;
      other collections are ignored.

  Returns:
    Arrays by name, in torchvision's order, without counters of batches.

  Raises:
    ValueError: it is no ResNet, or its BatchNorms are folded.
  """
  arrays: dict[str, np.ndarray] = {}
  for collection in ('params', 'batch_stats'):
    for path, leaf in _flat(variables.get(collection, {})):
      array = np.asarray(leaf)
      arrays[_canonical(path)] = _to_torch_layout(array)
  network = recognise({name: array.shape for name, array in arrays.items()})
  return {name: arrays[name] for name in network.shapes}


def with_counters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds the counters of batches that PyTorch's BatchNorms have."""
  complete = {}
  for name, array in arrays.items():
    complete[name] = array
    norm, _, kind = name.rpartition('.')
    if kind == 'running_var':
      complete[f'{norm}.{_COUNTER}'] = np.zeros((), np.int64)
  return complete


_STATISTICS = {'running_mean': 'mean', 'running_var': 'var'}


def _flax_path(name: str, rank: int) -> list[str]:
  """Gives the collection and the path of a tensor."""
  *path, kind = name.split('.')
  if path[0].startswith('layer'):
    path[0] = path[0].replace('layer', 'stage')
    path[1] = f'block{int(path[1]) + 1}'
  if path[2:3] == ['downsample']:
    path[2:] = [('downsample_conv', 'downsample_bn')[int(path[3])]]
  if kind in _STATISTICS:
    return ['batch_stats', *path, _STATISTICS[kind]]
  weight = 'kernel' if rank > 1 else 'scale'
  return ['params', *path, weight if kind == 'weight' else kind]


def _canonical(path: tuple[str, ...]) -> str:
  """Gives the name of a tensor by its path, or the path itself."""
  name = '.'.join(path)
  name = re.sub(
    r'^stage(\d+)\.block(\d+)\.',
    lambda match: f'layer{match[1]}.{int(match[2]) - 1}.',
    name,
  )
  name = re.sub(r'\.downsample_conv\.', '.downsample.0.', name)
  name = re.sub(r'\.downsample_bn\.', '.downsample.1.', name)
  name = re.sub(r'\.(?:kernel|scale)$', '.weight', name)
  return re.sub(r'\.(mean|var)$', r'.running_\1', name)


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
  # OIHW to HWIO, OI to IO.
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
  array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
  return np.ascontiguousarray(array)


def _flat(
  tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flat(value, (*path, key))
    else:
      yield (*path, key), value
