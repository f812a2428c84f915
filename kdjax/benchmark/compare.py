"""Measures the modes of a configuration, one after the other."""

import contextlib
import datetime
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import ml_collections

from kdjax import config as config_lib
from kdjax import methods
from kdjax.benchmark import figures, pytorch, workers
from kdjax.storage import run_directory
from kdjax.system.logs import logger

TEACHER = 'teacher'
"""The mode that trains the teacher's own network, without a teacher."""


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
    `implementations` (see `figures.summarize`) and, beside PyTorch, the
    `ratio`.

  Raises:
    ValueError: a mode is unknown, the configuration makes no sense, or the
      baseline has not what it asks for.
    OSError: a worker died, or the baseline cannot be run.
  """
  config = config_lib.normalize(config)
  runs = run_configs(config, modes)
  if baseline_python is not None:
    pytorch.check(baseline_python, runs)
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
    result['platform'] = ready[figures.KDJAX]['platform']
    result['device'] = ready[figures.KDJAX]['device']
    for answer in ready.values():
      result['versions'] |= answer['versions']
  return result


def run_configs(
  config: ml_collections.ConfigDict, modes: Sequence[str]
) -> dict[str, ml_collections.ConfigDict]:
  """Makes the configuration of the run that each mode measures.

  Args:
    config: configuration of a run.
    modes: names of methods, or `TEACHER`.

  Returns:
    Complete and valid configurations by mode.

  Raises:
    ValueError: a mode is unknown, or a configuration makes no sense.
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
  return runs


def run_config(
  config: ml_collections.ConfigDict, mode: str
) -> ml_collections.ConfigDict:
  """Returns the configuration of the run that a mode measures."""
  if mode == TEACHER:
    return config_lib.teacher_run(config)
  run = config.copy_and_resolve_references()
  run.method.name = mode
  return run


def _measure(
  mode: str,
  config: ml_collections.ConfigDict,
  seconds: float,
  baseline_python: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Measures a mode; also returns the first line of each worker."""
  ours = [sys.executable, '-m', 'kdjax.benchmark.worker']
  ours.append(json.dumps(run_directory.as_json(config)))
  with contextlib.ExitStack() as stack:
    cache = stack.enter_context(tempfile.TemporaryDirectory())
    # Twice: the second finds its programs compiled.
    with contextlib.ExitStack() as first:
      _, cold = _start(first, f'{mode}, {figures.KDJAX}', ours, cache)
    worker, warm = _start(stack, f'{mode}, {figures.KDJAX}', ours, cache)
    running = {figures.KDJAX: worker}
    ready = {
      figures.KDJAX: {**cold, 'warm_start_up_s': warm['start_up_s']},
    }
    for variant in pytorch.VARIANTS if baseline_python is not None else ():
      name = f'torch {variant}'
      spec = json.dumps(pytorch.spec(config, variant, cold))
      command = [str(baseline_python), str(pytorch.WORKER), spec]
      running[name], answer = _start(stack, f'{mode}, {name}', command, cache)
      ready[name] = {**answer, 'warm_start_up_s': None}
    measured = workers.alternate(running, seconds)
    # Last: its matrices must not count as the program's memory.
    flops = worker.ask({'flops': True})
  batch_size = config.train.batch_size
  implementations = {}
  for name, answer in ready.items():
    times = ('compile_s', 'start_up_s', 'warm_start_up_s')
    implementations[name] = figures.summarize(
      {**{key: answer[key] for key in times}, **measured[name]},
      batch_size=batch_size,
      **flops,
    )
    images_per_s = implementations[name]['images_per_s']
    logger.info('%s: %s trains on %.1f images/s', mode, name, images_per_s)
  return {
    'batch_size': config.train.batch_size,
    'dtype': config.student.dtype,
    **flops,
    'implementations': implementations,
    'ratio': figures.ratio(implementations),
  }, ready


def _start(
  stack: contextlib.ExitStack, name: str, command: Sequence[str], cache: str
) -> tuple[workers.Worker, dict[str, Any]]:
  """Starts a worker, and waits for it so that the next has an idle machine.

  Returns its first line too, with `start_up_s` added.
  """
  environment = {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': cache,
  }
  start_time = time.perf_counter()
  worker = stack.enter_context(workers.start(name, command, environment))
  answer = worker.read()
  answer['start_up_s'] = time.perf_counter() - start_time
  logger.info('%s: started in %.1f s', name, answer['start_up_s'])
  return worker, answer
