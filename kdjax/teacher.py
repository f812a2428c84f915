"""The frozen teacher of a run, and whether it suits the run."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from kdjax import (
  checkpoint,
  data,
  digests,
  features,
  methods,
  models,
  results,
  step,
)
from kdjax import config as config_lib
from kdjax.logs import logger


class Teacher(NamedTuple):
  """A frozen teacher.

  Attributes:
    network: its model and variables, for evaluation only.
    report: what a result says of it: `path`, `digest`, `model`, `parameters`,
      `wall_time_s` of its whole training, and of its checkpoint `step`,
      `validation_accuracy`, `data_digest`, `class_names` and `image_shape`.
  """

  network: step.Network
  report: dict[str, Any]


def load(
  path: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  names: Sequence[str] = (),
) -> Teacher:
  """Loads a teacher from its run directory, folded (see `models.fold`).

  Args:
    path: the directory of a finished run, or one checkpoint in it.
    config: configuration of the run that it teaches in; says which checkpoint,
      and the dtype to compute in.
    names: the features that will be wanted of it.

  Returns:
    The teacher. Its report describes the network as it was saved.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the run has not finished.
  """
  path = pathlib.Path(path).absolute()
  directory = checkpoint.find(path, config.teacher.checkpoint)
  metadata = checkpoint.read_metadata(directory)
  last = metadata
  if directory != path:
    last = checkpoint.read_metadata(path, 'last')
    if results.read_result(path) is None:
      raise ValueError(
        f'the teacher in {path} has not finished, it is at step '
        f'{last["step"]}: start its own command again first, or name one of '
        'its checkpoints'
      )
  model, variables = checkpoint.restore(directory)
  dtype = config.teacher.dtype or config.student.dtype
  report = {
    'path': str(path),
    'digest': digests.digest(variables),
    'model': metadata['model']['name'],
    'parameters': optax.tree.size(variables['params']),
    'wall_time_s': last['wall_time_s'],
  }
  for key in (
    'step',
    'validation_accuracy',
    'data_digest',
    'class_names',
    'image_shape',
  ):
    report[key] = metadata[key]
  # First the dtype: a folded network's convolutions are stored in it.
  model = model.clone(dtype=jnp.dtype(dtype))
  return Teacher(step.Network(*models.fold(model, variables, names)), report)


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
    trained_with: what its result says of the teacher: `path` and `digest`.
    names: the features that will be wanted of it.

  Returns:
    The teacher, from where it was, or from beside the run where both have been
    moved together.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is not the one that the run had.
  """
  path = pathlib.Path(trained_with['path'])
  if not path.exists():
    path = pathlib.Path(workdir).absolute().parent / path.name
  teacher = load(path, config, names)
  results.check_same_digest(
    pathlib.Path(workdir),
    'teacher',
    trained_with['digest'],
    teacher.report['digest'],
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
  for what, known, present in (
    (
      'images of shape',
      teacher.report['image_shape'],
      dataset.image_shape,
    ),
    ('the classes', teacher.report['class_names'], dataset.class_names),
  ):
    if known != list(present):
      raise ValueError(
        f'the teacher in {teacher.report["path"]} knows {what} '
        f'{_shorten(known)}, {dataset.name} has {_shorten(present)}. Give this '
        'run a teacher of its own with config.teacher.path or '
        'config.teacher.sibling'
      )


def check_sibling(
  path: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a teacher found beside a run is the one it would train.

  Another recipe makes another teacher, which may still be the one that is
  meant, and is warned of. Another network, other data or a longer or shorter
  training never is.

  Args:
    path: the run directory of the teacher.
    config: configuration that the run would train it with.

  Raises:
    ValueError: it is another one; the message names the fields that differ.
  """
  differing = results.differences(path, config)
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
  dataset: data.Dataset,
  method: methods.Method,
) -> None:
  """Checks from shapes alone that a method can pair the two networks.

  For a teacher that is yet to be trained.

  Args:
    config: a run's configuration.
    dataset: its data set.
    method: its method.

  Raises:
    ValueError: a feature is missing, or two that are paired do not fit.
  """
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  student, teacher = (
    models.build(**config_lib.model_arguments(run, len(dataset.class_names)))
    for run in (config, config_lib.teacher_run(config))
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
