"""What is reported of a classifier, computed from its logits."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.system import xla


def classification(
  logits: jax.typing.ArrayLike,
  labels: np.ndarray,
  teacher_logits: jax.typing.ArrayLike | None = None,
) -> dict[str, float]:
  """Measures a classifier on a split.

  Args:
    logits: `[size, classes]`.
    labels: class indices, integer `[size]`.
    teacher_logits: `[size, classes]`, if there is a teacher.

  Returns:
    `accuracy` from 0 to 1, `loss` (the negative log-likelihood: mean
    cross-entropy, nats), `calibration_error` (`expected_calibration_error`),
    `balanced_accuracy` and `macro_f1` (`by_class`), `count`; with a teacher
    also `agreement`, the share of examples where both predict the same class,
    and `kl_to_teacher`, the mean KL(teacher ‖ student) in nats. Where a logit
    is NaN all but the count are NaN.
  """
  values = jax.device_get(per_example(logits, labels, teacher_logits))
  # Means in float64: the same whatever the order and size of the split.
  means = {
    name: float(np.mean(values[name], dtype=np.float64))
    for name in ('accuracy', 'loss', 'agreement', 'kl_to_teacher')
    if name in values
  }
  calibration_error = expected_calibration_error(
    values['confidence'], values['accuracy']
  )
  of_classes = by_class(values['prediction'], labels)
  if np.isnan(means['accuracy']):
    of_classes = dict.fromkeys(of_classes, np.nan)
  return means | {
    'calibration_error': calibration_error,
    **of_classes,
    'count': len(labels),
  }


@xla.jit
def per_example(
  logits: jax.Array, labels: jax.Array, teacher_logits: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Measures a classifier on each example.

  Args:
    logits: `[size, classes]`.
    labels: class indices, integer `[size]`.
    teacher_logits: `[size, classes]`, if there is a teacher.

  Returns:
    Arrays `[size]`: `prediction`, the index of the largest logit (the first of
    several), int32; `confidence`, its probability; `accuracy`, 1 if it is the
    label and 0 if not; `loss`, the cross-entropy in nats. With a teacher also
    its `teacher_prediction` and `teacher_confidence`; `agreement`, 1 if both
    predictions are the same; and `kl_to_teacher`, KL(teacher ‖ student) in
    nats. All but the predictions are float32, and NaN where a logit is NaN.
  """
  prediction, confidence = _predict(logits)
  values = {
    'prediction': prediction,
    'confidence': confidence,
    'accuracy': _indicator(prediction == labels, confidence),
    'loss': losses.cross_entropy(logits, labels),
  }
  if teacher_logits is not None:
    teacher_prediction, teacher_confidence = _predict(teacher_logits)
    values |= {
      'teacher_prediction': teacher_prediction,
      'teacher_confidence': teacher_confidence,
      'agreement': _indicator(
        prediction == teacher_prediction, confidence + teacher_confidence
      ),
      'kl_to_teacher': losses.temperature_kl(logits, teacher_logits, 1.0),
    }
  return values


def by_class(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Means over classes, in which small classes count as much as large ones.

  With the images n of a class, those m that are predicted to be of it, and
  those t that are rightly so:

  - `balanced_accuracy`, the mean of t / n (recall) over classes with images;
  - `macro_f1`, the mean of 2 t / (n + m) over classes where that is defined.

  Brodersen et al., 2010, https://doi.org/10.1109/ICPR.2010.764; Sokolova and
  Lapalme, 2009, https://doi.org/10.1016/j.ipm.2009.03.002.

  Args:
    predictions: predicted classes, integer `[size]`.
    labels: classes, integer `[size]`.

  Returns:
    Both, from 0 to 1.
  """
  labels = np.asarray(labels)
  classes = max(int(predictions.max()), int(labels.max())) + 1
  right, images, predicted = (
    np.bincount(rows, minlength=classes)
    for rows in (labels[predictions == labels], labels, predictions)
  )
  there, either = images > 0, images + predicted > 0
  recall = right[there] / images[there]
  f1 = 2 * right[either] / (images + predicted)[either]
  return {
    'balanced_accuracy': float(recall.mean()),
    'macro_f1': float(f1.mean()),
  }


def expected_calibration_error(
  confidences: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
  """Expected calibration error, Σ_m |B_m| / n · |accuracy(B_m) - conf(B_m)|.

  B_m are the examples whose confidence is in ((m - 1) / bins, m / bins], n is
  their number in all; accuracy and confidence are averages over a bin.

  Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3.

  Args:
    confidences: probabilities of the predicted classes, `[n]`, over 0 and at
      most 1, or NaN.
    correct: whether the predictions are right, boolean, or 0, 1 or NaN, `[n]`.
    bins: number of bins, of equal width.

  Returns:
    The error from 0 to 1, computed in float64; NaN if a value is.

  Raises:
    ValueError: there are no examples or no bins, or the shapes differ.
  """
  if bins < 1:
    raise ValueError(f'bins is {bins}: expected 1 or more')
  confidences = np.asarray(confidences, np.float64)
  correct = np.asarray(correct, np.float64)
  if confidences.shape != correct.shape or not confidences.size:
    raise ValueError(
      f'confidences have shape {confidences.shape}, correct {correct.shape}: '
      'expected the same, with at least one example'
    )
  upper_edges = np.arange(1, bins + 1) / bins
  # NaN comes after the last bin, and makes the sum NaN there.
  members = np.searchsorted(upper_edges, confidences)
  gaps = np.bincount(members, weights=correct - confidences)
  return float(np.abs(gaps).sum() / confidences.size)


def _predict(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The predicted class and its probability."""
  logits = jnp.asarray(logits, jnp.float32)
  return (
    jnp.argmax(logits, axis=-1).astype(jnp.int32),
    jax.nn.softmax(logits).max(axis=-1),
  )


def _indicator(true: jax.Array, confidence: jax.Array) -> jax.Array:
  """1 where it is true, 0 where not, NaN where the logits predict nothing."""
  return jnp.where(jnp.isnan(confidence), jnp.nan, true.astype(jnp.float32))


def validation_score(
  epochs: Sequence[Mapping[str, Any]],
) -> tuple[float, float] | None:
  """Scores settings: the largest score is the one to choose.

  By validation accuracy, the mean over seeds; where it is equal, as it often is
  on a small split, by validation loss.

  Args:
    epochs: what was measured at the best epoch with each seed,
      `validation_accuracy` and `validation_loss`.

  Returns:
    A score to compare with others; None where a run was not validated.
  """
  accuracies: list[Any] = [epoch.get('validation_accuracy') for epoch in epochs]
  if not accuracies or None in accuracies:
    return None
  # Older results lack it.
  losses = [epoch.get('validation_loss') or 0.0 for epoch in epochs]
  # Equal means may differ by their rounding.
  return round(statistics.fmean(accuracies), 12), -statistics.fmean(losses)
