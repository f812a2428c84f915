"""Whether what a run needs can fit in memory, before it is asked for.

The system ends a process that takes too much without a word, or an array that
is too large ends in pages of an allocator's.
"""

import contextlib
import math
import pathlib
from typing import Any

import jax

from kdjax.system import target

_GIB = 2**30
# What limits a process beside the machine: version 2 and 1 of control groups.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def size(tree: Any) -> int:
  """Returns the bytes of a PyTree of arrays, or of their shapes and dtypes."""
  # JAX's own is 32 bits where that is all that its arrays have.
  return sum(
    math.prod(map(int, leaf.shape)) * int(leaf.dtype.itemsize)
    for leaf in jax.tree.leaves(tree)
  )


def check(needed: int, what: str, advice: str, *, host: bool = False) -> None:
  """Checks that something may fit in the memory that is available.

  Args:
    needed: bytes; no more than it will really take, or what fits is refused.
    what: what takes them.
    advice: what to do where there are fewer.
    host: whether the memory is the host's, not the device's.

  Raises:
    ValueError: there are fewer.
  """
  free = _host() if host or target.on_cpu() else _device()
  if free is not None and needed > free:
    raise ValueError(
      f'{what}: {needed / _GIB:,.1f} GiB of memory are needed, and '
      f'{free / _GIB:,.1f} GiB are available. {advice}'
    )


def _host() -> int | None:
  """Returns the bytes that a process can still get; None if that is unknown."""
  found: dict[str, int] = {}
  with contextlib.suppress(OSError, ValueError):
    for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
      name, _, value = line.partition(':')
      found[name] = 1024 * int(value.split()[0])
  if 'MemAvailable' not in found:
    return None
  free = [found['MemAvailable'] + found.get('SwapFree', 0)]
  for path in _LIMITS:
    # Where there is no limit, it says so in words.
    with contextlib.suppress(OSError, ValueError):
      free.append(int(pathlib.Path(path).read_text()))
  return min(free)


def _device() -> int | None:
  """Returns the bytes that are left on the first device of this process."""
  if target.absent():
    return None
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in statistics:
    return None
  return statistics['bytes_limit'] - statistics.get('bytes_in_use', 0)
