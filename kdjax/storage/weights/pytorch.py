"""PyTorch's files: a pickle that describes tensors, and their bytes."""

import collections
import functools
import io
import math
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kdjax.storage.weights import stored_tensors, unpickler
from kdjax.system import escape

# The directory of ResNet-101 with Adam's moments takes 0.2 MB.
_MAX_DIRECTORY = 2**24
_MAX_ENTRIES = 100_000
_MAX_DEPTH = 16
_MAX_NAME = 500

# The first pickle of a file of PyTorch before 1.6.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

Bytes = Callable[[], memoryview]


def read_zip(path: pathlib.Path) -> stored_tensors.Stored:
  """Reads what is in a file of PyTorch 1.6 and later, as `loading.read`."""
  members, content = _members(path), memoryview(_map(path))
  pickles = [name for name in members if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise ValueError(
      'a zip archive, but none of PyTorch: expected one data.pkl in it, found '
      f'{len(pickles)} among {escape.listed(members)}'
    )
  root = pickles[0].removesuffix('data.pkl')
  if f'{root}constants.pkl' in members:
    raise ValueError(
      'a TorchScript program: save model.state_dict() with torch.save instead'
    )
  if f'{root}byteorder' in members:
    order = bytes(_member(members[f'{root}byteorder'], content)[:16])
    if order != b'little':
      raise ValueError(
        f'its byte order is {order!r}: expected little; save it on another '
        'machine'
      )
  size = members[pickles[0]].file_size
  if size > unpickler.MAX_BYTES:
    raise ValueError(
      f'its pickle has {size} bytes: expected at most {unpickler.MAX_BYTES}; '
      'save model.state_dict() alone'
    )
  loaded = unpickler.load(io.BytesIO(_member(members[pickles[0]], content)))

  @functools.cache
  def find(key: str) -> tuple[int, Bytes]:
    member = members.get(f'{root}data/{key}')
    if member is None:
      raise ValueError(f'data/{key} is missing: the file is damaged')
    return member.file_size, functools.cache(
      functools.partial(_member, member, content)
    )

  return _stored(
    loaded, lambda storage: find(storage.key), len(content), 'PyTorch (zip)'
  )


def read_legacy(path: pathlib.Path) -> stored_tensors.Stored:
  """Reads what is in a file of PyTorch before 1.6, as `loading.read`.

  Later versions write it with `_use_new_zipfile_serialization=False`.
  """
  content, file = _map(path), _map(path, unpickler.MAX_BYTES)
  if unpickler.load(file).value != _MAGIC_NUMBER:
    raise ValueError('a pickle, but none of torch.save')
  if unpickler.load(file).value != _PROTOCOL:
    raise ValueError('a file of PyTorch whose protocol is not known')
  match unpickler.load(file).value:
    case {'little_endian': True}:
      pass
    case _:
      raise ValueError('its byte order is not little: save it anew elsewhere')
  loaded = unpickler.load(file)
  keys = unpickler.load(file).value
  start = file.tell()
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise ValueError('its list of storages is damaged')
  itemsizes: dict[str, int] = {}
  for _, leaf in _leaves(loaded):
    match leaf:
      case unpickler.View(storage=storage) | (unpickler.Storage() as storage):
        itemsizes.setdefault(storage.key, storage.dtype.itemsize)
  view = memoryview(content)
  storages: dict[str, tuple[int, Bytes]] = {}
  for key in keys:
    if key not in itemsizes or key in storages:
      raise ValueError('its list of storages is damaged')
    header = view[start : start + 8]
    nbytes = int.from_bytes(header, 'little', signed=True) * itemsizes[key]
    start += 8
    if len(header) < 8 or not 0 <= nbytes <= len(view) - start:
      raise ValueError('its tensors end too soon: the file is truncated')
    window = view[start : start + nbytes]
    storages[key] = nbytes, window.toreadonly
    start += nbytes

  def find(storage: unpickler.Storage) -> tuple[int, Bytes]:
    if storage.key not in storages:
      raise ValueError('storages are missing: the file is damaged')
    return storages[storage.key]

  return _stored(loaded, find, len(content), 'PyTorch (before 1.6)')


def _map(path: pathlib.Path, most: int = 0) -> mmap.mmap:
  """Maps a file, or as much of its beginning, into memory."""
  with path.open('rb') as raw:
    size = raw.seek(0, io.SEEK_END)
    return mmap.mmap(raw.fileno(), min(most, size), access=mmap.ACCESS_READ)


class _Bounded(io.FileIO):
  """A file whose reader cannot be made to take it all into memory."""

  def read(self, size: int | None = -1, /) -> bytes:
    if size is not None and size > _MAX_DIRECTORY:
      raise ValueError(f'a zip archive with a directory of {size} bytes')
    return super().read(size)


def _members(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
  """Lists a zip archive by name."""
  try:
    with _Bounded(path) as raw, zipfile.ZipFile(raw) as archive:
      infos = archive.infolist()
  except (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    OverflowError,
  ) as error:
    raise ValueError(
      f'a zip archive that is truncated or damaged: {error}'
    ) from error
  members = {info.filename: info for info in infos}
  if len(members) < len(infos):
    raise ValueError('a zip archive with two members of one name')
  return members


def _member(member: zipfile.ZipInfo, content: memoryview) -> memoryview:
  """Returns the bytes of a member, once they are known to be sound."""
  what = escape.listed([member.filename])
  if (
    member.compress_type != zipfile.ZIP_STORED
    or member.compress_size != member.file_size
    or member.flag_bits & 1
  ):
    raise ValueError(
      f'{what} is compressed or encrypted, which PyTorch does not do: '
      'unpack the archive and save its weights anew'
    )
  # The directory does not say how long this header is.
  start = member.header_offset
  header = bytes(content[start : start + 30]) if start >= 0 else b''
  if len(header) < 30 or not header.startswith(b'PK\3\4'):
    raise ValueError(f'{what} is not where it should be: the file is damaged')
  start += 30 + sum(struct.unpack_from('<HH', header, 26))
  data = content[start : start + member.file_size]
  if len(data) < member.file_size or zlib.crc32(data) != member.CRC:
    raise ValueError(
      f'{what} does not have the checksum that it was saved with: the file is '
      'damaged (or was saved without checksums)'
    )
  return data


def _leaves(loaded: unpickler.Loaded) -> Iterator[tuple[str, Any]]:
  """Yields what is in nested dictionaries and lists, each of these once."""
  value, classes = loaded
  if isinstance(value, unpickler.Opaque) and not value and classes:
    raise ValueError(
      'it holds a whole object in place of a dictionary of weights, of '
      f'{escape.listed(classes, most=3)}: {unpickler.REMEDY}'
    )
  if not isinstance(value, dict | list | tuple):
    raise ValueError('it holds no dictionary of tensors')
  seen = {id(value)}
  queue: collections.deque[tuple[str, int, Any]] = collections.deque()
  queue.append(('', 0, value))
  count = 0
  while queue:
    prefix, depth, container = queue.popleft()
    is_dict = isinstance(container, dict)
    items = container.items() if is_dict else enumerate(container)
    for key, child in items:
      nested = isinstance(child, dict | list | tuple) and depth < _MAX_DEPTH
      if isinstance(child, unpickler.Opaque) and not child:
        nested = False
      # A long list of losses matters to nobody.
      if not nested and not is_dict and not isinstance(child, unpickler.View):
        continue
      if nested and id(child) in seen:
        continue
      count += 1
      name = f'{prefix}{key}'
      if count > _MAX_ENTRIES or len(name) > _MAX_NAME:
        raise ValueError(
          f'it has more than {_MAX_ENTRIES} entries, or names of more than '
          f'{_MAX_NAME} characters: save model.state_dict() alone'
        )
      if nested:
        seen.add(id(child))
        queue.append((f'{name}.', depth + 1, child))
      else:
        yield name, child


def _stored(
  loaded: unpickler.Loaded,
  find: Callable[[unpickler.Storage], tuple[int, Bytes]],
  size: int,
  kind: str,
) -> stored_tensors.Stored:
  """Puts together the tensors of a pickle, whose bytes `find` finds."""
  tensors: dict[str, stored_tensors.Tensor] = {}
  others = []
  for name, leaf in _leaves(loaded):
    if name in tensors:
      raise ValueError(f'two entries are called {escape.listed([name])}')
    if not isinstance(leaf, unpickler.View):
      others.append(name)
      continue
    try:
      tensors[name] = _tensor(leaf, *find(leaf.storage), size)
    except ValueError as error:
      raise ValueError(f'{escape.listed([name])}: {error}') from error
  return stored_tensors.Stored(tensors, {}, tuple(others), kind, loaded.classes)


def _tensor(
  view: unpickler.View, nbytes: int, data: Bytes, size: int
) -> stored_tensors.Tensor:
  shape, itemsize = view.shape, view.dtype.itemsize
  is_empty = 0 in shape
  # The stride of an axis of one element means nothing.
  stride = [s if n > 1 else 0 for n, s in zip(shape, view.stride, strict=True)]
  extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
  if nbytes < view.storage.size * view.storage.dtype.itemsize or (
    not is_empty and (view.offset + extent) * itemsize > nbytes
  ):
    raise ValueError('it reaches beyond its storage: the file is damaged')
  if math.prod(shape) * itemsize > size:
    raise ValueError('it is larger than the file')

  def read() -> np.ndarray:
    if is_empty:
      return np.zeros(shape, view.dtype)
    elements = np.frombuffer(
      data(), view.dtype, count=extent, offset=view.offset * itemsize
    )
    return np.lib.stride_tricks.as_strided(
      elements, shape, [s * itemsize for s in stride], writeable=False
    )

  return stored_tensors.Tensor(shape, view.dtype, read)
