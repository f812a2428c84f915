"""The records in configs/ are what their results say."""

import re

import pytest
from processes import ROOT

from kdjax.report import collect, significance

RECORDS = ROOT / 'configs' / 'records'
TABLES = sorted(path for path in RECORDS.iterdir() if path.is_dir())
README = (ROOT / 'configs' / 'README.md').read_text()


def rows(name):
  """The rows of a table about one run: method, seed, and the cells after it."""
  table = README.split(f'(records/{name})')[1].split('(records/')[0]
  for line in table.splitlines():
    row = re.match(r'\| (\w+) \w+, seed (\d+) \|(.*)\|$', line)
    if row:
      cells = [cell.strip() for cell in row[3].split('|')]
      yield (row[1], int(row[2])), cells


def name_of(run):
  is_teacher = run.result['student']['model'] == 'resnet50'
  return 'teacher' if is_teacher else run.result['method']


@pytest.mark.parametrize('folder', TABLES, ids=lambda path: path.name)
def test_every_result_has_its_row(folder):
  comparison = collect.read([folder])
  runs = [run for group in comparison.groups for run in group.runs]
  # It is a student of its own until one that it taught is there.
  runs += [comparison.teacher_run] if comparison.teacher_run else []
  found = {(name_of(run), run.result['seed']): run for run in runs}
  shown = dict(rows(folder.name))
  assert found.keys() == shown.keys()
  for key, run in found.items():
    best, last = (
      f'{100 * run.result[which]["test"]["accuracy"]:.2f}'
      for which in ('best', 'last')
    )
    assert shown[key][:2] == [best, last], key
    minutes = run.result['student']['wall_time_s'] / 60
    assert shown[key][3] == f'{minutes:.0f} min', key


def test_a_table_is_computed_from_results_alone():
  comparison = collect.read([RECORDS / 'published_sum'])
  (scratch,) = [
    row.numbers['accuracy']
    for row in significance.rows(comparison)
    if row.group
    and row.group.method == 'scratch'
    and name_of(row.group.runs[0]) == 'scratch'
  ]
  assert scratch.seeds >= 4
  assert 0.78 < scratch.mean < 0.8
