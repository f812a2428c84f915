"""JSON that was read: its fields, and the type of each."""

import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any

INTEGER: Any = (int,)
NUMBER: Any = (int, float)
TEXT: Any = (str,)
BOOLEAN: Any = (bool,)
LIST: Any = (list,)
OBJECT: Any = (dict,)
NULL: Any = (type(None),)

KINDS = {
  int: INTEGER,
  float: NUMBER,
  str: TEXT,
  bool: BOOLEAN,
  tuple: LIST,
  list: LIST,
}
"""What JSON has for a value of Python."""

_NAMES = {
  int: 'an integer',
  float: 'a number',
  str: 'text',
  bool: 'true or false',
  list: 'a list',
  dict: 'an object',
  type(None): 'null',
}


def parse(text: str | bytes) -> dict[str, Any]:
  """Parses a JSON object.

  Args:
    text: what a file holds, or a part of it.

  Returns:
    The object.

  Raises:
    ValueError: it is none, for whatever reason; the message is part of a
      sentence.
  """
  try:
    content = json.loads(text)
  # Brackets without end are the last two.
  except (ValueError, RecursionError, MemoryError) as error:
    raise ValueError(str(error) or repr(error)) from error
  if not isinstance(content, dict):
    raise ValueError('it holds no JSON object')
  return content


def check(
  path: str | os.PathLike[str], value: Any, expected: Any, name: str = ''
) -> None:
  """Checks JSON against a schema.

  Args:
    path: the file that it comes from.
    value: the JSON.
    expected: the types that it may have, a tuple such as `NUMBER` or
      `INTEGER + NULL`; or for an object, which may have more, the same of each
      of its fields.
    name: dotted name of the value; '' for all of the file.

  Raises:
    ValueError: it has not; the message names file, field and type.
  """
  if not isinstance(expected, Mapping):
    # To Python, truth is a number.
    if not isinstance(value, expected) or (
      isinstance(value, bool) and bool not in expected
    ):
      kinds = [_NAMES[kind] for kind in expected if kind is not int]
      if int in expected and float not in expected:
        kinds.insert(0, _NAMES[int])
      raise ValueError(
        f'{path}: {name} is {reprlib.repr(value)}, expected '
        f'{" or ".join(kinds)}'
      )
    return
  check(path, value, OBJECT, name or 'all of it')
  fields = {key: f'{name}.{key}' if name else key for key in expected}
  if missing := [fields[key] for key in expected if key not in value]:
    raise ValueError(f'{path} lacks {", ".join(missing)}')
  for key, inner in expected.items():
    check(path, value[key], inner, fields[key])
