"""The frozen teacher of a run, and whether it suits the run."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kdjax import (
  checkpoint,
  data,
  digests,
  features,
  feed,
  methods,
  models,
  precomputed,
  pretrained,
  results,
  step,
)
from kdjax import config as config_lib
from kdjax import initial as initial_lib
from kdjax.logs import logger
from kdjax.models import ensemble

_Path = str | os.PathLike[str]

# So many show whether a teacher knows a data set.
_KNOWN_IMAGES = 1000
# It does if it is so much better than guessing, where 1 is to be always right.
_KNOWS = 0.2


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
    logits: those that are known, if there is no network.
    members: those of an ensemble.
  """

  network: step.Network | None
  report: dict[str, Any]
  logits: precomputed.Logits | None = None
  members: tuple['Teacher', ...] = ()


def load(
  path: _Path | tuple[_Path, ...],
  config: ml_collections.ConfigDict,
  names: Sequence[str] = (),
  assumed: Mapping[str, Any] | None = None,
) -> Teacher:
  """Loads a teacher, folded (see `models.fold`).

  Args:
    path: what `kdjax.pretrained.load` takes; a run must have finished. Several
      for an ensemble, averaged as the configuration says. Or a file of logits
      (see `kdjax.precomputed`).
    config: configuration of the run that it teaches in; says which checkpoint,
      and the dtype to compute in.
    names: the features that will be wanted of it.
    assumed: of a network that does not say so itself, `num_classes`,
      `class_names` and `image_shape`, and `mean` and `std` of images,
      `[channels]`, unless the configuration has them or it knows 1,000 classes,
      which are taken for ImageNet's.

  Returns:
    The teacher. Its report describes the network as it was saved.

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
    return _load_logits(path, names)
  wall_time = _wall_time(path) if results.is_run(path) else None
  like = None
  if assumed and 'num_classes' in assumed:
    arguments = config_lib.model_arguments(
      config_lib.teacher_run(config), assumed['num_classes']
    )
    like = {'model': arguments, 'image_shape': assumed['image_shape']}
  (_, variables), card, recognised = pretrained.load(
    path,
    config.teacher.checkpoint,
    like=like,
    class_names=assumed.get('class_names') if assumed else None,
  )
  for line in recognised:
    logger.info('%s: %s', path.name, line)
  variables = _with_normalization(path, variables, card, config, assumed)
  provenance, preprocessing = card['provenance'], card['preprocessing']
  report = {
    'path': str(path),
    'digest': digests.digest(variables),
    'model': card['model']['name'],
    'num_classes': card['model']['num_classes'],
    'parameters': optax.tree.size(variables['params']),
    'wall_time_s': wall_time or provenance.get('wall_time_s'),
    'class_names': card['class_names'],
    'image_shape': preprocessing['image_shape'],
    **{
      name: np.asarray(values).tolist()
      for name, values in variables['normalization'].items()
    },
  }
  for key in ('step', 'validation_accuracy', 'data_digest'):
    report[key] = provenance.get(key)
  dtype = config.teacher.dtype or config.student.dtype
  # First the dtype: a folded network's convolutions are stored in it.
  model = models.build(**{**card['model'], 'dtype': dtype})
  return Teacher(step.Network(*models.fold(model, variables, names)), report)


def _load_logits(path: pathlib.Path, names: Sequence[str]) -> Teacher:
  """Loads logits that are known already."""
  if names:
    raise ValueError(
      f'{path} holds the logits of a teacher, and the method wants its '
      f'features {", ".join(names)}: name a network in config.teacher.path, or '
      'use a method that wants logits only, such as response'
    )
  logits = precomputed.read(path)
  unknown = (
    'parameters',
    'wall_time_s',
    'class_names',
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
  }
  return Teacher(None, report, logits)


def _of_member(names: Sequence[str], index: int) -> list[str]:
  """Gives the features of one member, as it calls them itself."""
  prefix = f'{ensemble.member_name(index)}/'
  return [
    name.removeprefix(prefix) for name in names if name.startswith(prefix)
  ]


def _join(members: Sequence[Teacher], average: str) -> Teacher:
  """Makes one teacher of several."""
  reports = [member.report for member in members]

  def common(key: str) -> Any:
    """Gives what all members say that say anything; None if they differ."""
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
  return Teacher(step.Network(*network), report, members=tuple(members))


def _wall_time(path: pathlib.Path) -> float:
  """Gives the seconds that a run took; it must have finished."""
  last = checkpoint.read_metadata(path, 'last')
  if results.read_result(path) is None:
    raise ValueError(
      f'the teacher in {path} has not finished, it is at step '
      f'{last["step"]}: start its own command again first, or name one of '
      'its checkpoints'
    )
  return last['wall_time_s']


def _with_normalization(
  path: pathlib.Path,
  variables: Mapping[str, Any],
  card: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  assumed: Mapping[str, Any] | None,
) -> Mapping[str, Any]:
  """Adds what a network's images are normalised with, if it does not say."""
  if 'normalization' in variables:
    return variables
  if config.teacher.mean:
    given, origin = config.teacher, 'config.teacher.mean and .std'
  elif card['model']['num_classes'] == 1000:
    given, origin = pretrained.IMAGENET, 'ImageNet'
  elif assumed:
    given, origin = assumed, "this run's data"
  else:
    raise ValueError(
      f'{path} does not say how its images are normalised: set '
      'config.teacher.mean and config.teacher.std'
    )
  logger.info(
    '%s does not say how its images are normalised: mean and standard '
    'deviation are those of %s',
    path.name,
    origin,
  )
  return pretrained.with_normalization(
    variables, given['mean'], given['std'], card['preprocessing']['channels']
  )


def load_again(
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
    The teacher, from where it was, or from beside the run where both have been
    moved together.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is not the one that the run had.
  """
  workdir = pathlib.Path(workdir).absolute()

  def load_one(report: Mapping[str, Any], names: Sequence[str]) -> Teacher:
    path = pathlib.Path(report['path'])
    if not path.exists():
      path = workdir.parent / path.name
    return load(path, config, names, report)

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
  results.check_same_digest(
    workdir, 'teacher', trained_with['digest'], teacher.report['digest']
  )
  return teacher


def check_suits(teacher: Teacher, dataset: data.Dataset) -> None:
  """Checks that a teacher knows the images and classes of a data set.

  Args:
    teacher: the teacher.
    dataset: the data set.

  Raises:
    ValueError: it knows others.
  """
  if teacher.logits:
    found, expected = teacher.report['num_classes'], len(dataset.class_names)
    if found != expected:
      raise ValueError(
        f'{teacher.report["path"]} has logits of {found} classes, '
        f'{dataset.name} has {expected}'
      )
    return
  for report in teacher.report.get('members', [teacher.report]):
    _check_suits(report, dataset)


def _check_suits(report: Mapping[str, Any], dataset: data.Dataset) -> None:
  classes = len(dataset.class_names)
  if report['num_classes'] != classes:
    raise ValueError(
      f'the network in {report["path"]} knows {report["num_classes"]} classes, '
      f'{dataset.name} has {classes}. Make it a teacher of those first, by '
      'configs/finetune_teacher.py, or in the same command with '
      '--config.teacher.head=fresh, config.teacher.train.epochs and '
      '.learning_rate as that file has them'
    )
  for what, known, present in (
    ('images of shape', report['image_shape'], dataset.image_shape),
    ('images with channels', [len(report['mean'])], dataset.image_shape[-1:]),
    ('the classes', report['class_names'], dataset.class_names),
  ):
    if known is not None and known != list(present):
      raise ValueError(
        f'the teacher in {report["path"]} knows {what} {_shorten(known)}, '
        f'{dataset.name} has {_shorten(present)}. Give this run a teacher of '
        'its own with config.teacher.path or config.teacher.sibling'
      )


def check_knows(
  teacher: Teacher, dataset: data.Dataset, batch_size: int
) -> None:
  """Measures a teacher that comes from elsewhere before it teaches.

  Classes in another order, or images normalised otherwise, show in nothing
  else.

  Args:
    teacher: the teacher. Of an ensemble also each member is measured that
      comes from elsewhere: the others may outvote it.
    dataset: the data set, of whose validation images at most 1,000 are used; of
      the training images where there are none, or where those are all that the
      teacher has logits of.
    batch_size: how many images to compute at once.
  """
  for member in teacher.members:
    if member.report['data_digest'] is None:
      check_knows(member, dataset, batch_size)
  split = dataset.validation if dataset.validation.size else dataset.train
  if teacher.logits:
    split = dataset.train
  count = min(_KNOWN_IMAGES, split.size)
  rows = np.arange(count) * split.size // count
  if teacher.network:
    predicted, labels = feed.predict(
      teacher.network, data.take(split, rows), batch_size
    )
    logits = np.asarray(predicted)
  else:
    assert teacher.logits
    logits = teacher.logits.train.rows(dataset.train_ids[rows])
    labels = data.labels_of(split, rows)
  accuracy = float((logits.argmax(axis=-1) == labels).mean())
  logger.info(
    'the teacher in %s classifies %.1f %% of %d %s images',
    teacher.report['path'],
    100 * accuracy,
    len(labels),
    'training' if split is dataset.train else 'held-out',
  )
  chance = 1 / len(dataset.class_names)
  if accuracy < chance + _KNOWS * (1 - chance):
    logger.warning(
      'the teacher in %s classifies %.1f %% of %d images of %s, and guessing '
      '%.1f %%: are its classes the same, in the same order, and %s?',
      teacher.report['path'],
      100 * accuracy,
      len(labels),
      dataset.name,
      100 * chance,
      'its ids those of the images'
      if teacher.logits
      else 'its images normalised so (config.teacher.mean, config.teacher.std)',
    )


def check_sibling(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  initial: initial_lib.Initial | None,
) -> None:
  """Checks that a teacher found beside a run is the one it would train.

  Another recipe makes another teacher, which may still be the one that is
  meant, and is warned of. Another network, other data or a longer or shorter
  training never is.

  Args:
    path: the run directory of the teacher.
    config: configuration that the run would train it with.
    initial: the weights that it would begin with, unless those are gone.

  Raises:
    ValueError: it is another one; the message names the fields that differ.
  """
  differing = results.differences(path, config)
  if not initial_lib.is_gone(config, initial):
    result = results.read_result(path)
    began = result and result['student'].get('init_from')
    differing |= results.compare(
      {'student.init_from': began and began['digest']},
      {'student.init_from': initial and initial.report['digest']},
    )
  shown = '\n  '.join(differing.values())
  recipe = [
    field
    for field in differing
    if field.startswith(('train.', 'eval.'))
    and field not in ('train.epochs', 'train.max_steps')
  ]
  if len(recipe) < len(differing):
    raise ValueError(
      f'the teacher in {path} is not the one that this run asks for:\n  {shown}'
      f'\nUse it as it is with --config.teacher.path={path}, or train another '
      'with --config.teacher.sibling=NAME'
    )
  if differing:
    logger.warning(
      'the teacher in %s was trained with another recipe than config.teacher '
      'asks for; it is used as it is:\n  %s',
      path,
      shown,
    )


def check_fit(
  config: ml_collections.ConfigDict,
  teacher_config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  method: methods.Method,
) -> None:
  """Checks from shapes alone that a method can pair the two networks.

  For a teacher that is yet to be trained.

  Args:
    config: a run's configuration.
    teacher_config: that of the run which will train its teacher.
    dataset: its data set.
    method: its method.

  Raises:
    ValueError: a feature is missing, or two that are paired do not fit.
  """
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  student, teacher = (
    models.build(**config_lib.model_arguments(run, len(dataset.class_names)))
    for run in (config, teacher_config)
  )

  def initialize(rng: jax.Array) -> step.TrainState:
    network = step.Network(teacher, features.init(teacher, rng, images))
    return step.create_state(
      rng, student, method, optax.identity(), images, network
    )

  jax.eval_shape(initialize, jax.random.key(0))


def _shorten(values: Sequence[Any], most: int = 5) -> str:
  shown = ', '.join(map(str, values[:most]))
  more = len(values) - most
  return f'{shown} and {more} more' if more > 0 else shown
