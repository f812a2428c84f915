"""Which numbers float32 can hold, in which everything here is computed."""

from typing import Any

import numpy as np

TINY = float(np.finfo(np.float32).tiny)
"""The smallest positive number that it holds with all its digits."""

HUGE = float(np.finfo(np.float32).max)
"""The largest number that it holds."""


def is_number(value: Any) -> bool:
  """Whether a value is a finite number that is not too large for float32."""
  return (
    isinstance(value, int | float | np.floating)
    and not isinstance(value, bool)
    and bool(-HUGE <= value <= HUGE)
  )


def holds(value: Any) -> bool:
  """Whether a value is such a number, and not so small that it would be 0."""
  return is_number(value) and (value == 0 or abs(value) >= TINY)
