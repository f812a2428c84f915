"""Files of `flax.serialization`: nested dictionaries of arrays, as msgpack.

Flax's own reader takes a whole file into memory. Here only the names, shapes
and dtypes are read, and every length is compared with the file before anything
of that length is made.
"""

import functools
import math
import mmap
import pathlib
from collections.abc import Mapping

import numpy as np

from kdjax.storage.weights import stored_tensors
from kdjax.system import escape

_MAX_ENTRIES = 100_000
_MAX_DEPTH = 64
_MAX_NAME = 500
# Flax's types of extensions.
_ARRAY, _SCALAR = 1, 3

# Bytes of a number or of a length after the type, and kind of value, by type.
_SCALARS: Mapping[int, int] = {
  **dict.fromkeys((0xC0, 0xC2, 0xC3), 0),
  **{0xCA: 4, 0xCB: 8},
  **{0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8},
  **{0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
}
_LENGTHS: Mapping[int, tuple[str, int]] = {
  **{0xC4: ('bytes', 1), 0xC5: ('bytes', 2), 0xC6: ('bytes', 4)},
  **{0xC7: ('extension', 1), 0xC8: ('extension', 2), 0xC9: ('extension', 4)},
  **{0xD9: ('bytes', 1), 0xDA: ('bytes', 2), 0xDB: ('bytes', 4)},
  **{0xDC: ('list', 2), 0xDD: ('list', 4)},
  **{0xDE: ('map', 2), 0xDF: ('map', 4)},
}


def begins(start: bytes) -> bool:
  """Whether a file with these first bytes may be one: a filled dictionary."""
  # The first key is a string.
  first, *rest = start[:2] or b'\0'
  if first in (0xDE, 0xDF):
    return True
  return (
    0x81 <= first <= 0x8F
    and bool(rest)
    and (0xA0 <= rest[0] <= 0xBF or rest[0] in (0xD9, 0xDA, 0xDB))
  )


def read(path: pathlib.Path) -> stored_tensors.Stored:
  """Reads what `flax.serialization.to_bytes` wrote, as `loading.read`.

  Names of nested dictionaries are joined by slashes.
  """
  with path.open('rb') as raw:
    content = memoryview(mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ))
  reader = _Reader(content)
  try:
    reader.value('', 0)
  except (UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f'its msgpack is damaged: {error}') from error
  if reader.at != len(content):
    raise ValueError(
      f'its msgpack ends at byte {reader.at} of {len(content)}: the file is '
      'damaged, or not of flax.serialization'
    )
  return stored_tensors.Stored(
    reader.tensors, {}, tuple(reader.others), 'Flax (msgpack)'
  )


class _Reader:
  """Goes through msgpack and describes the arrays in it."""

  def __init__(self, content: memoryview):
    self.content = content
    self.at = 0
    self.tensors: dict[str, stored_tensors.Tensor] = {}
    self.others: dict[str, None] = {}
    self.entries = 0

  def read(self, size: int) -> memoryview:
    """Reads so many bytes, which the file must have."""
    content = self.content[self.at : self.at + size]
    if len(content) < size:
      raise ValueError('its msgpack ends too soon: the file is truncated')
    self.at += size
    return content

  def number(self, size: int) -> int:
    return int.from_bytes(self.read(size), 'big')

  def head(self) -> tuple[str, int]:
    """Reads the kind of the next value and its length, or the number it is."""
    kind = self.number(1)
    if kind <= 0x7F:
      return 'number', kind
    if kind >= 0xE0:
      return 'number', kind - 0x100
    if kind <= 0x8F:
      return 'map', kind & 0x0F
    if kind <= 0x9F:
      return 'list', kind & 0x0F
    if kind <= 0xBF:
      return 'bytes', kind & 0x1F
    if kind in _LENGTHS:
      name, size = _LENGTHS[kind]
      return name, self.number(size)
    if 0xD4 <= kind <= 0xD8:
      return 'extension', 1 << (kind - 0xD4)
    if kind in _SCALARS:
      return 'number', self.number(_SCALARS[kind])
    raise ValueError('its msgpack has a type that does not exist: damaged')

  def expect(self, wanted: str) -> int:
    kind, value = self.head()
    if kind != wanted:
      raise ValueError(f'its msgpack has a {kind} in place of a {wanted}')
    return value

  def text(self) -> str:
    size = self.expect('bytes')
    if size > _MAX_NAME:
      raise ValueError(f'its msgpack has names of more than {_MAX_NAME} bytes')
    return bytes(self.read(size)).decode()

  def value(self, name: str, depth: int) -> None:
    """Goes through a value and all that is in it."""
    kind, size = self.head()
    if kind in ('map', 'list'):
      self._container(name, depth, kind, size)
    elif kind == 'extension':
      self._extension(name, size)
    else:
      self.others[name] = None
      if kind == 'bytes':
        self.read(size)

  def _container(self, name: str, depth: int, kind: str, size: int) -> None:
    self.entries += size
    if self.entries > _MAX_ENTRIES or depth > _MAX_DEPTH:
      raise ValueError(
        f'its msgpack has more than {_MAX_ENTRIES} entries, or more than '
        f'{_MAX_DEPTH} dictionaries in one another: save params and '
        'batch_stats alone'
      )
    for index in range(size):
      key = self.text() if kind == 'map' else str(index)
      if key == '__msgpack_chunked_array__':
        raise ValueError(
          f'{escape.listed([name])} has more than 2³⁰ bytes: save it with Orbax'
        )
      full = f'{name}/{key}' if name else key
      if len(full) > _MAX_NAME:
        raise ValueError(f'its names have more than {_MAX_NAME} characters')
      if full in self.tensors or full in self.others:
        raise ValueError(f'two entries are called {escape.listed([full])}')
      self.value(full, depth + 1)

  def _extension(self, name: str, size: int) -> None:
    kind = self.number(1)
    end = self.at + size
    if kind not in (_ARRAY, _SCALAR):
      self.read(size)
      self.others[name] = None
      return
    if self.expect('list') != 3:
      raise ValueError(f'{escape.listed([name])} is not described as Flax does')
    shape = tuple(
      self.expect('number') for _ in range(min(self.expect('list'), 65))
    )
    dtype = self.text()
    if dtype not in stored_tensors.DTYPES:
      raise ValueError(
        f'{escape.listed([name])} is of {dtype}: expected numbers'
      )
    data = self.read(self.expect('bytes'))
    known = stored_tensors.DTYPES[dtype]
    if (
      self.at != end
      or len(shape) > 32
      or min(shape, default=0) < 0
      or math.prod(shape) * known.itemsize != len(data)
    ):
      raise ValueError(
        f'{escape.listed([name])} has {len(data)} bytes, which is not its '
        f'shape {list(shape)[:8]} of {dtype}: the file is damaged'
      )
    self.tensors[name] = stored_tensors.Tensor(
      shape, known, functools.partial(_array, data, known, shape)
    )


def _array(
  data: memoryview, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
  return np.frombuffer(data, dtype).reshape(shape)
