"""What an export must show before it is kept: that it is the network.

Probabilities alone do not show it: where there are many classes and the network
is sure of none, all of them are small, and so are their differences from those
of any other network. Their logarithms, the logits but for a constant, differ by
rounding relative to how far apart they lie; but where they lie far apart that
is more than a probability may change. So both are compared.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.evaluation import predict
from kdjax.export.predictor import Student
from kdjax.models.network import Network

# Of probabilities, where float32 is computed in float32.
_TOLERANCE = 1e-4
# Of probabilities, where weights are stored so.
_REDUCED = {'float16': 0.01, 'int8': 0.2}
# Where it is not: so many roundings. Folding rounds other numbers.
_ROUNDINGS = 8
# Relative rounding of products of float32: XLA multiplies in TensorFloat-32 on
# GPUs and in bfloat16 on TPUs.
_ROUNDING = {'cpu': 2.0**-24, 'gpu': 2.0**-11, 'tpu': 2.0**-8}
_BFLOAT16_ROUNDING = 2.0**-8

# What is less is nothing to a float32.
_LEAST = 1e-30
# Logarithms that lie closer together are taken to be so far apart (nats): they
# are rounded themselves.
_CLOSE = 0.1

_BATCH_SIZE = 128

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


class Compared(NamedTuple):
  """How an export does on some images.

  Attributes:
    difference: largest difference of a probability from the network's.
    log_difference: largest difference of the logarithm of one, as a share of
      how far apart those of one image lie at most.
    differing: images of which it predicts another class.
    contrary: those of them whose two best classes the network tells apart by
      more than the tolerance.
    accuracy: share of the images that it classifies rightly; None without
      labels.
  """

  difference: float
  log_difference: float
  differing: int
  contrary: int
  accuracy: float | None


def tolerance(model: Any) -> float:
  """Computes how large a difference still is rounding.

  Args:
    model: arguments of `kdjax.models.build`, as in a card.

  Returns:
    That of probabilities, and of their logarithms as a share (see `Compared`):
    1e-4 where the network and this device compute in float32, else eight times
    the rounding of what they compute in.
  """
  rounding = _ROUNDING.get(jax.default_backend(), _BFLOAT16_ROUNDING)
  if model.get('dtype') == 'bfloat16':
    rounding = _BFLOAT16_ROUNDING
  return max(_TOLERANCE, _ROUNDINGS * rounding)


def compare(
  network: Network,
  exports: Mapping[str, Student],
  batches: Batches,
  tolerance: float,
) -> tuple[int, float | None, dict[str, Compared]]:
  """Compares exports with the network, evaluated as in training.

  Args:
    network: the network.
    exports: what was read back, by its format.
    batches: images, uint8 `[size, height, width, channels]`, and their labels
      or None.
    tolerance: difference that is rounding.

  Returns:
    The number of images, the network's accuracy, None without labels, and how
    each export does.

  Raises:
    ValueError: there is no image.
  """
  parts: dict[str, list[tuple[float, ...]]] = {name: [] for name in exports}
  count, right, labelled, spread = 0, 0, True, _CLOSE
  for images, labels in batches:
    if not len(images):
      continue
    labelled = labels is not None
    expected = np.asarray(
      jax.nn.softmax(predict.predict_images(network, images, _BATCH_SIZE))
    )
    count += len(images)
    right += np.sum(expected.argmax(axis=1) == labels)
    spread = max(spread, np.ptp(_logarithms(expected), axis=1).max())
    for name, export in exports.items():
      parts[name].append(
        _differences(export(images), expected, labels, tolerance)
      )
  if not count:
    raise ValueError('there is no test image to compare the export on')
  compared = {}
  for name, rows in parts.items():
    difference, log_difference = np.max(rows, axis=0)[:2]
    differing, contrary, correct = np.sum(rows, axis=0)[2:]
    compared[name] = Compared(
      float(difference),
      float(log_difference / spread),
      int(differing),
      int(contrary),
      correct / count if labelled else None,
    )
  return count, right / count if labelled else None, compared


def compare_and_check(
  network: Network,
  exports: Mapping[str, Student],
  batches: Batches,
  card: Mapping[str, Any],
) -> tuple[int, float | None, dict[str, Compared]]:
  """Compares exports with the network, and refuses what is not the network.

  Args, Returns and Raises are those of `compare` and `check`; `card` is that of
  the network. Where it says that weights are stored in fewer bits, only
  probabilities are compared, with a tolerance of 0.01 (float16) or 0.2 (int8),
  and no class may change that the network tells from the others by more.
  """
  reduced = _REDUCED.get(card.get('weights', ''))
  most = reduced or tolerance(card['model'])
  count, accuracy, compared = compare(network, exports, batches, most)
  for name in exports:
    one = compared[name]
    check(name, one._replace(log_difference=0) if reduced else one, count, most)
  return count, accuracy, compared


def _differences(
  found: np.ndarray,
  expected: np.ndarray,
  labels: np.ndarray | None,
  tolerance: float,
) -> tuple[float, ...]:
  """Returns the fields of `Compared` for one batch, as sums and in nats."""
  predictions = found.argmax(axis=1)
  differing = predictions != expected.argmax(axis=1)
  best = np.sort(expected, axis=1)[:, -2:]
  apart = best[:, -1] - best[:, 0] > tolerance
  return (
    _largest(found - expected),
    _largest(_logarithms(found) - _logarithms(expected)),
    differing.sum(),
    (differing & apart).sum(),
    np.sum(predictions == labels),
  )


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
  return np.log(np.maximum(probabilities, _LEAST))


def _largest(difference: np.ndarray) -> float:
  # What is not a number differs most of all.
  return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def check(name: str, compared: Compared, count: int, tolerance: float) -> None:
  """Checks that an export is the network, by how it does on `count` images.

  Raises:
    ValueError: it is not.
  """
  if (
    max(compared.difference, compared.log_difference) > tolerance
    or compared.contrary
  ):
    raise ValueError(
      f'the export as {name} is not the network: on {count} images its '
      f'probabilities differ by up to {compared.difference:.2g}, their '
      f'logarithms by up to {compared.log_difference:.2g} of their distance '
      f'(at most {tolerance:.2g} is rounding), and {compared.differing} '
      'predictions do. Nothing was exported'
    )
