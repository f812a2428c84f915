"""The files that a run leaves beside its checkpoints.

`workdir` is the run directory. A file that was changed, cut off or damaged
raises a ValueError, which names it and says what to do.
"""

import functools
import hashlib
import json
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax import methods
from kdjax.storage import digests, metrics_log, schema
from kdjax.system import atomic
from kdjax.version import __version__

_CONFIG = 'config.json'
_RESULT = 'result.json'
_PREDICTIONS = 'predictions.npz'

FILES = _CONFIG, _RESULT, _PREDICTIONS
"""Names of the files that are written here."""
# What such a file has beside its content and its SHA-256.
_VERSION = 'version'

_REMEDY = 'Put a sound copy of it there, or choose another run directory'

# The fields of a configuration that every version of kdjax had.
_FIRST = tuple(
  f'{section}.{field}' if section else field
  for section, fields in {
    '': 'seed',
    'method': 'name',
    'method.response': 'temperature alpha',
    'method.feature': 'ce_weight feature_weight reduction student_features '
    'teacher_features',
    'student': 'name stem width dtype',
    'data': 'name data_dir validation_fraction train_limit crop_padding flip',
    'train': 'epochs max_steps batch_size optimizer learning_rate schedule '
    'warmup_epochs momentum weight_decay clip_norm label_smoothing',
    'eval': 'batch_size every_epochs',
    'checkpoint': 'keep',
    'log': 'every_steps tensorboard',
    'teacher': 'path sibling checkpoint seed name stem width dtype',
  }.items()
  for field in fields.split()
)

_MAYBE_NUMBER = schema.NUMBER + schema.NULL
_MAYBE_INTEGER = schema.INTEGER + schema.NULL
_TESTED_FIELDS = {
  'step': schema.INTEGER,
  'epoch': schema.NUMBER,
  'validation_accuracy': _MAYBE_NUMBER,
  'digest': schema.TEXT,
  'test': {'accuracy': schema.NUMBER, 'loss': _MAYBE_NUMBER},
}
# What every result says of its run; one without any of them is not whole.
_RESULT_FIELDS = {
  **dict.fromkeys(('method', 'device', 'platform'), schema.TEXT),
  **dict.fromkeys(('versions', 'config'), schema.OBJECT),
  'seed': schema.INTEGER,
  'data': {
    **dict.fromkeys(('name', 'digest'), schema.TEXT),
    **dict.fromkeys(('train', 'validation', 'test'), schema.INTEGER),
  },
  'student': {
    'model': schema.TEXT,
    'parameters': schema.INTEGER,
    'wall_time_s': schema.NUMBER,
  },
  'teacher': schema.OBJECT + schema.NULL,
  **dict.fromkeys(('best', 'last'), _TESTED_FIELDS),
}
_TEACHER_FIELDS = {
  **dict.fromkeys(('path', 'digest', 'model'), schema.TEXT),
  **dict.fromkeys(('parameters', 'step'), _MAYBE_INTEGER),
  **dict.fromkeys(('wall_time_s', 'validation_accuracy'), _MAYBE_NUMBER),
  'test': schema.OBJECT,
}

# Fields that change what a run writes, where it reads or when it gives up, not
# what it computes. Which teacher a run has, and what it began with, is known by
# its digest, wherever it is.
_FREE = (
  *('log', 'checkpoint', 'device', 'train.nonfinite', 'eval.batch_size'),
  *('data.data_dir', 'data.streaming', 'data.workers', 'data.corrupt'),
  *('student.init_from', 'teacher.path', 'teacher.ensemble'),
  *('teacher.sibling', 'teacher.replay'),
)


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a configuration as JSON has it (tuples become lists)."""
  return json.loads(config.to_json())


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a configuration that change what its run computes.

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

  Returns:
    As `config_differences`; empty if the directory holds no run.
  """
  if not is_run(workdir):
    return {}
  return config_differences(_read_config(workdir), config)


def config_differences(
  there: Mapping[str, Any], config: ml_collections.ConfigDict
) -> dict[str, str]:
  """Compares the configuration of a run, as JSON, with another.

  Args:
    there: as a file of the run has it.
    config: a run's configuration.

  Returns:
    For each field that differs and changes what the run computes, a line that
    says how.
  """
  return compare(relevant(there), relevant(as_json(config)))


def compare(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
  """Compares values by name, as they were written and as they are now.

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
  _write_with_digest(workdir / _CONFIG, as_json(config))


def is_run(path: pathlib.Path) -> bool:
  """Whether a path is the directory of a run, finished or not.

  Networks of other programs have a file of that name, too.
  """
  file = path / _CONFIG
  if not file.exists():
    return False
  try:
    return 'student' in schema.parse(file.read_bytes())
  except (OSError, ValueError):
    return True


def has_result(path: pathlib.Path) -> bool:
  """Whether a path holds the result of a run, perhaps without all else."""
  return (path / _RESULT).is_file()


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """Reads the configuration of a run.

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
  return complete(_read_config(workdir))


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  path = workdir / _CONFIG
  config, sound = _read(path)
  _check_config(path, config, sound)
  return config


def _check_config(
  path: pathlib.Path, config: Mapping[str, Any], sound: bool
) -> None:
  """Checks the fields of a configuration that was read.

  A field that is missing is one of a later version where a checksum says that
  none was lost; without one, only if the first version did not have it.
  """
  found = flax.traverse_util.flatten_dict(config, sep='.')
  default = config_lib.default()
  known = flax.traverse_util.flatten_dict(as_json(default), sep='.')
  if not sound and (lost := [name for name in _FIRST if name not in found]):
    raise ValueError(
      f'{path} lacks {", ".join(lost)}: it is damaged, or no configuration of '
      f'a run. {_REMEDY}'
    )
  for name, value in found.items():
    if name not in known:
      # A method may be one of the user's.
      if not (sound or name.startswith('method.')):
        raise ValueError(
          f'{path} has {name}, which is no field of a configuration. {_REMEDY}'
        )
      continue
    *sections, key = name.split('.')
    section = functools.reduce(operator.getitem, sections, default)
    kind = section.get_type(key)
    # A placeholder may be null, and a tuple is a list.
    kinds = schema.KINDS[kind]
    if known[name] is None:
      kinds += schema.NULL
    schema.check(path, value, kinds, name)


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
  if not path.exists():
    return None
  result, _ = _read(path)
  schema.check(path, result, _RESULT_FIELDS)
  if result['teacher'] is not None:
    schema.check(path, result['teacher'], _TEACHER_FIELDS, 'teacher')
  for which in ('teacher', 'best', 'last'):
    for name, value in (result[which] or {'test': {}})['test'].items():
      schema.check(path, value, _MAYBE_NUMBER, f'{which}.test.{name}')
  return result


def write_result(workdir: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes the result of a run, which marks it as finished."""
  _write_with_digest(workdir / _RESULT, result)


def digests_of_files(workdir: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file that a run leaves beside its result."""
  return {
    name: hashlib.sha256((workdir / name).read_bytes()).hexdigest()
    for name in (metrics_log.METRICS, _PREDICTIONS)
    if (workdir / name).exists()
  }


def check_file(
  workdir: pathlib.Path, name: str, result: Mapping[str, Any]
) -> None:
  """Checks that a file is as it was when its run finished.

  Args:
    workdir: the run directory.
    name: the file's name.
    result: the run's result; that of an older version does not say.

  Raises:
    ValueError: it is not.
  """
  expected = result.get('files', {}).get(name)
  found = digests_of_files(workdir).get(name, 'no such file')
  if expected not in (None, found):
    raise ValueError(
      f'{workdir / name} is not as it was when the run finished: expected '
      f'SHA-256 {expected}, found {found}. Put a sound copy of it there'
    )


def read_predictions(workdir: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Reads the predictions of a run on its test split.

  Returns:
    What `kdjax.training.final_test` measured; None if the run has not finished,
    or is of a version that did not keep its predictions.
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
  """Writes what `kdjax.training.final_test.measure` returns."""
  with atomic.replacing(workdir / _PREDICTIONS) as file:
    np.savez_compressed(file, allow_pickle=False, **predictions)


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens a configuration and drops what may change in a run."""
  # Settings of the methods that are not used do not matter either.
  method = config['method']
  section = 'custom' if ':' in method['name'] else method['name']
  keys = 'name', 'schedule', section
  used = {key: method[key] for key in keys if key in method}
  config = {**config, 'method': used}
  if not methods.build(method['name'])[0].needs_teacher:
    del config['teacher']
  free = tuple(f'{name}.' for name in _FREE)
  return {
    name: value
    for name, value in flax.traverse_util.flatten_dict(config, sep='.').items()
    if not f'{name}.'.startswith(free)
  }


def _read(path: pathlib.Path) -> tuple[dict[str, Any], bool]:
  """Reads a JSON file, and says whether a checksum shows it to be sound.

  Earlier versions of kdjax wrote none.
  """
  try:
    content = schema.parse(path.read_bytes())
    has_digest = bool(content.keys() & {_VERSION, digests.SHA256})
    # Null is for who has changed it on purpose.
    by_hand = has_digest and content.get(digests.SHA256, '') is None
    sound = not has_digest or by_hand or digests.digest_matches(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged or cut off: {error}. {_REMEDY}'
    ) from error
  if not sound:
    raise ValueError(
      f'{path} was changed after kdjax wrote it: its SHA-256 is not the one '
      f'recorded there. {_REMEDY}; if you have changed it on purpose, write '
      f'"{digests.SHA256}": null in it'
    )
  for key in (_VERSION, digests.SHA256):
    content.pop(key, None)
  return content, has_digest and not by_hand


def _write_with_digest(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file with kdjax's version and the SHA-256 of the rest."""
  write_json(path, digests.add_digest({**content, _VERSION: __version__}))


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file as a whole, so that nobody ever reads half of it."""
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  atomic.write(path, text.encode())
