"""Trains a classifier, with or without a teacher, from one command.

python -m kdjax.main --config=configs/quickstart.py
"""

from absl import flags
from ml_collections import config_flags

from kdjax.system import atomic, devices, escape
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
  'Configuration file, one of configs/. Override a field with '
  '--config.FIELD=VALUE; choose a variant with FILE:VARIANT.',
  lock_config=True,
)
_MODE = flags.DEFINE_string(
  'mode',
  None,
  'Method to train with; overrides config.method.name.',
)
_WORKDIR = define_path(
  'workdir',
  None,
  'Run directory. Started again with the same one, a run continues; where '
  'SIGTERM or SIGINT stops it, it is saved and the exit status is 75. Default: '
  'runs/NAME, NAME being that of the configuration file, with the variant and '
  'the mode where they are given.',
)

_JOIN = define_processes()


def main(argv: list[str]) -> None:
  """Reads the flags and runs the experiment."""
  # Late, because they take long and --help needs none of them.
  from kdjax import config as config_lib
  from kdjax.evaluation import tables
  from kdjax.training import train

  with command(argv, _JOIN):
    config = _CONFIG.value
    config_lib.check_is_run(config)
    if _MODE.value:
      config.method.name = _MODE.value
    workdir = atomic.local(_WORKDIR.value or default_workdir(_MODE.value))
    result = train.train_and_evaluate(config, workdir)
  if devices.is_first():
    print(tables.table(result))
    print(escape.lines(f'\nrun directory: {workdir}'))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  start(main)
