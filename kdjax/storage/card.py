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

from kdjax.storage import digests, schema
from kdjax.system import float32

_Path = str | os.PathLike[str]

# The largest number that JAX takes for the size of an array.
_LARGEST = 2**31 - 1
_DTYPES = 'float32', 'bfloat16'
_MODEL = {
  'name': schema.TEXT,
  'num_classes': schema.INTEGER,
  'stem': schema.TEXT,
  'width': schema.INTEGER,
  'dtype': schema.TEXT,
}
_MAYBE_LIST = schema.LIST + schema.NULL
_CARD = {
  'kdjax': schema.TEXT + schema.NULL,
  'model': schema.OBJECT,
  'class_names': _MAYBE_LIST,
  'preprocessing': {
    'image_shape': _MAYBE_LIST,
    'channels': schema.INTEGER,
    'mean': _MAYBE_LIST,
    'std': _MAYBE_LIST,
    'crop': schema.NUMBER,
  },
  'metrics': schema.OBJECT,
  'provenance': schema.OBJECT,
}


def to_json(card: Mapping[str, Any], **content: Any) -> str:
  """Formats a card as JSON, which `read` reads, with the SHA-256 of all of it.

  Args:
    card: the card.
    **content: what it says of the arrays or the program that it belongs to.
  """
  complete = digests.add_digest({**card, **content})
  return json.dumps(complete, indent=2, sort_keys=True) + '\n'


def read(text: str | bytes, path: _Path) -> dict[str, Any]:
  """Reads the text of a card, of a file: all that `to_json` was given.

  Raises:
    ValueError: it is damaged, or no such card.
  """
  try:
    content = schema.parse(text)
    sound = digests.digest_matches(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'the model card in {path} cannot be read: {error}'
    ) from error
  if not sound:
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
  where = f'the model card in {path}'
  schema.check(where, card, _CARD)
  check_model(card['model'], path)

  def expect(name: str, value: Any, is_right: bool, expected: str) -> None:
    if not is_right:
      raise ValueError(
        f'{where}: {name} is {reprlib.repr(value)}, expected {expected}'
      )

  names, count = card['class_names'], card['model']['num_classes']
  are_names = names is None or (
    len(names) == count and {*map(type, names)} == {str}
  )
  expect('class_names', names, are_names, f'null, or a list of {count} names')
  known = card['preprocessing']
  channels, shape, crop = known['channels'], known['image_shape'], known['crop']
  prefix = 'preprocessing.'
  expect(
    f'{prefix}channels', channels, _is_size(channels), 'a positive integer'
  )
  is_shape = shape is None or (
    len(shape) == 3 and all(map(_is_size, shape)) and shape[2] == channels
  )
  sizes = f'null, or height, width and {channels} channels'
  expect(f'{prefix}image_shape', shape, is_shape, sizes)
  mean, std = known['mean'], known['std']
  are_right = mean is std is None or is_normalization(mean, std, channels)
  numbers = (
    f'null for both, or {channels} numbers for each, positive deviations'
  )
  expect(f'{prefix}mean and .std', (mean, std), are_right, numbers)
  expect(f'{prefix}crop', crop, 0 < crop <= 1, 'a number from 0 to 1, not 0')


def check_model(model: Any, path: _Path) -> None:
  """Checks what a file says of a model, before any of it is built.

  Args:
    model: arguments of `kdjax.models.build`.
    path: where it comes from.

  Raises:
    ValueError: something is missing, of the wrong type, or no such argument.
  """
  schema.check(path, model, schema.OBJECT, 'model')
  if unknown := sorted(model.keys() - _MODEL.keys()):
    raise ValueError(
      f'{path}: its model has {reprlib.repr(unknown[0])}, expected nothing but '
      f'{", ".join(_MODEL)}'
    )
  # Of others' models only the first two may be known.
  keys = {'name', 'num_classes'} | model.keys()
  expected = {key: kinds for key, kinds in _MODEL.items() if key in keys}
  schema.check(path, model, expected, 'model')
  # The width of a model which has none may be 0.
  for key, smallest in ('num_classes', 1), ('width', 0):
    if not smallest <= model.get(key, smallest) <= _LARGEST:
      raise ValueError(
        f'{path}: model.{key} is {model[key]}, expected an integer from '
        f'{smallest} to {_LARGEST}'
      )
  if model.get('dtype', 'float32') not in _DTYPES:
    raise ValueError(
      f'{path}: model.dtype is {reprlib.repr(model["dtype"])}, expected '
      f'{" or ".join(_DTYPES)}'
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
  """Whether images of so many channels can be normalised with these values.

  Both must be so many numbers that float32 can hold, those of `std` positive.
  """
  return all(
    isinstance(values, list | tuple)
    and len(values) == channels
    and all(map(float32.is_number, values))
    for values in (mean, std)
  ) and all(value >= float32.TINY for value in std)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 < value <= _LARGEST
