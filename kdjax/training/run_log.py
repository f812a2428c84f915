"""The metrics and the progress of a run while it trains."""

import contextlib
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
import tensorboardX.record_writer
import tqdm
from tensorboardX.proto import event_pb2, summary_pb2

from kdjax.storage import metrics_log
from kdjax.system import atomic, escape, logs

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
    lines: int | None = None,
    validations: Sequence[Mapping[str, Any]] = (),
  ):
    self._path = workdir / metrics_log.METRICS
    records = metrics_log.recover(self._path, start_step, lines, validations)
    self.lines = len(records)
    self._file = self._path.open('a', encoding='utf-8')
    self._events = (
      _Events(workdir, start_step, records) if tensorboard else None
    )
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
        if self._events:
          closing.callback(self._events.close)
    except OSError as error:
      # An error that ends the run says more than one that follows from it.
      if not kind:
        raise atomic.cannot_write(
          f'the last metrics in {self._path.parent}', error
        ) from error

  def advance(self, steps: int) -> None:
    """Counts steps that have been started."""
    self._bar.update(steps)

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
      if self._events:
        self._events.write(record)
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


class _Events:
  """Scalars for TensorBoard, each on the disk once it is written.

  A `SummaryWriter` leaves that to a thread: what it has not got to is lost with
  a run that is killed, and it does not survive a full disk.

  Args:
    workdir: the run directory, where the file is added.
    done: steps done. What earlier files have of later ones is not shown.
    records: the metrics of those steps, which are written again where an
      earlier file is damaged.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    done: int,
    records: Sequence[Mapping[str, Any]],
  ):
    directory = workdir / 'tensorboard'
    directory.mkdir(exist_ok=True)
    written = sorted(directory.glob('events.out.tfevents.*'))
    damaged = [path for path in written if not _is_sound(path)]
    for path in damaged:
      logs.logger.warning(
        '%s is damaged, and is now %s; its metrics are written again',
        path,
        atomic.move_to_damaged(path, workdir),
      )
    # TensorBoard reads them in the order of their names.
    parts = int(time.time()), socket.gethostname(), os.getpid()
    name = '.'.join(map(str, ('events.out.tfevents', *parts)))
    # By how a relative path begins, tensorboardX would write to a bucket.
    self._file = tensorboardX.RecordWriter(str(directory.absolute() / name))
    self._add(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=1 if damaged else done + 1, session_log=start)
    for record in records if damaged else ():
      self.write(record)

  def _add(self, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **content)
    self._file.write(event.SerializeToString())

  def write(self, record: Mapping[str, Any]) -> None:
    kind, step = record['kind'], record['step']
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(
          # Names of features are a user's.
          tag=escape.printable(f'{kind}/{name}'),
          simple_value=math.nan if value is None else value,
        )
        for name, value in record.items()
        if name not in ('kind', 'step')
      ]
    )
    self._add(step=step, summary=summary)
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def _is_sound(path: pathlib.Path) -> bool:
  """Whether the records of a TensorBoard file have their checksums.

  The last one may have been cut off with its run.
  """
  content = path.read_bytes()
  checksum = tensorboardX.record_writer.masked_crc32c
  place = 0
  while len(header := content[place : place + 12]) == 12:
    size, expected = struct.unpack('<QI', header)
    if checksum(header[:8]) != expected:
      return False
    end = place + 12 + size
    if len(content) < end + 4:
      break
    (expected,) = struct.unpack_from('<I', content, end)
    if checksum(content[place + 12 : end]) != expected:
      return False
    place = end + 4
  return True


class SilentLog:
  """A `RunLog` that writes nothing, for all processes but one."""

  lines = 0

  def __enter__(self) -> 'SilentLog':
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def advance(self, steps: int) -> None:
    """Does nothing."""

  def write(
    self, kind: str, step: int, metrics: dict[str, float], **timings: float
  ) -> None:
    """Does nothing."""


def _describe(record: dict[str, Any]) -> str:
  prefix = '' if record['kind'] == 'train' else f'{record["kind"]} '
  parts = [
    f'{prefix}loss {record["loss"]:.4f}',
    f'{prefix}accuracy {record["accuracy"]:.2%}',
  ]
  if 'images_per_second' in record:
    parts.append(f'{record["images_per_second"]:.0f} images/s')
  if 'seconds_left' in record:
    left = tqdm.tqdm.format_interval(record['seconds_left'])
    parts.append(f'{left} left')
  return ', '.join(parts)
