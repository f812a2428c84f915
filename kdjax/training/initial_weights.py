"""The initial weights of a student, where they are not random."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from kdjax import config as config_lib
from kdjax import data, models
from kdjax.models import features
from kdjax.storage import digests, networks, run_directory, trees
from kdjax.storage import flax_variables as variables_lib
from kdjax.system.logs import logger

# The last layer of a model that does not say otherwise in an attribute `head`.
_HEAD = 'fc'
# What weights tell of a student, where its configuration leaves it out.
_FOUND = 'name', 'stem', 'width'


class Initial(NamedTuple):
  """Initial weights.

  Attributes:
    variables: `params` and `batch_stats`; without the last layer if that is to
      be random.
    report: what a result says of it: `path`, `digest` and `model`.
    student: the network that they are of: `name`, `stem` and `width`.
  """

  variables: Mapping[str, Any]
  report: dict[str, Any]
  student: dict[str, Any]


def load(student: ml_collections.ConfigDict) -> Initial:
  """Loads what `config.student.init_from` names.

  Args:
    student: the section `student` of a run's configuration.

  Returns:
    The weights.

  Raises:
    FileNotFoundError: there is no network.
    ValueError: it is one that is not known here.
  """
  fresh = student.head == 'fresh'
  found = networks.load(student.init_from, headless=fresh)
  for line in found.recognised:
    logger.info('%s: %s', student.init_from, line)
  model = found.card['model']
  # A session keeps them, which is no reason to fill a device.
  variables = {
    name: dict(jax.device_get(found.network.variables[name]))
    for name in features.TRAINED
  }
  report = {
    'path': str(student.init_from),
    'digest': digests.digest(variables),
    'model': model['name'],
  }
  if fresh:
    variables['params'].pop(_head(found.network.model), None)
  return Initial(
    variables, report, {name: model[name] for name in _FOUND if name in model}
  )


def is_complete(student: ml_collections.ConfigDict) -> bool:
  """Whether a configuration leaves nothing out that weights would tell.

  Args:
    student: the section `student` of a run's configuration.
  """
  return not student.init_from or all(student[name] for name in _FOUND)


def complete(
  config: ml_collections.ConfigDict, student: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Fills in what a configuration leaves out of its student.

  Args:
    config: a run's configuration.
    student: `name`, `stem` and `width`.

  Returns:
    The configuration with them, where it has none of its own.
  """
  config = config.copy_and_resolve_references()
  for name in _FOUND:
    if not config.student[name] and name in student:
      config.student[name] = student[name]
  return config


def check_same_initial(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  began: Mapping[str, Any] | None,
  initial: Initial | None,
) -> None:
  """Checks that a run goes on with what it began with.

  Args:
    workdir: its directory.
    config: its configuration.
    began: what it recorded: a report of weights; None of random ones.
    initial: what its configuration names; None where that is gone, too.

  Raises:
    ValueError: it began with something else.
  """
  if is_gone(config, initial) and began:
    return
  run_directory.check_same_digest(
    workdir,
    'config.student.init_from',
    began['digest'] if began else None,
    initial.report['digest'] if initial else None,
  )


def is_gone(config: ml_collections.ConfigDict, initial: Initial | None) -> bool:
  """Whether a run began with weights that are not there any more.

  Args:
    config: its configuration.
    initial: what was found.
  """
  return bool(config.student.init_from) and initial is None


def check(
  initial: Initial, config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Checks that initial weights fit a run.

  Args:
    initial: the weights.
    config: its configuration.
    dataset: its data set.

  Raises:
    ValueError: they are of another network; or an array is missing, or is one
      too many, or has another shape. The message names them.
  """
  student = initial.student
  # Whether a max-pool follows their first convolution weights do not show.
  pooled = (student.get('stem'), config.student.stem) == ('cifar', 'cifar_pool')
  if wrong := [
    name
    for name in student
    if config.student[name] != student[name] and not (name == 'stem' and pooled)
  ]:
    flags = ' '.join(
      f'--config.student.{name}={student[name]}' for name in wrong
    )
    raise ValueError(
      f'the network in {initial.report["path"]} is another than '
      f'config.student: give {flags}'
    )
  model = models.build(
    **config_lib.model_arguments(config, len(dataset.class_names))
  )
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  expected = variables_lib.describe_model(model, images)
  if config.student.head == 'fresh':
    head = _head(model)
    fresh = {name for name in expected if name.startswith(f'params/{head}/')}
    if not fresh:
      raise ValueError(
        f"config.student.head is 'fresh', and {config.student.name} has no "
        f"module '{head}': name its last layer in an attribute `head`"
      )
    expected = {name: expected[name] for name in expected.keys() - fresh}
  trees.check_same(
    initial.report['path'],
    f'{config.student.name} on {dataset.name}',
    expected,
    trees.describe(initial.variables),
    'Where only the number of classes is another, give '
    '--config.student.head=fresh',
  )


def _head(model: nn.Module) -> str:
  """Names the last layer of a model."""
  return getattr(model, 'head', _HEAD)
