"""The progress of a sweep."""

import contextlib
import statistics
import time
from collections.abc import Iterator

import tqdm

from kdjax.system import logs


class SweepLog:
  """The progress of a sweep's runs, so many, and the time that is left."""

  def __init__(self, total: int):
    self._total = total
    self._seconds: list[float] = []
    self._bar = tqdm.tqdm(
      total=total,
      bar_format='{desc}: {n_fmt}/{total_fmt} runs |{bar}|{postfix}',
      desc='sweep',
      dynamic_ncols=True,
      disable=not logs.shows_bar(),
    )
    self._done = 0

  def __enter__(self) -> 'SweepLog':
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()

  @contextlib.contextmanager
  def run(self, name: str) -> Iterator[None]:
    """Shows that a run of this name goes on, and measures its time."""
    number = self._done + 1
    logs.logger.info('run %d/%d: %s%s', number, self._total, name, self._left())
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
