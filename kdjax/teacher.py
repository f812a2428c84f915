"""The frozen teacher of a run, and whether it suits the run."""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from kdjax import checkpoint, data, features, methods, models, results, step
from kdjax import config as config_lib


class Teacher(NamedTuple):
  """A frozen teacher.

  Attributes:
    network: its model and variables.
    report: what a result says of it: `path`, `digest`, `model`, `parameters`,
      and of its checkpoint `step`, `validation_accuracy`, `wall_time_s`,
      `data_digest` and `class_names`.
  """

  network: step.Network
  report: dict[str, Any]


def load(
  path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> Teacher:
  """Loads a teacher from its run directory.

  Args:
    path: the run directory, or one checkpoint in it.
    config: the section `teacher` of a run's configuration.

  Returns:
    The teacher.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  path = pathlib.Path(path).absolute()
  directory = checkpoint.find(path, config.checkpoint)
  metadata = checkpoint.read_metadata(directory)
  model, variables = checkpoint.restore(directory)
  if config.dtype:
    model = model.clone(dtype=jnp.dtype(config.dtype))
  report = {
    'path': str(path),
    'digest': results.digest(variables),
    'model': metadata['model']['name'],
    'parameters': optax.tree.size(variables['params']),
  }
  for key in (
    *('step', 'validation_accuracy', 'wall_time_s'),
    *('data_digest', 'class_names'),
  ):
    report[key] = metadata[key]
  return Teacher(step.Network(model, variables), report)


def check_classes(teacher: Teacher, dataset: data.Dataset) -> None:
  """Checks that a teacher knows the classes of a data set.

  Args:
    teacher: the teacher.
    dataset: the data set.

  Raises:
    ValueError: it knows others, or in another order.
  """
  if teacher.report['class_names'] != list(dataset.class_names):
    raise ValueError(
      f'the teacher in {teacher.report["path"]} knows the classes '
      f'{_shorten(teacher.report["class_names"])}, {dataset.name} has '
      f'{_shorten(dataset.class_names)}. Give this run a teacher of its own '
      'with config.teacher.path or config.teacher.sibling'
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
  images = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.uint8)
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


def _shorten(class_names: Any, most: int = 5) -> str:
  shown = ', '.join(list(class_names)[:most])
  more = len(class_names) - most
  return f'{shown} and {more} more' if more > 0 else shown
