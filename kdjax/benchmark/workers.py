"""Processes that train when they are asked to, measured in turns.

Each implementation of a mode runs in a process of its own: kdjax in
`kdjax.benchmark.worker`, PyTorch in `tests/benchmarks/pytorch_worker.py`. The
workers of a mode all live at the same time, and only one works at any moment:
bursts of steps go round, so that a machine that slows down for a while slows
down all of them.

A worker gets a JSON object as its argument: kdjax's the configuration of the
run, PyTorch's what `pytorch.spec` returns. It makes its first step and prints a
line that says so, with what it knows by then. After that it answers each line
on its standard input with one on its standard output, all JSON objects, until
its input ends:

  {"steps": n}     {"seconds": …, "steps": …, "peak_memory_bytes": …} after n or
                   some more steps; the memory is the device's, or on CPU the
                   process's own
  {"flops": true}  {"flops_per_image": …, "matmul_flops_per_s": …} of a training
                   step and of large matrix products; kdjax only
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

_MIN_ROUNDS = 5
_BURST_S = 1.0
_TAIL_LINES = 15

_NO_VARIABLES: Mapping[str, str] = {}
# Compiled from nothing every time, or the times would depend on the run before
# (kdjax has a cache of its own for each mode). The workers share the memory of
# one GPU.
_ENVIRONMENT = {
  'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
}


class Worker(NamedTuple):
  """A process that trains when it is asked to.

  Attributes:
    name: the implementation, for messages.
    process: the process, with unbuffered pipes.
    errors: file that its standard error goes to.
  """

  name: str
  process: subprocess.Popen[bytes]
  errors: BinaryIO

  def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """Sends one of the module's requests, and waits for the answer.

    Raises:
      ChildProcessError: the worker died; the message has the end of what it
        wrote on its standard error.
    """
    assert self.process.stdin
    # If the worker has died, `read` says why.
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps(request).encode() + b'\n')
    return self.read()

  def read(self) -> dict[str, Any]:
    """Waits for the next line of the worker; raises as `ask` does."""
    assert self.process.stdout
    line = self.process.stdout.readline()
    if line:
      return json.loads(line)
    status = self.process.wait()
    self.errors.seek(0)
    text = self.errors.read().decode(errors='replace')
    raise ChildProcessError(
      f'the worker of {self.name} ended with status {status}:\n'
      f'{last_lines(text, _TAIL_LINES)}'
    )


@contextlib.contextmanager
def start(
  name: str,
  command: Sequence[str],
  environment: Mapping[str, str] = _NO_VARIABLES,
) -> Iterator[Worker]:
  """Starts a worker, whose first line is yet to be read; ends it on leaving.

  Args:
    name: the implementation, for messages.
    command: the process's arguments.
    environment: variables added to this process's environment.
  """
  with (
    tempfile.TemporaryFile() as errors,
    subprocess.Popen(
      command,
      bufsize=0,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      env={**os.environ, **_ENVIRONMENT, **environment},
    ) as process,
  ):
    # Leaving closes its input, which ends it.
    yield Worker(name, process, errors)


def alternate(
  workers: Mapping[str, Worker], seconds: float
) -> dict[str, dict[str, Any]]:
  """Has workers do bursts of steps in turns.

  Args:
    workers: workers that are ready, by name.
    seconds: how long each of them works, on average.

  Returns:
    For each its `steps_per_burst`, the time of a step in each burst,
    `step_times_s`, and `peak_memory_bytes`.
  """
  burst_s = min(_BURST_S, seconds / _MIN_ROUNDS)
  measured: dict[str, dict[str, Any]] = {}
  for name, worker in workers.items():
    steps = 1
    # The second burst warms up, and tells better how many steps fill one.
    for _ in range(2):
      answer = worker.ask({'steps': steps})
      steps = max(1, round(burst_s * answer['steps'] / answer['seconds']))
    measured[name] = {'steps_per_burst': steps, 'step_times_s': []}
  rounds, spent = 0, 0.0
  while rounds < _MIN_ROUNDS or spent < seconds * len(workers):
    for name, worker in workers.items():
      answer = worker.ask({'steps': measured[name]['steps_per_burst']})
      step_time = answer['seconds'] / answer['steps']
      measured[name]['step_times_s'].append(step_time)
      measured[name]['peak_memory_bytes'] = answer['peak_memory_bytes']
      spent += answer['seconds']
    rounds += 1
  return measured


def last_lines(text: str, count: int) -> str:
  """Returns the last lines of a text."""
  return '\n'.join(text.strip().splitlines()[-count:])
