"""Writes the files of a report."""

import pathlib
from collections.abc import Iterable, Sequence

from kdjax.report import collect, gallery, page, significance, tables
from kdjax.system import atomic, escape


def write(
  paths: Iterable[pathlib.Path],
  output: pathlib.Path,
  data_dir: str | None = None,
  formats: Sequence[str] = (),
) -> str:
  """Compares runs and writes tables, figures and the page.

  Args:
    paths: run directories, and directories of run directories.
    output: directory for `report.html`, `comparison.md`, `comparison.csv`,
      `runs.csv` and `figures/`.
    data_dir: where the data are, if they have been moved.
    formats: further files: of figures 'pdf' and 'svg', 'tex' of the table.

  Returns:
    The comparison as a table for a terminal, with its footnotes.

  Raises:
    FileNotFoundError: a path does not exist.
    ValueError: no run has finished, they cannot be compared, or a format is
      unknown.
  """
  if unknown := {*formats} - {'pdf', 'svg', 'tex'}:
    raise ValueError(
      f'--format has {escape.listed(sorted(unknown))}: expected some of pdf, '
      'svg, tex'
    )
  comparison = collect.read(paths)
  rows = significance.rows(comparison)
  exhibits, notes = gallery.exhibits(comparison, data_dir)
  (output / 'figures').mkdir(parents=True, exist_ok=True)
  pictures = []
  for exhibit in exhibits:
    for suffix in ('png', *(each for each in formats if each != 'tex')):
      drawn = gallery.draw(exhibit.figure, suffix)
      atomic.write(output / 'figures' / f'{exhibit.name}.{suffix}', drawn)
      if suffix == 'png':
        pictures.append((exhibit, drawn))
  if 'tex' in formats:
    table = tables.latex(comparison, rows)
    atomic.write(output / 'comparison.tex', table.encode())
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
