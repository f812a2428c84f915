"""Training metrics between two lines of the log, averaged over their steps."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.training.plan import Plan


class Closed(NamedTuple):
  """What a window gave.

  Attributes:
    end: the step that it ends with.
    averages: of each metric, over the steps that were not skipped; NaN if all
      were.
    timings: what depends on the machine.
    wrong: where it cannot go on, the first such step and what is wrong.
  """

  end: int
  averages: dict[str, float]
  timings: dict[str, float]
  wrong: tuple[int, str] | None


class Window:
  """The training metrics between two log lines, left on the device.

  Args:
    plan: how long the run is.
    done: steps done.
    pending: metrics of each of the last of them that no line has yet.
    skipped_in_a_row: how many of the last steps before those were skipped.
  """

  def __init__(
    self,
    plan: Plan,
    done: int,
    pending: Mapping[str, Sequence[float]],
    skipped_in_a_row: int = 0,
  ):
    self._plan = plan
    self.skipped_in_a_row = skipped_in_a_row
    arrays = {
      name: np.asarray(values, np.float32)
      for name, values in pending.items()
      if values
    }
    self._pending: list[Mapping[str, Any]] = [arrays] if arrays else []
    # The step that the window begins after.
    self._begin = done - max(map(len, arrays.values()), default=0)
    self.restart_clock(done)

  def restart_clock(self, done: int) -> None:
    """Measures the time of steps from here on, after `done` steps."""
    self._timed = done, time.perf_counter()

  def add(self, step_metrics: Mapping[str, jax.Array]) -> None:
    """Adds the metrics of the next steps, each `[steps]`, without waiting."""
    self._pending.append(step_metrics)

  def fetch(self) -> dict[str, np.ndarray]:
    """Waits for the device; returns the metrics of each step since a line."""
    fetched = jax.device_get(self._pending)
    # Steps made before a restart may know of no `skipped`, or they alone.
    whole = {
      name: np.concatenate(
        [metric.get(name, np.zeros_like(metric['loss'])) for metric in fetched]
      )
      for name in {**fetched[0], **fetched[-1]}
    }
    self._pending = [whole]
    return whole

  def close(self, boundaries: Sequence[int]) -> Iterator[Closed]:
    """Waits for the device; yields what windows gave.

    Args:
      boundaries: the step that each window ends with. Steps after the last
        stay for the next call.
    """
    fetched = self.fetch()
    timed_from, clock = self._timed
    seconds = (time.perf_counter() - clock) / (boundaries[-1] - timed_from)
    self.restart_clock(boundaries[-1])
    for end in boundaries:
      size = end - self._begin
      values = {name: array[:size] for name, array in fetched.items()}
      fetched = {name: array[size:] for name, array in fetched.items()}
      self._pending = [fetched]
      averages = _average(values)
      wrong = find_wrong(values, self._begin)
      for index, skipped in enumerate(values.get('skipped', ())):
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == _MOST_SKIPPED:
          what = (
            f'loss or gradient were not finite in {_MOST_SKIPPED} steps in a '
            'row, the last of them'
          )
          wrong = self._begin + 1 + index, what
          averages |= dict.fromkeys(averages.keys() - {'skipped'}, math.nan)
          break
      self._begin = end
      yield Closed(
        end,
        averages,
        {
          'images_per_second': self._plan.batch_size / seconds,
          'seconds_left': (self._plan.total_steps - end) * seconds,
        },
        wrong,
      )


# Steps left out one after the other until a run is given up.
_MOST_SKIPPED = 50


def _average(values: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Averages over the steps that were not skipped; NaN if all were."""
  kept = values['skipped'] == 0 if 'skipped' in values else slice(None)
  averages = {}
  for name, array in values.items():
    counted = array if name == 'skipped' else array[kept]
    averages[name] = (
      float(counted.mean(dtype=float)) if len(counted) else math.nan
    )
  return averages


def find_wrong(
  values: Mapping[str, np.ndarray], begin: int
) -> tuple[int, str] | None:
  """Finds the first step after `begin` whose loss or gradient is not finite."""
  wrong = [
    (begin + 1 + int(index), f'the {name} is {values[name][index]}')
    for name in ('loss', 'gradient_norm')
    for index in np.flatnonzero(~np.isfinite(values[name]))[:1]
  ]
  return min(wrong, key=lambda found: found[0], default=None)
