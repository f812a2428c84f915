"""Measures how fast a configuration trains, and what it takes.

python -m kdjax.benchmark --config=configs/fkd.py

With `--aot=h100` it counts, on any machine, what XLA's program for such a
device would do there.
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from kdjax.benchmark import ahead, compare, figures, topology
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
_AOT = flags.DEFINE_string(
  'aot',
  None,
  'Compile for devices that are not here, and count instead of measuring: '
  f"{topology.EXPECTED}. Needs the wheel of XLA's compiler for them.",
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print all figures as JSON instead of a table.'
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
    if _AOT.value:
      result = ahead.run(_CONFIG.value, _MODES.value, _AOT.value)
      shown = ahead.table(result)
    else:
      result = compare.run(
        _CONFIG.value,
        _MODES.value,
        seconds=_SECONDS.value,
        baseline_python=_BASELINE_PYTHON.value if _BASELINE.value else None,
      )
      shown = figures.table(result)
    text = json.dumps(result, indent=2)
    atomic.write(output, f'{text}\n'.encode())
    print(text if _JSON.value else f'{shown}\n\nall figures: {output}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  start(main)
