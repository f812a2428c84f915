"""Metrics against a case worked out by hand."""

import numpy as np
import pytest

from kdjax import metrics

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


def test_agreement_and_divergence_from_the_teacher():
  measured = metrics.classification(LOGITS, LABELS, TEACHER)
  assert measured['agreement'] == pytest.approx(2 / 3)
  first = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
  second = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
  assert measured['kl_to_teacher'] == pytest.approx(
    (first + second) / 3, rel=1e-5
  )
