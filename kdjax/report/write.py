"""Writes the files of a report."""

import pathlib
from collections.abc import Iterable

from kdjax.report import collect, gallery, page, significance, tables
from kdjax.system import atomic, escape


def write(
  paths: Iterable[pathlib.Path],
  output: pathlib.Path,
  data_dir: str | None = None,
) -> str:
  """Compares runs and writes tables, figures and the page.

  Args:
    paths: run directories, and directories of run directories.
    output: directory for `report.html`, `comparison.md`, `comparison.csv`,
      `runs.csv` and `figures/`.
    data_dir: where the data are, if they have been moved.

  Returns:
    The comparison as a table for a terminal, with its footnotes.

  Raises:
    FileNotFoundError: a path does not exist.
    ValueError: no run has finished, or they cannot be compared.
  """
  comparison = collect.read(paths)
  rows = significance.rows(comparison)
  exhibits, notes = gallery.exhibits(comparison, data_dir)
  pictures = [(exhibit, gallery.png(exhibit.figure)) for exhibit in exhibits]
  (output / 'figures').mkdir(parents=True, exist_ok=True)
  for exhibit, png in pictures:
    atomic.write(output / 'figures' / f'{exhibit.name}.png', png)
  for name, text in (
    ('comparison.md', tables.markdown(comparison, rows)),
    ('comparison.csv', tables.comparison_csv(comparison, rows)),
    ('runs.csv', tables.runs_csv(comparison)),
    ('report.html', page.html(comparison, rows, pictures, notes)),
  ):
    atomic.write(output / name, text.encode())
  return escape.lines(
    '\n'.join(
      [
        tables.terminal(rows),
        *(f'note: {note}' for note in (*comparison.notes, *notes)),
        *(
          f'left out: {path}: {reason}' for path, reason in comparison.left_out
        ),
        f'\nthe whole report: {output / "report.html"}',
      ]
    )
  )
