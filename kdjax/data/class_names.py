"""Files that name the classes of a network, as editors write them."""

import codecs
import pathlib
import re

# The first two are longer, and begin as others do.
_BYTE_ORDER_MARKS = (
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
  (codecs.BOM_UTF8, 'utf-8-sig'),
)


def read(path: pathlib.Path) -> list[str]:
  """Reads a file of the names of classes, a line each.

  Args:
    path: text in UTF-8, or in any Unicode with a byte order mark. Empty lines
      at its end do not count, nor does space around a name.

  Returns:
    The names.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no such text, or a name is empty, not printable or there
      twice; the message names file and line.
  """
  content = path.read_bytes()
  encoding = next(
    (name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)),
    'utf-8',
  )
  try:
    text = content.decode(encoding)
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path} is no text in UTF-8 (byte {error.start}): save it as UTF-8, or '
      'as UTF-16 with a byte order mark'
    ) from error
  names = [name.strip() for name in re.split('\r\n|\r|\n', text.rstrip())]
  lines: dict[str, int] = {}
  for number, name in enumerate(names, 1):
    if not name or not name.isprintable():
      raise ValueError(
        f'{path}, line {number}, is {name!a}: expected the name of a class'
      )
    if lines.setdefault(name, number) != number:
      raise ValueError(
        f'{path} names {name!a} in line {lines[name]} and in line '
        f'{number}: expected a name for each class'
      )
  return names
