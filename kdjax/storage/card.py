"""What is known of a network, as JSON: its card.

It goes wherever the network goes: into `model_card.json`, the header of a
safetensors file, or a file beside a program. Whoever wrote it, nothing in it is
believed before it has been checked.
"""

import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from kdjax.storage import digests
from kdjax.system import float32

_Path = str | os.PathLike[str]

# The largest number that JAX takes for the size of an array.
_LARGEST = 2**31 - 1


def seal(card: Mapping[str, Any], **content: Any) -> str:
  """Returns the text of a card, with the SHA-256 of all of it.

  Args:
    card: the card.
    **content: what it says of the arrays or the program that it belongs to.

  Returns:
    JSON, which `read` reads.
  """
  sealed = digests.seal({**card, **content})
  return json.dumps(sealed, indent=2, sort_keys=True) + '\n'


def read(text: str | bytes, path: _Path) -> dict[str, Any]:
  """Reads the text of a card.

  Args:
    text: what `seal` gave.
    path: the file that it comes from.

  Returns:
    The card, and what else was given to `seal`.

  Raises:
    ValueError: it is damaged, or no such card.
  """
  try:
    content = json.loads(text)
    sealed = isinstance(content, dict) and digests.is_sealed(content)
  # Braces without end are the other two.
  except (ValueError, RecursionError, MemoryError) as error:
    raise ValueError(
      f'the model card in {path} cannot be read: {error!r}'
    ) from error
  if not sealed:
    raise ValueError(
      f'the model card in {path} is damaged: its SHA-256 is not the one '
      'recorded there. Export the network again, or put a sound copy there'
    )
  del content[digests.SHA256]
  check(content, path)
  return content


def check(card: Mapping[str, Any], path: _Path) -> None:
  """Checks that a card has all that it must have.

  Args:
    card: the card (see `kdjax.storage.networks.Pretrained`); it may say more.
    path: where it comes from.

  Raises:
    ValueError: something is missing, or is not what it must be.
  """
  for key in (
    'kdjax',
    'model',
    'class_names',
    'preprocessing',
    'metrics',
    'provenance',
  ):
    if key not in card:
      raise ValueError(f'{path}: the card does not say {key}')
  version = card['kdjax']
  _require(
    path, version is None or isinstance(version, str), 'kdjax', version, 'text'
  )
  check_model(card['model'], path)
  for key in ('preprocessing', 'metrics', 'provenance'):
    _require(path, isinstance(card[key], dict), key, card[key], 'a dictionary')

  names, count = card['class_names'], card['model']['num_classes']
  _require(
    path,
    names is None
    or (
      isinstance(names, list)
      and len(names) == count
      and all(isinstance(name, str) for name in names)
    ),
    'class_names',
    names,
    f'null, or a list of {count} names',
  )

  _check_preprocessing(card['preprocessing'], path)


def _check_preprocessing(known: Mapping[str, Any], path: _Path) -> None:
  """Checks what a card says of the images of its network."""
  for key in ('image_shape', 'channels', 'mean', 'std', 'crop'):
    if key not in known:
      raise ValueError(f'{path}: the card does not say preprocessing.{key}')
  channels, shape, crop = known['channels'], known['image_shape'], known['crop']
  _require(
    path,
    _is_size(channels),
    'preprocessing.channels',
    channels,
    'a positive integer',
  )
  _require(
    path,
    shape is None
    or (
      isinstance(shape, list)
      and len(shape) == 3
      and all(map(_is_size, shape))
      and shape[2] == channels
    ),
    'preprocessing.image_shape',
    shape,
    f'null, or height, width and {channels} channels',
  )
  mean, std = known['mean'], known['std']
  _require(
    path,
    (mean is None and std is None) or is_normalization(mean, std, channels),
    'preprocessing.mean and .std',
    (mean, std),
    f'null for both, or {channels} numbers for each, positive deviations',
  )
  _require(
    path,
    float32.is_number(crop) and 0 < crop <= 1,
    'preprocessing.crop',
    crop,
    'a number from 0 to 1, not 0',
  )


def _require(
  path: _Path, right: bool, name: str, value: Any, expected: str
) -> None:
  if not right:
    raise ValueError(
      f'{path}: the card says that {name} is {reprlib.repr(value)}, expected '
      f'{expected}'
    )


def check_model(model: Any, path: _Path) -> None:
  """Checks what a file says of a model, before any of it is built.

  Args:
    model: arguments of `kdjax.models.build`.
    path: where it comes from.

  Raises:
    ValueError: something is missing, of the wrong type, or no such argument.
  """
  if not isinstance(model, dict):
    raise ValueError(
      f'{path}: its model is {reprlib.repr(model)}, expected a dictionary'
    )
  # Of others' models only these may be known.
  if missing := [key for key in ('name', 'num_classes') if key not in model]:
    raise ValueError(f'{path}: its model has no {" and no ".join(missing)}')
  for key, value in model.items():
    right, expected = _MODEL.get(key, (None, ''))
    if right is None:
      raise ValueError(
        f'{path}: its model has {reprlib.repr(key)}, expected nothing but '
        f'{", ".join(_MODEL)}'
      )
    if not right(value):
      raise ValueError(
        f'{path}: its model has {reprlib.repr(value)} as {key}, expected '
        f'{expected}'
      )


def check_asked(
  card: Mapping[str, Any], path: _Path, checkpoint: str, ema: bool
) -> None:
  """Checks that what is asked for is what there is, where that is no run.

  Args:
    card: the card of a network.
    path: where it comes from.
    checkpoint: which of a run is asked for.
    ema: whether moving averages are.

  Raises:
    ValueError: it is not.
  """
  if checkpoint != 'best':
    raise ValueError(
      f"{path} is one network, not a run with several: leave '{checkpoint}' out"
    )
  if ema and not card['provenance'].get('ema'):
    raise ValueError(
      f'{path} is not known to be moving averages: ask a run, or a checkpoint '
      'of one, for them'
    )


def is_normalization(mean: Any, std: Any, channels: int) -> bool:
  """Whether images can be normalised with a mean and a deviation.

  Args:
    mean: anything.
    std: anything.
    channels: their channels.

  Returns:
    Whether both are so many numbers that float32 can hold, and those of `std`
    positive.
  """
  return all(
    isinstance(values, list | tuple)
    and len(values) == channels
    and all(map(float32.is_number, values))
    for values in (mean, std)
  ) and all(value >= float32.TINY for value in std)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 < value <= _LARGEST


# What may be said of a model: whether a value can be, and what it should be.
_MODEL = {
  'name': (lambda value: isinstance(value, str), 'text'),
  'num_classes': (_is_size, 'a positive integer'),
  'stem': (lambda value: isinstance(value, str), 'text'),
  # That of a model which has none may be 0.
  'width': (
    lambda value: type(value) is int and 0 <= value <= _LARGEST,
    'an integer',
  ),
  'dtype': (
    lambda value: value in ('float32', 'bfloat16'),
    "'float32' or 'bfloat16'",
  ),
}
