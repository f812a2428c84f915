"""What a student begins with, where it is not random."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections

from kdjax import config as config_lib
from kdjax import data, digests, features, models, pretrained
from kdjax import variables as variables_lib
from kdjax.logs import logger

# The last layer of a model that does not say otherwise in an attribute `head`.
_HEAD = 'fc'


class Initial(NamedTuple):
  """Weights to begin with.

  Attributes:
    variables: `params` and `batch_stats`; without the last layer if that is to
      be random.
    report: what a result says of it: `path`, `digest` and `model`.
  """

  variables: Mapping[str, Any]
  report: dict[str, Any]


def load(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Initial | None]:
  """Loads what `config.student.init_from` names.

  Args:
    config: a run's configuration.

  Returns:
    The configuration, with the student's name, stem and width as they were
    found where it leaves them out; and the weights, None where it names none.

  Raises:
    FileNotFoundError: there is no network.
    ValueError: it is another network than the configuration's, or one that is
      not known here.
  """
  student = config.student
  if not student.init_from:
    return config, None
  fresh = student.head == 'fresh'
  found = pretrained.load(student.init_from, headless=fresh)
  for line in found.recognised:
    logger.info('%s: %s', student.init_from, line)
  model = found.card['model']
  fields = [name for name in ('name', 'stem', 'width') if name in model]
  if wrong := [
    name for name in fields if student[name] not in ('', 0, model[name])
  ]:
    flags = ' '.join(f'--config.student.{name}={model[name]}' for name in wrong)
    raise ValueError(
      f'the network in {student.init_from} is another than config.student: '
      f'give {flags}'
    )
  config = config.copy_and_resolve_references()
  config.student.update({name: model[name] for name in fields})
  variables = {
    'params': dict(found.network.variables['params']),
    'batch_stats': found.network.variables['batch_stats'],
  }
  report = {
    'path': str(student.init_from),
    'digest': digests.digest(variables),
    'model': model['name'],
  }
  if fresh:
    head = getattr(found.network.model, 'head', _HEAD)
    variables['params'].pop(head, None)
  return config, Initial(variables, report)


def check(
  initial: Initial, config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Checks that a run can begin with some weights.

  Args:
    initial: the weights.
    config: its configuration.
    dataset: its data set.

  Raises:
    ValueError: an array is missing, or is one too many, or has another shape;
      the message names them.
  """
  model = models.build(
    **config_lib.model_arguments(config, len(dataset.class_names))
  )
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  expected = _describe(
    jax.eval_shape(
      lambda rng: features.init(model, rng, images), jax.random.key(0)
    )
  )
  if config.student.head == 'fresh':
    head = getattr(model, 'head', _HEAD)
    fresh = {name for name in expected if name.startswith(f'params/{head}/')}
    if not fresh:
      raise ValueError(
        f"config.student.head is 'fresh', and {config.student.name} has no "
        f"module '{head}': name its last layer in an attribute `head`"
      )
    expected = {name: expected[name] for name in expected.keys() - fresh}
  variables_lib.check_same(
    initial.report['path'],
    f'{config.student.name} on {dataset.name}',
    expected,
    _describe(initial.variables),
    'Where only the number of classes is another, give '
    '--config.student.head=fresh',
  )


def _describe(tree: Mapping[str, Any]) -> dict[str, str]:
  flat = flax.traverse_util.flatten_dict(dict(tree), sep='/')
  return {name: variables_lib.describe(leaf) for name, leaf in flat.items()}
