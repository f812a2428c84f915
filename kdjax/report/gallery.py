"""Chooses the figures that a comparison has, and gives them their arrays."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kdjax import config as config_lib
from kdjax.report import collect, feature_maps, figures, significance
from kdjax.report.collect import Comparison, Group

_MOST_CURVES = 12
_MOST_IMAGES = 8


class Exhibit(NamedTuple):
  """A figure with its words.

  Attributes:
    name: of its file, without a suffix.
    title: what it is, for its alternative text too.
    caption: how to read it.
    figure: the figure.
    is_photo: whether it shows images, which a dark page must not invert.
  """

  name: str
  title: str
  caption: str
  figure: Figure
  is_photo: bool = False


def exhibits(
  comparison: Comparison, data_dir: str | None = None
) -> tuple[list[Exhibit], list[str]]:
  """Makes the figures of a comparison.

  Args:
    comparison: the runs.
    data_dir: where the data are, if they have been moved.

  Returns:
    The figures, and a note for each that could not be made.
  """
  found = list(_all(comparison, data_dir))
  return (
    [item for item in found if isinstance(item, Exhibit)],
    [f'no figure of {item}' for item in found if isinstance(item, str)],
  )


def draw(figure: Figure, suffix: str = 'png') -> bytes:
  """Draws a figure as a file for print: 'png', 'pdf' or 'svg'."""
  file = io.BytesIO()
  # The same figure is the same file.
  undated = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}.get(suffix)
  # Publishers refuse fonts of Type 3.
  with matplotlib.rc_context({'pdf.fonttype': 42, 'svg.hashsalt': 'kdjax'}):
    figure.savefig(
      file, format=suffix, dpi=200, bbox_inches='tight', metadata=undated
    )
  return file.getvalue()


class _Images(NamedTuple):
  """Test images and the names of their classes, or why they are not known."""

  pixels: np.ndarray | None
  class_names: Sequence[str] | None
  reason: str = ''


def _all(
  comparison: Comparison, data_dir: str | None
) -> Iterator[Exhibit | str]:
  """Yields figures, and of each that cannot be made what it lacks."""
  finished = [group for group in comparison.groups if group.runs]
  best = significance.best_settings(finished)
  for method in collect.by_method(finished):
    if method not in best:
      yield (
        f'the best setting of {method}: not all of its settings have a '
        'validation accuracy to choose by'
      )
  yield from _learning_curves(comparison, finished, best)
  yield from _tuning(comparison)
  images = _test_images(comparison, data_dir)
  yield from _classes(comparison, best, images.class_names)
  distilled = _best_distilled(best)
  if distilled is None:
    return
  yield _single_images('disagreements', _disagreements, distilled, images)
  if 'feature' in best:
    yield _single_images('feature_maps', _feature_maps, best['feature'], images)


# Learning curves


def _learning_curves(
  comparison: Comparison, groups: Sequence[Group], best: dict[str, Group]
) -> Iterator[Exhibit | str]:
  few = len(groups) <= _MOST_CURVES
  shown = list(groups if few else best.values())
  which = '' if few else ' Of each method the setting that validates best.'
  reached = _teacher_validation(comparison)
  for kind, key, what, scale, unit in (
    ('validation', 'accuracy', 'validation accuracy', 100, '%'),
    ('validation', 'loss', 'validation NLL', 1, 'nats'),
    ('train', 'nll', 'training NLL', 1, 'nats'),
  ):
    title = f'{what} over training'
    curves = {
      group.label: curve
      for group in shown
      if (curve := _curve(group, kind, key, scale)) is not None
    }
    if not curves:
      yield f'{title}: no run has logged it'
      continue
    value = reached.get(key) if kind == 'validation' else None
    yield Exhibit(
      title.replace(' ', '_').lower(),
      title,
      'Mean over seeds; bands, if any, are ± 1 sample standard deviation. The '
      f'axis has the range of the second half.{which}',
      figures.learning_curves(
        curves,
        ylabel=f'{what} ({unit})',
        teacher=None if value is None else scale * value,
      ),
    )


def _teacher_validation(comparison: Comparison) -> dict[str, float | None]:
  """The teacher's accuracy and NLL on the validation split, if known."""
  teacher, run = comparison.teacher, comparison.teacher_run
  if not teacher:
    return {}
  # A result has the accuracy alone.
  losses = [
    record['loss']
    for record in (run.records if run else ())
    if record['kind'] == 'validation' and record['step'] == teacher['step']
  ]
  return {
    'accuracy': teacher['validation_accuracy'],
    'loss': losses[-1] if losses else None,
  }


def _curve(
  group: Group, kind: str, key: str, scale: float
) -> tuple[np.ndarray, np.ndarray] | None:
  """Epochs `[E]` and values `[runs, E]`, NaN where a run has none."""
  runs = [
    {
      record['epoch']: record[key]
      for record in run.records
      if record['kind'] == kind and record.get(key) is not None
    }
    for run in group.runs
  ]
  epochs = sorted({epoch for values in runs for epoch in values})
  if not epochs:
    return None
  return np.array(epochs), scale * np.array(
    [[values.get(epoch, np.nan) for epoch in epochs] for values in runs]
  )


# Tuning


def _tuning(comparison: Comparison) -> Iterator[Exhibit | str]:
  for method, groups in collect.by_method(comparison.groups).items():
    fields = collect.varying(groups)
    numeric = [
      field
      for field in fields
      if all(_is_number(group.settings.get(field)) for group in groups)
    ]
    if not numeric:
      continue
    if not comparison.data['validation']:
      yield (
        f'the tuning of {method}: there are no validation images, and the test '
        'split chooses nothing'
      )
    elif not any(map(significance.validation_accuracy, groups)):
      yield f'the tuning of {method}: no run has a validation accuracy'
    elif fields == numeric and len(fields) == 2 and _is_grid(groups, fields):
      yield _heat_map(method, groups, fields)
    else:
      for field in numeric:
        yield from _tuning_curves(method, groups, fields, field)


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _values(groups: Sequence[Group], field: str) -> list[float]:
  return sorted({group.settings[field] for group in groups})


def _is_grid(groups: Sequence[Group], fields: Sequence[str]) -> bool:
  rows, columns = (len(_values(groups, field)) for field in fields)
  return min(rows, columns) > 1 and len(groups) == rows * columns


def _heat_map(
  method: str, groups: Sequence[Group], fields: Sequence[str]
) -> Exhibit:
  row, column = fields
  rows, columns = _values(groups, row), _values(groups, column)
  accuracies = np.full((len(rows), len(columns)), np.nan)
  finished = [group for group in groups if group.runs]
  for group in significance.with_common_seeds(finished):
    settings = group.settings
    place = rows.index(settings[row]), columns.index(settings[column])
    # None becomes NaN.
    accuracies[place] = significance.validation_accuracy(group)
  names = config_lib.short_names(fields)
  return Exhibit(
    f'tuning_{method}',
    f'validation accuracy of {method} by {names[row]} and {names[column]}',
    'Validation accuracy at the best epoch (%), mean over common seeds.'
    + _without_diverged(groups),
    figures.heat_map(
      accuracies, rows, columns, ylabel=names[row], xlabel=names[column]
    ),
  )


def _tuning_curves(
  method: str, groups: Sequence[Group], fields: Sequence[str], field: str
) -> Iterator[Exhibit]:
  """A curve for each choice of the other fields that three values share."""
  names = config_lib.short_names(fields)
  slices: dict[str, list[Group]] = {}
  for group in sorted(groups, key=lambda group: group.settings[field]):
    if significance.validation_accuracy(group) is not None:
      where = ', '.join(
        f'{names[other]} = {collect.show(group.settings[other])}'
        for other in fields
        if other != field
      )
      slices.setdefault(where, []).append(group)
  curves = {
    where: significance.with_common_seeds(members)
    for where, members in sorted(slices.items())
    if len(members) >= 3
  }
  for number, (where, members) in enumerate(curves.items(), 1):
    chosen = significance.best_settings(members)[method]
    title = f'validation accuracy of {method} by {names[field]}'
    yield Exhibit(
      f'tuning_{method}_{names[field]}'
      + (f'_{number}' if len(curves) > 1 else ''),
      f'{title} ({where})' if where else title,
      'Validation accuracy at the best epoch, of the seeds that all values '
      'have; chosen is the value with the best mean.'
      + _without_diverged(groups),
      figures.tuning_curve(
        [group.settings[field] for group in members],
        [
          np.array(significance.validation_accuracies(group), float)
          for group in members
        ],
        xlabel=names[field],
        chosen=chosen.settings[field],
      ),
    )


def _without_diverged(groups: Sequence[Group]) -> str:
  """What a caption must say where runs of some settings diverged."""
  runs = '; '.join(name for name, _ in collect.list_diverged(groups))
  return f' Not in it, as they diverged: {runs}.' if runs else ''


# Classes


def _classes(
  comparison: Comparison,
  best: dict[str, Group],
  class_names: Sequence[str] | None,
) -> Iterator[Exhibit | str]:
  """What is right and what is confused, class by class."""
  title = 'accuracy of each class'
  # Of each run of a label, [runs, classes, classes].
  matrices: dict[str, np.ndarray] = {}
  teacher = significance.teacher_logits(comparison)
  for group in best.values():
    predictions = [run.predictions for run in group.runs if run.predictions]
    if len(predictions) < len(group.runs):
      yield f'{title} of {group.label}: a run of it has left no predictions'
      continue
    if teacher is not None and not matrices:
      labels = predictions[0]['labels']
      matrices['teacher'] = significance.confusion(labels, teacher)[None]
    matrices[group.label] = np.array(
      [
        significance.confusion(arrays['labels'], arrays['best'])
        for arrays in predictions
      ]
    )
  if not matrices:
    return
  classes = next(iter(matrices.values())).shape[-1]
  names = class_names or list(map(str, range(classes)))
  of_each = 'Of each method the setting that validates best; test images.'
  yield Exhibit(
    'accuracy_of_each_class',
    title,
    f'{of_each} Mean over seeds; whiskers are ± 1 sample standard deviation.',
    figures.per_class_accuracy(
      names,
      {
        label: np.diagonal(values, axis1=1, axis2=2)
        for label, values in matrices.items()
      },
    ),
  )
  yield Exhibit(
    'confusion',
    'which classes are taken for which',
    f'{of_each} Rows are true classes, columns predicted ones; per cent of the '
    'true class, mean over seeds.',
    figures.confusion_matrices(
      names, {label: values.mean(0) for label, values in matrices.items()}
    ),
  )


# Single images


def _test_images(comparison: Comparison, data_dir: str | None) -> _Images:
  run = next(run for group in comparison.groups for run in group.runs)
  try:
    return _Images(*feature_maps.test_images(run, data_dir=data_dir))
  except (OSError, ValueError) as error:
    # The teacher's class names do without the images.
    names = (comparison.teacher or {}).get('class_names')
    return _Images(None, names, str(error))


def _best_distilled(best: dict[str, Group]) -> Group | None:
  distilled = [
    group for group in best.values() if group.runs[0].result['teacher']
  ]
  return max(
    distilled,
    key=lambda group: significance.validation_accuracy(group) or 0.0,
    default=None,
  )


_Drawn = tuple[str, Figure]  # With its caption.


def _single_images(
  name: str,
  draw: Callable[[collect.Run, _Images], _Drawn],
  group: Group,
  images: _Images,
) -> Exhibit | str:
  """Draws single images of a group's first run, or says what that lacks."""
  run = group.runs[0]
  who = f'{group.label}, seed {run.result["seed"]}, and its teacher'
  title = {
    'disagreements': f'test images on which {who} disagree',
    'feature_maps': f'stages of {who}',
  }[name]
  try:
    caption, figure = draw(run, images)
  except (OSError, ValueError) as error:
    return f'{title}: {error}'
  return Exhibit(name, title, caption, figure, is_photo=True)


def _classified(
  run: collect.Run, images: _Images
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Pixels, true classes, and those that student and teacher predict."""
  if images.pixels is None:
    raise ValueError(images.reason)
  if not run.predictions:
    raise ValueError('the run has left no predictions')
  if 'teacher' not in run.predictions:
    raise ValueError("the teacher's logits of them are not known")
  student, teacher = (
    run.predictions[which].argmax(-1) for which in ('best', 'teacher')
  )
  return images.pixels, run.predictions['labels'], student, teacher


def _disagreements(run: collect.Run, images: _Images) -> _Drawn:
  pixels, labels, student, teacher = _classified(run, images)
  chosen = choose_disagreements(labels, student, teacher)
  if not len(chosen):
    raise ValueError('they agree on all')
  names = np.array(images.class_names)
  return (
    f'{len(chosen)} of {(student != teacher).sum()} test images; first those '
    'that the teacher has right, of as many classes as possible.',
    figures.disagreements(
      pixels[chosen],
      *(names[each[chosen]].tolist() for each in (labels, student, teacher)),
    ),
  )


def choose_disagreements(
  labels: np.ndarray,
  student: np.ndarray,
  teacher: np.ndarray,
  most: int = _MOST_IMAGES,
) -> np.ndarray:
  """Chooses examples on which student and teacher disagree.

  Args:
    labels: true classes, integer `[N]`.
    student: predicted classes, integer `[N]`.
    teacher: predicted classes, integer `[N]`.
    most: how many at most.

  Returns:
    Indices: first of examples that the teacher has right, and among these one
    of each class before a second of any.
  """
  seen: dict[tuple[bool, int], int] = {}
  ranked = []
  for index in np.flatnonzero(student != teacher):
    wrong, label = bool(teacher[index] != labels[index]), int(labels[index])
    turn = seen[wrong, label] = seen.get((wrong, label), 0) + 1
    ranked.append((wrong, turn, label, int(index)))
  return np.array([index for *_, index in sorted(ranked)[:most]], int)


def _feature_maps(run: collect.Run, images: _Images) -> _Drawn:
  pixels, labels, student, teacher = _classified(run, images)
  right = (student == labels) & (teacher == labels)
  if not right.any():
    raise ValueError('they classify no test image right together')
  first = int(right.argmax())
  image = pixels[first]
  return (
    f'Test image {first}, the first that both classify right. Mean over '
    'channels; the student after its connectors.',
    figures.feature_maps(image, feature_maps.stage_maps(run, image)),
  )
