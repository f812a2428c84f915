"""Bounds of a configuration's speed on accelerators that are not there.

XLA compiles the programs of a run for them on any machine; `costs` counts what
they do. Nothing runs, so that nothing here is a measurement.
"""

import datetime
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from kdjax import config as config_lib
from kdjax.benchmark import compare, costs, figures, topology, worker
from kdjax.evaluation import predict, tables
from kdjax.storage import run_directory
from kdjax.system import devices
from kdjax.system.logs import logger
from kdjax.system.target import compile_for
from kdjax.training import compiled, setup
from kdjax.training.run import Run
from kdjax.training.shared import Session
from kdjax.version import __version__

PREDICTION = 'prediction'
"""The program that evaluates the student of the first mode."""


def run(
  config: ml_collections.ConfigDict,
  modes: Sequence[str],
  target: str,
) -> dict[str, Any]:
  """Compiles the programs of a configuration for devices that are not there.

  Args:
    config: configuration of a run; its method is that of each mode in turn.
    modes: names of methods, or `compare.TEACHER`.
    target: the devices, as `topology.find` knows them.

  Returns:
    What was counted, as JSON has it: `date`, `command`, `target`, `device`,
    `devices` (their number), `versions`, `config` and `programs`. Each program
    has the `batch_size` of all devices (images), `dtype`, the seconds that it
    was compiled, its temporary memory in bytes and what `costs.summarize`
    counts on one device, but for `images_per_s`, which is of all.

  Raises:
    ValueError: a mode or the devices are unknown, or the configuration makes no
      sense.
    FileNotFoundError: the devices' compiler is not installed.
  """
  runs = compare.run_configs(config, modes)
  # Both before anything starts a device, of which there is only the CPU.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  found = topology.find(target)
  programs: dict[str, Any] = {}
  for mode, changed in runs.items():
    resolved, program = resolve(changed, found.target)
    programs[mode] = _training(mode, resolved, program, found)
    if PREDICTION not in programs:
      programs[PREDICTION] = _prediction(resolved, program, found)
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join([sys.executable, *sys.argv]),
    'target': target,
    'device': found.chip.title,
    'devices': len(found.target.devices),
    'versions': {'kdjax': __version__, 'jax': jax.__version__},
    'config': run_directory.as_json(config_lib.normalize(config)),
    'programs': programs,
  }


def resolve(
  config: ml_collections.ConfigDict, found: topology.Target
) -> tuple[Run, compiled.Program]:
  """Makes the program of a run for absent devices, and compiles nothing.

  Args:
    config: configuration of the run.
    found: the devices.

  Returns:
    The run, whose teacher is random, and its program.
  """
  with compile_for(found):
    resolved = setup.resolve(config, pathlib.Path(), Session())
  if resolved.method.needs_teacher:
    # Made here, on this machine.
    resolved = resolved._replace(teacher=worker.random_teacher(resolved))
  with compile_for(found):
    return resolved, compiled.Program(resolved)


def _training(
  mode: str,
  resolved: Run,
  program: compiled.Program,
  found: topology.Topology,
) -> dict[str, Any]:
  """Compiles as many steps of training as a device is given at once."""
  plan = resolved.plan
  with compile_for(found.target):
    lowered = program.lower(program.state_shapes(), plan.steps_per_dispatch)
  return _count(mode, lowered, plan.batch_size, resolved.config, found)


def _prediction(
  resolved: Run, program: compiled.Program, found: topology.Topology
) -> dict[str, Any]:
  """Compiles the evaluation of a batch by the student."""
  count = len(found.target.devices)
  size = max(resolved.config.eval.batch_size // count, 1) * count
  with compile_for(found.target):
    images = devices.describe(
      jax.ShapeDtypeStruct((size, *resolved.dataset.image_shape), 'uint8')
    )
    student = program.student(program.state_shapes())
    lowered = predict.lower(student, images, size)
  return _count(PREDICTION, lowered, size, resolved.config, found)


def _count(
  name: str,
  lowered: jax.stages.Lowered,
  batch_size: int,
  config: ml_collections.ConfigDict,
  found: topology.Topology,
) -> dict[str, Any]:
  """Compiles a program, and counts what it costs."""
  start = time.perf_counter()
  try:
    program = lowered.compile(compiler_options=found.options)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f'{name} cannot be compiled for {found.chip.title} ({reason}): if it '
      'takes too much memory, set a smaller config.train.batch_size'
    ) from error
  compile_s = time.perf_counter() - start
  logger.info('%s: compiled in %.1f s', name, compile_s)
  chip, count = found.chip, len(found.target.devices)
  dtype = config.student.dtype
  text = program.as_text()
  assert text is not None
  counted = costs.summarize(
    text,
    images=batch_size // count,
    flops_per_s=(
      chip.bfloat16_flops_per_s
      if dtype == 'bfloat16'
      else chip.float32_flops_per_s
    ),
    bytes_per_s=chip.bytes_per_s,
  )
  analysis: Any = program.memory_analysis()
  return {
    'batch_size': batch_size,
    'dtype': dtype,
    'compile_s': compile_s,
    'temporary_bytes': analysis.temp_size_in_bytes,
    **counted,
    'images_per_s': counted['images_per_s'] * count,
  }


# fmt: off
_HEADER = (
  ('program', 'batch', 'GFLOP', 'MB', 'temp', 'opera-', 'loops', 'float32',
   'layout', 'images/s'),
  ('', '', '/image', '/image', 'GiB', 'tions', '', 'convs', 'copies',
   'at most'),
)
# fmt: on


def table(result: Mapping[str, Any]) -> str:
  """Formats the result of `run` for a terminal.

  Returns:
    A line on the devices, a table with a row for each program, the parts of
    each mode's bytes, and what devices exchange in a step.
  """
  programs = result['programs']
  rows = [*_HEADER, *(_row(name, each) for name, each in programs.items())]
  parts: list[tuple[str, ...]] = [('share of the bytes', *costs.PARTS)]
  exchanged = []
  for name, each in programs.items():
    if name != PREDICTION:
      parts.append((name, *_shares(each['parts'])))
    for kind, total in each['collectives'].items():
      exchanged.append(
        f'{name}: {total["count"]} × {kind}, {total["bytes"] / 1e6:.3g} MB'
      )
  versions = ', '.join(
    f'{package} {version}' for package, version in result['versions'].items()
  )
  return '\n'.join(
    [
      f'{result["devices"]} × {result["device"]}, not there; {versions}',
      'bounds by counting, not measurements',
      '',
      tables.align(rows, header=len(_HEADER), left=1),
      '',
      tables.align(parts, header=1, left=1),
      *(['', 'exchanged in a step:', *exchanged] if exchanged else []),
    ]
  )


def _row(name: str, program: Mapping[str, Any]) -> tuple[str, ...]:
  return (
    name,
    str(program['batch_size']),
    figures.digits(program['flops_per_image'] / 1e9),
    figures.digits(program['bytes_per_image'] / 1e6),
    f'{program["temporary_bytes"] / 2**30:.2f}',
    str(program['operations']),
    str(program['loops']),
    str(program['float32_convolutions']),
    str(program['layout_copies']['count']),
    f'{program["images_per_s"]:,.0f}',
  )


def _shares(parts: Mapping[str, float]) -> list[str]:
  total = sum(parts.values()) or 1.0
  return [f'{size / total:.1%}' for size in parts.values()]
