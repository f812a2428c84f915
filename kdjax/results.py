"""The files that a run leaves beside its checkpoints, and its final table."""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax import files, methods

_CONFIG = 'config.json'
_RESULT = 'result.json'
_PREDICTIONS = 'predictions.npz'

FILES = _CONFIG, _RESULT, _PREDICTIONS
"""Names of the files that are written here."""

# The metrics in a run's table: heading, name in the result, format.
_SHOWN = (
  ('accuracy', 'accuracy', '.2%'),
  ('NLL', 'loss', '.4f'),
  ('ECE', 'calibration_error', '.2%'),
  ('agreement', 'agreement', '.2%'),
  ('KL to teacher', 'kl_to_teacher', '.4f'),
)

# Fields that change what a run writes, where it reads or when it gives up, not
# what it computes.
# Which teacher a run has, and what it began with, is known by its digest,
# wherever it is.
_FREE = (
  'log',
  'checkpoint',
  'device',
  'data.data_dir',
  'data.streaming',
  'data.workers',
  'data.corrupt',
  'train.nonfinite',
  'student.init_from',
  'eval.batch_size',
  'teacher.path',
  'teacher.ensemble',
  'teacher.sibling',
  'teacher.replay',
)


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Gives a configuration as JSON has it (tuples become lists)."""
  return json.loads(config.to_json())


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
  """Gives the fields of a configuration that change what its run computes.

  Args:
    config: a run's configuration, as in `config.json`.

  Returns:
    The value of each such field, by its dotted name and in the order of
    `kdjax.config.default`. The settings of methods that the run does not use
    are not among them, nor is its teacher where its method needs none.

  Raises:
    ValueError: its method is unknown.
  """
  # A field that another version of kdjax did not have was as it is by default.
  return _flatten(_fill(config, as_json(config_lib.default())))


def differences(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> dict[str, str]:
  """Compares a configuration with that of the run in a directory.

  Args:
    workdir: the run directory.
    config: a run's configuration.

  Returns:
    For each field that differs and changes what the run computes, a line that
    says how; empty if none does, or if the directory holds no run.
  """
  path = workdir / _CONFIG
  if not path.exists():
    return {}
  return compare(relevant(_read(path)), relevant(as_json(config)))


def compare(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
  """Compares what was written with what would be written now.

  Args:
    there: values by name, as they were.
    now: the same, as they are.

  Returns:
    For each name whose value differs, a line that says how.
  """
  return {
    name: f'{name}: {there.get(name)!r} there, {now.get(name)!r} now'
    for name in sorted(there.keys() | now.keys())
    if there.get(name) != now.get(name)
  }


def check_same_run(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a directory holds no run with another configuration.

  Args:
    workdir: the run directory.
    config: the run's configuration.

  Raises:
    ValueError: it does; the message names the fields that differ.
  """
  if differing := differences(workdir, config):
    shown = '\n  '.join(differing.values())
    raise ValueError(
      f'{workdir} holds a run with another configuration:\n  {shown}\n'
      'Choose another run directory, or remove that one'
    )


def check_same_digest(
  workdir: pathlib.Path, what: str, expected: str | None, found: str | None
) -> None:
  """Checks that a run goes on with what it was begun with.

  Args:
    workdir: the run directory.
    what: what is compared, such as 'data' or 'teacher'.
    expected: the SHA-256 that the run recorded; None where it has no such
      thing.
    found: that of what there is now.

  Raises:
    ValueError: they differ.
  """
  if expected != found:
    raise ValueError(
      f'{workdir} was begun with another {what}: SHA-256 {expected}, now '
      f'{found}. Use that one, or choose another run directory'
    )


def write_config(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Writes a run's configuration; makes the directory if need be."""
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / _CONFIG, as_json(config))


def is_run(path: pathlib.Path) -> bool:
  """Whether a path is the directory of a run, finished or not."""
  return (path / _CONFIG).exists()


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """Reads the configuration of a run.

  Args:
    workdir: the run directory.

  Returns:
    The configuration. A field that the run did not know is as by default.

  Raises:
    FileNotFoundError: the directory holds no run.
  """
  if not is_run(workdir):
    raise FileNotFoundError(
      f'no run in {workdir}: expected a directory written by kdjax.main, with '
      f'{_CONFIG} in it'
    )
  return complete(_read(workdir / _CONFIG))


def complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Makes a run's configuration of JSON.

  Args:
    config: the fields that the run knew.

  Returns:
    The configuration. A field that the run did not know is as by default.
  """
  found = _fill(config, as_json(config_lib.default()))
  return ml_collections.ConfigDict(found)


def _fill(
  found: Mapping[str, Any], default: Mapping[str, Any]
) -> dict[str, Any]:
  """Adds what is missing, at all depths."""
  return {
    **default,
    **{
      name: _fill(value, default.get(name, {}))
      if isinstance(value, dict)
      else value
      for name, value in found.items()
    },
  }


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Reads the result of a run; None if it has not finished."""
  path = workdir / _RESULT
  return _read(path) if path.exists() else None


def write_result(workdir: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes the result of a run, which marks it as finished."""
  write_json(workdir / _RESULT, result)


def read_predictions(workdir: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Reads the predictions of a run on its test split.

  Args:
    workdir: the run directory.

  Returns:
    What `kdjax.measure.measure` gave; None if the run has not finished, or is
    of a version that did not keep its predictions.
  """
  path = workdir / _PREDICTIONS
  if not path.exists():
    return None
  # Opened here: NumPy leaves open a file that is no archive.
  with path.open('rb') as file, np.load(file) as arrays:
    return dict(arrays)


def write_predictions(
  workdir: pathlib.Path, predictions: Mapping[str, np.ndarray]
) -> None:
  """Writes the predictions of a run on its test split.

  Args:
    workdir: the run directory.
    predictions: as `kdjax.measure.measure` gives them.
  """
  with files.replacing(workdir / _PREDICTIONS) as file:
    np.savez_compressed(file, allow_pickle=False, **predictions)


def validation_score(
  epochs: Sequence[Mapping[str, Any]],
) -> tuple[float, float] | None:
  """Scores settings: the largest score is the one to choose.

  By validation accuracy, the mean over seeds; where it is equal, as it often is
  on a small split, by validation loss.

  Args:
    epochs: what was measured at the best epoch with each seed,
      `validation_accuracy` and `validation_loss`.

  Returns:
    A score to compare with others; None where a run was not validated.
  """
  accuracies: list[Any] = [epoch.get('validation_accuracy') for epoch in epochs]
  if not accuracies or None in accuracies:
    return None
  # Older results lack it.
  losses = [epoch.get('validation_loss') or 0.0 for epoch in epochs]
  # Equal means may differ by their rounding.
  return round(statistics.fmean(accuracies), 12), -statistics.fmean(losses)


def table(result: Mapping[str, Any]) -> str:
  """Formats the result of a run for a terminal.

  Args:
    result: as in `result.json`.

  Returns:
    A table with a row for the teacher, if there is one, and for the student at
    its best epoch and at its last, and for its moving average at both, if it
    has one. NLL is the negative log-likelihood and the
    divergence from the teacher is KL(teacher ‖ student), both in nats; ECE is
    the expected calibration error. What a row lacks is a dash.
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
  header = (
    'test split',
    *(heading for heading, _, _ in _SHOWN),
    'parameters',
    'train time',
  )
  lines: list[tuple[str, ...]] = [header]
  for title, row in rows:
    test = row['test']
    lines.append(
      (
        title,
        *(
          '-' if test.get(metric) is None else format(test[metric], spec)
          for _, metric, spec in _SHOWN
        ),
        '-' if row['parameters'] is None else f'{row["parameters"]:,}',
        '-' if row['wall_time_s'] is None else f'{row["wall_time_s"]:.0f} s',
      )
    )
  return align(lines)


def align(
  lines: Sequence[Sequence[str]], *, header: int = 1, left: int = 1
) -> str:
  """Lays out a table for a terminal.

  Args:
    lines: the cells of each line, as many in all.
    header: number of lines above the rule.
    left: number of columns that are flush left, the first ones.

  Returns:
    The table.
  """
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


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens a configuration and drops what may change in a run."""
  flat: dict[str, Any] = {}
  # Settings of the methods that are not used do not matter either.
  method = config['method']
  used = {key: method[key] for key in ('name', method['name']) if key in method}
  config = {**config, 'method': used}
  if not methods.build(method['name'])[0].needs_teacher:
    del config['teacher']

  def visit(prefix: str, value: Any) -> None:
    if prefix in _FREE:
      return
    if isinstance(value, dict):
      for key, child in value.items():
        visit(f'{prefix}.{key}' if prefix else key, child)
    else:
      flat[prefix] = value

  visit('', config)
  return flat


def _read(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text(encoding='utf-8'))


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file as a whole, so that nobody ever reads half of it."""
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  files.write(path, text.encode())
