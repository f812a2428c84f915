"""Names and shapes of ResNets' weights, as others have them and as Flax has.

The canonical names here are torchvision's.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.storage.weights import stored_tensors, unpickler
from kdjax.system import escape

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
_SECOND = re.compile(
  r'(?:^|[._])(?:teacher|ema|swa|momentum|target|encoder_k)(?:$|[._])'
)
# Modules that PyTorch wraps around others: torch.compile, FSDP, activation
# checkpoints, DataParallel.
_WRAPPERS = (
  *('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'),
  *('_fpw_module', 'module'),
)
_WRAPPED = rf'\.(?:(?:{"|".join(_WRAPPERS)})\.)*'
# A last layer, beside the body or in it.
_HEAD = re.compile(r'(?:fc|linear|classifier|(?:cls_)?heads?|last_linear)\d*')
_BODY = re.compile(r'(?:conv1|bn1|layer\d+)\.')
# Modules beside body and head through which no image goes.
_BESIDE = re.compile(
  r'(?:^|[._])(?:optim|optimizer|scheduler|lr|criterion|loss|metrics?|aux\w*|'
  r'queue|mean|std|amp|scaler)(?:$|[._\d])'
)
_KINDS = 'weight', 'bias', 'running_mean', 'running_var'
_STATISTIC = re.compile(r'_?(?:(?:pixel|image|img|rgb)_)?(mean|std)')
# So many networks in one file are told apart.
_MAX_NETWORKS = 20


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
    network: what it is; of a ViT a `vit_names.Network`.
    tensors: its tensors by canonical name.
    original: their names in the file.
    recognised: what a person may want to know, a line each.
    normalization: names in the file of the `mean` and `std` of its images,
      which a layer of the network normalises; empty if there is none.
  """

  network: Any
  tensors: dict[str, stored_tensors.Tensor]
  original: dict[str, str]
  recognised: tuple[str, ...]
  normalization: dict[str, str]


class _Naming(NamedTuple):
  """How others name the same tensors.

  Attributes:
    whose: whose names they are.
    first: matches the name that torchvision calls `_FIRST`, and captures what
      stands before it.
    canonical: returns a tensor's canonical name, but for the last layer's.
    last: number of the last stage, where modules have numbers for names.
  """

  whose: str
  first: re.Pattern[str]
  canonical: Callable[[str], str]
  last: int | None = None


_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _renaming(*rules: _Rule) -> Callable[[str], str]:
  """Returns a function that replaces patterns in a name, one by one."""

  def canonical(name: str) -> str:
    for pattern, replacement in rules:
      name = re.sub(pattern, replacement, name)
    return name

  return canonical


_torchvision = _renaming((r'^(layer\d+\.\d+)\.shortcut\.', r'\1.downsample.'))
# Convolution, norm and ReLU take turns in `residual_function`.
_sequential = _renaming(
  (r'^conv1\.0\.', 'conv1.'),
  (r'^conv1\.1\.', 'bn1.'),
  (r'^conv([2-9])_x(?=\.\d+\.)', lambda match: f'layer{int(match[1]) - 1}'),
  (r'^(layer\d\.\d+)\.shortcut\.', r'\1.downsample.'),
  (
    r'^(layer\d\.\d+)\.residual_function\.(\d)\.',
    lambda match: (
      f'{match[1]}.{("conv", "bn", "relu")[int(match[2]) % 3]}'
      f'{int(match[2]) // 3 + 1}.'
    ),
  ),
)
_transformers = _renaming(
  (r'^resnet\.', ''),
  (r'^embedder\.embedder\.convolution\.', 'conv1.'),
  (r'^embedder\.embedder\.normalization\.', 'bn1.'),
  (
    r'^encoder\.stages\.(\d)\.layers(?=\.\d+\.)',
    lambda match: f'layer{int(match[1]) + 1}',
  ),
  (r'^(layer\d\.\d+)\.shortcut\.convolution\.', r'\1.downsample.0.'),
  (r'^(layer\d\.\d+)\.shortcut\.normalization\.', r'\1.downsample.1.'),
  (
    r'^(layer\d\.\d+)\.layer\.(\d)\.(convolution|normalization)\.',
    lambda match: (
      f'{match[1]}.{"conv" if match[3] == "convolution" else "bn"}'
      f'{int(match[2]) + 1}.'
    ),
  ),
)


def _children(first: int) -> Callable[[str], str]:
  """Names the modules of a `Sequential` by the number of its first stage."""
  modules = {'0': 'conv1', '1': 'bn1'} | {
    str(first + stage): f'layer{stage + 1}' for stage in range(4)
  }

  def canonical(name: str) -> str:
    number, dot, rest = name.partition('.')
    return _torchvision(f'{modules.get(number, number)}{dot}{rest}')

  return canonical


def _first(name: str) -> re.Pattern[str]:
  """Matches a name with anything before it and wrappers in it."""
  name = name.replace(r'\.', _WRAPPED)
  return re.compile(rf'((?:[^.]+\.)*?){name}')


_NAMINGS = (
  _Naming(
    "torchvision's names", _first(r'layer1\.0\.conv1\.weight'), _torchvision
  ),
  _Naming(
    "Hugging Face transformers' names",
    _first(
      r'(?:resnet\.)?encoder\.stages\.0\.layers\.0\.layer\.0\.convolution'
      r'\.weight'
    ),
    _transformers,
  ),
  _Naming(
    'names with conv2_x … conv5_x and residual_function',
    _first(r'conv2_x\.0\.residual_function\.0\.weight'),
    _sequential,
  ),
  # The first stage is 4 after convolution, norm, ReLU and max-pool, 3 without a
  # max-pool. Stage 3 is tried first: that of the other is its second.
  *(
    _Naming(
      f"numbers of a Sequential's modules, stages {first} to {first + 3}",
      _first(rf'{first}\.0\.conv1\.weight'),
      _children(first),
      first + 3,
    )
    for first in (3, 4)
  ),
)


class _Part(NamedTuple):
  """Tensors of a file that belong to one network.

  Attributes:
    naming: how they are named.
    root: what stands before the names of its body.
    body: their names in the file by canonical name, but for the last layer.
    heads: of each module of its last layers, by name, kind and name of each
      tensor.
    rest: names of others that stand behind the root.
    twice: names left out, since the same tensor has another name, too.
  """

  naming: _Naming
  root: str
  body: dict[str, str]
  heads: dict[str, dict[str, str]]
  rest: tuple[str, ...]
  twice: tuple[str, ...]


def find(file: stored_tensors.Stored, *, headless: bool = False) -> Found:
  """Finds the ResNet among the tensors of a file.

  Whatever stands before all of its names, in dictionaries or with dots, is
  taken off. Tensors are read only to compare those that are there twice.

  Args:
    file: what is in the file.
    headless: whether last layers that are not one linear layer are left out.

  Returns:
    The network, whose tensors have all the names, shapes and dtypes that they
    should have, and no others.

  Raises:
    ValueError: there is none, or several; it is another network; or tensors are
      of a dtype that is not known.
  """
  part, second, same = _choose(file)
  elsewhere = (*second, *same)
  images = _find_normalization(file, part, elsewhere)
  original, dropped = _join_head(file, part, images, elsewhere, headless)
  rest = [name for name in part.rest if name not in images.values()]
  original |= {name: name for name in rest}
  tensors = {name: file.tensors[place] for name, place in original.items()}
  network = _recognise(
    {name: tensor.shape for name, tensor in tensors.items()}, original
  )
  _check_stem(part, network)
  converted = check_dtypes(tensors, original)
  ignored = _outside(
    file,
    part.root,
    (*elsewhere, *(f'{module}.' for module in dropped)),
    {*original.values(), *images.values()},
  )
  notes = _describe(file, part.naming, network)
  for what, names in (
    ('prefix taken off', [part.root] if part.root else []),
    ('the same network twice, taken once', same),
    ('the same tensors twice, taken once', part.twice),
    ('other networks, not taken', second),
    ('last layers, not taken', dropped),
    ('ignored', ignored),
    ('objects, not read and not executed', file.classes),
    ('converted to float32', converted),
  ):
    if names:
      notes.append(f'{what}: {escape.listed(names)}')
  ordered = {name: tensors[name] for name in network.shapes}
  return Found(network, ordered, original, tuple(notes), images)


def _describe(
  file: stored_tensors.Stored, naming: _Naming, network: Network
) -> list[str]:
  model = network.model
  head = model['num_classes']
  return [
    f'{file.format}, {naming.whose}',
    f'{model["name"]}, {model["stem"]} stem, width {model["width"]}, '
    f'{f"{head} classes" if head is not None else "no classifier"}, '
    f'{network.channels} channel{"" if network.channels == 1 else "s"}',
  ]


def _choose(file: stored_tensors.Stored) -> tuple[_Part, list[str], list[str]]:
  """Finds the network, the prefixes of other networks, and its own."""
  roots: dict[str, _Naming] = {}
  for naming in _NAMINGS:
    for name in file.tensors:
      if match := naming.first.fullmatch(name):
        roots.setdefault(match[1], naming)
  if not roots:
    raise ValueError(_no_network(file))
  first = [root for root in roots if not _SECOND.search(root)] or list(roots)
  parts = []
  if len(roots) <= _MAX_NETWORKS:
    parts = [_part(file, roots[root], root, [*roots]) for root in first]
  # First the whole of a network, then what holds its body alone.
  parts.sort(key=lambda part: -len(part.body) - len(part.heads))
  if not parts or not all(_same(file, parts[0], each) for each in parts[1:]):
    raise ValueError(
      f'{len(first)} networks which differ, and nothing says which is meant: '
      f'{escape.listed(first)}; save the one that is meant alone, '
      'torch.save(NETWORK.state_dict(), …)'
    )
  same = [part.root for part in parts[1:]]
  second = [r for r in roots if r != parts[0].root and r not in same]
  heads = {
    module: tensors for part in parts for module, tensors in part.heads.items()
  }
  return parts[0]._replace(heads=heads), second, same


def _no_network(file: stored_tensors.Stored) -> str:
  if file.classes:
    return (
      'no ResNet: what it holds are objects and no weights, of '
      f'{escape.listed(file.classes, most=3)}: {unpickler.REMEDY}'
    )
  return (
    f'no ResNet: none of its {len(file.tensors)} tensors is called '
    f'{_FIRST}, as in torchvision, or as in Hugging Face transformers. '
    f'Found: {escape.listed(file.tensors) or "nothing"}'
  )


def _split(name: str, root: str) -> tuple[int, list[str]]:
  """Tells how much a name has in common with a prefix, and what comes after.

  Wrappers after it are left out.
  """
  words = name.split('.')
  common = stored_tensors.count_common(words, root.split('.')[:-1])
  tail = [word for word in words[common:] if word not in _WRAPPERS]
  return common, tail or words[-1:]


def _part(
  file: stored_tensors.Stored, naming: _Naming, root: str, roots: list[str]
) -> _Part:
  """Sorts out what belongs to a network, by names alone."""
  others = tuple(
    r for r in roots if r != root and (r.startswith(root) or _SECOND.search(r))
  )
  level = root.count('.')
  body: dict[str, str] = {}
  heads: dict[str, dict[str, str]] = {}
  rest, twice = [], []
  for name in file.tensors:
    if name.startswith(others) or name.endswith(f'.{_COUNTER}'):
      continue
    common, tail = _split(name, root)
    inside = common == level
    canonical = naming.canonical('.'.join(tail)) if inside else ''
    if _BODY.match(canonical):
      if canonical not in body:
        body[canonical] = name
      elif _equal(file, body[canonical], name):
        twice.append(name)
      else:
        raise ValueError(
          f'{escape.listed([body[canonical], name])} are the same tensor of a '
          'ResNet twice, and differ'
        )
    elif _is_head(naming, root, common, tail, inside):
      module, _, kind = name.rpartition('.')
      heads.setdefault(module, {})[kind] = name
    elif inside:
      rest.append(name)
  return _Part(naming, root, body, heads, tuple(rest), tuple(twice))


def _is_head(
  naming: _Naming, root: str, common: int, tail: list[str], inside: bool
) -> bool:
  """Whether a tensor is of a last layer, by its name."""
  if len(tail) < 2:
    return False
  if _HEAD.fullmatch(tail[0]):
    return True
  # A Sequential of a body and what comes after it.
  before = str(naming.last) if inside else root.split('.')[common]
  *modules, kind = tail
  return (
    all(map(_is_number, (before, *modules)))
    and int(modules[0]) > int(before)
    and kind in _KINDS
  )


def _is_number(text: str) -> bool:
  return re.fullmatch(r'\d{1,4}', text, re.ASCII) is not None


def _equal(file: stored_tensors.Stored, *names: str) -> bool:
  """Whether tensors have the same values."""
  one, other = (file.tensors[name] for name in names)
  if one.shape != other.shape or one.dtype != other.dtype:
    return False
  return np.array_equal(one.read(), other.read())


def _same(file: stored_tensors.Stored, whole: _Part, part: _Part) -> bool:
  """Whether the body of a network is that of another one."""
  pairs = [(whole.body.get(key), name) for key, name in part.body.items()]
  # Not more than the file has, if they are not the same few bytes.
  nbytes = sum(file.tensors[name].nbytes for _, name in pairs)
  return nbytes <= file.size and all(
    one is not None and _equal(file, one, other) for one, other in pairs
  )


def _join_head(
  file: stored_tensors.Stored,
  part: _Part,
  images: Mapping[str, str],
  elsewhere: tuple[str, ...],
  headless: bool,
) -> tuple[dict[str, str], list[str]]:
  """Joins body and last layer; names by canonical name, and those left out."""
  heads: dict[str, dict[str, str]] = {}
  for module, tensors in part.heads.items():
    if not any(_same_module(file, tensors, other) for other in heads.values()):
      heads[module] = tensors
  between = _between(file, part, heads, images, elsewhere)
  if len(heads) > 1 or (heads and between):
    names = escape.listed([*heads, *between])
    if headless:
      return dict(part.body), [*heads, *between]
    raise ValueError(
      f'a head of several layers, or several heads ({names}): expected one '
      "linear layer, as kdjax's ResNets have it. Its body can be taken without "
      'it: give config.teacher.head=fresh, or config.student.init_from and '
      'config.student.head=fresh'
    )
  head = {
    f'fc.{kind}': name
    for tensors in heads.values()
    for kind, name in tensors.items()
  }
  return part.body | head, []


def _same_module(
  file: stored_tensors.Stored, one: Mapping[str, str], other: Mapping[str, str]
) -> bool:
  return one.keys() == other.keys() and all(
    _equal(file, one[kind], other[kind]) for kind in one
  )


def _between(
  file: stored_tensors.Stored,
  part: _Part,
  heads: Mapping[str, Mapping[str, str]],
  images: Mapping[str, str],
  elsewhere: tuple[str, ...],
) -> list[str]:
  """Names modules that may come between the body and a head beside it."""
  levels = [_split(module, part.root)[0] for module in heads]
  if not levels or min(levels) == part.root.count('.'):
    return []
  known = {name for head in part.heads.values() for name in head.values()}
  known |= {*images.values(), *part.twice}
  found: dict[str, None] = {}
  for name, tensor in file.tensors.items():
    common, _ = _split(name, part.root)
    if (
      min(levels) <= common < part.root.count('.')
      and name not in known
      and tensor.shape
      and not name.startswith(elsewhere)
      and not _BESIDE.search(name)
      and not _SECOND.search(name)
    ):
      found[name.rpartition('.')[0] or name] = None
  return list(found)


def _find_normalization(
  file: stored_tensors.Stored, part: _Part, elsewhere: tuple[str, ...]
) -> dict[str, str]:
  """Names the mean and deviation by which a network normalises its images."""
  stem = file.tensors.get(part.body.get('conv1.weight', ''))
  channels = stem.shape[1] if stem and len(stem.shape) == 4 else 3
  found: dict[str, dict[str, str]] = {}
  for name, tensor in file.tensors.items():
    _, tail = _split(name, part.root)
    match = _STATISTIC.fullmatch(tail[-1])
    if (
      not match
      or len(tail) > 2
      or name.startswith(elsewhere)
      or [n for n in tensor.shape if n != 1] not in ([], [channels])
    ):
      continue
    found.setdefault(name.rpartition('.')[0], {})[match[1]] = name
  pairs = [each for each in found.values() if len(each) == 2]
  if any(not _same_module(file, pairs[0], other) for other in pairs[1:]):
    names = escape.listed(name for pair in pairs for name in pair.values())
    raise ValueError(
      f'several means and deviations of images, which differ: {names}'
    )
  return pairs[0] if pairs else {}


def _check_stem(part: _Part, network: Network) -> None:
  """Checks that a network in a Sequential has what has no weights, too."""
  if part.naming.last == 6 and network.model['stem'] == 'imagenet':
    raise ValueError(
      'its stages are the modules 3 to 6 of a Sequential, so that after its '
      "first convolution of 7×7 there is no max-pool, or no ReLU: kdjax's "
      'ResNets have both. Save model.state_dict() of the ResNet itself'
    )


def _outside(
  file: stored_tensors.Stored,
  root: str,
  elsewhere: tuple[str, ...],
  taken: Collection[str],
) -> list[str]:
  """Names what is not part of a network, as briefly as possible."""
  level = root.count('.')
  outside: dict[str, None] = {}
  for name in (*file.tensors, *file.others):
    if name.startswith(elsewhere) or name in taken:
      continue
    words = name.split('.')
    common, _ = _split(name, root)
    if common < level:
      outside['.'.join(words[: common + 1])] = None
    elif name not in file.tensors:
      outside[name] = None
  return list(outside)


def check_dtypes(
  tensors: Mapping[str, stored_tensors.Tensor], original: Mapping[str, str]
) -> list[str]:
  """Checks that the dtypes of tensors are known.

  Args:
    tensors: by canonical name.
    original: names in the file by canonical name.

  Returns:
    Names of the dtypes that have to be converted.

  Raises:
    ValueError: one is none of a weight's.
  """
  dtypes = {name: tensor.dtype.name for name, tensor in tensors.items()}
  known = ('float32', 'float16', 'bfloat16', 'float64')
  if unknown := [
    f'{original[name]} ({dtype})'
    for name, dtype in dtypes.items()
    if dtype not in known
  ]:
    raise ValueError(
      f'expected {", ".join(known)}; found {escape.listed(unknown)}'
    )
  return sorted({*dtypes.values()} - {'float32'})


def _recognise(
  shapes: Mapping[str, tuple[int, ...]],
  original: Mapping[str, str] | None = None,
) -> Network:
  """Tells which ResNet has tensors of these shapes, by canonical name."""
  if empty := [
    (original or {}).get(key, key)
    for key, shape in shapes.items()
    if 0 in shape
  ]:
    raise ValueError(f'tensors without elements: {escape.listed(empty)}')
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
      'ResNets for CIFAR, such as ResNet-56, have three, and files of theirs '
      'are not read)'
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
  compare(name, shapes, expected, original or {})
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


def compare(
  name: str,
  found: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  original: Mapping[str, str],
  whose: str = "torchvision's",
) -> None:
  """Checks that tensors have the names and shapes of a network's.

  Args:
    name: what the network is called.
    found: shapes by canonical name.
    expected: those of the network.
    original: names in a file by canonical name.
    whose: whose names the canonical ones are.

  Raises:
    ValueError: they differ; the message names all differences.
  """
  missing = [key for key in expected if key not in found]
  extra = [original.get(key, key) for key in found if key not in expected]
  wrong = [
    f'{original.get(key, key)} {found[key]}, expected {shape}'
    for key, shape in expected.items()
    if key in found and found[key] != shape
  ]
  differences = [
    f'{len(names)} {what}: {escape.listed(names)}'
    for what, names in (
      (f'missing (by {whose} names)', missing),
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
    place[leaf] = np.array(to_flax_layout(array), np.float32, order='C')
  return variables


def from_flax(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Renames arrays as torchvision does, in its order and PyTorch's layouts.

  As `loading.to_torchvision`, without counters of batches.
  """
  arrays: dict[str, np.ndarray] = {}
  for collection in ('params', 'batch_stats'):
    for path, leaf in flat(variables.get(collection, {})):
      array = np.asarray(leaf)
      arrays[_canonical('.'.join(path))] = to_torch_layout(array)
  network = _recognise({name: array.shape for name, array in arrays.items()})
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
  """Returns the collection and the path of a tensor."""
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


_canonical = _renaming(
  (
    r'^stage(\d+)\.block(\d+)\.',
    lambda match: f'layer{match[1]}.{int(match[2]) - 1}.',
  ),
  (r'\.downsample_conv\.', '.downsample.0.'),
  (r'\.downsample_bn\.', '.downsample.1.'),
  (r'\.(?:kernel|scale)$', '.weight'),
  (r'\.(mean|var)$', r'.running_\1'),
)


def to_flax_layout(array: np.ndarray) -> np.ndarray:
  """Turns OIHW into HWIO and OI into IO."""
  if array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  return array.T if array.ndim == 2 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
  """Turns HWIO into OIHW and IO into OI."""
  if array.ndim == 4:
    array = array.transpose(3, 2, 0, 1)
  elif array.ndim == 2:
    array = array.T
  return np.ascontiguousarray(array)


def flat(
  tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Yields the path and the value of each leaf of nested dictionaries."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flat(value, (*path, key))
    else:
      yield (*path, key), value
