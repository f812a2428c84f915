"""The numbers of a comparison: each run's, each group's, and their tests."""

import math
import statistics
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from sklearn.metrics import confusion_matrix

from kdjax.evaluation import metrics, tables
from kdjax.report import collect

# One of each run. Accuracies, calibration errors and agreements are shares.
NUMBERS = (
  'accuracy',
  'last_accuracy',
  'train_loss',
  *tables.BY_CLASS,
  'loss',
  'calibration_error',
  'agreement',
  'kl_to_teacher',
  'validation_accuracy',
  'parameters',
  'images_per_second',
  'wall_time_s',
  'training_time_s',
)


class Summary(NamedTuple):
  """A number over seeds; the standard deviation is that of a sample."""

  mean: float
  std: float | None  # None with one seed.
  seeds: int


class Gain(NamedTuple):
  """How far the mean of one group lies above that of another."""

  difference: float
  # The 95 % confidence interval, and the two-sided p-value.
  low: float | None = None
  high: float | None = None
  p: float | None = None
  p_holm: float | None = None  # Corrected for the number of comparisons.
  untested: str = ''  # Why there is neither.


class Row(NamedTuple):
  """The numbers of one network that a comparison has.

  Attributes:
    label: what the reader knows it by.
    group: the group that it summarizes; None for the teacher.
    numbers: each of `NUMBERS` over its seeds; None where a run lacks it.
    baseline: label of the group that `gain` is over; None if there is none.
    gain: in test accuracy, a share; None if there is none.
  """

  label: str
  group: collect.Group | None
  numbers: dict[str, Summary | None]
  baseline: str | None
  gain: Gain | None


def summarize(values: Sequence[float]) -> Summary:
  """Returns mean and sample standard deviation of one or more values."""
  return Summary(
    statistics.fmean(values),
    statistics.stdev(values) if len(values) > 1 else None,
    len(values),
  )


def gain(values: Sequence[float], baseline: Sequence[float]) -> Gain:
  """Compares two means by Welch's t-test, which lets variances differ.

  Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28.

  Args:
    values: of each seed, one or more.
    baseline: of each seed of the group to compare with, one or more.

  Returns:
    The difference. It is not tested where a group has one seed, or neither of
    the two has a spread.
  """
  difference = statistics.fmean(values) - statistics.fmean(baseline)
  if min(len(values), len(baseline)) < 2:
    return Gain(difference, untested='1 seed')
  if len({*values}) == len({*baseline}) == 1:
    return Gain(difference, untested='no spread in either')
  with warnings.catch_warnings():
    # That one of the two groups has no spread is no reason to doubt the test.
    warnings.filterwarnings('ignore', 'Precision loss', RuntimeWarning)
    test = scipy.stats.ttest_ind(values, baseline, equal_var=False)
  interval = test.confidence_interval(0.95)
  return Gain(
    difference, float(interval.low), float(interval.high), float(test.pvalue)
  )


def measure_run(
  run: collect.Run, teacher_logits: np.ndarray | None
) -> dict[str, float | None]:
  """Returns each of `NUMBERS` of one run; None where the run lacks it.

  Args:
    run: the run; it is measured on the test split at the best epoch.
    teacher_logits: of the comparison's teacher on the test split, `[N, C]`, to
      compare a run with that was not taught; None if they are unknown.
  """
  best, student = run.result['best'], run.result['student']
  test = best['test']
  if 'agreement' not in test and run.predictions and teacher_logits is not None:
    test = test | metrics.classification(
      run.predictions['best'], run.predictions['labels'], teacher_logits
    )
  train = [record for record in run.records if record['kind'] == 'train']
  speeds = [
    record['images_per_second']
    for record in train
    if record.get('images_per_second') is not None
  ]
  compiling = student.get('compile_time_s')
  return {
    'accuracy': test['accuracy'],
    'last_accuracy': run.result['last']['test']['accuracy'],
    'train_loss': train[-1]['loss'] if train else None,
    **{name: test.get(name) for name in tables.BY_CLASS},
    'loss': test['loss'],
    'calibration_error': test.get('calibration_error'),
    'agreement': test.get('agreement'),
    'kl_to_teacher': test.get('kl_to_teacher'),
    'validation_accuracy': best['validation_accuracy'],
    'parameters': student['parameters'],
    'images_per_second': statistics.median(speeds) if speeds else None,
    'wall_time_s': student['wall_time_s'],
    # Of runs that share what is compiled, the first one compiles it.
    'training_time_s': None
    if compiling is None
    else student['wall_time_s'] - compiling,
  }


def teacher_logits(comparison: collect.Comparison) -> np.ndarray | None:
  """Returns the teacher's logits on the test split, `[N, C]`.

  As a run that it taught has them, or else the run that trained it; None if no
  run has.
  """
  if not comparison.teacher:
    return None
  for group in comparison.groups:
    for run in group.runs:
      if run.predictions and 'teacher' in run.predictions:
        return run.predictions['teacher']
  trained = comparison.teacher_run
  if trained and trained.predictions:
    for which in ('best', 'last'):
      if trained.result[which]['digest'] == comparison.teacher['digest']:
        return trained.predictions[which]
  return None


def rows(comparison: collect.Comparison) -> list[Row]:
  """Returns a row for the teacher, if there is one, and one for each group."""
  logits = teacher_logits(comparison)
  found = []
  if comparison.teacher:
    numbers = _measure_teacher(comparison)
    found.append(
      Row(f'teacher {comparison.teacher["model"]}', None, numbers, None, None)
    )
  for group in comparison.groups:
    measured = [measure_run(run, logits) for run in group.runs]
    baseline = _baseline(group, comparison.groups)
    found.append(
      Row(
        group.label,
        group,
        {
          name: _summarize_all([values[name] for values in measured])
          for name in NUMBERS
        },
        baseline and baseline.label,
        gain(_accuracies(group), _accuracies(baseline)) if baseline else None,
      )
    )
  return correct(found)


def correct(rows: Sequence[Row]) -> list[Row]:
  """Corrects the p-values of a table for their number, by Holm's method.

  Of n p-values in ascending order the i-th, from 0, is multiplied by n - i, and
  is at least as large as those before it and at most 1. Holm, 1979,
  https://www.jstor.org/stable/4615733.

  Args:
    rows: the rows, with gains that are not corrected.

  Returns:
    The same rows, with `Gain.p_holm` where there is a p-value.
  """
  tested = sorted(
    (row.gain.p, index, row.gain)
    for index, row in enumerate(rows)
    if row.gain and row.gain.p is not None
  )
  corrected, least = list(rows), 0.0
  for rank, (p, index, found) in enumerate(tested):
    least = min(1.0, max(least, (len(tested) - rank) * p))
    corrected[index] = rows[index]._replace(gain=found._replace(p_holm=least))
  return corrected


def best_settings(
  groups: Sequence[collect.Group],
) -> dict[str, collect.Group]:
  """Chooses the settings of each method that do best on validation.

  Of equals the first; none of a method with several settings where not all have
  a validation accuracy.
  """
  chosen = {}
  for method, members in collect.by_method(groups).items():
    finished = [group for group in members if group.runs]
    # What diverges with some seed is no choice where something else does not.
    finished = [group for group in finished if not group.diverged] or finished
    scores = [
      score
      for group in with_common_seeds(finished)
      if (
        score := metrics.validation_score(
          [run.result['best'] for run in group.runs]
        )
      )
    ]
    if len(finished) == 1:
      chosen[method] = finished[0]
    elif finished and len(scores) == len(finished):
      chosen[method] = finished[scores.index(max(scores))]
  return chosen


def with_common_seeds(
  groups: Sequence[collect.Group],
) -> list[collect.Group]:
  """Keeps the runs whose seeds all groups have; all if none is common."""
  seeds = [{run.result['seed'] for run in group.runs} for group in groups]
  common = set.intersection(*seeds) if seeds else set()
  if not common:
    return list(groups)
  return [
    group._replace(
      runs=tuple(run for run in group.runs if run.result['seed'] in common)
    )
    for group in groups
  ]


def validation_accuracies(group: collect.Group) -> list[float | None]:
  """Lists the validation accuracy at the best epoch of each run of a group."""
  return [run.result['best']['validation_accuracy'] for run in group.runs]


def validation_accuracy(group: collect.Group) -> float | None:
  """Averages a group's validation accuracy at the best epochs, if known."""
  summary = _summarize_all(validation_accuracies(group))
  return summary and summary.mean


def confusion(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
  """Returns the share of each true class (rows) that is taken for each class.

  Args:
    labels: class indices, integer `[N]`.
    logits: `[N, C]`.

  Returns:
    `[C, C]`; the diagonal is each class's accuracy.
  """
  return confusion_matrix(
    labels,
    logits.argmax(-1),
    labels=np.arange(logits.shape[-1]),
    normalize='true',
  )


def _measure_teacher(
  comparison: collect.Comparison,
) -> dict[str, Summary | None]:
  """The numbers of the teacher; of its training if that run is there."""
  teacher, run = comparison.teacher, comparison.teacher_run
  assert teacher is not None
  values: dict[str, float | None] = dict.fromkeys(NUMBERS)
  if run:
    values |= measure_run(run, None)
  # As it taught: perhaps its last checkpoint, not its best.
  values |= {
    **{
      name: teacher['test'].get(name)
      for name in ('accuracy', *tables.BY_CLASS, 'loss', 'calibration_error')
    },
    'agreement': None,
    'kl_to_teacher': None,
    'validation_accuracy': teacher['validation_accuracy'],
    'parameters': teacher['parameters'],
    'wall_time_s': teacher['wall_time_s'],
  }
  return {name: _summarize_all([value]) for name, value in values.items()}


def _summarize_all(values: Sequence[float | None]) -> Summary | None:
  """Summarizes values, unless one is missing: a mean of some would mislead."""
  known = [
    value for value in values if value is not None and math.isfinite(value)
  ]
  return summarize(known) if known and len(known) == len(values) else None


def _accuracies(group: collect.Group) -> list[float]:
  return [run.result['best']['test']['accuracy'] for run in group.runs]


def _baseline(
  group: collect.Group, groups: Sequence[collect.Group]
) -> collect.Group | None:
  """Returns the runs without distillation that have the same recipe."""

  def recipe(group: collect.Group) -> dict[str, object]:
    return {
      field: value
      for field, value in group.settings.items()
      if collect.is_recipe(field)
    }

  if group.method == collect.SCRATCH or not group.runs:
    return None
  for other in groups:
    if (
      other.method == collect.SCRATCH
      and other.runs
      and recipe(other) == recipe(group)
    ):
      return other
  return None
