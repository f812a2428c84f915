"""Measures training in worker processes, several of them in turns.

Each implementation of a mode runs in a process of its own: kdjax in
`kdjax.benchmark.worker`, PyTorch in `tests/benchmarks/pytorch_worker.py`. The
workers of a mode all live at the same time, and only one works at any moment:
bursts of steps go round, so that a machine that slows down for a while slows
down all of them.

A worker gets a JSON object as its argument: kdjax's the configuration of the
run, PyTorch's what `pytorch_spec` returns. It makes its first step and prints a
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
import datetime
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import ml_collections

from kdjax import config as config_lib
from kdjax import methods
from kdjax.evaluation import tables
from kdjax.storage import run_directory
from kdjax.system.logs import logger

# The mode that trains the teacher's own network, without a teacher.
TEACHER = 'teacher'

_OURS = 'kdjax'
_VARIANTS = ('eager', 'compile')
_PYTORCH_WORKER = (
  pathlib.Path(__file__).resolve().parents[2]
  / 'tests/benchmarks/pytorch_worker.py'
)
_PYTORCH_METHODS = ('scratch', 'response', 'feature')

_ROUNDS = 5  # at least
_NOTHING: Mapping[str, str] = {}
_BURST_S = 1.0
_TAIL_LINES = 15

# Compiled from nothing every time, or the times would depend on the run before
# (kdjax has a cache of its own for each mode). The workers share the memory of
# one GPU.
_ENVIRONMENT = {
  'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
}


def run(
  config: ml_collections.ConfigDict,
  modes: Sequence[str],
  *,
  seconds: float,
  baseline_python: str | None = None,
) -> dict[str, Any]:
  """Measures the modes of a configuration one after the other.

  Args:
    config: configuration of a run; its method is that of each mode in turn.
    modes: names of methods, or `TEACHER`.
    seconds: how long each implementation of a mode is measured.
    baseline_python: interpreter that has PyTorch, to measure that as well.

  Returns:
    What was measured, as JSON has it: `date`, `command`, `platform`, `device`,
    `cpus`, `versions`, `config` and `modes`. Each mode has its `batch_size`
    (images), `dtype`, `flops_per_image` of a training step,
    `matmul_flops_per_s`, the ceiling of the device in that dtype, the
    `implementations` (see `summarize`) and, beside PyTorch, the `ratio`.

  Raises:
    ValueError: a mode is unknown, the configuration makes no sense, or the
      baseline has not what it asks for.
    OSError: a worker died, or the baseline cannot be run.
  """
  known = [*methods.names(), TEACHER]
  unknown = [mode for mode in modes if mode not in known]
  if unknown or not modes:
    raise ValueError(
      f'--modes names {", ".join(unknown) or "none"}: expected some of '
      f'{", ".join(known)}'
    )
  config = config_lib.normalize(config)
  runs = {mode: run_config(config, mode) for mode in modes}
  for run in runs.values():
    config_lib.validate(run)
  if baseline_python is not None:
    check_baseline(baseline_python, runs)
  result: dict[str, Any] = {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join([sys.executable, *sys.argv]),
    'cpus': os.cpu_count(),
    'versions': {'python': sys.version.split()[0]},
    'config': run_directory.as_json(config),
    'modes': {},
  }
  for mode, run in runs.items():
    measured, ready = _measure(mode, run, seconds, baseline_python)
    result['modes'][mode] = measured
    result['platform'] = ready[_OURS]['platform']
    result['device'] = ready[_OURS]['device']
    for answer in ready.values():
      result['versions'] |= answer['versions']
  return result


def run_config(
  config: ml_collections.ConfigDict, mode: str
) -> ml_collections.ConfigDict:
  """Returns the configuration of the run that a mode measures.

  Args:
    config: configuration of a run.
    mode: name of a method, or `TEACHER`.

  Returns:
    That configuration with the mode's method, or the one that trains its
    teacher.
  """
  if mode == TEACHER:
    return config_lib.teacher_run(config)
  run = config.copy_and_resolve_references()
  run.method.name = mode
  return run


def check_baseline(
  python: str, runs: Mapping[str, ml_collections.ConfigDict]
) -> None:
  """Checks that PyTorch can run the same, before anything slow starts.

  Args:
    python: the interpreter that should have PyTorch.
    runs: configuration of each mode's run.

  Raises:
    OSError: the worker or PyTorch is not there.
    ValueError: a network or a method is none that the worker knows.
  """
  if not _PYTORCH_WORKER.exists():
    raise FileNotFoundError(
      f'--baseline needs a checkout of kdjax: there is no {_PYTORCH_WORKER}'
    )
  try:
    # Without an argument it only says what it knows.
    done = subprocess.run(
      [python, _PYTORCH_WORKER], capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    reason = str(error)
    if isinstance(error, subprocess.CalledProcessError):
      reason = _tail(error.stderr, 1)
    raise FileNotFoundError(
      f'--baseline needs PyTorch, and {python} cannot run it ({reason}). Name '
      'an interpreter that can with --baseline_python=PATH'
    ) from error
  known = json.loads(done.stdout)['networks']
  for mode, run in runs.items():
    method = run.method.name
    if method not in _PYTORCH_METHODS:
      raise ValueError(
        f'--baseline knows no method {method!r}: leave it out of --modes'
      )
    names = [run.student.name]
    if method != 'scratch':
      names.append(config_lib.teacher_run(run).student.name)
    for name in names:
      if name not in known:
        raise ValueError(
          f'--baseline knows no network {name!r}, which mode {mode} has: '
          f'expected one of {", ".join(known)}'
        )
    if method == 'feature':
      settings, default = run.method.feature, methods.defaults(method)
      for field in ('student_features', 'teacher_features'):
        if tuple(settings[field]) != default[field]:
          raise ValueError(
            f'--baseline pairs {", ".join(default[field])} only, and '
            f'config.method.feature.{field} is {tuple(settings[field])}'
          )


def pytorch_spec(
  config: ml_collections.ConfigDict, variant: str, ready: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the argument of the PyTorch worker.

  Args:
    config: configuration of a mode's run.
    variant: 'eager' or 'compile'.
    ready: what kdjax's worker said of the data.

  Returns:
    The argument.
  """
  method = config.method.name
  teacher = config_lib.teacher_run(config).student.to_dict()
  return {
    'variant': variant,
    'method': method,
    'settings': config.method[method].to_dict(),
    'student': config.student.to_dict(),
    'teacher': teacher if method != 'scratch' else None,
    'train': config.train.to_dict(),
    'crop_padding': config.data.crop_padding,
    'flip': config.data.flip,
    **{key: ready[key] for key in ('image_shape', 'num_classes', 'train_size')},
  }


class Worker(NamedTuple):
  """A process that trains when it is asked to.

  Attributes:
    name: the implementation, for messages.
    process: the process, with pipes without buffers.
    errors: file that its standard error goes to.
  """

  name: str
  process: subprocess.Popen[bytes]
  errors: BinaryIO

  def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """Sends a request and waits for the answer.

    Args:
      request: one of those that the module describes.

    Returns:
      The answer.

    Raises:
      ChildProcessError: the worker died; the message has the end of what it
        wrote on its standard error.
    """
    assert self.process.stdin
    # Of a worker that is gone, `read` tells more.
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps(request).encode() + b'\n')
    return self.read()

  def read(self) -> dict[str, Any]:
    """Waits for the next line of the worker; see `ask`."""
    assert self.process.stdout
    line = self.process.stdout.readline()
    if line:
      return json.loads(line)
    status = self.process.wait()
    self.errors.seek(0)
    said = _tail(self.errors.read().decode(errors='replace'), _TAIL_LINES)
    raise ChildProcessError(
      f'the worker of {self.name} ended with status {status}:\n{said}'
    )


@contextlib.contextmanager
def start(
  name: str, command: Sequence[str], environment: Mapping[str, str] = _NOTHING
) -> Iterator[Worker]:
  """Starts a worker, and ends it on leaving.

  Args:
    name: the implementation, for messages.
    command: the process's arguments.
    environment: what its environment has beside this process's.

  Yields:
    The worker, whose first line is yet to be read.
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
    # To leave closes its input, which ends it.
    yield Worker(name, process, errors)


def alternate(
  workers: Mapping[str, Worker], seconds: float
) -> dict[str, dict[str, Any]]:
  """Runs bursts of steps in the workers, in turns.

  Args:
    workers: workers that are ready, by name.
    seconds: how long each of them works, on average.

  Returns:
    For each its `steps_per_burst`, the time of a step in each burst,
    `step_times_s`, and `peak_memory_bytes`.
  """
  burst_s = min(_BURST_S, seconds / _ROUNDS)
  measured: dict[str, dict[str, Any]] = {}
  for name, worker in workers.items():
    # The second warms up for as long as a burst is, and tells its steps better.
    steps = _steps(burst_s, worker.ask({'steps': 1}))
    steps = _steps(burst_s, worker.ask({'steps': steps}))
    measured[name] = {'steps_per_burst': steps, 'step_times_s': []}
  rounds, spent = 0, 0.0
  while rounds < _ROUNDS or spent < seconds * len(workers):
    for name, worker in workers.items():
      answer = worker.ask({'steps': measured[name]['steps_per_burst']})
      step_time = answer['seconds'] / answer['steps']
      measured[name]['step_times_s'].append(step_time)
      measured[name]['peak_memory_bytes'] = answer['peak_memory_bytes']
      spent += answer['seconds']
    rounds += 1
  return measured


def summarize(
  measured: Mapping[str, Any],
  *,
  batch_size: int,
  flops_per_image: float,
  matmul_flops_per_s: float,
) -> dict[str, Any]:
  """Adds to what was measured of an implementation what follows from it.

  Args:
    measured: `step_times_s`, the time of a step in each burst, at least two;
      the rest is kept.
    batch_size: images of a step.
    flops_per_image: FLOPs of a training step by image.
    matmul_flops_per_s: the ceiling.

  Returns:
    The same with `step_s`, which has `min`, `lower_quartile`, `median`,
    `upper_quartile` and `max` over the bursts; `images_per_s`, at the median;
    and `flops_utilization`, from 0 to 1.
  """
  times = measured['step_times_s']
  lower, median, upper = statistics.quantiles(times, method='inclusive')
  images_per_s = batch_size / median
  return {
    **measured,
    'images_per_s': images_per_s,
    'step_s': {
      'min': min(times),
      'lower_quartile': lower,
      'median': median,
      'upper_quartile': upper,
      'max': max(times),
    },
    'flops_utilization': images_per_s * flops_per_image / matmul_flops_per_s,
  }


def ratio(
  implementations: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
  """Compares kdjax with the fastest of the others.

  Args:
    implementations: those of a mode, as `summarize` returns them; measured in
      turns, so that burst i of one stands beside burst i of another.

  Returns:
    `to`, the name of the other, and kdjax's speed by the other's: `median`, of
    the medians, and `min` and `max` of the single rounds. None if there is no
    other.
  """
  others = {
    name: implementation
    for name, implementation in implementations.items()
    if name != _OURS
  }
  if not others:
    return None
  ours = implementations[_OURS]
  fastest = max(others, key=lambda name: others[name]['images_per_s'])
  by_round = [
    theirs / our
    for our, theirs in zip(
      ours['step_times_s'], others[fastest]['step_times_s'], strict=True
    )
  ]
  return {
    'to': fastest,
    'median': ours['images_per_s'] / others[fastest]['images_per_s'],
    'min': min(by_round),
    'max': max(by_round),
  }


_HEADER = (
  (
    'mode',
    'program',
    'images',
    'step',
    'compile',
    'start',
    'again',
    'GFLOP',
    '',
    'peak',
  ),
  ('', '', '/s', 'ms [min … max]', 's', 's', 's', '/image', 'MFU', 'GiB'),
)


def table(result: Mapping[str, Any]) -> str:
  """Formats what `run` returns for a terminal.

  Args:
    result: what `run` returns.

  Returns:
    A line on the machine, a table with a row for each implementation of each
    mode, and a line for each mode with its ceiling and ratio.
  """
  rows, notes = list(_HEADER), []
  for mode, measured in result['modes'].items():
    for name, implementation in measured['implementations'].items():
      step = {
        key: _digits(value * 1e3)
        for key, value in implementation['step_s'].items()
      }
      compile_s = implementation['compile_s']
      warm = implementation['warm_start_up_s']
      rows.append(
        (
          mode,
          name,
          _digits(implementation['images_per_s']),
          f'{step["median"]} [{step["min"]} … {step["max"]}]',
          '-' if compile_s is None else f'{compile_s:.1f}',
          f'{implementation["start_up_s"]:.1f}',
          '-' if warm is None else f'{warm:.1f}',
          _digits(measured['flops_per_image'] / 1e9),
          f'{implementation["flops_utilization"]:.1%}',
          f'{implementation["peak_memory_bytes"] / 2**30:.2f}',
        )
      )
    note = (
      f'{mode}: batch {measured["batch_size"]}, {measured["dtype"]}, matrix '
      f'products {_digits(measured["matmul_flops_per_s"] / 1e9)} GFLOP/s'
    )
    if compared := measured['ratio']:
      note += (
        f'\n  kdjax / {compared["to"]}: {compared["median"]:.2f}× '
        f'(rounds {compared["min"]:.2f} … {compared["max"]:.2f})'
      )
    notes.append(note)
  versions = ', '.join(
    f'{package} {version}' for package, version in result['versions'].items()
  )
  return '\n'.join(
    [
      f'{result["device"]} ({result["platform"]}); {versions}',
      '',
      tables.align(rows, header=len(_HEADER), left=2),
      '',
      *notes,
    ]
  )


def _measure(
  mode: str,
  config: ml_collections.ConfigDict,
  seconds: float,
  baseline_python: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Measures a mode; also returns the first line of each worker."""
  workers: dict[str, Worker] = {}
  ready: dict[str, dict[str, Any]] = {}
  start_up: dict[str, float] = {}
  with contextlib.ExitStack() as stack:
    cache = stack.enter_context(tempfile.TemporaryDirectory())
    environment = {
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': cache,
    }

    def add(
      name: str, command: Sequence[str], stack: contextlib.ExitStack
    ) -> tuple[dict[str, Any], float]:
      # One after the other, so that each starts on an idle machine.
      start_time = time.perf_counter()
      workers[name] = stack.enter_context(
        start(f'{mode}, {name}', command, environment)
      )
      answer = workers[name].read()
      seconds = time.perf_counter() - start_time
      logger.info('%s: %s started in %.1f s', mode, name, seconds)
      return answer, seconds

    ours = [
      sys.executable,
      '-m',
      'kdjax.benchmark.worker',
      json.dumps(run_directory.as_json(config)),
    ]
    # Twice: the second finds its programs compiled.
    with contextlib.ExitStack() as first:
      ready[_OURS], start_up[_OURS] = add(_OURS, ours, first)
    _, warm_start_up = add(_OURS, ours, stack)
    if baseline_python is not None:
      for variant in _VARIANTS:
        name = f'torch {variant}'
        spec = pytorch_spec(config, variant, ready[_OURS])
        command = [baseline_python, str(_PYTORCH_WORKER), json.dumps(spec)]
        ready[name], start_up[name] = add(name, command, stack)
    measured = alternate(workers, seconds)
    # Last: its matrices must not count as the program's memory.
    flops = workers[_OURS].ask({'flops': True})
  implementations = {
    name: summarize(
      {
        'compile_s': ready[name]['compile_s'],
        'start_up_s': start_up[name],
        'warm_start_up_s': warm_start_up if name == _OURS else None,
        **measured[name],
      },
      batch_size=config.train.batch_size,
      **flops,
    )
    for name in workers
  }
  for name, found in implementations.items():
    speed = found['images_per_s']
    logger.info('%s: %s trains on %.1f images/s', mode, name, speed)
  return {
    'batch_size': config.train.batch_size,
    'dtype': config.student.dtype,
    **flops,
    'implementations': implementations,
    'ratio': ratio(implementations),
  }, ready


def _steps(burst_s: float, answer: Mapping[str, Any]) -> int:
  """Steps that fill a burst at the speed of another; at least one."""
  return max(1, round(burst_s * answer['steps'] / answer['seconds']))


def _tail(text: str, lines: int) -> str:
  return '\n'.join(text.strip().splitlines()[-lines:])


def _digits(value: float) -> str:
  """A number with four digits, or all before the point."""
  return f'{value:,.0f}' if value >= 1000 else f'{value:#.4g}'
