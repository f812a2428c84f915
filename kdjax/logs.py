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
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorboardX
import tqdm
from absl import flags
from absl import logging as absl_logging
from tensorboardX.proto import event_pb2, summary_pb2

from kdjax import files

logger = logging.getLogger('kdjax')

METRICS = 'metrics.jsonl'
"""Name of the file of a run's metrics."""

# Images/s stand in the postfix, from the device's own pace: the rate that tqdm
# sees is that of steps handed to the device.
_BAR = (
  '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} '
  '[{elapsed}<{remaining}{postfix}]'
)


class _Handler(logging.Handler):
  """Writes lines to standard error without breaking a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.tqdm.write(self.format(record), file=sys.stderr)


def printable(text: str) -> str:
  """Makes a name fit to be shown in a line.

  Args:
    text: such as the name of a file, in whatever encoding.

  Returns:
    The same, with escapes in place of what ends a line or steers a terminal.
  """
  decoded = os.fsencode(text).decode(errors='replace')
  return ''.join(
    character
    if character.isprintable()
    else character.encode('unicode_escape').decode()
    for character in decoded
  )


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
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    start_step: int,
    total_steps: int,
    tensorboard: bool,
  ):
    self._path = workdir / METRICS
    _drop_after(self._path, start_step)
    self._file = self._path.open('a', encoding='utf-8')
    self._events = (
      _Events(workdir / 'tensorboard', start_step) if tensorboard else None
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
        raise files.cannot_write(
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
      self._file.write(json.dumps(finite, allow_nan=False) + '\n')
      self._file.flush()
      if self._events:
        self._events.write(
          step,
          {
            f'{kind}/{name}': value
            for name, value in (metrics | timings).items()
          },
        )
    except OSError as error:
      raise files.cannot_write(
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
    directory: where the file is added.
    done: steps done. What earlier files have of later ones is not shown.
  """

  def __init__(self, directory: pathlib.Path, done: int):
    directory.mkdir(exist_ok=True)
    # TensorBoard reads them in the order of their names.
    parts = int(time.time()), socket.gethostname(), os.getpid()
    name = '.'.join(map(str, ('events.out.tfevents', *parts)))
    # By how a relative path begins, tensorboardX would write to a bucket.
    self._file = tensorboardX.RecordWriter(str(directory.absolute() / name))
    self._add(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=done + 1, session_log=start)

  def _add(self, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **content)
    self._file.write(event.SerializeToString())

  def write(self, step: int, values: Mapping[str, float]) -> None:
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()
      ]
    )
    self._add(step=step, summary=summary)
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class SilentLog:
  """Takes what `RunLog` takes, and keeps nothing; for all but one process."""

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
    ValueError: another line is no JSON.
  """
  path = workdir / METRICS
  if not path.exists():
    return []
  records = []
  lines = path.read_text(encoding='utf-8').splitlines()
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f'{path}, line {number}, is no JSON') from error
  return records


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


def _drop_after(path: pathlib.Path, step: int) -> None:
  """Removes the records after a step, and a last line that was cut off."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if record['step'] <= step:
      kept.append(line + '\n')
  # Being killed here loses nothing.
  files.write(path, ''.join(kept).encode())
