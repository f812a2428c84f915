"""Measures how fast a configuration trains, and what it takes.

python -m kdjax.benchmark --config=configs/fkd.py
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from kdjax.benchmark import compare, figures
from kdjax.system import atomic
from kdjax.system.command import command, define_path, start

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file, one of configs/. Override a field with '
  '--config.FIELD=VALUE; --config.data.name=synthetic needs no download.',
  lock_config=True,
)
_MODES = flags.DEFINE_list(
  'modes',
  ['feature', 'response', 'scratch'],
  f'What to measure: methods, or {compare.TEACHER} for the training of the '
  'teacher itself.',
)
_SECONDS = flags.DEFINE_float(
  'seconds',
  20.0,
  'How long to measure each implementation of a mode, at least five bursts of '
  'steps.',
  lower_bound=0.0,
)
_BASELINE = flags.DEFINE_bool(
  'baseline', False, 'Measure the same in PyTorch, in turns with kdjax.'
)
_BASELINE_PYTHON = flags.DEFINE_string(
  'baseline_python',
  sys.executable,
  'Python interpreter that has PyTorch, for --baseline; it need not have JAX.',
)
_OUTPUT = define_path(
  'output', 'benchmark.json', 'JSON file for all that was measured.'
)


def main(argv: list[str]) -> None:
  """Reads the flags, measures, prints a table and writes the JSON file."""
  with command(argv):
    output = atomic.local(_OUTPUT.value)
    # Before minutes of measuring, rather than after.
    output.parent.mkdir(parents=True, exist_ok=True)
    result = compare.run(
      _CONFIG.value,
      _MODES.value,
      seconds=_SECONDS.value,
      baseline_python=_BASELINE_PYTHON.value if _BASELINE.value else None,
    )
    print(figures.table(result))
    atomic.write(output, f'{json.dumps(result, indent=2)}\n'.encode())
  print(f'\nall figures: {output}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  start(main)
