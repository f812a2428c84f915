"""Pretrained networks: runs, exports and weight files."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np

from kdjax import config as config_lib
from kdjax import models
from kdjax.data import images
from kdjax.models import features, resnet
from kdjax.models import normalization as normalization_lib
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import checkpoint as checkpoint_lib
from kdjax.storage import digests, program_files, run_directory, trees, weights
from kdjax.storage import flax_variables as variables_lib
from kdjax.storage.weights import directory as weights_directory
from kdjax.system.escape import listed
from kdjax.version import __version__

# Where a file of weights has its card.
CARD = 'kdjax'
# What in it says that the arrays are those that were written.
DIGEST = 'digest'
# What images of another size are cut to before they are resized, where the
# network was trained on images of one size: the largest square.
_WHOLE = 1.0
# Height and width of images for a network that takes any.
_ANY_SIZE = 32, 32
# What files of weights are often called.
_SUFFIXES = '.safetensors', '.pth', '.pt', '.bin', '.ckpt', '.msgpack', '.pkl'

# What the card of a run says of its checkpoint.
_PROVENANCE = (
  *('data_digest', 'teacher_digest', 'step', 'epoch'),
  *('validation_accuracy', 'validation_loss', 'wall_time_s'),
)


class Pretrained(NamedTuple):
  """A network and what is known of it.

  Attributes:
    network: its model and variables. They have no `normalization` where its
      source does not say how images are normalised.
    card: what else is known, as JSON: `kdjax` (version), `model` (arguments of
      `kdjax.models.build`), `class_names` or None, `preprocessing` (see
      `preprocessing`), `metrics` of the test split and `provenance`, either of
      which may be empty.
    recognised: what its file was found to be, in lines for a person; empty for
      what kdjax wrote.
  """

  network: Network
  card: dict[str, Any]
  recognised: tuple[str, ...] = ()


class Known(NamedTuple):
  """What is known of a network that its own files may not say.

  Attributes:
    model: arguments of `kdjax.models.build`.
    image_shape: height, width and channels of its images.
    class_names: those of the data, by which a line of `recognised` calls them.
  """

  model: Mapping[str, Any] | None = None
  image_shape: Sequence[int] | None = None
  class_names: Sequence[str] | None = None


_NOTHING = Known()


def load(
  path: str | os.PathLike[str],
  checkpoint: str = 'best',
  ema: bool = False,
  *,
  headless: bool = False,
  known: Known = _NOTHING,
) -> Pretrained:
  """Loads a network.

  Args:
    path: a run directory, one checkpoint in it, a directory that
      `kdjax.export` made, a file or a directory with the weights of a ResNet
      (see `kdjax.storage.weights.load`), or variables of any Flax module (see
      `kdjax.storage.flax_variables`).
    checkpoint: of a run directory, 'best' (by validation accuracy) or 'last'.
    ema: of a run or a checkpoint, whether to take the moving averages of its
      variables.
    headless: whether a file without a last layer will do. Its `num_classes` is
      None then, and the network cannot be applied.
    known: what variables are of, since they do not say, and more.

  Returns:
    The network.

  Raises:
    FileNotFoundError: there is none.
    OSError: it cannot be read now.
    ValueError: what is there is damaged, no network that is known here, a
      program, or not what is asked for.
  """
  path = pathlib.Path(path).absolute()
  if not path.exists():
    raise FileNotFoundError(f'there is no file or directory {path}')
  if checkpoint_lib.is_network(path):
    found = _load_network(path)
  elif path.is_file() and path.suffix in program_files.SUFFIXES:
    raise ValueError(
      f'{path} is a program, which holds no weights to take: use the run that '
      'it was exported from, or an export as safetensors or orbax'
    )
  elif checkpoint_lib.is_own(path):
    return _load_run(path, checkpoint, ema)
  elif variables_lib.are_in(path):
    found = _load_variables(path, known)
  elif path.is_file() or weights_directory.is_one(path):
    found = _load_weights(path, headless, known.class_names)
  else:
    raise FileNotFoundError(_no_network(path))
  card_lib.check_asked(found.card, path, checkpoint, ema)
  return found


def _no_network(path: pathlib.Path) -> str:
  """Says what was expected in a directory, and what of it is there."""
  if next(path.glob('*.distcp'), None):
    return (
      f'{path} is a distributed checkpoint of PyTorch: make one file of it '
      'with python -m torch.distributed.checkpoint.format_utils dcp_to_torch'
    )
  inside = [
    str(found.relative_to(path))
    # A cache of Hugging Face has snapshots/REVISION.
    for found in sorted([*path.glob('*'), *path.glob('snapshots/*')])
    if found.suffix in _SUFFIXES or weights_directory.is_one(found)
  ]
  hint = f'. It holds {listed(inside)}: name that itself' if inside else ''
  return (
    f'no checkpoint in {path}: expected a run directory of kdjax, which holds '
    'checkpoints/STEP, or one such checkpoint; or model.safetensors or '
    f'pytorch_model.bin; or a PyTree that Orbax has saved{hint}'
  )


def with_normalization(
  variables: Mapping[str, Any],
  mean: Sequence[float],
  std: Sequence[float],
  channels: int,
) -> dict[str, Any]:
  """Adds `normalization` to the collections of a network.

  Args:
    variables: its collections.
    mean: mean of each channel, of pixels scaled to 0 … 1.
    std: standard deviation of each.
    channels: number of channels of its images.

  Raises:
    ValueError: they are not so many finite numbers, or a standard deviation is
      not positive, or they are those of pixels from 0 to 255.
  """
  if not card_lib.is_normalization(mean, std, channels):
    raise ValueError(
      f'images of {channels} channels cannot be normalised with mean {mean} '
      f'and standard deviation {std}: expected {channels} finite numbers for '
      'each, and positive deviations'
    )
  normalization_lib.check_scale(mean, std)
  arrays = np.asarray([mean, std], np.float32)
  normalization = dict(zip(('mean', 'std'), arrays, strict=True))
  return {**variables, 'normalization': normalization}


def preprocessing(
  image_shape: Sequence[int] | None,
  channels: int,
  normalization: Mapping[str, Any] | None,
  crop: float = _WHOLE,
) -> dict[str, Any]:
  """Says how a network's images are made, as JSON.

  Args:
    image_shape: height, width and channels; None if any height and width do.
    channels: their channels.
    normalization: `mean` and `std` of pixels scaled to 0 … 1, `[channels]`;
      None if they are unknown.
    crop: share of the shorter side that the square has which is cut out of the
      middle of an image of another size and resized.

  Returns:
    `image_shape`, `channels`, `mean`, `std` and `crop`.
  """
  mean_std = normalization or {'mean': None, 'std': None}
  return {
    'image_shape': image_shape and list(image_shape),
    'channels': channels,
    'mean': np.asarray(mean_std['mean']).tolist(),
    'std': np.asarray(mean_std['std']).tolist(),
    'crop': crop,
  }


def _load_network(path: pathlib.Path) -> Pretrained:
  """Loads what `kdjax.storage.checkpoint.save_network` saved."""
  card, arrays = checkpoint_lib.read_card(path)
  model = models.build(**card['model'])
  _check_arrays(path, model, card, trees.describe_saved(path, own=True))
  variables: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  variables |= trees.read(path, arrays)
  variables_lib.check_finite(path, variables)
  variables = _as_known(variables, card)
  return Pretrained(Network(model, jax.device_put(variables)), card)


def _load_run(path: pathlib.Path, checkpoint: str, ema: bool) -> Pretrained:
  """Loads the student of a run, or of one checkpoint."""
  directory = checkpoint_lib.find(path, checkpoint)
  metadata = checkpoint_lib.read_metadata(directory)
  try:
    card = _card(metadata, ema)
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f'the metadata of {directory} are not those of a run: {error!r}'
    ) from error
  card_lib.check(card, directory)
  run = path
  if directory == path:
    card_lib.check_asked(card, path, checkpoint, ema)
    run = path.parent.parent
  card['metrics'] = _metrics(run, metadata, ema)
  network = checkpoint_lib.restore(directory, ema=ema)
  variables = {name: network.variables[name] for name in features.TRAINED}
  found = trees.describe(variables)
  _check_arrays(directory, network.model, card, found)
  variables_lib.check_finite(directory, variables)
  return Pretrained(network, card)


def _metrics(
  run: pathlib.Path, metadata: Mapping[str, Any], ema: bool
) -> dict[str, Any]:
  """Finds what a finished run measured of a checkpoint; {} if it did not."""
  result = run_directory.read_result(run) or {}
  for which in ('best', 'last'):
    tested = result.get(which, {})
    if 'step' in tested and tested['step'] == metadata.get('step'):
      return (tested['ema'] if ema else tested)['test']
  return {}


def _check_arrays(
  path: pathlib.Path,
  model: nn.Module,
  card: Mapping[str, Any],
  found: Mapping[str, str],
) -> None:
  """Checks that arrays are those that the model of a card makes."""
  known = card['preprocessing']
  shape = known['image_shape'] or (*_ANY_SIZE, known['channels'])
  name = card['model']['name']
  try:
    expected = variables_lib.describe_model(
      model, jax.ShapeDtypeStruct((1, *shape), np.uint8)
    )
  # The model may be a user's, and its arguments anything.
  except Exception as error:
    raise ValueError(
      f'{path}: {name} cannot be made for images of {list(shape)} '
      f'({type(error).__name__}: {error})'
    ) from error
  trees.check_same(
    path, name, expected, found, 'Put a sound copy there, or export it again'
  )


def _load_variables(path: pathlib.Path, known: Known) -> Pretrained:
  """Loads the variables of a Flax module."""
  file = weights.read(path) if path.is_file() else None
  if file and CARD in file.metadata:
    return _load_own_variables(path, card_lib.read(file.metadata[CARD], path))
  if known.model is None or known.image_shape is None:
    raise ValueError(
      f'{path} holds variables of a Flax module and does not say of which: it '
      'can only be a teacher (config.teacher.path), whose model '
      'config.teacher.name says'
    )
  model, shape = models.build(**known.model), known.image_shape
  images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
  variables, notes = variables_lib.load(path, model, images)
  card = _unknown(preprocessing(shape, shape[-1], None))
  card['model'] = known.model
  network = Network(model, jax.device_put(variables))
  return Pretrained(network, card, notes)


def _load_own_variables(path: pathlib.Path, card: dict[str, Any]) -> Pretrained:
  """Loads the variables of a Flax module that kdjax wrote."""
  model, known = models.build(**card['model']), card['preprocessing']
  shape = known['image_shape'] or (*_ANY_SIZE, known['channels'])
  variables, _ = variables_lib.load(
    path, model, jax.ShapeDtypeStruct((1, *shape), np.uint8)
  )
  _check_digest(path, card, variables)
  variables = _as_known(variables, card)
  return Pretrained(Network(model, jax.device_put(variables)), card)


def _load_weights(
  path: pathlib.Path, headless: bool, class_names: Sequence[str] | None
) -> Pretrained:
  """Loads a network from a file or a directory of weights."""
  found = weights.load(path, headless=headless)
  num_classes = found.model['num_classes']
  if num_classes is None and not headless:
    raise ValueError(
      f'{path} holds no last layer (fc.weight): it can only be begun with '
      '(config.student.init_from with config.student.head=fresh)'
    )
  card = _read_card(path, found)
  if not card:
    found = _with_two_logits(found, class_names)
    card = _describe(path, found)
    found = found._replace(recognised=found.recognised + card.pop('notes'))
  # The dtype is what arrays do not tell.
  model = {'dtype': 'float32', **found.model, **card['model']}
  card['model'] = model
  variables = _as_known(found.variables, card)
  built = models.build(**{**model, 'num_classes': model['num_classes'] or 1})
  network = Network(built, jax.device_put(variables))
  return Pretrained(network, card, found.recognised)


def _describe(path: pathlib.Path, found: weights.Imported) -> dict[str, Any]:
  """Makes the card of weights from another program, with notes to show."""
  known, shape, crop = found.normalization, None, _WHOLE
  if found.image_size:
    shape = (*found.image_size, found.channels)
  names, notes = None, tuple[str, ...]()
  if path.is_dir():
    said = weights_directory.describe(
      path, found.model['num_classes'], found.channels
    )
    names, notes, crop = said.class_names, said.notes, said.crop
    if said.size and not shape:
      shape = (*said.size, found.channels)
    # What the network computes itself comes on top.
    known = known or said.normalization
  card = _unknown(preprocessing(shape, found.channels, known, crop))
  return {**card, 'class_names': names, 'notes': notes}


def _with_two_logits(
  found: weights.Imported, names: Sequence[str] | None
) -> weights.Imported:
  """Turns a network with one logit z into one with two, 0 and z.

  Their softmax is the sigmoid of z, by which such a network is trained.
  """
  if found.model['num_classes'] != 1:
    return found
  positive = 'the second, in the order of their names,'
  if names and len(names) == 2:
    positive = f'the second, {listed(names[1:])},'
  note = (
    'one logit, z, as of BCEWithLogitsLoss: taken as the logits 0 and z of two '
    f'classes, of which {positive} is the positive one'
  )
  params = found.variables['params']
  head = {
    name: np.concatenate([np.zeros_like(array), array], axis=-1)
    for name, array in params['fc'].items()
  }
  return found._replace(
    model={**found.model, 'num_classes': 2},
    variables={**found.variables, 'params': {**params, 'fc': head}},
    recognised=(*found.recognised, note),
  )


def _unknown(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
  """Makes the card of a network that says nothing of itself."""
  empty: dict[str, Any] = {'model': {}, 'metrics': {}, 'provenance': {}}
  unknown = dict.fromkeys(('kdjax', 'class_names'))
  return {**empty, **unknown, 'preprocessing': preprocessing}


def _as_known(
  variables: dict[str, Any], card: Mapping[str, Any]
) -> dict[str, Any]:
  """Adds how images are normalised, where a card says it."""
  known = card['preprocessing']
  if known['mean'] is None:
    return variables
  return with_normalization(
    variables, known['mean'], known['std'], known['channels']
  )


def _read_card(path: pathlib.Path, found: weights.Imported) -> dict[str, Any]:
  """Reads the card in the header of a file that kdjax wrote; {} of others."""
  text = found.metadata.get(CARD)
  if text is None:
    return {}
  card = card_lib.read(text, path)
  told = found.model | {'channels': found.channels}
  if card['model'].get('stem') in resnet.stems_like(told.get('stem', '')):
    # What weights do not show.
    told['stem'] = card['model']['stem']
  said = card['model'] | {'channels': card['preprocessing']['channels']}
  if wrong := [
    f'{key} {said[key]}, expected {value}'
    for key, value in told.items()
    if said.get(key, value) != value
  ]:
    raise ValueError(
      f'the model card in {path} is that of another network than its tensors: '
      f'{"; ".join(wrong)}'
    )
  _check_digest(path, card, found.variables)
  return card


def _check_digest(
  path: pathlib.Path, card: dict[str, Any], variables: Mapping[str, Any]
) -> None:
  """Checks that arrays are those that were written with a card."""
  if card.pop(DIGEST, None) != digests.digest(variables):
    raise ValueError(
      f'{path} is damaged: its arrays are not those that were written. Export '
      'them again, or put a sound copy there'
    )


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
  """Keeps the last part of each path in a configuration that others read."""
  fields = flax.traverse_util.flatten_dict(
    dict(config), sep='.', keep_empty_nodes=True
  )
  for name in set(config_lib.PATHS) & fields.keys():
    paths = fields[name]
    fields[name] = (
      os.path.basename(paths)
      if isinstance(paths, str)
      else [os.path.basename(path) for path in paths]
    )
  fields |= {'data.data_dir': ''} if 'data.data_dir' in fields else {}
  return flax.traverse_util.unflatten_dict(fields, sep='.')


def _card(metadata: Mapping[str, Any], ema: bool) -> dict[str, Any]:
  """Makes the card of a run's student from what its checkpoint says."""
  config = _without_paths(metadata.get('config', {}))
  data = config.get('data', {})
  return {
    'kdjax': metadata.get('version', __version__),
    'model': metadata['model'],
    'class_names': metadata['class_names'],
    'preprocessing': preprocessing(
      metadata['image_shape'],
      metadata['image_shape'][-1],
      metadata['normalization'],
      images.CENTRE if data.get('image_size') else _WHOLE,
    ),
    'metrics': {},
    'provenance': {
      'config': config,
      'data': data.get('name'),
      'ema': ema,
      **{key: metadata.get(key) for key in _PROVENANCE},
    },
  }
