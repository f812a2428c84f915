"""Metrics against a case worked out by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics

from kdjax.evaluation import metrics

# Probabilities (3/4, 1/4), (1/2, 1/2) and (1/4, 3/4).
LOGITS = np.log(np.float32([[3, 1], [1, 1], [1, 3]]))
LABELS = np.int32([0, 1, 0])
TEACHER = np.log(np.float32([[1, 1], [1, 3], [1, 3]]))


def test_accuracy_and_loss():
  measured = metrics.classification(LOGITS, LABELS)
  # A tie counts as the first class, so the second example is wrong.
  assert measured['accuracy'] == pytest.approx(1 / 3)
  expected = -(np.log(3 / 4) + np.log(1 / 2) + np.log(1 / 4)) / 3
  assert measured['loss'] == pytest.approx(expected, rel=1e-6)
  assert measured['count'] == 3
  assert 'agreement' not in measured


def test_small_classes_count_as_much_as_large_ones():
  # Of four images of class 0 three are right, of one of class 1 none, and none
  # is of class 2, which is predicted once.
  labels = np.int32([0, 0, 0, 0, 1])
  logits = np.eye(3, dtype=np.float32)[[0, 0, 0, 2, 0]]
  measured = metrics.classification(logits, labels)
  assert measured['accuracy'] == pytest.approx(3 / 5)
  assert measured['balanced_accuracy'] == pytest.approx((3 / 4 + 0) / 2)
  assert measured['macro_f1'] == pytest.approx((6 / 8 + 0 + 0) / 3)


def test_means_over_classes_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  labels, predictions = rng.integers(0, 7, (2, 200)) ** 2 // 8
  found = metrics.by_class(predictions, labels)
  assert set(predictions) == set(labels)
  assert found == {
    'balanced_accuracy': pytest.approx(
      sklearn.metrics.balanced_accuracy_score(labels, predictions)
    ),
    'macro_f1': pytest.approx(
      sklearn.metrics.f1_score(labels, predictions, average='macro')
    ),
  }


def test_calibration_error():
  # Confidences 1/2, 3/4 and 3/4; the first two are right. Two bins have
  # examples, and in both accuracies and confidences add up to 1/2 apart.
  measured = metrics.classification(TEACHER, LABELS)
  assert measured['accuracy'] == pytest.approx(2 / 3)
  assert measured['calibration_error'] == pytest.approx((1 / 2 + 1 / 2) / 3)


def test_agreement_and_divergence_from_the_teacher():
  measured = metrics.classification(LOGITS, LABELS, TEACHER)
  assert measured['agreement'] == pytest.approx(2 / 3)
  first = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
  second = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
  assert measured['kl_to_teacher'] == pytest.approx(
    (first + second) / 3, rel=1e-5
  )


def test_each_example():
  values = metrics.per_example(LOGITS, LABELS, TEACHER)
  third = {
    'prediction': 1,
    'confidence': 3 / 4,
    'accuracy': 0,
    'loss': np.log(4),
    'teacher_prediction': 1,
    'teacher_confidence': 3 / 4,
    'agreement': 1,
    'kl_to_teacher': 0,
  }
  assert {name: array.shape for name, array in values.items()} == dict.fromkeys(
    third, (3,)
  )
  assert {name: array[2] for name, array in values.items()} == pytest.approx(
    third, abs=1e-6
  )


def test_nan_logits_give_nan():
  broken = LOGITS.copy()
  broken[1, 0] = np.nan
  measured = metrics.classification(broken, LABELS, TEACHER)
  assert measured.pop('count') == 3
  assert set(measured) == {
    *('accuracy', 'loss', 'calibration_error', 'agreement', 'kl_to_teacher'),
    *('balanced_accuracy', 'macro_f1'),
  }
  assert all(math.isnan(value) for value in measured.values())


def test_nan_logits_of_the_teacher_leave_the_students_own_metrics():
  broken = TEACHER.copy()
  broken[1, 0] = np.nan
  measured = metrics.classification(LOGITS, LABELS, broken)
  assert math.isnan(measured.pop('agreement'))
  assert math.isnan(measured.pop('kl_to_teacher'))
  assert measured == metrics.classification(LOGITS, LABELS)


@pytest.mark.parametrize(
  ('confidences', 'correct', 'expected'),
  [
    # Four bins. The first holds 1/4 (right); the second 1/2 twice (one right);
    # the third 5/8 (right) and 3/4 (wrong); the last 1 (right).
    (
      [1 / 4, 1 / 2, 1 / 2, 5 / 8, 3 / 4, 1],
      [1, 0, 1, 1, 0, 1],
      (abs(1 - 1 / 4) + abs(1 - 1) + abs(1 - 11 / 8) + abs(1 - 1)) / 6,
    ),
    # As often right as it says, in each bin.
    ([1 / 2, 1 / 2, 3 / 4, 3 / 4, 3 / 4, 3 / 4], [1, 0, 1, 1, 1, 0], 0),
    # Always certain, never right.
    ([1, 1, 1], [False, False, False], 1),
    ([1, 1 / 2, np.nan], [1, 0, np.nan], np.nan),
  ],
)
def test_expected_calibration_error(confidences, correct, expected):
  error = metrics.expected_calibration_error(
    np.array(confidences), np.array(correct), bins=4
  )
  assert error == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize('m', range(1, 15))
def test_bins_hold_their_upper_edge_only(m):
  low, high = (m - 1) / 15, m / 15
  # In one bin: right with the confidence `high`, wrong with barely over `low`.
  error = metrics.expected_calibration_error(
    np.array([high, np.nextafter(low, 1)]), np.array([True, False])
  )
  assert error == pytest.approx(abs(1 - high - low) / 2, abs=1e-12)


@pytest.mark.parametrize(
  ('confidences', 'correct', 'bins', 'message'),
  [
    ([0.5], [1, 0], 15, r'shape \(1,\), correct \(2,\): expected the same'),
    ([], [], 15, 'at least one example'),
    ([0.5], [1], 0, 'bins is 0: expected 1 or more'),
  ],
)
def test_calibration_of_nothing_is_refused(confidences, correct, bins, message):
  with pytest.raises(ValueError, match=message):
    metrics.expected_calibration_error(
      np.array(confidences), np.array(correct), bins
    )
