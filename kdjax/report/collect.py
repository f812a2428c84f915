"""Reads runs, checks that they can be compared, and groups them."""

import collections
import math
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax import config as config_lib
from kdjax.storage import metrics_log, run_directory

# The method whose runs the others are compared with.
SCRATCH = 'scratch'


class Run(NamedTuple):
  """A finished run."""

  path: pathlib.Path
  result: dict[str, Any]  # `result.json`
  records: list[dict[str, Any]]  # The lines of `metrics.jsonl`.
  predictions: dict[str, np.ndarray] | None  # `predictions.npz`, if it has one.


class Diverged(NamedTuple):
  """A run whose loss is no longer finite."""

  path: pathlib.Path
  config: dict[str, Any]  # `config.json`
  step: int  # The last one that it logged.


class Group(NamedTuple):
  """Runs that differ by their seed only.

  Attributes:
    label: its method, and the settings that set it apart from other groups of
      that method.
    method: its method.
    settings: each field that changes what its runs compute, but the seed.
    runs: those that finished, by seed.
    diverged: those that diverged, by seed.
  """

  label: str
  method: str
  settings: dict[str, Any]
  runs: tuple[Run, ...]
  diverged: tuple[Diverged, ...]


class Comparison(NamedTuple):
  """Runs on the same data and, where they have one, with the same teacher.

  Attributes:
    groups: scratch first, then by method and settings.
    data: what every result says of the data: name, digest and split sizes.
    teacher: what the results say of the teacher; None if no run has one.
    teacher_run: the run that trained it, if it is among those read.
    left_out: directories that are not compared, and why.
    notes: what a reader of the comparison must know.
  """

  groups: tuple[Group, ...]
  data: dict[str, Any]
  teacher: dict[str, Any] | None
  teacher_run: Run | None
  left_out: tuple[tuple[pathlib.Path, str], ...]
  notes: tuple[str, ...]


def read(paths: Iterable[pathlib.Path]) -> Comparison:
  """Reads runs and groups those that differ by their seed only.

  Args:
    paths: run directories, and directories of run directories.

  Returns:
    The comparison.

  Raises:
    FileNotFoundError: a path does not exist.
    ValueError: no run has finished, or they differ in data or teacher; the
      message names the runs and what differs.
  """
  left_out: list[tuple[pathlib.Path, str]] = []
  notes: list[str] = []
  finished: list[Run] = []
  diverged: list[Diverged] = []
  for path in _directories(paths, left_out):
    try:
      run = _read_run(path, notes)
    except (OSError, ValueError) as error:
      left_out.append((path, str(error)))
      continue
    if isinstance(run, Run):
      finished.append(run)
    else:
      diverged.append(run)
  if not finished:
    reasons = [*left_out, *((run.path, 'diverged') for run in diverged)]
    shown = '\n  '.join(f'{path}: {reason}' for path, reason in reasons)
    raise ValueError(f'expected at least one finished run, found\n  {shown}')

  _check_same(
    'data',
    {run.path: run.result['data'] for run in finished}
    | {run.path: {'name': run.config['data']['name']} for run in diverged},
  )
  students, teacher, teacher_run = _part(finished, left_out)
  groups = _group([*students, *diverged], left_out)
  data = finished[0].result['data']
  if teacher and teacher.get('data_digest') not in (None, data['digest']):
    notes.append(
      'the teacher was not trained on the same training and validation images '
      'as the students; its accuracy may mislead'
    )
  return Comparison(
    groups=groups,
    data=data,
    teacher=teacher,
    teacher_run=teacher_run,
    left_out=tuple(left_out),
    notes=(*notes, *_recipe_notes(groups), *_machine_notes(students)),
  )


def config_of(run: Run | Diverged) -> dict[str, Any]:
  """Returns the content of a run's `config.json`."""
  return run.result['config'] if isinstance(run, Run) else run.config


def by_method(groups: Iterable[Group]) -> dict[str, list[Group]]:
  """Parts groups by their method, in the order in which they come."""
  found: dict[str, list[Group]] = {}
  for group in groups:
    found.setdefault(group.method, []).append(group)
  return found


def list_diverged(groups: Iterable[Group]) -> list[tuple[str, Diverged]]:
  """Lists the runs that diverged, each with its label and seed in words."""
  return [
    (f'{group.label}, seed {run.config["seed"]}', run)
    for group in groups
    for run in group.diverged
  ]


def varying(groups: Sequence[Group]) -> list[str]:
  """Lists the fields in which groups differ, in the configuration's order."""
  fields = dict.fromkeys(field for group in groups for field in group.settings)
  return [
    field
    for field in fields
    if len({_hashable(group.settings.get(field)) for group in groups}) > 1
  ]


def is_recipe(field: str) -> bool:
  """Whether a field says how any student is trained, whatever its method."""
  return not field.startswith(('method.', 'teacher.'))


def show(value: Any) -> str:
  """Formats a setting's value for a reader."""
  if isinstance(value, float):
    return f'{value:g}'
  if isinstance(value, list):
    return f'[{", ".join(map(show, value))}]'
  return str(value)


# Reading


def _directories(
  paths: Iterable[pathlib.Path], left_out: list[tuple[pathlib.Path, str]]
) -> list[pathlib.Path]:
  """Lists run directories, each once."""
  found: dict[pathlib.Path, pathlib.Path] = {}
  for path in paths:
    if not path.exists():
      raise FileNotFoundError(
        f'{path} does not exist: expected a run directory, or a directory of '
        'run directories'
      )
    inside = [path] if _holds_run(path) else []
    if not inside and path.is_dir():
      inside = [child for child in sorted(path.iterdir()) if _holds_run(child)]
    if not inside:
      left_out.append((path, 'is no run directory and holds none'))
    for directory in inside:
      found.setdefault(directory.resolve(), directory)
  return list(found.values())


def _holds_run(path: pathlib.Path) -> bool:
  """Whether a path is a run directory, or the record of one: its result."""
  return run_directory.is_run(path) or run_directory.has_result(path)


def _read_run(path: pathlib.Path, notes: list[str]) -> Run | Diverged:
  """Reads a run; a ValueError says why it cannot be compared."""
  result = run_directory.read_result(path)
  is_record = result is not None and not run_directory.is_run(path)
  if result is not None and is_record:
    config = result['config']
  else:
    config = run_directory.as_json(run_directory.read_config(path))
  run_directory.relevant(config)  # Raises if its method is unknown.
  records = metrics_log.read_records(path)
  if result is None:
    step = metrics_log.diverged_at(records)
    if step is None:
      reached = f', it is at step {records[-1]["step"]}' if records else ''
      raise ValueError(f'has not finished{reached}')
    return Diverged(path, config, step)
  if (path / metrics_log.METRICS).exists():
    run_directory.check_file(path, metrics_log.METRICS, result)
  else:
    notes.append(
      f'{path} has no {metrics_log.METRICS}: no curves, no training loss'
    )
  for which in ('best', 'last'):
    loss = result[which]['test']['loss']
    if loss is None or not math.isfinite(loss):
      return Diverged(path, config, result['last']['step'])
  if is_record:
    notes.append(f'{path} is a record without predictions of single images')
    return Run(path, result, records, None)
  try:
    run_directory.check_file(path, 'predictions.npz', result)
    predictions = run_directory.read_predictions(path)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    predictions = None
    notes.append(
      f'the predictions of {path} cannot be read and are not used: {error}'
    )
  return Run(path, result, records, predictions)


def _weights(run: Run) -> set[str]:
  """The digests of the networks that a run left."""
  return {run.result[which]['digest'] for which in ('best', 'last')}


# Comparing


def _check_same(
  what: str, facts: Mapping[pathlib.Path, Mapping[str, Any]]
) -> None:
  """Checks that runs agree with the first one in what is known of both."""
  if not facts:
    return
  first, *others = facts
  expected = facts[first]
  lines = [
    f'{what}.{name}: {value!r} in {path}, {expected[name]!r} in {first}'
    for path in others
    for name, value in facts[path].items()
    if name in expected and value != expected[name]
  ]
  if lines:
    shown = '\n  '.join(lines)
    raise ValueError(
      f'runs with another {what} cannot be compared:\n  {shown}\n'
      f'Give runs with the same {what} only'
    )


def _part(
  finished: Sequence[Run], left_out: list[tuple[pathlib.Path, str]]
) -> tuple[list[Run], dict[str, Any] | None, Run | None]:
  """Parts students from the run that trained their teacher, which all share."""
  teachers = [
    run.result['teacher'] for run in finished if run.result['teacher']
  ]
  members = {
    member['digest']
    for teacher in teachers
    for member in teacher.get('members', ())
  }
  digests = members | {teacher['digest'] for teacher in teachers}
  students = [run for run in finished if not _weights(run) & digests]
  taught = [run for run in students if run.result['teacher']]
  _check_same(
    'teacher',
    {run.path: {'digest': run.result['teacher']['digest']} for run in taught},
  )
  teacher = taught[0].result['teacher'] if taught else None
  teacher_run = None
  for run in finished:
    if not _weights(run) & digests:
      continue
    if members & _weights(run):
      left_out.append((run.path, "is one of the students' teachers"))
    elif teacher is None or teacher['digest'] not in _weights(run):
      left_out.append((run.path, "is a teacher of the students' teacher"))
    elif teacher_run:
      left_out.append((run.path, f'same as {teacher_run.path}'))
    else:
      teacher_run = run
  return students, teacher, teacher_run


def _hashable(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _sortable(value: Any) -> tuple[bool, Any]:
  number = isinstance(value, int | float)
  return not number, value if number else str(value)


def _settings(run: Run | Diverged) -> dict[str, Any]:
  """What determines a run's outcome, beside its data and teacher."""
  config = config_of(run)
  relevant = run_directory.relevant(config)
  # One run may go on with a copy of what it began with; another has begun with
  # something else.
  relevant['student.init_from'] = config['student'].get('init_from', '')
  return {
    field: value
    for field, value in relevant.items()
    # How the teacher was trained is known by its digest.
    if field == 'teacher.dtype' or not field.startswith('teacher.')
  }


def _group(
  runs: Iterable[Run | Diverged], left_out: list[tuple[pathlib.Path, str]]
) -> tuple[Group, ...]:
  """Groups runs by their settings; leaves out copies."""
  found: dict[frozenset[Any], dict[int, Run | Diverged]] = {}
  groups: dict[frozenset[Any], Group] = {}
  for run in runs:
    settings = _settings(run)
    seed = settings.pop('seed')
    key = frozenset(
      (field, _hashable(value)) for field, value in settings.items()
    )
    by_seed = found.setdefault(key, {})
    if seed in by_seed:
      left_out.append((run.path, f'same as {by_seed[seed].path}'))
      continue
    by_seed[seed] = run
    ordered = [by_seed[seed] for seed in sorted(by_seed)]
    groups[key] = Group(
      label='',
      method=settings['method.name'],
      settings=settings,
      runs=tuple(run for run in ordered if isinstance(run, Run)),
      diverged=tuple(run for run in ordered if isinstance(run, Diverged)),
    )
  labelled = []
  # Scratch first: the others are compared with it.
  for _, members in sorted(
    by_method(groups.values()).items(),
    key=lambda item: (item[0] != SCRATCH, item[0]),
  ):
    fields = varying(members)
    members.sort(
      key=lambda group: [
        _sortable(group.settings.get(field)) for field in fields
      ]
    )
    labelled += [
      group._replace(label=_label(group, fields)) for group in members
    ]
  return tuple(labelled)


def _label(group: Group, fields: Sequence[str]) -> str:
  shown = ', '.join(
    f'{name} = {show(group.settings.get(field))}'
    for field, name in config_lib.short_names(fields).items()
  )
  return f'{group.method} ({shown})' if shown else group.method


# What a reader must know


def _recipe_notes(groups: Sequence[Group]) -> Iterator[str]:
  """Says where methods were not trained and measured alike."""
  for field in filter(is_recipe, varying(groups)):
    # A dict for the order of values.
    values: dict[str, dict[Any, str]] = {}
    for group in groups:
      value = group.settings.get(field)
      shown = values.setdefault(group.method, {})
      shown[_hashable(value)] = show(value)
    if len({frozenset(found) for found in values.values()}) > 1:
      listed = '; '.join(
        f'{method} has {", ".join(found.values())}'
        for method, found in values.items()
      )
      yield f'not the same recipe: {field}: {listed}'


def _machine_notes(runs: Sequence[Run]) -> Iterator[str]:
  """Says where runs did not have the same machine or libraries."""
  results = [run.result for run in runs]
  facts = {
    'device': [result['device'] for result in results],
    'platform': [result['platform'] for result in results],
  }
  for package in ('kdjax', 'jax'):
    facts[f'version of {package}'] = [
      result['versions'].get(package) for result in results
    ]
  for what, values in facts.items():
    counts = collections.Counter(values)
    if len(counts) > 1:
      shown = ', '.join(
        f'{value} ({count} {"run" if count == 1 else "runs"})'
        for value, count in counts.items()
      )
      yield f'not the same {what}: {shown}; speeds and times do not compare'
