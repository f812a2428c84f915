"""The table that compares the teacher, the student and its exports."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.evaluation import tables
from kdjax.export.predictor import Student

CALLS = 50
"""Calls that a latency is the median of."""
_WARM_UP_CALLS = 5

_HEADER = (
  '',
  'MB',
  'parameters',
  'one image (ms)',
  'accuracy',
  'largest difference',
)


class Row(NamedTuple):
  """A network or an export: `size` in bytes, `accuracy` from 0 to 1."""

  title: str
  network: Student
  size: int
  parameters: int
  accuracy: float | None
  difference: float | None = None


def table(rows: Sequence[Row]) -> str:
  """Formats the rows, and measures the latency of each network."""
  return tables.align([_HEADER, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
  return (
    row.title,
    f'{row.size / 1e6:.1f}',
    f'{row.parameters:,}',
    f'{1e3 * _latency(row.network):.2f}',
    '-' if row.accuracy is None else f'{row.accuracy:.2%}',
    '-' if row.difference is None else f'{row.difference:.1e}',
  )


def _latency(network: Student) -> float:
  """Measures the seconds from one image's pixels to its probabilities."""
  assert network.image_shape
  image = np.zeros((1, *network.image_shape), np.uint8)
  seconds = []
  for _ in range(_WARM_UP_CALLS + CALLS):
    start = time.perf_counter()
    network(image)
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[_WARM_UP_CALLS:])
