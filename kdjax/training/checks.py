"""Whether the teacher and the data of a run fit each other."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from kdjax import config as config_lib
from kdjax import data, methods, models
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import (
  logits_file,
  run_directory,
)
from kdjax.system import escape
from kdjax.system.logs import logger
from kdjax.training import initial_weights as initial_lib
from kdjax.training import state
from kdjax.training.state import TrainState
from kdjax.training.teacher import Teacher, images_of


def check_compatible(teacher: Teacher, dataset: data.Dataset) -> None:
  """Checks that a teacher knows the images and classes of a data set.

  Args:
    teacher: the teacher.
    dataset: the data set.

  Raises:
    ValueError: it knows others.
  """
  if teacher.logits:
    _check_logits(teacher.logits, teacher.report, dataset)
    return
  for report in teacher.report.get('members', [teacher.report]):
    _check_compatible(report, dataset)


def _check_logits(
  logits: logits_file.Logits, report: Mapping[str, Any], dataset: data.Dataset
) -> None:
  """Checks that logits are those of the examples and classes of a data set."""
  found, expected = report['num_classes'], len(dataset.class_names)
  if found != expected:
    raise ValueError(
      f'{report["path"]} has logits of {found} classes, {dataset.name} has '
      f'{expected}'
    )
  _check_classes(report, dataset)
  logits.train.check_ids(dataset.num_train)
  # Those of each image, or an error.
  logits.train.rows(dataset.train_ids)
  if logits.test:
    logits.test.check_ids(dataset.num_test)
    logits.test.rows(dataset.test_ids)


def _check_compatible(report: Mapping[str, Any], dataset: data.Dataset) -> None:
  classes = len(dataset.class_names)
  if report['num_classes'] != classes:
    raise ValueError(
      f'the network in {report["path"]} knows {report["num_classes"]} classes, '
      f'{dataset.name} has {classes}. Make it a teacher of those first, by '
      'configs/finetune_teacher.py, or in the same command with '
      '--config.teacher.head=fresh, config.teacher.train.epochs and '
      '.learning_rate as that file has them'
    )
  channels, expected = len(report['mean']), dataset.image_shape[-1]
  if channels != expected:
    raise ValueError(
      f'the teacher in {report["path"]} takes {images_of(channels)} images, '
      f'those of {dataset.name} are {images_of(expected)}: name a teacher of '
      'such images (config.teacher.path), or convert the data set'
    )
  _check_known(
    report,
    'images of shape',
    report['image_shape'],
    dataset.image_shape,
    dataset,
  )
  _check_classes(report, dataset)


def _check_classes(report: Mapping[str, Any], dataset: data.Dataset) -> None:
  # Where they are the same, `load` has put them in the same order.
  _check_known(
    report, 'the classes', report['class_names'], dataset.class_names, dataset
  )


def _check_known(
  report: Mapping[str, Any],
  what: str,
  known: Sequence[Any] | None,
  present: Sequence[Any],
  dataset: data.Dataset,
) -> None:
  if known is not None and list(known) != list(present):
    advice = 'config.teacher.path or config.teacher.sibling'
    path = pathlib.Path(report['path'])
    if path.is_dir() and not run_directory.is_run(path):
      advice += (
        ', or, if it is only said otherwise, name the file of weights in that '
        'directory, which leaves out what stands beside it'
      )
    raise ValueError(
      f'the teacher in {path} knows {what} {escape.listed(known, 5)}, '
      f'{dataset.name} has {escape.listed(present, 5)}. Give this run a '
      f'teacher of its own with {advice}'
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
    initial: its initial weights, unless those are gone.

  Raises:
    ValueError: it is another one; the message names the fields that differ.
  """
  differing = run_directory.differences(path, config)
  if not initial_lib.is_gone(config, initial):
    result = run_directory.read_result(path)
    began = result and result['student'].get('init_from')
    differing |= run_directory.compare(
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
    ValueError: a feature is missing, two that are paired do not fit, or a
      network has another number of logits.
  """
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  classes = len(dataset.class_names)
  student, teacher = (
    models.build(**config_lib.model_arguments(run, classes))
    for run in (config, teacher_config)
  )

  def initialize(rng: jax.Array) -> TrainState:
    network = Network(teacher, features.init(teacher, rng, images))
    return state.create_state(
      rng,
      student,
      method,
      optax.identity(),
      state.Start(images, network, num_classes=classes),
    )

  jax.eval_shape(initialize, jax.random.key(0))
