"""Evaluates a finished run again, on the test split.

python -m kdjax.evaluate --workdir=runs/fkd
"""

import pathlib

from absl import app, flags

from kdjax import measure, results
from kdjax.command import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.', required=True)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where TFDS keeps data sets, if not where the run had it.'
)


def main(argv: list[str]) -> None:
  """Reads the flags and evaluates the run."""
  with command(argv):
    workdir = pathlib.Path(_WORKDIR.value)
    config = results.read_config(workdir)
    if _DATA_DIR.value:
      config.data.data_dir = _DATA_DIR.value
    result = measure.evaluate(workdir, config)
  print(results.table(result))


if __name__ == '__main__':
  app.run(main)
