"""What the outputs of a teacher from elsewhere are, and of which classes."""

import functools
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import xla
from kdjax.system.logs import logger

PROBABILITIES = 'probabilities'
LOG_PROBABILITIES = 'log-probabilities'
SIGMOIDS = 'values between 0 and 1'

# Images of noise that show whether a network returns probabilities.
_NOISE_IMAGES = 4
# So many rows tell logarithms from logits.
_ROWS = 1000
# By so much the sum of rounded probabilities may differ from one: those of
# 1,000 classes in float16, or of a table with three decimals.
_SUM_TOLERANCE = 0.01


def kind(outputs: np.ndarray) -> str | None:
  """Tells from its values whether something else stands in place of logits.

  Args:
    outputs: what a teacher returns for some images, floats `[N, classes]`.

  Returns:
    `PROBABILITIES` if no value is negative and each row sums to one, or to
    another constant, as percentages and numbers of 8 bits do (the logarithm of
    a multiple is as good a logit); `LOG_PROBABILITIES` if the exponentials of
    each row sum to one; `SIGMOIDS` if all values are from 0 to 1 otherwise;
    else None.
  """
  if not outputs.size or outputs.shape[1] < 2 or not np.isfinite(outputs).all():
    return None

  def sum_to_one(values: np.ndarray) -> bool:
    sums = values.sum(axis=1, dtype=np.float64)
    return bool((np.abs(sums - 1) <= _SUM_TOLERANCE).all())

  lowest, highest = outputs.min(), outputs.max()
  if lowest >= 0 and highest <= 1 + _SUM_TOLERANCE and sum_to_one(outputs):
    return PROBABILITIES
  if lowest >= 0 and _sum_alike(outputs):
    return PROBABILITIES
  if highest <= _SUM_TOLERANCE and sum_to_one(np.exp(outputs[:_ROWS])):
    return LOG_PROBABILITIES
  return SIGMOIDS if lowest >= 0 and highest <= 1 else None


def _sum_alike(values: np.ndarray) -> bool:
  """Whether rows that differ have one sum, up to the rounding of integers."""
  sums = values.sum(axis=1, dtype=np.float64)
  total = np.median(sums)
  tolerance = _SUM_TOLERANCE * total
  if (values == np.round(values)).all():
    tolerance = min(values.shape[1] / 2, 10 * tolerance)
  return bool(
    total > 0
    and (values != values[0]).any()
    and (np.abs(sums - total) <= tolerance).all()
  )


def log(found: str | None, what: str) -> None:
  """Logs what is done with outputs of a kind; nothing of logits.

  Args:
    found: what `kind` has found.
    what: whose outputs they are.
  """
  if found == PROBABILITIES:
    logger.info(
      '%s are probabilities, not logits; their logarithm is taken', what
    )
  elif found == LOG_PROBABILITIES:
    logger.info('%s are log-probabilities, which are valid logits', what)
  elif found == SIGMOIDS:
    logger.warning(
      '%s are all between 0 and 1 and do not sum to one, as those of a '
      'sigmoid: they are taken as logits, which teach hardly anything then. '
      'Save what comes before the sigmoid',
      what,
    )


def order(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
  """Finds classes by their names.

  Names are the same if they differ only by case or by Unicode's normal form,
  unless two names of one list would be the same then.

  Args:
    names: the names of a teacher's classes, in the order of its outputs.
    wanted: those of a data set.

  Returns:
    For each class of the data set its index among those of the teacher; None if
    they are not the same classes.
  """
  for normalize in (str, _normalize):
    places = {normalize(name): place for place, name in enumerate(names)}
    keys = [normalize(name) for name in wanted]
    if len(places) == len(names) and sorted(places) == sorted(keys):
      return [places[key] for key in keys]
  return None


def reorder(
  report: dict[str, Any], assumed: Mapping[str, Any] | None
) -> list[int] | None:
  """Finds for each class of a data set its place among those of a teacher.

  Args:
    report: the teacher's report, which is given the data set's names if it has
      the same classes.
    assumed: `class_names` of the data set, if they are known.

  Returns:
    The places; None where none is known, or each is its own.
  """
  names, wanted = report['class_names'], (assumed or {}).get('class_names')
  if not names or not wanted:
    return None
  places = order(names, wanted)
  if places is None:
    return None
  report['class_names'] = list(wanted)
  moved = [f'{wanted[i]} is its {k}' for i, k in enumerate(places) if i != k]
  if not moved:
    return None
  logger.info(
    'the teacher in %s has the classes in another order than the data set '
    '(counted from 0, %s): its outputs are put in the order of the data set',
    report['path'],
    ', '.join(moved[:5]) + (', …' if len(moved) > 5 else ''),
  )
  return places


def check_features(
  path: pathlib.Path,
  network: Network,
  names: Sequence[str],
  shape: Sequence[int],
) -> None:
  """Checks that no feature has one value for each class, in its own order.

  Args:
    path: where the network comes from.
    network: the network, whose classes are in another order.
    names: the features that are wanted of it.
    shape: height, width and channels of its images.

  Raises:
    ValueError: one has.
  """
  images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
  shapes = features.output_shapes(*network, images, names)
  for name, feature in shapes.features.items():
    if feature.shape == shapes.logits.shape:
      raise ValueError(
        f'the teacher in {path} has the classes in another order than the data '
        f'set, so its feature {name}, one value for each class, cannot be '
        'compared: use the logits, or another feature'
      )


def probabilities(
  path: pathlib.Path, network: Network, shape: Sequence[int]
) -> dict[str, float]:
  """Tells by images of noise whether a network returns probabilities.

  Whatever images are, the probabilities of their classes sum to one.

  Args:
    path: where it comes from.
    network: the network.
    shape: height, width and channels of its images.

  Returns:
    If it does, `smallest`, the smallest probability that is told from zero.
  """
  noise = np.random.default_rng(0).integers(
    0, 256, (_NOISE_IMAGES, *shape), np.uint8
  )
  # By this process alone, for another one may not find the file.
  forward = functools.partial(features.forward, network.model, train=False)
  outputs, _ = xla.jit(forward)(network.variables, noise)
  found = kind(np.asarray(outputs.logits))
  log(found, f'the outputs of the teacher in {path}')
  if found != PROBABILITIES:
    return {}
  return {'smallest': float(np.finfo(np.float32).tiny)}


def adapt(network: Network, changes: Mapping[str, Any]) -> Network:
  """Makes a network return logits of the classes of a data set.

  Args:
    network: the network.
    changes: what `kdjax.models.features.to_logits` takes, and other things.

  Returns:
    The network, which does so wherever it is run.
  """
  dtypes = {'smallest': np.float32, 'order': np.int32}
  adaptation = {
    name: np.array(changes[name], dtype)
    for name, dtype in dtypes.items()
    if name in changes
  }
  if not adaptation:
    return network
  return network._replace(
    variables={**network.variables, 'adaptation': adaptation}
  )


def _normalize(name: str) -> str:
  """Brings a name into one form, whatever its case and encoding were."""
  return unicodedata.normalize(
    'NFC', unicodedata.normalize('NFC', name).casefold()
  )
