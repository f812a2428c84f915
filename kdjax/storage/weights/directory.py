"""Directories of weights, as Hugging Face's libraries and timm leave them.

The weights are in one file, or in several that an index names. Beside them
`config.json` may say the classes, and `preprocessor_config.json`, or timm's
`pretrained_cfg`, how images are prepared.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.storage import schema
from kdjax.storage.weights import stored_tensors
from kdjax.system import escape

# The first that is there is taken.
_FILES = (
  *('model.safetensors', 'model.safetensors.index.json'),
  *('pytorch_model.bin', 'pytorch_model.bin.index.json'),
  'flax_model.msgpack',
)
_CONFIG, _PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_MAX_JSON = 2**24
# What kdjax's ResNets have, which weights do not show.
_HIDDEN: Mapping[str, tuple[Any, ...]] = {
  'hidden_act': ('relu',),
  'downsample_in_bottleneck': (False,),
  'downsample_in_first_stage': (False,),
}
_TIMM_HIDDEN = ('act_layer', 'aa_layer', 'block_args', 'output_stride')


class Description(NamedTuple):
  """What the files beside the weights say.

  Attributes:
    class_names: the name of each class; None if unknown.
    normalization: `mean` and `std` of each channel, of pixels scaled to 0 … 1;
      None if unknown.
    size: height and width of images; None if unknown.
    crop: share of an image's shorter side that the square has which is cut out
      of its middle and resized.
    notes: what a person may want to know, a line each.
  """

  class_names: list[str] | None
  normalization: dict[str, list[float]] | None
  size: tuple[int, int] | None
  crop: float
  notes: tuple[str, ...]


def is_one(path: pathlib.Path) -> bool:
  """Whether a path is a directory with weights under a usual name."""
  return any((path / name).is_file() for name in _FILES)


def weights_of(path: pathlib.Path) -> list[pathlib.Path]:
  """Finds the files of weights in a directory: one, or all in an index.

  Raises:
    FileNotFoundError: one that an index names is not there.
    ValueError: the index is no such index.
    OSError: it cannot be read.
  """
  first = next(name for name in _FILES if (path / name).is_file())
  if not first.endswith('.json'):
    return [path / first]
  index = _read_json(path / first)
  shards = index.get('weight_map')
  if (
    not isinstance(shards, dict)
    or not shards
    or not all(
      isinstance(name, str) and name == pathlib.PurePath(name).name
      for name in shards.values()
    )
  ):
    raise ValueError(
      f'{path / first} has no weight_map of names of tensors to names of files '
      'beside it: the index is damaged'
    )
  found = [path / name for name in dict.fromkeys(shards.values())]
  if missing := [file.name for file in found if not file.is_file()]:
    raise FileNotFoundError(
      f'there is no file {escape.listed(missing)} in {path}, which {first} '
      'names: download it, too'
    )
  return found


def join(parts: Sequence[stored_tensors.Stored]) -> stored_tensors.Stored:
  """Joins what several files hold; a ValueError names what is in two."""
  tensors: dict[str, stored_tensors.Tensor] = {}
  for part in parts:
    if twice := tensors.keys() & part.tensors.keys():
      raise ValueError(f'{escape.listed(sorted(twice))} are in two files')
    tensors |= part.tensors
  count = f' in {len(parts)} files' if len(parts) > 1 else ''
  return parts[0]._replace(
    tensors=tensors,
    others=tuple(name for part in parts for name in part.others),
    format=f'{parts[0].format}{count}',
    classes=tuple({name: None for part in parts for name in part.classes}),
    size=sum(part.size for part in parts),
  )


def describe(
  path: pathlib.Path, num_classes: int | None, channels: int
) -> Description:
  """Reads what the files beside the weights say.

  Args:
    path: the directory.
    num_classes: of the network in it, None without a classifier.
    channels: of its images.

  Raises:
    ValueError: a file is damaged, or the network is one whose weights look like
      a ResNet's and which computes something else.
    OSError: a file cannot be read.
  """
  config, processor = (
    _read_json(path / name) if (path / name).is_file() else {}
    for name in (_CONFIG, _PREPROCESSOR)
  )
  timm = config.get('pretrained_cfg')
  timm = timm if isinstance(timm, dict) else {}
  _check_hidden(path, config, timm)
  notes = []
  names = _class_names(config, timm)
  if names and num_classes is not None and len(names) != num_classes:
    notes.append(
      f'{_CONFIG} names {len(names)} classes and the weights know '
      f'{num_classes}: names not taken'
    )
    names = None
  if num_classes is None:
    names = None
  source, images = _CONFIG, _timm_images(timm)
  if images is None and processor:
    source, images = _PREPROCESSOR, _processor_images(processor)
  if images is None:
    return Description(names, None, None, 1.0, tuple(notes))
  (mean, std), size, crop = images
  normalization = None
  if len(mean) == len(std) == channels:
    normalization = {'mean': mean, 'std': std}
    notes.append(f'{source} says mean {mean} and standard deviation {std}')
  if size:
    notes.append(
      f'{source} says images of {size[0]}×{size[1]} pixels; name the file of '
      'weights itself to leave out what is said beside it'
    )
  return Description(names, normalization, size, crop, tuple(notes))


def _check_hidden(
  path: pathlib.Path, config: Mapping[str, Any], timm: Mapping[str, Any]
) -> None:
  """Refuses what weights do not show and kdjax's ResNets do not have."""
  wrong = [
    f'{key} is {config[key]!r}, expected {expected[0]!r}'
    for key, expected in _HIDDEN.items()
    if not timm and config.get(key, expected[0]) not in expected
  ]
  if timm:
    name = str(config.get('architecture', ''))
    if 'blur' in name or 'resnetaa' in name:
      wrong.append(f'architecture is {name!r}, which blurs')
    more = config.get('model_args')
    more = more if isinstance(more, dict) else {}
    wrong += [f'model_args has {key}' for key in _TIMM_HIDDEN if key in more]
  if wrong:
    raise ValueError(
      f'{path / _CONFIG}: {escape.listed(wrong)}: kdjax has no such ResNet'
    )


def _class_names(
  config: Mapping[str, Any], timm: Mapping[str, Any]
) -> list[str] | None:
  names = config.get('label_names') or timm.get('label_names')
  if names is None and isinstance(config.get('id2label'), dict):
    labels = config['id2label']
    if labels.keys() != {str(i) for i in range(len(labels))}:
      return None
    names = [labels[str(i)] for i in range(len(labels))]
  if not isinstance(names, list) or not names:
    return None
  # What transformers writes where nobody named them.
  unnamed = [f'LABEL_{i}' for i in range(len(names))]
  if names == unnamed or not all(isinstance(name, str) for name in names):
    return None
  return names


_Images = tuple[tuple[list[float], list[float]], tuple[int, int] | None, float]


def _timm_images(timm: Mapping[str, Any]) -> _Images | None:
  mean, std = _numbers(timm.get('mean')), _numbers(timm.get('std'))
  if mean is None or std is None:
    return None
  size = None
  match timm.get('input_size'):
    case [int(), int(height), int(width)] if height > 0 and width > 0:
      size = height, width
  return (mean, std), size, _share(timm.get('crop_pct', 1.0))


def _processor_images(said: Mapping[str, Any]) -> _Images | None:
  """Reads the configuration of an image processor of transformers."""
  mean, std = _numbers(said.get('image_mean')), _numbers(said.get('image_std'))
  if said.get('do_normalize', True) is False:
    mean, std = ([x] * len(mean or (0, 0, 0)) for x in (0.0, 1.0))
  factor = said.get('rescale_factor', 1 / 255)
  if said.get('do_rescale', True) is False:
    factor = 1.0
  if (
    mean is None
    or std is None
    or not _is_number(factor)
    or factor <= 0
    or said.get('rescale_offset')
  ):
    return None
  # Its pixels are those of 0 … 1 times this.
  scale = 255 * factor
  if abs(scale - 1) < 1e-6:
    scale = 1
  mean, std = ([x / scale for x in values] for values in (mean, std))
  size, crop = _size(said.get('size')), 1.0
  if said.get('do_resize', True) is False:
    size = None
  if said.get('do_center_crop') and (cut := _size(said.get('crop_size'))):
    crop = _share(min(cut) / min(size) if size else 1.0)
    size = cut
  elif size and min(size) < 384:
    # That of ConvNeXt, which ResNets have, too, cuts images that are small.
    crop = _share(said.get('crop_pct'))
  return (mean, std), size, crop


def _size(size: Any) -> tuple[int, int] | None:
  match size:
    case int(side) | {'shortest_edge': int(side)}:
      size = side, side
    case {'height': int(height), 'width': int(width)}:
      size = height, width
    case _:
      return None
  return size if min(size) > 0 else None


def _share(value: Any) -> float:
  return float(value) if _is_number(value) and 0 < value <= 1 else 1.0


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Any) -> list[float] | None:
  if not isinstance(values, list) or not all(map(_is_number, values)):
    return None
  return [float(x) for x in values]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  with path.open('rb') as file:
    text = file.read(_MAX_JSON + 1)
  try:
    if len(text) > _MAX_JSON:
      raise ValueError(f'more than {_MAX_JSON} bytes')
    return schema.parse(text)
  except ValueError as error:
    raise ValueError(
      f'{path}: expected a dictionary, as JSON: {error}'
    ) from error
