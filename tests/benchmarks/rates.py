"""How fast something gives batches, and what memory it takes."""

import os
import pathlib
import time

# Batches before the clock starts: caches are filled, workers have started.
_WARM_UP = 8


def measure(batches, batch_size, seconds):
  """Takes batches for so long.

  Returns:
    Seconds to the first batch, images per second after the first few, and the
    resident memory of this process and its children in MB: when the clock
    starts, half-way and at the end.
  """
  start = time.perf_counter()
  next(batches)
  first = time.perf_counter() - start
  for _ in range(_WARM_UP):
    next(batches)
  memory = [_resident()]
  count, start = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - start) < seconds:
    next(batches)
    count += 1
    if elapsed > seconds / 2 and len(memory) == 1:
      memory.append(_resident())
  rate = count * batch_size / (time.perf_counter() - start)
  return {'first_s': first, 'rate': rate, 'memory': [*memory, _resident()]}


def _resident():
  """Megabytes of this process and all below it; shared ones count once."""
  processes, found = [os.getpid()], 0
  while processes:
    process = processes.pop()
    try:
      rollup = pathlib.Path(f'/proc/{process}/smaps_rollup').read_text()
      tasks = list(pathlib.Path(f'/proc/{process}/task').iterdir())
    except (FileNotFoundError, ProcessLookupError):
      continue
    (line,) = (line for line in rollup.splitlines() if line.startswith('Pss:'))
    found += int(line.split()[1])
    for task in tasks:
      processes += map(int, (task / 'children').read_text().split())
  return round(found / 1024)
