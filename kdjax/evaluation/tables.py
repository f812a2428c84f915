"""Tables of what was measured, for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdjax.system import escape

# The metrics in a run's table: heading, name in the result, format.
SHOWN = (
  ('accuracy', 'accuracy', '.2%'),
  ('balanced', 'balanced_accuracy', '.2%'),
  ('macro F1', 'macro_f1', '.2%'),
  ('NLL', 'loss', '.4f'),
  ('ECE', 'calibration_error', '.2%'),
  ('agreement', 'agreement', '.2%'),
  ('teacher KL', 'kl_to_teacher', '.4f'),
)

BY_CLASS = 'balanced_accuracy', 'macro_f1'
"""Metrics in which all classes count alike, however many images they have."""


def table(result: Mapping[str, Any]) -> str:
  """Formats the result of a run for a terminal.

  Args:
    result: as in `result.json`.

  Returns:
    A table with a row for the teacher, if there is one, and for the student at
    its best epoch and at its last, and for its moving average at both, if it
    has one. NLL is the negative log-likelihood and the divergence from the
    teacher is KL(teacher ‖ student), both in nats; ECE is the expected
    calibration error. Balanced accuracy and macro F1 are there where the former
    differs clearly from the accuracy. What a row lacks is a dash.
  """
  rows = []
  teacher = result.get('teacher')
  if teacher:
    rows.append((f'teacher {teacher["model"]}', teacher))
  name = f'{result["student"]["model"]} ({result["method"]})'
  for which in ('best', 'last'):
    row = result['student'] | result[which]
    rows.append((f'{name}, {which} epoch', row))
    if 'ema' in row:
      rows.append((f'{name}, {which} epoch, EMA', row | row['ema']))
  differs = differ_by_class(row['test'] for _, row in rows)
  shown = [each for each in SHOWN if differs or each[1] not in BY_CLASS]
  header = (
    'test split',
    *(heading for heading, _, _ in shown),
    'parameters',
    'time',
  )
  lines: list[tuple[str, ...]] = [header]
  for title, row in rows:
    test = row['test']
    lines.append(
      (
        title,
        *(
          '-' if test.get(metric) is None else format(test[metric], spec)
          for _, metric, spec in shown
        ),
        '-' if row['parameters'] is None else f'{row["parameters"]:,}',
        '-' if row['wall_time_s'] is None else f'{row["wall_time_s"]:.0f} s',
      )
    )
  return align(lines)


def differ_by_class(rows: Iterable[Mapping[str, Any]]) -> bool:
  """Whether the metrics `BY_CLASS` tell more than the accuracy.

  Args:
    rows: what was measured, by name.

  Returns:
    Whether balanced accuracy and accuracy are half a percent or more apart in
    any row, as where classes have unequal numbers of test images.
  """
  return any(
    abs(balanced - row['accuracy']) >= 0.005
    for row in rows
    if (balanced := row.get('balanced_accuracy')) is not None
  )


def align(
  lines: Sequence[Sequence[str]], *, header: int = 1, left: int = 1
) -> str:
  """Lays out a table for a terminal.

  Args:
    lines: the cells of each line, as many in all; they are escaped.
    header: number of lines above the rule.
    left: number of columns that are flush left, the first ones.

  Returns:
    The table.
  """
  lines = [list(map(escape.printable, cells)) for cells in lines]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '  '.join(
      cell.ljust(width) if i < left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  ]
  text.insert(header, '  '.join('-' * width for width in widths))
  return '\n'.join(text)
