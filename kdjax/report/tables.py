"""The tables of a comparison: for a terminal, in Markdown and as CSV.

Their rows are those that `kdjax.report.significance.rows` returns.
"""

import collections
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax import config as config_lib
from kdjax.evaluation import tables
from kdjax.report import collect, significance
from kdjax.report.significance import Row
from kdjax.system import escape

_NONE = '-'


class Column(NamedTuple):
  """A column of the table that people read."""

  header: str  # What it shows, with its unit.
  cell: Callable[[Row], str]
  brief: bool = False  # Whether it is among those that fit a terminal.
  training: bool = False  # Whether it tells of training, not of the test split.
  by_class: bool = False  # Whether it counts all classes alike.


def _mean(name: str, form: str, scale: float = 1) -> Callable[[Row], str]:
  """A cell with the mean of a number and its spread over seeds."""

  def cell(row: Row) -> str:
    summary = row.numbers[name]
    if summary is None:
      return _NONE
    text = format(scale * summary.mean, form)
    if summary.std is not None:
      text += f' ± {scale * summary.std:{form}}'
    return text

  return cell


def _parameters(row: Row) -> str:
  summary = row.numbers['parameters']
  return f'{summary.mean:,.0f}' if summary else _NONE


def _accuracy(row: Row) -> str:
  """The cell that says how far a row can be trusted."""
  if row.group and not row.group.runs:
    steps = ', '.join(str(run.step) for run in row.group.diverged)
    return f'diverged at step {steps}'
  text = _mean('accuracy', '.2f', 100)(row)
  return f'{text} (1 seed)' if row.group and len(row.group.runs) == 1 else text


def _gain(row: Row) -> str:
  if row.gain is None:
    return _NONE
  low, high = row.gain.low, row.gain.high
  text = f'{100 * row.gain.difference:+.2f}'
  if low is None or high is None:
    return f'{text} ({row.gain.untested})'
  return f'{text} [{100 * low:+.2f}, {100 * high:+.2f}]'


def _p(row: Row) -> str:
  if row.gain is None or row.gain.p_holm is None:
    return _NONE
  return '< 0.001' if row.gain.p_holm < 0.001 else f'{row.gain.p_holm:.3f}'


def _seeds(row: Row) -> str:
  if row.group is None:
    return '1'
  text = str(len(row.group.runs))
  if row.group.runs and row.group.diverged:
    return f'{text} (and {len(row.group.diverged)} diverged)'
  return text


COLUMNS = (
  Column('', lambda row: row.label, brief=True),
  Column('test accuracy (%)', _accuracy, brief=True),
  Column('test accuracy, last epoch (%)', _mean('last_accuracy', '.2f', 100)),
  Column(
    'balanced accuracy (%)',
    _mean('balanced_accuracy', '.2f', 100),
    brief=True,
    by_class=True,
  ),
  Column('macro F1 (%)', _mean('macro_f1', '.2f', 100), by_class=True),
  Column('NLL (nats)', _mean('loss', '.4f'), brief=True),
  Column('ECE (%)', _mean('calibration_error', '.2f', 100)),
  Column('agreement (%)', _mean('agreement', '.2f', 100), brief=True),
  Column('KL to teacher (nats)', _mean('kl_to_teacher', '.4f')),
  Column('gain over scratch (pp) [95 % CI]', _gain, brief=True),
  Column('p', _p, brief=True),
  Column('seeds', _seeds, brief=True),
  Column(
    'validation accuracy (%)',
    _mean('validation_accuracy', '.2f', 100),
    training=True,
  ),
  Column('training loss', _mean('train_loss', '.4f'), training=True),
  Column('parameters', _parameters, training=True),
  Column(
    'training images/s', _mean('images_per_second', ',.0f'), training=True
  ),
  Column('training time (s)', _mean('training_time_s', ',.1f'), training=True),
)


def cells(
  rows: Sequence[Row], which: Callable[[Column], bool] = lambda column: True
) -> list[list[str]]:
  """Returns the text of each cell, line by line, the first one the header.

  Args:
    rows: the rows.
    which: whether a column is wanted. Those that count classes alike are there
      where they tell more than the accuracy.
  """
  means = (
    {name: each.mean for name, each in row.numbers.items() if each}
    for row in rows
  )
  differ = tables.differ_by_class(means)
  columns = [
    column
    for column in COLUMNS
    if which(column) and (differ or not column.by_class)
  ]
  return [
    [column.header for column in columns],
    *([column.cell(row) for column in columns] for row in rows),
  ]


def parts(rows: Sequence[Row]) -> list[list[list[str]]]:
  """Returns two tables that a page has room for, each with the labels."""
  return [
    cells(rows, lambda column: not column.training),
    cells(rows, lambda column: column.training or column is COLUMNS[0]),
  ]


def _brief(rows: Sequence[Row]) -> list[list[str]]:
  return cells(rows, lambda column: column.brief)


def terminal(rows: Sequence[Row]) -> str:
  """Formats the columns that fit a terminal."""
  return tables.align(_brief(rows))


def markdown(comparison: collect.Comparison, rows: Sequence[Row]) -> str:
  """Formats a comparison in Markdown, with its footnotes."""
  texts = cells(rows)
  header, *lines = [
    f'| {" | ".join(map(escape.markdown, line))} |' for line in texts
  ]
  rule = f'|---|{"---:|" * (len(texts[0]) - 1)}'
  notes = [
    f'- {escape.markdown(note)}'
    for note in (*footnotes(comparison, rows), *comparison.notes)
  ]
  return '\n'.join([header, rule, *lines, '', *notes]) + '\n'


def latex(comparison: collect.Comparison, rows: Sequence[Row]) -> str:
  """Formats the columns that fit a page in LaTeX, with its footnotes."""

  def line(cells: Iterable[str]) -> str:
    # A minus rather than a hyphen.
    minus = (re.sub(r'(?<![\w.])-(?=\d)', '−', cell) for cell in cells)
    return ' & '.join(map(escape.latex, minus)) + r' \\'

  header, *body = _brief(rows)
  # Units have a line of their own, which makes the columns narrower.
  parts = [name.partition(' (') for name in header]
  notes = [
    f'% {escape.printable(note)}' for note in footnotes(comparison, rows)
  ]
  return '\n'.join(
    [
      r'% Needs \usepackage{booktabs}; \input this file in a table.',
      *notes,
      rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}',
      r'\toprule',
      line(name for name, _, _ in parts),
      line(mark.strip() + unit for _, mark, unit in parts),
      r'\midrule',
      *map(line, body),
      r'\bottomrule',
      r'\end{tabular}',
      '',
    ]
  )


def footnotes(
  comparison: collect.Comparison, rows: Sequence[Row]
) -> Iterator[str]:
  """Says what the numbers of the table are, and what they are not."""
  yield (
    f'On the {comparison.data["test"]:,} test images, at the epoch with the '
    'best validation accuracy, unless a column says otherwise. Mean ± sample '
    'standard deviation over seeds.'
  )
  if not comparison.data['validation']:
    yield (
      'There are no validation images: the best epoch is the last, and no '
      'setting can be chosen.'
    )
  groups = [row.group for row in rows if row.group]
  if any(len(group.runs) == 1 for group in groups):
    yield 'With one seed no spread is known.'
  if comparison.teacher:
    yield (
      'The teacher is one network, as it taught; seeds vary the students only.'
    )
  yield (
    'Training loss is what the method minimises, as last logged: not '
    'comparable between methods.'
  )
  yield (
    'Training time is without compilation; runs of earlier versions do not say '
    'how long that took.'
  )
  yield (
    'NLL is the mean negative log-likelihood, ECE the expected calibration '
    'error in 15 bins; agreement is the share of images where student and '
    'teacher predict the same class, KL the mean KL(teacher ‖ student).'
  )
  yield from _gain_footnotes(rows)
  if diverged := collect.list_diverged(groups):
    shown = '; '.join(f'{name}, at step {run.step}' for name, run in diverged)
    yield f'Diverged, and in no mean: {shown}.'


def _gain_footnotes(rows: Sequence[Row]) -> Iterator[str]:
  """Says what the gains of the table are, and what they are not."""
  if any(row.gain for row in rows):
    yield (
      'Gain over scratch is the difference of mean accuracies to students '
      'trained alone with the same recipe, in percentage points, with its 95 % '
      "confidence interval and two-sided p-value by Welch's t-test."
    )
  if lacking := [
    row.label
    for row in rows
    if row.group
    and row.group.runs
    and row.group.method != collect.SCRATCH
    and row.gain is None
  ]:
    yield (
      f'No gain is given for {"; ".join(lacking)}: no run of scratch with the '
      'same recipe has finished.'
    )
  tested = sum(row.gain is not None and row.gain.p is not None for row in rows)
  if tested > 1:
    yield (
      f"The p-values are corrected for {tested} comparisons by Holm's method."
    )
  settings = collections.Counter(
    row.group.method for row in rows if row.group and row.gain
  )
  if several := [method for method, count in settings.items() if count > 1]:
    yield (
      f'There are several settings of {", ".join(several)}: gain and p-value '
      'of the best of them, chosen with the same seeds, are optimistic.'
    )


def comparison_csv(comparison: collect.Comparison, rows: Sequence[Row]) -> str:
  """Returns the unrounded numbers of each row as CSV with a header.

  Accuracies, calibration errors, agreements and gains are shares from 0 to 1;
  what is unknown is empty.
  """
  lines = []
  for row in rows:
    line: dict[str, Any] = {'label': row.label}
    if row.group:
      line |= {
        'method': row.group.method,
        **_settings(comparison, row.group),
        'seeds': len(row.group.runs),
        'diverged': len(row.group.diverged),
      }
    for name, summary in row.numbers.items():
      mean, std, seeds = summary or (None, None, None)
      line |= {f'{name}_mean': mean, f'{name}_std': std, f'{name}_n': seeds}
    line['gain_over'] = row.baseline
    difference, low, high, p, p_holm, _ = row.gain or 6 * (None,)
    line |= {
      'gain': difference,
      'gain_ci_low': low,
      'gain_ci_high': high,
      'gain_p': p,
      'gain_p_holm': p_holm,
    }
    lines.append(line)
  return _csv(lines)


def runs_csv(comparison: collect.Comparison) -> str:
  """Returns the numbers of each run as CSV, in units as in `comparison_csv`."""
  logits = significance.teacher_logits(comparison)
  lines = []
  if comparison.teacher_run:
    # Not compared with itself.
    lines.append(_run_line('teacher', comparison.teacher_run, {}, None))
  for group in comparison.groups:
    settings = _settings(comparison, group)
    every: list[collect.Run | collect.Diverged]
    every = [*group.runs, *group.diverged]
    lines += [_run_line(group.label, run, settings, logits) for run in every]
  return _csv(lines)


def _run_line(
  label: str,
  run: collect.Run | collect.Diverged,
  settings: Mapping[str, Any],
  logits: np.ndarray | None,
) -> dict[str, Any]:
  config = collect.config_of(run)
  line = {
    'path': run.path,
    'label': label,
    'method': config['method']['name'],
    'seed': config['seed'],
    **settings,
  }
  if isinstance(run, collect.Diverged):
    return line | {'diverged_at_step': run.step}
  return (
    line | {'diverged_at_step': None} | significance.measure_run(run, logits)
  )


def _settings(
  comparison: collect.Comparison, group: collect.Group
) -> dict[str, Any]:
  """The settings that set a group apart from others of any method."""
  fields = collect.varying(comparison.groups)
  return {
    name: group.settings.get(field)
    for field, name in config_lib.short_names(fields).items()
    if field != 'method.name'
  }


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
  # Not all lines have all columns; they agree on the order of those they have.
  names = dict.fromkeys(
    name for line in sorted(lines, key=len, reverse=True) for name in line
  )
  text = io.StringIO()
  writer = csv.DictWriter(text, list(names), lineterminator='\n')
  writer.writeheader()
  for line in lines:
    writer.writerow({name: escape.csv_cell(line[name]) for name in line})
  return text.getvalue()
