"""Configuration files: found by path or by name, loaded, and overridden."""

import difflib
import importlib.util
import os
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

import ml_collections

from kdjax.system.hints import did_you_mean


def packaged() -> dict[str, pathlib.Path]:
  """Finds the configuration files that come with kdjax, by name."""
  package = pathlib.Path(__file__).parents[1]
  # In an installed package, and in a checkout.
  return {
    config.stem: config
    for folder in (package.parent / 'configs', package / 'configs')
    for config in sorted(folder.glob('*.py'))
    if config.stem != '__init__'
  }


def find(file: str) -> str:
  """Finds a configuration file, which may be one that comes with kdjax.

  Args:
    file: a path; or `NAME`, `NAME.py` or `configs/NAME.py` for one of kdjax's
      own. A variant may follow, as in `rkd:t4`.

  Returns:
    Its path, with the variant.

  Raises:
    ValueError: there is none.
  """
  path, colon, variant = file.partition(':')
  if os.path.isfile(path):
    return file
  known = packaged()
  folder, name = os.path.split(path)
  name = name.removesuffix('.py')
  if folder not in ('', 'configs') or name not in known:
    raise ValueError(
      f'there is no configuration {file!r}{did_you_mean(name, known)}: '
      f'expected a file, or one of {", ".join(known)}'
    )
  return f'{known[name]}{colon}{variant}'


def load(file: str) -> ml_collections.ConfigDict:
  """Loads a configuration.

  Args:
    file: as `find` takes it.

  Returns:
    What its `get_config` returns.

  Raises:
    ValueError: there is none, it cannot be run, or has no such variant.
  """
  path, colon, variant = find(file).partition(':')
  spec = importlib.util.spec_from_file_location('config', path)
  if spec is None or spec.loader is None:
    raise ValueError(f'{path} is no Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([variant] if colon else []))
  except Exception as error:
    raise ValueError(_reason(error, path, variant)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f'get_config of {path} returns {type(config).__name__}: expected a '
      'ConfigDict, such as kdjax.config.default() changed'
    )
  return config


def _reason(error: Exception, path: str, variant: str) -> str:
  """Says in one line why a configuration file cannot be run."""
  places = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  # The file says by itself what it does not take.
  if isinstance(error, ValueError) and variant:
    return f'{path}: {error}'
  if variant and isinstance(error, TypeError) and not places:
    return f'{path} has no variants, and {variant!r} is asked for: leave it out'
  if isinstance(error, SyntaxError):
    places = [error.lineno]
  line = f' at line {places[-1]}' if places else ''
  return f'{path} cannot be run{line} ({type(error).__name__}: {error})'


def run_directory(file: str, mode: str | None = None) -> pathlib.Path:
  """Names the run directory of a configuration where none is given.

  Args:
    file: the configuration's file or name, with its variant.
    mode: the method, where it is not the configuration's own.

  Returns:
    `runs/` and the name, with the variant and the mode where there are any; of
    an import path the last part.
  """
  path, _, variant = file.partition(':')
  own = mode and mode.rpartition(':')[2]
  parts = filter(None, [pathlib.Path(path).stem, variant, own])
  return pathlib.Path('runs', '-'.join(parts))


def override(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> None:
  """Sets fields of a configuration, in place.

  Args:
    config: the configuration.
    changes: values by dotted name, such as `{'train.epochs': 2}`.

  Raises:
    ValueError: there is no such field, or it takes values of another type.
  """
  fields = config.to_dict()
  for name, value in changes.items():
    if message := describe_unknown(name, fields):
      raise ValueError(message)
    try:
      config.update_from_flattened_dict({name: value})
    except TypeError as error:
      usual = config
      for part in name.split('.'):
        usual = usual[part]
      raise ValueError(
        f'config.{name} is {value!r}: expected {describe_type(usual)}'
      ) from error


def describe_type(usual: Any) -> str:
  """Says what a field takes whose value is this one."""
  for kind, words in (
    (bool, 'true or false'),
    (int, 'an integer'),
    (float, 'a number'),
    (tuple, 'a tuple'),
    (str, 'a text'),
    (Mapping, 'fields of its own, such as config.SECTION.FIELD=VALUE'),
    (ml_collections.ConfigDict, 'fields of its own'),
  ):
    if isinstance(usual, kind):
      return words
  return 'another value'


def describe_unknown(field: str, config: Mapping[str, Any]) -> str | None:
  """Says that a configuration has no such field, and which one may be meant.

  Args:
    field: a dotted name, such as `train.lr`.
    config: the configuration as nested mappings.

  Returns:
    One line; None if there is a field of that name.
  """
  section, path = config, 'config'
  for part in field.split('.'):
    if not isinstance(section, Mapping) or part not in section:
      break
    section, path = section[part], f'{path}.{part}'
  else:
    return None
  fields = section if isinstance(section, Mapping) else {}
  # Those of the section first; others only where it has none that is near.
  near = [
    [name for name in known if _is_near(part, name.rpartition('.')[2])]
    for known in ([f'{path}.{name}' for name in fields], all_fields(config))
  ]
  meant = near[0] or near[1]
  hint = f'did you mean {" or ".join(meant[:3])}?' if meant else ''
  return f'{path} has no field {part}: ' + (
    hint or f'expected one of {", ".join(fields) or "none"}'
  )


def _is_near(name: str, field: str) -> bool:
  """Whether a field may be meant by a name, such as `lr`."""
  initials = ''.join(word[0] for word in field.split('_'))
  return name in (field, initials) or bool(
    difflib.get_close_matches(name, [field], cutoff=0.75)
  )


def all_fields(config: Mapping[str, Any], path: str = 'config') -> list[str]:
  """Lists the dotted names of all fields and sections."""
  found = []
  for name, value in config.items():
    found.append(f'{path}.{name}')
    if isinstance(value, Mapping):
      found += all_fields(value, f'{path}.{name}')
  return found
