"""Compares runs: tables, figures and one HTML page.

python -m kdjax.report runs/scratch runs/rkd runs/fkd --output=report
"""

import pathlib

from absl import app, flags

from kdjax.command import command
from kdjax.report import collect, gallery, page, statistics, tables

_OUTPUT = flags.DEFINE_string(
  'output', 'report', 'Directory for the page, the tables and the figures.'
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where TFDS keeps data sets, if not where the runs had it.'
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
    output = pathlib.Path(_OUTPUT.value)
    comparison = collect.read([pathlib.Path(path) for path in paths])
    rows = statistics.rows(comparison)
    exhibits, notes = gallery.exhibits(comparison, _DATA_DIR.value)
    pictures = [(exhibit, gallery.png(exhibit.figure)) for exhibit in exhibits]
    (output / 'figures').mkdir(parents=True, exist_ok=True)
    for exhibit, png in pictures:
      (output / 'figures' / f'{exhibit.name}.png').write_bytes(png)
    for name, text in (
      ('comparison.md', tables.markdown(comparison, rows)),
      ('comparison.csv', tables.comparison_csv(comparison, rows)),
      ('runs.csv', tables.runs_csv(comparison)),
      ('report.html', page.html(comparison, rows, pictures, notes)),
    ):
      (output / name).write_text(text, encoding='utf-8')
  print(tables.terminal(rows))
  for note in (*comparison.notes, *notes):
    print(f'note: {note}')
  for path, reason in comparison.left_out:
    print(f'left out: {path}: {reason}')
  print(f'\nthe whole report: {output / "report.html"}')


if __name__ == '__main__':
  app.run(main)
