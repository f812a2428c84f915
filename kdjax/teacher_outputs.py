"""What the outputs of a teacher from elsewhere are, and of which classes."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from kdjax.logs import logger

PROBABILITIES = 'probabilities'
LOG_PROBABILITIES = 'log-probabilities'
SIGMOIDS = 'values between 0 and 1'

# So many rows tell logarithms from logits.
_ROWS = 1000
# By so much the sum of rounded probabilities may differ from one: those of
# 1,000 classes in float16, or of a table with three decimals.
_SUM_TOLERANCE = 0.01


def kind(outputs: np.ndarray) -> str | None:
  """Tells from its values whether something else stands in place of logits.

  Args:
    outputs: what a teacher gives for some images, floats `[N, classes]`.

  Returns:
    `PROBABILITIES` if no value is negative and each row sums to one;
    `LOG_PROBABILITIES` if this is so of their exponentials; `SIGMOIDS` if all
    values are from 0 to 1 otherwise; else None.
  """
  if not outputs.size or outputs.shape[1] < 2 or not np.isfinite(outputs).all():
    return None

  def sum_to_one(values: np.ndarray) -> bool:
    sums = values.sum(axis=1, dtype=np.float64)
    return bool((np.abs(sums - 1) <= _SUM_TOLERANCE).all())

  lowest, highest = outputs.min(), outputs.max()
  if lowest >= 0 and highest <= 1 + _SUM_TOLERANCE and sum_to_one(outputs):
    return PROBABILITIES
  if highest <= _SUM_TOLERANCE and sum_to_one(np.exp(outputs[:_ROWS])):
    return LOG_PROBABILITIES
  return SIGMOIDS if lowest >= 0 and highest <= 1 else None


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


def _normalize(name: str) -> str:
  """Brings a name into one form, whatever its case and encoding were."""
  return unicodedata.normalize(
    'NFC', unicodedata.normalize('NFC', name).casefold()
  )
