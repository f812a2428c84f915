"""Compares runs: tables, figures and one HTML page.

python -m kdjax.report runs/scratch runs/rkd runs/fkd --output=report
"""

from absl import app, flags

from kdjax.report import write
from kdjax.system import atomic
from kdjax.system.command import command, define_path, start

_OUTPUT = define_path(
  'output', 'report', 'Directory for the page, the tables and the figures.'
)
_DATA_DIR = define_path(
  'data_dir', None, 'Where the data are, if not where they were in training.'
)
_FORMAT = flags.DEFINE_list(
  'format',
  [],
  'Further files: of the figures pdf and svg, tex of the table.',
)


def main(argv: list[str]) -> None:
  """Reads the arguments, run directories and sweeps, and compares the runs."""
  program, *paths = argv
  if not paths:
    raise app.UsageError(
      'expected run directories, or directories of run directories: python -m '
      'kdjax.report RUN…'
    )
  with command([program]):
    text = write.write(
      [atomic.local(path) for path in paths],
      atomic.local(_OUTPUT.value),
      _DATA_DIR.value,
      _FORMAT.value,
    )
  print(text)


if __name__ == '__main__':
  start(main)
