"""Converts a network's weights into a file with a description of it.

python -m kdjax.convert net.pth net.safetensors --mean=imagenet --std=imagenet
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import optax
from absl import app, flags

from kdjax import models
from kdjax.data import class_names
from kdjax.export import formats, staging
from kdjax.models import normalization, resnet
from kdjax.storage import checkpoint, digests, networks
from kdjax.system import atomic
from kdjax.system.command import command, define_path, start

_MEAN = flags.DEFINE_list(
  'mean',
  None,
  'Mean of each channel of the images that it was trained with, of pixels '
  'scaled to 0 … 1, where SOURCE does not say: 0.49,0.48,0.45; or imagenet.',
)
_STD = flags.DEFINE_list('std', None, 'Their standard deviation, as --mean.')
_STEM = flags.DEFINE_enum(
  'stem',
  None,
  list(resnet.STEMS),
  'Stem of a ResNet: cifar_pool where a max-pool follows a first convolution '
  'of 3×3, which weights do not show.',
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', None, 'Height and width of those images in pixels.', 1
)
_CLASS_NAMES = define_path(
  'class_names', None, 'File with the name of each class, a line each.'
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which one of a run.'
)
_EMA = flags.DEFINE_boolean(
  'ema', False, "Whether to take the moving averages of a run's weights."
)
_OVERWRITE = flags.DEFINE_boolean(
  'overwrite', False, 'Whether to replace DESTINATION if it is there.'
)


def main(argv: list[str]) -> None:
  """Reads the flags and the arguments SOURCE and DESTINATION, and converts."""
  program, *paths = argv
  if len(paths) != 2:
    raise app.UsageError(
      'expected a network and where it goes: python -m kdjax.convert SOURCE '
      'DESTINATION; DESTINATION ends with .safetensors, or is a directory'
    )
  with command([program]):
    source, destination = map(atomic.local, paths)
    if destination.suffix and destination.suffix != '.safetensors':
      raise ValueError(
        f'{destination} is neither a file .safetensors nor a directory, which '
        'has no suffix'
      )
    if destination.exists() and not _OVERWRITE.value:
      raise FileExistsError(
        f'{destination} exists: replace it with --overwrite'
      )
    if destination.is_dir() and not checkpoint.is_network(destination):
      raise FileExistsError(
        f'{destination} is a directory that kdjax did not make: remove it, or '
        'choose another DESTINATION'
      )
    names = _class_names()
    known = networks.Known(class_names=names)
    found = networks.load(source, _CHECKPOINT.value, _EMA.value, known=known)
    print('\n'.join(found.recognised or [f'{source}: written by kdjax']))
    network, card = _complete(found, names)
    write = formats.WRITERS['safetensors' if destination.suffix else 'orbax']
    with staging.beside(destination.parent) as staged:
      written = staged / destination.name
      write(written, network, card, ())
      again = networks.load(written).network.variables
      if digests.digest(again) != digests.digest(network.variables):
        raise ValueError(
          f'{destination} would not be what it is made of: what was written '
          'and read back has other arrays. Nothing was converted'
        )
      staging.move_into_place(staged, [destination])
    print(_summary(destination, network, card))


def _complete(
  found: networks.Pretrained, names: list[str] | None
) -> tuple[Any, dict[str, Any]]:
  """Adds to a network and its card what the flags say."""
  network, card, _ = found
  known = dict(card['preprocessing'])
  channels = known['channels']
  if _MEAN.value or _STD.value:
    if 'normalization' in network.variables:
      raise ValueError(
        'it says itself how its images are normalised: leave --mean and --std '
        'out'
      )
    known['mean'] = _numbers('mean', _MEAN.value)
    known['std'] = _numbers('std', _STD.value)
    network = network._replace(
      variables=networks.with_normalization(
        network.variables, known['mean'], known['std'], channels
      )
    )
  if _IMAGE_SIZE.value:
    known['image_shape'] = [_IMAGE_SIZE.value, _IMAGE_SIZE.value, channels]
  names = names or card['class_names']
  if names and len(names) != card['model']['num_classes']:
    raise ValueError(
      f'{_CLASS_NAMES.value} names {len(names)} classes, and the network '
      f'knows {card["model"]["num_classes"]}'
    )
  model = card['model']
  if _STEM.value and _STEM.value != model.get('stem'):
    if _STEM.value not in resnet.stems_like(model.get('stem', '')):
      raise ValueError(
        f'--stem is {_STEM.value}, and its weights are those of the stem '
        f'{model.get("stem")}'
      )
    model = {**model, 'stem': _STEM.value}
    network = network._replace(model=models.build(**model))
  return network, {
    **card,
    'model': model,
    'class_names': names,
    'preprocessing': known,
  }


def _class_names() -> list[str] | None:
  """Reads the names of classes that --class_names has, a line each."""
  if not _CLASS_NAMES.value:
    return None
  return class_names.read(pathlib.Path(_CLASS_NAMES.value))


def _numbers(flag: str, values: Sequence[str] | None) -> list[float]:
  if values == ['imagenet']:
    return list(getattr(normalization.IMAGENET, flag))
  try:
    return [float(value) for value in values or ()]
  except ValueError as error:
    raise ValueError(
      f'--{flag} is {",".join(values or ())}: expected numbers, or imagenet'
    ) from error


def _summary(
  destination: pathlib.Path, network: Any, card: dict[str, Any]
) -> str:
  model, known = card['model'], card['preprocessing']
  lines = [
    f'{destination}: {model["name"]}, {model["num_classes"]} classes, '
    f'{optax.tree.size(network.variables["params"]):,} parameters'
  ]
  if known['mean'] is None:
    lines.append(
      'unknown: how its images are normalised (--mean, --std); as a teacher it '
      "takes ImageNet's if it knows 1,000 classes, else those of the data"
    )
  if card['class_names'] is None:
    lines.append('unknown: the names of its classes (--class_names)')
  return '\n'.join(lines)


if __name__ == '__main__':
  start(main)
