"""The metrics and the progress of a run while it trains."""

import contextlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from kdjax.storage import metrics_log
from kdjax.system import atomic, logs
from kdjax.training.tensorboard import TensorBoard
from kdjax.training.trackers import Tracker

# Images/s stand in the postfix, from the device's own pace: the rate that tqdm
# sees is that of steps handed to the device.
_BAR = (
  '{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} '
  '[{elapsed}<{remaining}{postfix}]'
)


class RunLog:
  """The metrics and the progress of one run.

  Args:
    workdir: the run directory.
    start_step: step that the run starts or continues from. Metrics of later
      steps, written before a run was cut off, are removed: they come again.
    total_steps: steps of the whole run.
    tensorboard: whether TensorBoard events are written.
    trackers: where else the metrics go; closed with the log.
    lines: how many lines of metrics there were at that step; None if that is
      unknown.
    validations: of the checkpoints there, what their validation gave, to stand
      in for lines that are damaged.

  Attributes:
    lines: how many lines of metrics there are.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    start_step: int,
    total_steps: int,
    tensorboard: bool,
    trackers: Sequence[Tracker] = (),
    lines: int | None = None,
    validations: Sequence[Mapping[str, Any]] = (),
  ):
    self._path = workdir / metrics_log.METRICS
    records = metrics_log.recover(self._path, start_step, lines, validations)
    self.lines = len(records)
    self._file = self._path.open('a', encoding='utf-8')
    self._trackers = list(trackers)
    if tensorboard:
      self._trackers.append(TensorBoard(workdir, start_step))
    for tracker in self._trackers:
      for record in records if tracker.lacks_earlier else ():
        tracker.write(record)
    self._bar = tqdm.tqdm(
      desc=f'{workdir.name}: ',
      initial=start_step,
      total=total_steps,
      bar_format=_BAR,
      dynamic_ncols=True,
      disable=not logs.shows_bar(),
      # Below the bar of a sweep it makes room for that of the next run.
      leave=None,
    )
    self._total_steps = total_steps
    self._shown: dict[str, str] = {}

  def __enter__(self) -> 'RunLog':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    self._bar.close()
    try:
      with contextlib.ExitStack() as closing:
        closing.callback(self._file.close)
        for tracker in self._trackers:
          closing.callback(tracker.close, failed=kind is not None)
    except OSError as error:
      # An error that ends the run says more than one that follows from it.
      if not kind:
        raise atomic.cannot_write(
          f'the last metrics in {self._path.parent}', error
        ) from error

  def advance(self, steps: int) -> None:
    """Counts steps that have been started."""
    self._bar.update(steps)

  def show_loss(self, losses: Any) -> None:
    """Shows the loss of steps of which there is no line yet.

    Args:
      losses: the loss of each step, `[steps]`, perhaps on the device still.
    """
    if not self._bar.disable and not self._shown:
      self._bar.set_postfix_str(f'loss {float(losses[-1]):.3f}')

  def write(
    self,
    kind: str,
    step: int,
    metrics: dict[str, float],
    **timings: float,
  ) -> None:
    """Writes metrics of one kind at one step.

    Args:
      kind: 'train' or 'validation'.
      step: number of steps done.
      metrics: values by name; the same however often the run was interrupted.
      **timings: further values that depend on the machine.
    """
    record: dict[str, Any] = {'kind': kind, 'step': step, **metrics, **timings}
    # JSON has no NaN and no infinity.
    finite = {
      name: None
      if isinstance(value, float) and not math.isfinite(value)
      else value
      for name, value in record.items()
    }
    try:
      self._file.write(metrics_log.line(finite, self.lines + 1))
      self._file.flush()
      self.lines += 1
      for tracker in self._trackers:
        tracker.write(record)
    except OSError as error:
      raise atomic.cannot_write(
        f'the metrics of step {step} in {self._path.parent}', error
      ) from error
    if self._bar.disable:
      logs.logger.info(
        'step %d/%d: %s', step, self._total_steps, _describe(record)
      )
    else:
      # Short, for 80 columns; the bar itself tells the time left.
      accuracy = f'{metrics["accuracy"]:.1%}'
      self._shown[kind] = (
        f'loss {metrics["loss"]:.3f}, acc {accuracy}, '
        f'{timings["images_per_second"]:.0f} images/s'
        if kind == 'train'
        else f'val {accuracy}'
      )
      self._bar.set_postfix_str(', '.join(self._shown.values()))


class SilentLog:
  """A `RunLog` that writes nothing, for all processes but one."""

  lines = 0

  def __enter__(self) -> 'SilentLog':
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def advance(self, steps: int) -> None:
    """Does nothing."""

  def show_loss(self, losses: Any) -> None:
    """Does nothing."""

  def write(
    self, kind: str, step: int, metrics: dict[str, float], **timings: float
  ) -> None:
    """Does nothing."""


def _describe(record: dict[str, Any]) -> str:
  loss, accuracy = f'{record["loss"]:.4f}', f'{record["accuracy"]:.2%}'
  if record['kind'] == 'validation':
    parts = [f'validation NLL {loss}', f'validation accuracy {accuracy}']
  else:
    nll = f'{record.get("nll", record["loss"]):.4f}'
    # That of training on the labels alone is its loss.
    parts = [f'loss {loss}', *([f'NLL {nll}'] if nll != loss else [])]
    parts.append(f'accuracy {accuracy}')
  if 'images_per_second' in record:
    parts.append(f'{record["images_per_second"]:.0f} images/s')
  if 'seconds_left' in record:
    left = tqdm.tqdm.format_interval(record['seconds_left'])
    parts.append(f'{left} left')
  return ', '.join(parts)
