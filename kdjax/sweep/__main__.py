"""Trains a set of runs that share a teacher and a data set, and compares them.

python -m kdjax.sweep --config=configs/quickstart_sweep.py
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from kdjax.report import write
from kdjax.sweep import run
from kdjax.system import atomic, devices
from kdjax.system.command import (
  command,
  default_workdir,
  define_path,
  define_processes,
  start,
)

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file of a sweep, such as configs/sweep.py. Override a field '
  'of all its runs with --config.run.FIELD=VALUE, the seeds of stages that '
  'have none of their own with --config.seeds=0,1,2; choose a variant with '
  'FILE:VARIANT.',
  lock_config=True,
)
_WORKDIR = define_path(
  'workdir',
  None,
  'Directory of the sweep. Started again with the same one, a sweep continues; '
  'where SIGTERM or SIGINT stops it, the exit status is 75. '
  'Default: runs/NAME, NAME being that of the configuration file, with the '
  'variant where it is given.',
)

_JOIN = define_processes()


def main(argv: list[str]) -> None:
  """Reads the flags, runs the sweep and compares its runs."""
  with command(argv, _JOIN):
    workdir = atomic.local(_WORKDIR.value or default_workdir())
    config = _CONFIG.value
    summary = run.run(config, workdir)
    if devices.is_first():
      _report(config, workdir, summary)
    devices.wait_for_all()
  if any(
    record['state'] == 'failed'
    for stage in summary['stages']
    for record in stage['runs']
  ):
    sys.exit('error: runs failed; start the sweep again to continue them')


def _report(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  summary: Mapping[str, Any],
) -> None:
  """Compares the runs of a sweep, on standard output and in its report."""
  print(run.table(summary), end='\n\n')
  print(write.write([workdir], workdir / 'report'))
  if names := run.confirming(summary):
    paths = [workdir / name for name in names]
    paths.append(workdir / config.run.teacher.sibling)
    print('\nwith seeds that nothing was chosen with:\n')
    # A run that failed early has no directory.
    there = [path for path in paths if path.exists()]
    print(write.write(there, workdir / 'report' / 'confirmation'))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  start(main)
