"""The finished runs that a report is about."""

import pathlib
from typing import Any, NamedTuple

import numpy as np


class Run(NamedTuple):
  """A finished run, as its directory has it.

  Attributes:
    path: the run directory.
    result: the content of `result.json`.
    records: those of `metrics.jsonl`, in order.
    predictions: the arrays of `predictions.npz`, if there is one.
  """

  path: pathlib.Path
  result: dict[str, Any]
  records: list[dict[str, Any]]
  predictions: dict[str, np.ndarray] | None
