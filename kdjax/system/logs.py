"""What a run shows and writes while it goes on.

Lines of text go to the logger `kdjax`; numbers go to `metrics.jsonl` and to
TensorBoard; on a terminal a progress bar shows the last of them.
"""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import reprlib
import socket
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorboardX
import tensorboardX.record_writer
import tqdm
from absl import flags
from absl import logging as absl_logging
from tensorboardX.proto import event_pb2, summary_pb2

from kdjax.system import atomic, escape

logger = logging.getLogger('kdjax')

METRICS = 'metrics.jsonl'
"""The file of a run's metrics in its directory."""

# What each line of it has beside the metrics: its number, from 1, and the
# CRC-32 of all the rest of it.
_LINE, _CRC = 'line', 'crc32'
# What is text in it.
_KINDS = 'train', 'validation'
# What each kind of line has; a number, or None where that is not finite.
_METRICS_OF = {'train': ('loss',), 'validation': ('epoch', 'accuracy', 'loss')}

# Images/s stand in the postfix, from the device's own pace: the rate that tqdm
# sees is that of steps handed to the device.
_BAR = (
  '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} '
  '[{elapsed}<{remaining}{postfix}]'
)


class _Handler(logging.Handler):
  """Writes lines to standard error without breaking a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.tqdm.write(escape.lines(self.format(record)), file=sys.stderr)


def quiet() -> None:
  """Shows warnings only, from now on; for all processes but the first."""
  logger.setLevel(logging.WARNING)


def setup() -> None:
  """Shows the lines of the logger `kdjax` on standard error; for commands.

  What libraries say below a warning is left out, unless absl's flag
  `--verbosity` asks for it; `--verbosity=1` also shows where an error arose.
  Characters that the terminal does not know are escaped.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  verbosity = flags.FLAGS['verbosity']
  if not verbosity.present:
    absl_logging.set_verbosity(absl_logging.WARNING)
    # What fails in the threads of Orbax is raised in ours, and told there; what
    # it warns of is how it is called.
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  if not logger.handlers:
    handler = _Handler()
    handler.setFormatter(
      logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S')
    )
    logger.addHandler(handler)
  verbose = verbosity.present and (verbosity.value or 0) > 0
  logger.setLevel(logging.DEBUG if verbose else logging.INFO)
  logger.propagate = False


def _is_news(record: logging.LogRecord) -> bool:
  return 'orbax' not in pathlib.Path(record.pathname).parts


def progress(total: int, unit: str) -> tqdm.tqdm:
  """Makes a progress bar on standard error, where that is a terminal.

  Args:
    total: what there is to do.
    unit: what is counted.

  Returns:
    The bar, a context manager; `update(n)` says that n more are done.
  """
  return tqdm.tqdm(
    total=total,
    unit=unit,
    dynamic_ncols=True,
    disable=not sys.stderr.isatty(),
    leave=False,
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
    self._path = workdir / METRICS
    records = _recover(self._path, start_step, lines, validations)
    self.lines = len(records)
    self._file = self._path.open('a', encoding='utf-8')
    self._events = (
      _Events(workdir, start_step, records) if tensorboard else None
    )
    self._bar = tqdm.tqdm(
      initial=start_step,
      total=total_steps,
      bar_format=_BAR,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
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
      self._file.write(_line(finite, self.lines + 1))
      self._file.flush()
      self.lines += 1
      if self._events:
        self._events.write(record)
    except OSError as error:
      raise atomic.cannot_write(
        f'the metrics of step {step} in {self._path.parent}', error
      ) from error
    if self._bar.disable:
      logger.info('step %d/%d: %s', step, self._total_steps, _describe(record))
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
      logger.warning(
        '%s is damaged, and is now %s; its metrics are written again',
        path,
        atomic.set_aside(path, workdir),
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
  """Takes what `RunLog` takes, and keeps nothing; for all but one process."""

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


class SweepLog:
  """The progress of a sweep: which run goes on, and how much time is left.

  Args:
    total: number of runs.
  """

  def __init__(self, total: int):
    self._total = total
    self._seconds: list[float] = []
    self._bar = tqdm.tqdm(
      total=total,
      bar_format='{desc}: {n_fmt}/{total_fmt} runs |{bar}|{postfix}',
      desc='sweep',
      dynamic_ncols=True,
      disable=not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO),
    )
    self._done = 0

  def __enter__(self) -> 'SweepLog':
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()

  @contextlib.contextmanager
  def run(self, name: str) -> Iterator[None]:
    """Shows that a run goes on, and measures how long it takes.

    Args:
      name: the run's name.

    Yields:
      Nothing; the run goes inside.
    """
    number = self._done + 1
    logger.info('run %d/%d: %s%s', number, self._total, name, self._left())
    start = time.perf_counter()
    yield
    self._seconds.append(time.perf_counter() - start)
    self.skip()

  def skip(self) -> None:
    """Counts a run that had nothing left to do."""
    self._done += 1
    self._bar.set_postfix_str(self._left().lstrip(', '), refresh=False)
    self._bar.update()

  def _left(self) -> str:
    if not self._seconds:
      return ''
    # The first run compiles for the others, and tells nothing of them.
    typical = statistics.median(self._seconds)
    seconds = typical * (self._total - self._done)
    return f', about {tqdm.tqdm.format_interval(seconds)} left'


def read_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the metrics of a run.

  Args:
    workdir: the run directory.

  Returns:
    What `RunLog.write` wrote, in its order; empty where it wrote nothing. A
    last line that was cut off is left out.

  Raises:
    ValueError: another line is damaged, or is no line of metrics.
  """
  records, wrong = _read(workdir / METRICS)
  if wrong:
    raise ValueError(
      f'{wrong[0]}. Put a sound copy of that file there, or remove it'
    )
  return records


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
  """Reads the sound lines of a file of metrics, and what is wrong in others."""
  records: list[dict[str, Any]] = []
  wrong: list[str] = []
  if not path.exists():
    return records, wrong
  *whole, last = path.read_bytes().split(b'\n')
  numbered = list(enumerate(whole, 1))
  if _is_json(last):
    numbered.append((len(whole) + 1, last))
  for number, text in numbered:
    try:
      records.append(_parse(text, number))
    except ValueError as error:
      wrong.append(f'{path}, line {number}, {error}')
  return records, wrong


def _is_json(text: bytes) -> bool:
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _parse(text: bytes, number: int) -> dict[str, Any]:
  """Reads a line of metrics; a ValueError says what is wrong with it."""
  record = json.loads(text) if _is_json(text) else None
  if not isinstance(record, dict):
    raise ValueError('is no JSON object')
  # Earlier versions of kdjax wrote neither.
  if _LINE in record or _CRC in record:
    checksum = record.pop(_CRC, None)
    if checksum != _checksum(record):
      raise ValueError('is damaged: its CRC-32 is not the one recorded there')
    if (found := record.pop(_LINE)) != number:
      raise ValueError(f'says that it is line {found}: others are missing')
  _check_record(record)
  return record


def _check_record(record: Mapping[str, Any]) -> None:
  kind = record.get('kind')
  if kind not in _KINDS:
    raise ValueError(
      f'has {reprlib.repr(kind)} as kind, expected {" or ".join(_KINDS)}'
    )
  for name in ('step', *_METRICS_OF[kind]):
    if name not in record:
      raise ValueError(f'has no {name}')
  for name, value in record.items():
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == 'step' and not (type(value) is int and value >= 0):
      raise ValueError(
        f'has {reprlib.repr(value)} as step, expected an integer'
      )
    if name != 'kind' and not (number or value is None):
      raise ValueError(
        f'has {reprlib.repr(value)} as {name}, expected a number or null'
      )


def _line(record: Mapping[str, Any], number: int) -> str:
  """Gives the line that `_parse` reads."""
  content = {**record, _LINE: number}
  line = {**content, _CRC: _checksum(content)}
  return json.dumps(line, allow_nan=False) + '\n'


def _checksum(content: Mapping[str, Any]) -> str:
  return f'{zlib.crc32(json.dumps(content).encode()):08x}'


def diverged_at(records: Sequence[Mapping[str, Any]]) -> int | None:
  """Says whether a run diverged, from its metrics.

  Args:
    records: as `read_records` gives them.

  Returns:
    The step after which its loss or its gradient was no longer finite; None if
    the run did not diverge. A run that skips such steps, and whose last line
    tells of nothing else, counts as diverged unless it has a result.
  """
  for kind in ('train', 'validation'):
    of_kind = [record for record in records if record['kind'] == kind]
    # What is not finite was written as null.
    if of_kind and any(
      of_kind[-1].get(name, 0) is None for name in ('loss', 'gradient_norm')
    ):
      return of_kind[-1]['step']
  return None


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


def _recover(
  path: pathlib.Path,
  step: int,
  count: int | None,
  validations: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Removes the lines after a step, and replaces what is damaged."""
  records, wrong = _read(path)
  kept = [record for record in records if record['step'] <= step]
  if not wrong and count is not None and len(kept) < count:
    wrong = [
      f'{path} has {len(kept)} lines up to step {step}, expected {count}'
    ]
  if wrong:
    there = {record['step'] for record in kept if record['kind'] == _KINDS[1]}
    kept += [
      {'kind': _KINDS[1], **validation}
      for validation in validations
      if validation['step'] <= step and validation['step'] not in there
    ]
    # Training comes first where a step has both.
    kept.sort(key=lambda record: (record['step'], record['kind']))
    where = atomic.set_aside(path, path.parent) if path.exists() else 'gone'
    logger.warning(
      '%s. The file is now %s; the run goes on with the %d lines that are '
      'sound or that its checkpoints know',
      wrong[0],
      where,
      len(kept),
    )
  if path.exists() or kept:
    # Being killed here loses nothing.
    with atomic.replacing(path) as file:
      for number, record in enumerate(kept, 1):
        file.write(_line(record, number).encode())
  return kept
