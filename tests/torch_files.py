"""Writes files as `torch.save` does, without PyTorch."""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


class Global(NamedTuple):
  """What is imported when it is unpickled."""

  module: str
  name: str


class Call(NamedTuple):
  """What is called when it is unpickled: REDUCE, NEWOBJ, and BUILD."""

  function: Any
  arguments: tuple
  operation: bytes = b'R'
  state: Any = None


class Raw(NamedTuple):
  """Operations as they are."""

  code: bytes


class Tensor(NamedTuple):
  """A tensor that is part of a storage."""

  storage: np.ndarray
  offset: int
  shape: Any
  stride: Any
  rebuild: Any = Global('torch._utils', '_rebuild_tensor_v2')
  more: tuple = (False, Call(Global('collections', 'OrderedDict'), ()))


ORDERED_DICT = Global('collections', 'OrderedDict')
STORAGES = {
  'float64': 'DoubleStorage',
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
}


class Writer:
  """Pickles values, and collects the storages of their tensors."""

  def __init__(self, *, legacy: bool = False):
    self.legacy = legacy
    self.storages: list[np.ndarray] = []

  def pickle(self, value: Any) -> bytes:
    return b'\x80\x02' + self.encode(value) + b'.'

  def encode(self, value: Any) -> bytes:
    encode = self.encode
    match value:
      case Raw(code):
        return code
      case Global(module, name):
        return f'c{module}\n{name}\n'.encode()
      case Call(function, arguments, operation, state):
        code = encode(function) + encode(arguments) + operation
        return code if state is None else code + encode(state) + b'b'
      case Tensor(storage, offset, shape, stride, rebuild, more):
        key = str(self._key(storage))
        kind = Global('torch', STORAGES[storage.dtype.name])
        last = (None,) if self.legacy else ()
        identity = ('storage', kind, key, 'cpu', storage.size, *last)
        place = Raw(encode(identity) + b'Q')
        return encode(Call(rebuild, (place, offset, shape, stride, *more)))
      case np.ndarray():
        stride = tuple(s // value.itemsize for s in value.strides)
        return encode(Tensor(value.reshape(-1), 0, value.shape, stride))
      case dict():
        items = b''.join(encode(k) + encode(v) for k, v in value.items())
        return b'}(' + items + b'u'
      case list():
        return b'](' + b''.join(map(encode, value)) + b'e'
      case tuple():
        return b'(' + b''.join(map(encode, value)) + b't'
    # Python's own, without its frame: protocol, …, STOP.
    return pickle.dumps(value, 2)[2:-1]

  def _key(self, storage: np.ndarray) -> int:
    for i, known in enumerate(self.storages):
      if known is storage:
        return i
    self.storages.append(storage)
    return len(self.storages) - 1


def write_zip(path, value, *, byteorder=b'little', root='archive', **options):
  """Writes a file as PyTorch 1.6 and later do.

  Args:
    path: the file.
    value: what is in it; arrays become tensors.
    byteorder: what the file says of its byte order, or None.
    root: the directory in the archive.
    **options: `pickled`, the pickle if not that of `value`; `compression`.
  """
  writer = Writer()
  code = writer.pickle(value)
  method = options.get('compression', zipfile.ZIP_STORED)
  with zipfile.ZipFile(path, 'w', method) as archive:
    archive.writestr(f'{root}/data.pkl', options.get('pickled', code))
    if byteorder is not None:
      archive.writestr(f'{root}/byteorder', byteorder)
    for key, storage in enumerate(writer.storages):
      archive.writestr(f'{root}/data/{key}', storage.tobytes())
    archive.writestr(f'{root}/version', b'3\n')


def write_legacy(path, value, *, little_endian=True, **options):
  """Writes a file as PyTorch before 1.6 did.

  Args:
    path: the file.
    value: what is in it; arrays become tensors.
    little_endian: what the file says of its byte order.
    **options: `keys`, the list of storages if not the right one.
  """
  writer = Writer(legacy=True)
  code = writer.pickle(value)
  keys = options.get('keys', [str(i) for i in range(len(writer.storages))])
  sizes = {'short': 2, 'int': 4, 'long': 4}
  system = {
    'protocol_version': 1001,
    'little_endian': little_endian,
    'type_sizes': sizes,
  }
  with open(path, 'wb') as file:
    for part in (MAGIC_NUMBER, 1001, system):
      file.write(pickle.dumps(part, 2))
    file.write(code + pickle.dumps(keys, 2))
    for storage in writer.storages:
      file.write(struct.pack('<q', storage.size) + storage.tobytes())
