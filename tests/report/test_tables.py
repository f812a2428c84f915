"""The tables that people and programs read."""

import csv
import io
import json

import pytest
import synthetic
from synthetic import write_run, write_unfinished

from kdjax.report import collect, significance, tables


@pytest.fixture
def sweep(tmp_path):
  """Two seeds of scratch, two of response at T = 1, one at T = 4."""
  for seed, (alone, taught) in enumerate([(0.80, 0.91), (0.82, 0.93)]):
    write_run(tmp_path / f's{seed}', seed=seed, accuracy=alone)
    write_run(
      tmp_path / f'r1-{seed}',
      'response',
      seed=seed,
      accuracy=taught,
      method__response__temperature=1.0,
    )
  write_run(tmp_path / 'r4', 'response', accuracy=0.96)
  diverged = [{'kind': 'train', 'step': 30, 'loss': None}]
  write_unfinished(tmp_path / 'f', 'feature', records=diverged)
  write_unfinished(tmp_path / 's2', seed=2, records=diverged)
  comparison = collect.read([tmp_path])
  return comparison, significance.rows(comparison)


def by_label(cells):
  header, *lines = cells
  return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def test_cells_show_mean_spread_and_test(sweep):
  _, rows = sweep
  cells = by_label(tables.cells(rows))
  assert list(cells) == [
    'teacher resnet50',
    'scratch',
    'feature',
    'response (temperature = 1)',
    'response (temperature = 4)',
  ]
  accuracy, gain = 'test accuracy (%)', 'gain over scratch (pp) [95 % CI]'
  # √((1² + 1²) / 1).
  assert cells['scratch'][accuracy] == '81.00 ± 1.41'
  taught = cells['response (temperature = 1)']
  assert taught[accuracy] == '92.00 ± 1.41'
  assert cells['response (temperature = 4)'][accuracy] == '96.00 (1 seed)'
  assert cells['teacher resnet50'][accuracy] == '98.00'
  # Standard error √(2 / 2 + 2 / 2); 2 degrees of freedom, for which Student's t
  # is below 4.3027 in 97.5 % of cases: 4.3027 √2 = 6.08.
  assert taught[gain] == '+11.00 [+4.92, +17.08]'
  assert cells['response (temperature = 4)'][gain] == '+15.00 (1 seed)'
  assert cells['scratch'][gain] == '-'
  assert taught['ECE (%)'] == '5.00 ± 0.00'
  assert taught['parameters'] == '11,172,810'
  assert taught['seeds'] == '2'
  assert cells['feature'][accuracy] == 'diverged at step 30'
  assert cells['feature']['NLL (nats)'] == '-'
  assert cells['feature']['seeds'] == '0'
  assert cells['scratch']['seeds'] == '2 (and 1 diverged)'


def test_p_values_are_bounded(tmp_path):
  for seed in range(3):
    write_run(tmp_path / f's{seed}', seed=seed, accuracy=0.5 + seed / 1000)
    write_run(tmp_path / f'r{seed}', 'response', seed=seed, accuracy=0.9)
  rows = significance.rows(collect.read([tmp_path]))
  assert by_label(tables.cells(rows))['response']['p'] == '< 0.001'


def test_unequal_classes_have_columns_of_their_own(tmp_path):
  write_run(tmp_path / 's', accuracy=0.9)
  assert 'balanced accuracy (%)' not in tables.terminal(
    significance.rows(collect.read([tmp_path]))
  )
  path = tmp_path / 's' / 'result.json'
  result = json.loads(path.read_text())
  result['best']['test'] |= {'balanced_accuracy': 0.6, 'macro_f1': 0.5}
  path.write_text(json.dumps(result | {'sha256': None}))
  rows = significance.rows(collect.read([tmp_path]))
  shown = by_label(tables.cells(rows))['scratch']
  assert shown['balanced accuracy (%)'] == '60.00'
  assert shown['macro F1 (%)'] == '50.00'
  assert 'balanced accuracy (%)' in tables.terminal(rows)


def test_footnotes_say_what_the_numbers_are_not(sweep):
  comparison, rows = sweep
  text = '\n'.join(tables.footnotes(comparison, rows))
  assert 'With one seed no spread is known' in text
  assert 'not comparable between methods' in text
  assert 'settings of response: gain and p-value' in text
  assert 'feature, seed 0, at step 30' in text
  assert 'scratch, seed 2, at step 30' in text
  # One test only, and every student has a gain.
  assert 'corrected' not in text
  assert 'No gain' not in text


def test_footnotes_count_comparisons_and_name_missing_baselines(tmp_path):
  for seed in (0, 1):
    for method in ('scratch', 'response', 'feature'):
      write_run(
        tmp_path / f'{method}{seed}', method, seed=seed, accuracy=0.9 + seed / 9
      )
  write_run(tmp_path / 'longer', 'feature', train__epochs=99)
  comparison = collect.read([tmp_path])
  text = '\n'.join(tables.footnotes(comparison, significance.rows(comparison)))
  assert "corrected for 2 comparisons by Holm's method." in text
  assert 'No gain is given for feature (epochs = 99): no run of scratch' in text


def test_markdown_is_one_table_and_its_notes(sweep):
  comparison, rows = sweep
  table, notes = tables.markdown(comparison, rows).split('\n\n')
  lines = table.splitlines()
  assert len({line.count('|') for line in lines}) == 1
  assert lines[1].startswith('|---|---:|')
  assert '| response (temperature = 1) | 92.00 ± 1.41 |' in table
  assert notes.count('\n- ') + 1 == len(
    list(tables.footnotes(comparison, rows))
  )


def test_csv_has_the_numbers_as_they_are(sweep):
  comparison, rows = sweep
  lines = {
    line['label']: line
    for line in csv.DictReader(
      io.StringIO(tables.comparison_csv(comparison, rows))
    )
  }
  taught = lines['response (temperature = 1)']
  assert float(taught['accuracy_mean']) == pytest.approx(0.92)
  assert float(taught['accuracy_std']) == pytest.approx(0.0002**0.5)
  assert taught['accuracy_n'] == '2'
  assert taught['temperature'] == '1.0'
  assert taught['gain_over'] == 'scratch'
  assert float(taught['gain']) == pytest.approx(0.11)
  assert float(taught['gain_ci_low']) == pytest.approx(0.0492, abs=1e-4)
  assert lines['feature']['diverged'] == '1'
  assert lines['feature']['accuracy_mean'] == ''
  assert lines['teacher resnet50']['accuracy_std'] == ''


def test_csv_of_runs_has_a_line_for_each(sweep):
  comparison, _ = sweep
  lines = list(csv.DictReader(io.StringIO(tables.runs_csv(comparison))))
  assert len(lines) == 7
  by_name = {line['path'].rpartition('/')[2]: line for line in lines}
  assert by_name['r1-1']['accuracy'] == '0.93'
  assert by_name['r1-1']['seed'] == '1'
  assert by_name['r1-1']['temperature'] == '1.0'
  assert by_name['r1-1']['diverged_at_step'] == ''
  assert by_name['s2']['diverged_at_step'] == '30'
  assert by_name['s2']['accuracy'] == ''


def test_the_terminal_has_fewer_columns(sweep):
  _, rows = sweep
  lines = tables.terminal(rows).splitlines()
  assert len(lines) == 2 + len(rows)
  assert '81.00 ± 1.41' in lines[3]
  assert 'ECE' not in lines[0]


def test_csv_of_runs_does_not_compare_the_teacher_with_itself(tmp_path):
  arrays = {
    'labels': synthetic.LABELS,
    'best': synthetic.logits(0, 1, 1, 0),
    'last': synthetic.logits(0, 1, 1, 0),
  }
  write_run(tmp_path / 'trained', predictions=arrays)
  digest = f'{tmp_path.name}/trained best'
  write_run(tmp_path / 'run', 'response', taught_by=synthetic.teacher(digest))
  text = tables.runs_csv(collect.read([tmp_path]))
  first, _ = csv.DictReader(io.StringIO(text))
  assert (first['label'], first['agreement']) == ('teacher', '')
