"""The frozen teacher of a run, and whether it suits the run."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import optax

from kdjax import config as config_lib
from kdjax import models
from kdjax.evaluation import teacher_outputs
from kdjax.models import ensemble, normalization, resnet
from kdjax.models.network import Network
from kdjax.storage import (
  checkpoint,
  digests,
  logits_file,
  networks,
  run_directory,
)
from kdjax.system.logs import logger

_Path = str | os.PathLike[str]


class Teacher(NamedTuple):
  """A frozen teacher.

  Attributes:
    network: its model and variables, for evaluation only; None where only its
      logits are known.
    report: what a result says of it: `path`, `digest`, `model`, `num_classes`,
      `parameters`, `mean` and `std` of its images; and, as far as they are
      known, else None, `wall_time_s` of its whole training, and of its
      checkpoint `step`, `validation_accuracy`, `data_digest`, `class_names` and
      `image_shape`. That of an ensemble has `members`, the report of each, and
      `mean` and `std` only there; that of known logits has next to nothing.
    logits: precomputed logits, if there is no network.
    members: those of an ensemble.
    assumed: what of the network neither its source nor the configuration says:
      'normalization', 'stem', both or nothing.
  """

  network: Network | None
  report: dict[str, Any]
  logits: logits_file.Logits | None = None
  members: tuple['Teacher', ...] = ()
  assumed: tuple[str, ...] = ()

  def identity(self) -> tuple[str, str | None]:
    """Tells teachers apart, also two of one digest that compute otherwise."""
    return self.report['digest'], self.network and str(self.network.model)


def load(
  path: _Path | tuple[_Path, ...],
  config: ml_collections.ConfigDict,
  names: Sequence[str] = (),
  assumed: Mapping[str, Any] | None = None,
) -> Teacher:
  """Loads a teacher, folded (see `models.fold`).

  Args:
    path: what `networks.load` takes; a run must have finished. Several for an
      ensemble, averaged as the configuration says. Or a file of logits (see
      `kdjax.storage.logits_file`).
    config: configuration of the run that it teaches in; says which checkpoint,
      and the dtype to compute in.
    names: the features that will be wanted of it.
    assumed: of a network that does not say so itself, `num_classes` and
      `image_shape`, and `mean` and `std` of images, `[channels]`, unless the
      configuration has them or it knows 1,000 classes, which are taken for
      ImageNet's. And `class_names`, into whose order its logits are put if it
      names the same classes in another one.

  Returns:
    The teacher. Its report describes the network as it was saved, but for the
    names and the order of its classes.

  Raises:
    FileNotFoundError: there is no network.
    ValueError: the run has not finished, or the file holds no network that is
      known here, or none that can be told how its images are normalised, or it
      holds logits and features are wanted.
  """
  if isinstance(path, tuple):
    members = [
      load(one, config, _of_member(names, index), assumed)
      for index, one in enumerate(path)
    ]
    return _join(members, config.teacher.average)
  path = pathlib.Path(path).absolute()
  if config_lib.is_logits(str(path)):
    return _load_logits(path, names, assumed)
  return _load_network(path, config, names, assumed)


def _load_network(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  names: Sequence[str],
  assumed: Mapping[str, Any] | None,
) -> Teacher:
  """Loads a teacher that is one network."""
  wall_time = _wall_time(path) if run_directory.is_run(path) else None
  assumed = assumed or {}
  known = networks.Known(class_names=assumed.get('class_names'))
  if 'num_classes' in assumed:
    known = known._replace(
      model=config_lib.model_arguments(
        config_lib.teacher_run(config), assumed['num_classes']
      ),
      image_shape=assumed['image_shape'],
    )
  (_, variables), card, recognised = networks.load(
    path, config.teacher.checkpoint, known=known
  )
  for line in recognised:
    logger.info('%s: %s', path.name, line)
  unsaid = []
  if 'normalization' not in variables:
    if not config.teacher.mean:
      unsaid.append('normalization')
    variables = _with_normalization(path, variables, card, config, assumed)
  # Of all others kdjax has trained the network itself.
  foreign = card['provenance'].get('data_digest') is None
  arguments = dict(card['model'])
  if foreign and 'stem' in arguments:
    if config.teacher.stem is None:
      unsaid.append('stem')
    elif config.teacher.stem in resnet.stems_like(arguments['stem']):
      arguments['stem'] = config.teacher.stem
  report = _report(path, variables, card, wall_time)
  dtype = config.teacher.dtype or config.student.dtype
  # First the dtype: a folded network's convolutions are stored in it.
  model = models.build(**{**arguments, 'dtype': dtype})
  network = Network(*models.fold(model, variables, names))
  shape = report['image_shape'] or (assumed or {}).get('image_shape')
  changes: dict[str, Any] = {}
  if foreign and arguments.get('stem') == 'cifar_pool':
    changes['stem'] = arguments['stem']
  # Whatever kdjax has by name ends with a linear layer.
  if foreign and shape and ':' in arguments['name']:
    changes |= teacher_outputs.probabilities(path, network, shape)
  if order := teacher_outputs.reorder(report, assumed):
    changes['order'] = order
    if names and shape:
      teacher_outputs.check_features(path, network, names, shape)
  if changes:
    # What it teaches is not what its arrays alone make.
    report['digest'] = digests.of_json({'arrays': report['digest'], **changes})
  return Teacher(
    teacher_outputs.adapt(network, changes), report, assumed=tuple(unsaid)
  )


def _load_logits(
  path: pathlib.Path,
  names: Sequence[str],
  assumed: Mapping[str, Any] | None,
) -> Teacher:
  """Loads precomputed logits."""
  if names:
    raise ValueError(
      f'{path} holds the logits of a teacher, and the method needs its '
      f'features {", ".join(names)}: name a network in config.teacher.path, or '
      'use a method that needs logits only, such as response'
    )
  logits = logits_file.read(path)
  unknown = (
    'parameters',
    'wall_time_s',
    'image_shape',
    'step',
    'validation_accuracy',
    'data_digest',
  )
  report = {
    'path': str(path),
    'digest': logits.digest,
    'model': 'logits',
    'num_classes': logits.train.logits.shape[1],
    **dict.fromkeys(unknown),
    'class_names': logits.class_names and list(logits.class_names),
  }
  if order := teacher_outputs.reorder(report, assumed):
    logits = logits.reorder(order)
    report['digest'] = logits.digest
  return Teacher(None, report, logits)


def _of_member(names: Sequence[str], index: int) -> list[str]:
  """Selects the features of one member, by its own names."""
  prefix = f'{ensemble.member_name(index)}/'
  return [
    name.removeprefix(prefix) for name in names if name.startswith(prefix)
  ]


def _join(members: Sequence[Teacher], average: str) -> Teacher:
  """Makes one teacher of several."""
  reports = [member.report for member in members]
  for index, report in enumerate(reports):
    if report['digest'] in [each['digest'] for each in reports[:index]]:
      raise ValueError(
        f'config.teacher.ensemble has the network of {report["path"]} twice, '
        'which would count double: name each member once'
      )

  def common(key: str) -> Any:
    """Returns the value on which all members agree; None if they differ."""
    known = [report[key] for report in reports if report[key] is not None]
    return known[0] if known and known.count(known[0]) == len(known) else None

  times = [report['wall_time_s'] for report in reports]
  report = {
    'path': ' + '.join(report['path'] for report in reports),
    'digest': digests.of_json(
      {'members': [each['digest'] for each in reports], 'average': average}
    ),
    'model': ' + '.join(report['model'] for report in reports),
    'parameters': sum(report['parameters'] for report in reports),
    'wall_time_s': None if None in times else sum(times),
    **{
      key: common(key) for key in ('num_classes', 'class_names', 'image_shape')
    },
    'step': None,
    'validation_accuracy': None,
    # Of those that do not say, nothing is known.
    'data_digest': common('data_digest')
    if all(report['data_digest'] for report in reports)
    else None,
    'members': reports,
  }
  networks = [member.network for member in members if member.network]
  network = ensemble.join(networks, average)
  return Teacher(Network(*network), report, members=tuple(members))


def _wall_time(path: pathlib.Path) -> float:
  """Returns the seconds that a finished run took."""
  last = checkpoint.read_metadata(path, 'last')
  if run_directory.read_result(path) is None:
    raise ValueError(
      f'the teacher in {path} has not finished, it is at step '
      f'{last["step"]}: start its own command again first, or name one of '
      'its checkpoints'
    )
  return last['wall_time_s']


def _report(
  path: pathlib.Path,
  variables: Mapping[str, Any],
  card: Mapping[str, Any],
  wall_time: float | None,
) -> dict[str, Any]:
  """Describes a network as it was saved (see `Teacher`)."""
  provenance = card['provenance']
  return {
    'path': str(path),
    'digest': digests.digest(variables),
    'model': card['model']['name'],
    'num_classes': card['model']['num_classes'],
    'parameters': optax.tree.size(variables['params']),
    'wall_time_s': wall_time or provenance.get('wall_time_s'),
    'class_names': card['class_names'],
    'image_shape': card['preprocessing']['image_shape'],
    **{
      name: np.asarray(values).tolist()
      for name, values in variables['normalization'].items()
    },
    **{
      key: provenance.get(key)
      for key in ('step', 'validation_accuracy', 'data_digest')
    },
  }


def images_of(channels: int) -> str:
  """Names images by their number of channels."""
  kinds = {1: 'grey (1 channel)', 3: 'colour (3 channels)'}
  return kinds.get(channels, f'of {channels} channels')


def _with_normalization(
  path: pathlib.Path,
  variables: Mapping[str, Any],
  card: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  assumed: Mapping[str, Any] | None,
) -> Mapping[str, Any]:
  """Adds what a network's images are normalised with; it does not say."""
  channels = card['preprocessing']['channels']
  if config.teacher.mean:
    mean, std = config.teacher.mean, config.teacher.std
    origin = 'config.teacher.mean and .std'
  elif card['model']['num_classes'] == 1000 and channels == 3:
    _, mean, std = normalization.IMAGENET
    origin = 'ImageNet'
  elif assumed:
    mean, std, origin = assumed['mean'], assumed['std'], "this run's data"
  else:
    raise ValueError(
      f'{path} does not say how its images are normalised: set '
      'config.teacher.mean and config.teacher.std'
    )
  if not config.teacher.mean and assumed and len(mean) != channels:
    raise ValueError(
      f'the network in {path} takes {images_of(channels)} images, the data are '
      f'{images_of(len(mean))}: name a teacher of such images '
      '(config.teacher.path), or convert the data set'
    )
  if len(mean) != channels:
    raise ValueError(
      f'the network in {path} takes images of {channels} channels, and the '
      f'mean of {origin} has {len(mean)} numbers: expected one for each channel'
    )
  logger.info(
    '%s does not say how its images are normalised: mean and standard '
    'deviation are those of %s',
    path.name,
    origin,
  )
  return networks.with_normalization(variables, mean, std, channels)


def reload(
  workdir: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  trained_with: Mapping[str, Any],
  names: Sequence[str] = (),
) -> Teacher:
  """Loads the teacher that a finished run had.

  Args:
    workdir: the run directory.
    config: its configuration.
    trained_with: what its result says of the teacher: its report.
    names: the features that will be wanted of it.

  Returns:
    The teacher, from where it was; else from where the configuration says, or
    from beside the run, where both have been moved together.

  Raises:
    FileNotFoundError: it is in none of these places.
    ValueError: it is not the one that the run had.
  """
  workdir = pathlib.Path(workdir).absolute()

  def load_one(report: Mapping[str, Any], names: Sequence[str]) -> Teacher:
    was = pathlib.Path(report['path'])
    places = [was, workdir.parent / was.name]
    if config.teacher.path:
      places.insert(1, pathlib.Path(config.teacher.path))
    for path in places:
      if path.exists():
        return load(path, config, names, report)
    raise FileNotFoundError(
      f'the teacher of {workdir} is not in {was} any more, nor beside the run: '
      'put it back; or start kdjax.main once more for this run with '
      '--config.teacher.path=PATH, where it is now'
    )

  if members := trained_with.get('members'):
    teacher = _join(
      [
        load_one(report, _of_member(names, index))
        for index, report in enumerate(members)
      ],
      config.teacher.average,
    )
  else:
    teacher = load_one(trained_with, names)
  run_directory.check_same_digest(
    workdir, 'teacher', trained_with['digest'], teacher.report['digest']
  )
  return teacher
