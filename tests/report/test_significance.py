"""The numbers of a comparison, worked out by hand."""

import math

import numpy as np
import pytest
import synthetic
from synthetic import write_run, write_unfinished

from kdjax.report import collect, significance


def rows_of(*paths):
  return {
    row.label: row for row in significance.rows(collect.read(list(paths)))
  }


# Means and spreads


def test_the_spread_is_the_sample_standard_deviation():
  # Deviations -2, 0, 2: 8 / (3 - 1) = 4.
  assert significance.summarize([3.0, 5.0, 7.0]) == (5.0, 2.0, 3)
  assert significance.summarize([3.0]) == (3.0, None, 1)
  # Floating-point sums make a spread of this; there is none.
  assert significance.summarize([0.98, 0.98, 0.98]) == (0.98, 0.0, 3)


def test_training_time_is_without_compilation(tmp_path):
  times = {'wall_time_s': 57.0, 'compile_time_s': 50.0}
  student = {'model': 'resnet18', 'parameters': 1, **times}
  write_run(tmp_path / 'a', result={'student': student})
  student = student | {'wall_time_s': 9.0, 'compile_time_s': 0.0}
  write_run(tmp_path / 'b', seed=1, result={'student': student})
  numbers = rows_of(tmp_path)['scratch'].numbers
  assert numbers['training_time_s'] == (8.0, 2**0.5, 2)
  assert numbers['wall_time_s'].mean == 33.0
  # One of an earlier version does not say.
  write_run(tmp_path / 'c', seed=2)
  numbers = rows_of(tmp_path)['scratch'].numbers
  assert numbers['training_time_s'] is None


# Welch's test


def test_gain_is_tested_as_by_hand():
  # Variances of the means: 0.00015 / 3 = 0.00005 and 0.0002 / 2 = 0.0001, so
  # the standard error is √0.00015 and the degrees of freedom are
  # 0.00015² / (0.00005² / 2 + 0.0001² / 1) = 2. Then P(|t| > x) is
  # 1 - x / √(2 + x²), which is 0.05 at x = √(1.805 / 0.0975).
  spread = math.sqrt(0.00015)
  values = [0.96 - spread, 0.96, 0.96 + spread]
  gain = significance.gain(values, [0.89, 0.91])
  t = 0.06 / spread
  assert gain.difference == pytest.approx(0.06)
  assert gain.p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-6)
  half = math.sqrt(1.805 / 0.0975) * spread
  assert gain.low == pytest.approx(0.06 - half, rel=1e-6)
  assert gain.high == pytest.approx(0.06 + half, rel=1e-6)
  assert gain.untested == ''


def test_one_seed_gives_no_test():
  for values, baseline in (([0.9], [0.8, 0.7]), ([0.9, 0.8], [0.7])):
    gain = significance.gain(values, baseline)
    assert gain.difference > 0
    assert gain[1:] == (None, None, None, None, '1 seed')


def test_no_spread_in_either_gives_no_test():
  gain = significance.gain([0.98] * 3, [0.97] * 3)
  assert gain.difference == pytest.approx(0.01)
  assert gain[1:] == (None, None, None, None, 'no spread in either')


def test_no_spread_in_one_is_no_obstacle():
  # 0.98 three times is not exactly constant to NumPy's variance. The other's
  # mean has variance 0.0002 / 2; 1 degree of freedom: p = 1 - 2 / π · atan(t).
  gain = significance.gain([0.98] * 3, [0.91, 0.93])
  assert gain.p == pytest.approx(1 - 2 / math.pi * math.atan(0.06 / 0.01))


# Holm's method


def test_p_values_are_corrected_for_their_number():
  """The smallest of n times n, the next times n - 1, none below one before."""

  def corrected(*values):
    gains = [None if p is None else significance.Gain(0.1, p=p) for p in values]
    rows = [significance.Row('', None, {}, None, gain) for gain in gains]
    return [row.gain and row.gain.p_holm for row in significance.correct(rows)]

  assert corrected(0.03, None, 0.01, 0.02) == [0.04, None, 0.03, 0.04]
  assert corrected(0.02, 0.011) == [0.022, 0.022]
  assert corrected(0.6, 0.7) == [1.0, 1.0]
  assert corrected(0.6) == [0.6]
  assert corrected(None) == [None]


# Rows


def test_a_group_is_summarized_over_its_seeds(tmp_path):
  for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
    write_run(
      tmp_path / f'{seed}', seed=seed, accuracy=accuracy, last=accuracy - 0.1
    )
  row = rows_of(tmp_path)['scratch']
  numbers = row.numbers
  assert numbers['accuracy'] == pytest.approx((0.92, 0.02, 3))
  assert numbers['last_accuracy'] == pytest.approx((0.82, 0.02, 3))
  # The last logged loss, and the median of 100, 900 and 200.
  assert numbers['train_loss'] == (0.5, 0.0, 3)
  assert numbers['images_per_second'] == (200.0, 0.0, 3)
  assert numbers['loss'] == (0.3, 0.0, 3)
  assert numbers['agreement'] is None
  assert (row.baseline, row.gain) == (None, None)


def test_what_one_run_lacks_has_no_mean(tmp_path):
  write_run(tmp_path / 'a')
  write_run(tmp_path / 'b', seed=1, test={'calibration_error': None})
  assert rows_of(tmp_path)['scratch'].numbers['calibration_error'] is None


def test_diverged_runs_are_in_no_mean(tmp_path):
  write_run(tmp_path / 'a', accuracy=0.9)
  write_run(tmp_path / 'b', seed=1, accuracy=0.1, test={'loss': None})
  assert rows_of(tmp_path)['scratch'].numbers['accuracy'] == (0.9, None, 1)


def test_gain_is_over_scratch_with_the_same_recipe(tmp_path):
  for seed in (0, 1):
    write_run(tmp_path / f's20-{seed}', seed=seed, accuracy=0.90)
    write_run(tmp_path / f'r20-{seed}', 'response', seed=seed, accuracy=0.93)
    write_run(
      tmp_path / f's40-{seed}', seed=seed, accuracy=0.95, train__epochs=40
    )
    write_run(tmp_path / f'r60-{seed}', 'response', seed=seed, train__epochs=60)
  rows = rows_of(tmp_path)
  assert rows['response (epochs = 20)'].baseline == 'scratch (epochs = 20)'
  assert rows['response (epochs = 20)'].gain.difference == pytest.approx(0.03)
  assert rows['response (epochs = 60)'].gain is None
  assert rows['scratch (epochs = 40)'].gain is None


def test_the_teacher_has_a_row_of_the_network_that_taught(tmp_path):
  digest = f'{tmp_path.name}/trained last'
  write_run(tmp_path / 'trained', accuracy=0.5, student__name='resnet50')
  write_run(tmp_path / 'run', 'response', taught_by=synthetic.teacher(digest))
  numbers = rows_of(tmp_path)['teacher resnet50'].numbers
  assert numbers['accuracy'] == (0.98, None, 1)
  assert numbers['loss'] == (0.16, None, 1)
  assert numbers['parameters'] == (23_519_690, None, 1)
  assert numbers['images_per_second'] == (200.0, None, 1)
  alone = rows_of(tmp_path / 'run')['teacher resnet50'].numbers
  assert alone['accuracy'] == (0.98, None, 1)
  assert alone['images_per_second'] is None


# Predictions


def test_agreement_of_a_student_that_was_not_taught(tmp_path):
  teacher = synthetic.logits(0, 1, 0, 0)
  write_run(
    tmp_path / 'scratch',
    predictions={
      'labels': synthetic.LABELS,
      'best': synthetic.logits(0, 1, 1, 0),
      'last': synthetic.logits(0, 0, 0, 0),
    },
  )
  write_run(
    tmp_path / 'taught',
    'response',
    predictions={
      'labels': synthetic.LABELS,
      'best': teacher,
      'last': teacher,
      'teacher': teacher,
    },
  )
  numbers = rows_of(tmp_path)['scratch'].numbers
  assert numbers['agreement'] == (0.75, None, 1)
  # Where they disagree the logits (4, 0) stand against (0, 4): the divergence
  # is 4 · (p - q) with p = 1 / (1 + e⁻⁴) and q = 1 - p. Else it is 0.
  p = 1 / (1 + math.exp(-4))
  assert numbers['kl_to_teacher'].mean == pytest.approx(4 * (2 * p - 1) / 4)
  # What was measured by the run itself stays.
  assert rows_of(tmp_path)['response'].numbers['agreement'].mean == 0.95


@pytest.mark.parametrize('which', ['best', 'last'])
def test_the_teachers_logits_may_come_from_its_own_run(tmp_path, which):
  arrays = {
    'labels': synthetic.LABELS,
    'best': synthetic.logits(0, 1, 1, 0),
    'last': synthetic.logits(0, 0, 0, 0),
  }
  write_run(tmp_path / 'trained', predictions=arrays)
  digest = f'{tmp_path.name}/trained {which}'
  write_run(tmp_path / 'run', 'response', taught_by=synthetic.teacher(digest))
  logits = significance.teacher_logits(collect.read([tmp_path]))
  np.testing.assert_array_equal(logits, arrays[which])
  assert significance.teacher_logits(collect.read([tmp_path / 'run'])) is None


def test_confusion_has_true_classes_in_rows():
  # Three of class 0, one of them taken for 2; one of class 1, taken for 0; two
  # of class 2, right.
  labels = np.array([0, 0, 0, 1, 2, 2])
  predictions = synthetic.logits(0, 2, 0, 0, 2, 2, classes=3)
  np.testing.assert_allclose(
    significance.confusion(labels, predictions),
    [[2 / 3, 0, 1 / 3], [1, 0, 0], [0, 0, 1]],
  )


# The best setting


def test_the_best_setting_is_chosen_on_validation(tmp_path):
  for temperature, validation, accuracy in (
    (1.0, 0.8, 0.99),
    (2.0, 0.9, 0.70),
    (4.0, 0.9, 0.80),
  ):
    write_run(
      tmp_path / f'{temperature}',
      'response',
      validation=validation,
      accuracy=accuracy,
      method__response__temperature=temperature,
    )
  groups = collect.read([tmp_path]).groups
  assert significance.best_settings(groups)['response'].label == (
    'response (temperature = 2)'
  )


def test_without_validation_only_a_single_setting_is_chosen(tmp_path):
  write_run(tmp_path / 'a', validation=None)
  for epochs in (5, 6):
    write_run(
      tmp_path / f'{epochs}', 'response', validation=None, train__epochs=epochs
    )
  groups = collect.read([tmp_path]).groups
  assert list(significance.best_settings(groups)) == ['scratch']


def test_settings_are_compared_on_the_seeds_that_all_have(tmp_path):
  # With seed 0, which both have, 4 is better; seed 1 is lucky.
  for temperature, seed, validation in (
    (2.0, 0, 0.90),
    (2.0, 1, 0.99),
    (4.0, 0, 0.91),
  ):
    write_run(
      tmp_path / f'{temperature}-{seed}',
      'response',
      seed=seed,
      validation=validation,
      method__response__temperature=temperature,
    )
  groups = collect.read([tmp_path]).groups
  best = significance.best_settings(groups)['response']
  assert best.settings['method.response.temperature'] == 4.0
  common = significance.with_common_seeds(groups)
  assert [len(group.runs) for group in common] == [1, 1]
  # Where there is no such seed, nothing can be left.
  apart = [groups[0]._replace(runs=groups[0].runs[1:]), groups[1]]
  assert significance.with_common_seeds(apart) == apart
  assert significance.with_common_seeds([]) == []


def test_what_diverges_is_not_chosen_where_something_else_does_not(tmp_path):
  for alpha, seed, validation in ((0.1, 0, 0.99), (0.5, 0, 0.8), (0.5, 1, 0.8)):
    write_run(
      tmp_path / f'{alpha}-{seed}',
      'response',
      seed=seed,
      validation=validation,
      method__response__alpha=alpha,
    )
  diverged = {'kind': 'train', 'step': 4, 'loss': None, 'gradient_norm': None}
  write_unfinished(
    tmp_path / 'diverged',
    'response',
    seed=1,
    records=[diverged],
    method__response__alpha=0.1,
  )
  groups = collect.read([tmp_path]).groups
  assert [len(group.diverged) for group in groups] == [1, 0]
  best = significance.best_settings(groups)['response']
  assert best.settings['method.response.alpha'] == 0.5
  # Unless there is nothing else.
  only = significance.best_settings(groups[:1])['response']
  assert only.settings['method.response.alpha'] == 0.1
