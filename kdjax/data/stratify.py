"""Shares of a data set that have the same share of each of its classes."""

from collections.abc import Sequence

import numpy as np


def choose(
  labels: np.ndarray, fraction: float, seed: Sequence[int], leave: int = 0
) -> np.ndarray:
  """Chooses the same share of each class, one example at least.

  What a smaller share chooses is part of what a larger one does.

  Args:
    labels: class of each example, integer `[N]`.
    fraction: the share, from 0 to 1.
    seed: draws which ones; the same numbers choose the same examples.
    leave: examples of each class that are not chosen at least, even if that
      leaves none to choose.

  Returns:
    Indices of the chosen ones, ascending, int64.
  """
  rng = np.random.default_rng(seed)
  chosen = [
    rng.permutation(rows)[
      : max(0, min(max(1, round(fraction * len(rows))), len(rows) - leave))
    ]
    for rows in map(np.flatnonzero, np.unique(labels)[:, None] == labels)
  ]
  return np.sort(np.concatenate(chosen))
