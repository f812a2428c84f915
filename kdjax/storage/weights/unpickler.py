"""The pickles in PyTorch's files, read without running anything.

A pickle is a program, which Python's unpickler runs: it imports and calls what
the program names. Here it has only the operations that put data together, and
every name becomes a stand-in that is neither imported nor called. Tensors
become descriptions of tensors. Objects of any other class (a namespace of
arguments, a loss function, numbers of NumPy) are passed over; their classes are
named unless they are common and harmless. A file that would start programs or
run code is refused.

The size of a pickle has a limit, and so has the number of its operations. That,
and keys of dictionaries whose hashes take hours, are why it is Python's
unpickler in Python and not that in C, which cannot be held to either.
"""

import dataclasses
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from kdjax.storage.weights import stored_tensors
from kdjax.system import escape

# A checkpoint of ResNet-101 with Adam's moments has 60,000 operations, 0.5 MB.
MAX_BYTES = 2**26
_MAX_OPERATIONS = 2_000_000
# Larger integers can be chosen so that a dictionary of them takes hours.
_MAX_KEY = 2**60
# So many characters are compared in the time of an operation.
_LONG_KEY = 1000

_STORAGES = {
  f'{name}Storage': stored_tensors.DTYPES[dtype]
  for name, dtype in {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'Untyped': 'uint8',
  }.items()
}


def _names(by_module: dict[str, str]) -> frozenset[str]:
  """Returns dotted names; modules and names are separated by spaces."""
  return frozenset(
    f'{module}.{name}'
    for modules, names in by_module.items()
    for module in modules.split()
    for name in names.split()
  )


# What is passed over without a word.
_HARMLESS = _names(
  {
    'builtins __builtin__': 'bytearray complex dict frozenset int list object '
    'set slice',
    'builtins': 'str tuple',
    '__builtin__': 'unicode',
    '_codecs': 'encode',
    'argparse': 'Namespace',
    'collections': 'Counter defaultdict deque',
    'copyreg copy_reg': '_reconstructor',
    'datetime': 'datetime timedelta',
    'numpy': 'dtype ndarray',
    'numpy.core.multiarray numpy._core.multiarray': '_reconstruct scalar',
    'numpy.core.numeric numpy._core.numeric': '_frombuffer',
    'pathlib': 'Path PosixPath PurePosixPath PureWindowsPath WindowsPath',
    'pathlib._local': 'PosixPath WindowsPath',
    'torch': 'Size device',
    'types': 'SimpleNamespace',
  }
)
# What no data needs: it starts programs, or runs code.
_EXECUTING_MODULES = frozenset(
  (
    *('_posixsubprocess', 'code', 'ctypes', 'importlib', 'marshal', 'nt', 'os'),
    *('pickle', '_pickle', 'posix', 'pty', 'runpy', 'shutil', 'socket'),
    *('subprocess', 'sys', 'webbrowser'),
  )
)
_EXECUTING = _names(
  {
    'builtins __builtin__': '__import__ compile eval exec execfile open',
    'torch': 'load',
    'torch.storage': '_load_from_bytes',
  }
)
_ORDERED_DICT = 'collections.OrderedDict'
_PARAMETER = _names({'torch.nn.parameter': 'Parameter Buffer'})
_TENSOR_TYPES = _PARAMETER | _names({'torch torch._tensor': 'Tensor'})
_REBUILD_TENSOR = _names(
  {'torch._utils': '_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3'}
)
# These wrap a tensor, which is the first of their arguments.
_REBUILD_PARAMETER = _names(
  {'torch._utils': '_rebuild_parameter _rebuild_parameter_with_state'}
)
_REBUILD_SUBCLASS = 'torch._tensor._rebuild_from_type_v2'
_KNOWN = _TENSOR_TYPES | _REBUILD_TENSOR | _REBUILD_PARAMETER
_KNOWN |= {_ORDERED_DICT, _REBUILD_SUBCLASS}
_UNSUPPORTED = {
  'torch._utils._rebuild_meta_tensor_no_storage': 'a tensor without values',
  'torch._utils._rebuild_nested_tensor': 'a nested tensor',
  'torch._utils._rebuild_qtensor': 'a quantised tensor',
  'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
}
_NAME = re.compile(r'\w+(?:\.[\w<>-]+)+')
# What to do about a file that holds more than data.
REMEDY = (
  'nothing was executed. Save the weights alone, '
  'torch.save(model.state_dict(), …), where PyTorch and the code that made '
  'this file are installed and trusted'
)


@dataclasses.dataclass(frozen=True)
class Storage:
  """Numbers one after the other, to which tensors refer.

  Attributes:
    key: by which the file knows it.
    dtype: dtype of its elements.
    size: number of its elements.
  """

  key: str
  dtype: np.dtype
  size: int


@dataclasses.dataclass(frozen=True)
class View:
  """A tensor: some elements of a storage.

  Attributes:
    storage: where its elements are.
    dtype: dtype of its elements.
    offset: its first element.
    shape: its shape.
    stride: for each axis the number of elements from one to the next.
  """

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that was not imported, and what is called by it."""

  name: str


class Opaque(dict):
  """An object that is passed over, but for the items that it has as a dict.

  Some trainers keep weights in a dictionary of a class of their own.
  """


class Loaded(NamedTuple):
  """What a pickle holds.

  Attributes:
    value: dict, list, tuple, str, int, float, bool, bytes, None, `View` for a
      tensor, and `Global`, `Opaque`, `Storage` or a dtype for what is passed
      over. It may contain itself.
    classes: names of the classes and functions that were passed over and are
      not known to be harmless.
  """

  value: Any
  classes: tuple[str, ...]


def load(file: Any) -> Loaded:
  """Reads one pickle.

  Args:
    file: an open file with `read` and `readline`, neither of which returns more
      than the file has; it is left behind the pickle.

  Raises:
    ValueError: it is damaged, or would run code.
  """
  unpickler = _Unpickler(_File(file))
  try:
    value = unpickler.load()
  except IndexError as error:
    raise ValueError(
      'its pickle takes what is not there: the file is damaged'
    ) from error
  except (pickle.UnpicklingError, struct.error, TypeError) as error:
    raise ValueError(f'its pickle is damaged: {error}') from error
  return Loaded(value, tuple(unpickler.classes))


class _File:
  """A file that is refused where it has less than is to be read."""

  def __init__(self, file: Any):
    self._file = file

  def read(self, size: int) -> bytes:
    return self._whole(content := self._file.read(size), len(content) == size)

  def readline(self) -> bytes:
    return self._whole(line := self._file.readline(), line.endswith(b'\n'))

  def _whole(self, content: bytes, is_whole: bool) -> bytes:
    if not is_whole:
      raise ValueError('its pickle ends too soon: the file is truncated')
    return content


class _Operations:
  """The operations that are allowed, by their codes, and how many."""

  def __init__(self) -> None:
    self._spent = 0

  def spend(self, operations: int) -> None:
    """Counts operations, and what takes as long as so many.

    What is in the memo can be used again and again, whatever its length.
    """
    self._spent += operations
    if self._spent > _MAX_OPERATIONS:
      raise ValueError(
        f'its pickle has more than {_MAX_OPERATIONS} operations: save '
        'model.state_dict() alone'
      )

  def __getitem__(self, code: int) -> Callable[['_Unpickler'], None]:
    self.spend(1)
    if code not in _ALLOWED:
      raise ValueError(
        f'its pickle has the operation {bytes([code])!r}, which PyTorch does '
        'not write: the file is damaged; nothing was executed'
      )
    return _ALLOWED[code]


# Type checkers know only its public methods.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
  """Python's unpickler, which here makes nothing but data and stand-ins."""

  def __init__(self, file: _File):
    # The encoding is that of strings of Python 2.
    super().__init__(file, encoding='latin-1')
    self.classes: dict[str, None] = {}
    self._operations = self.dispatch = _Operations()

  def find_class(self, module: str, name: str) -> Any:
    """Returns what stands for a global, which is not imported."""
    full = f'{module}.{name}'
    if module == 'torch' and name in stored_tensors.DTYPES:
      return stored_tensors.DTYPES[name]
    if module in ('torch', 'torch.cuda', 'torch.storage') and name in _STORAGES:
      return _STORAGES[name]
    what = _UNSUPPORTED.get(full)
    if module == 'torch' and name.endswith('Storage'):
      what = 'a type of numbers that is not supported'
    elif not _NAME.fullmatch(full):
      what = 'not a name'
    elif module.partition('.')[0] in _EXECUTING_MODULES or full in _EXECUTING:
      what = 'code to run and not data'
    if what:
      raise ValueError(
        f'it holds {escape.listed([full])}, which is {what}: {REMEDY}'
      )
    if full not in _HARMLESS and full not in _KNOWN:
      self.classes[full] = None
    return Global(full)

  def persistent_load(self, identity: Any) -> Any:
    """Returns the description of a storage."""
    match identity:
      case ('storage', np.dtype() as dtype, str(key), _, int(size), *view) if (
        0 <= size <= sys.maxsize and view in ([], [None])
      ):
        return Storage(key, dtype, size)
      case ('module', Global() as kind, *_):
        # A whole module, before PyTorch 1.6: its class and its source code.
        return kind
    raise ValueError(
      'its pickle refers to something that is no storage: the file is '
      'damaged, or PyTorch before 0.4 wrote it'
    )

  def skip_frame(self) -> None:
    self.read(8)

  def push_opaque(self) -> None:
    self.append(Opaque())

  def frozenset(self) -> None:
    self.pop_mark()
    self.append(Opaque())

  def set_item(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._set_items([key, value])

  def set_items(self) -> None:
    self._set_items(self.pop_mark())

  def _set_items(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
      raise ValueError('its pickle sets items of no dictionary')
    self._update(target, zip(items[::2], items[1::2], strict=True))

  def _update(self, target: dict, items: Iterable[Any]) -> None:
    for key, value in items:
      if isinstance(key, str):
        # One that is there already is compared.
        self._operations.spend(len(key) // _LONG_KEY)
      elif not isinstance(key, int):
        continue  # No state dictionary has such keys, and hashing may be slow.
      elif abs(key) > _MAX_KEY:
        raise ValueError(
          'a dictionary has integers as keys that are not small: save '
          'model.state_dict() alone'
        )
      target[key] = value

  def append_item(self) -> None:
    self._extend([self.stack.pop()])

  def append_items(self) -> None:
    self._extend(self.pop_mark())

  def _extend(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, list):
      target.extend(items)
    elif not isinstance(target, Opaque):
      raise ValueError('its pickle appends to no list')

  def build(self) -> None:
    """Passes over attributes, such as the version of a state dictionary."""
    state = self.stack.pop()
    # A tensor of PyTorch before 0.4 could get its values here.
    is_parameters = (
      isinstance(state, tuple)
      and len(state) == 3
      and isinstance(state[0], bool)
    )
    if isinstance(self.stack[-1], View) and not is_parameters:
      raise ValueError('it holds a tensor as PyTorch before 0.4 saved them')

  def call_with_keywords(self) -> None:
    self.stack.pop()
    self.call()

  def call(self) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, Global | Opaque) or not isinstance(
      arguments, tuple
    ):
      raise ValueError('its pickle calls what is no function')
    name = function.name if isinstance(function, Global) else ''
    self.append(self._result(name, arguments))

  def _result(self, name: str, arguments: tuple) -> Any:
    """Stands for the result of a function, which is not called."""
    self._operations.spend(
      len(arguments)
      + sum(len(a) for a in arguments if isinstance(a, list | tuple))
    )
    if name == _ORDERED_DICT:
      result: dict = {}
      for pairs in arguments[:1]:  # As Python 2 wrote them.
        if not isinstance(pairs, list) or not all(
          isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
        ):
          raise ValueError('an ordered dictionary is not made of pairs')
        self._update(result, pairs)
      return result
    if name in _REBUILD_TENSOR:
      return _view(name, arguments)
    if name in _REBUILD_PARAMETER | _PARAMETER:
      if not arguments or not isinstance(arguments[0], View):
        raise ValueError('a parameter is no tensor')
      return arguments[0]
    if name == _REBUILD_SUBCLASS:
      match arguments:
        case (
          Global(name=inner),
          Global(name=kind),
          tuple(inner_arguments),
          _,
        ) if kind in _TENSOR_TYPES and inner != _REBUILD_SUBCLASS:
          return self._result(inner, inner_arguments)
      raise ValueError('a tensor is of a class that is not known')
    return Opaque()


def _view(name: str, arguments: tuple) -> View:
  match arguments:
    case (
      Storage() as storage,
      int(offset),
      tuple(shape) | list(shape),
      tuple(stride) | list(stride),
      *rest,
    ):
      pass
    case _:
      raise ValueError('a tensor is not described as PyTorch describes them')
  dtype = storage.dtype
  if name.endswith('_v3'):
    if len(rest) < 3 or not isinstance(rest[2], np.dtype):
      raise ValueError('a tensor is of a type that is not supported')
    dtype = rest[2]
  numbers = (offset, *shape, *stride)
  if (
    len(shape) != len(stride)
    or len(shape) > 32
    or not all(isinstance(n, int) and 0 <= n <= sys.maxsize for n in numbers)
  ):
    raise ValueError('a tensor has an impossible shape or stride')
  return View(storage, dtype, offset, tuple(shape), tuple(stride))


# Those of Python's that make nothing but data; each takes its own argument.
_ALLOWED: dict[int, Callable[[Any], None]] = {
  ord(code): _PythonUnpickler.dispatch[ord(code)]
  for code in (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINBYTES8, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_TUPLE),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
  )
} | {
  ord(code): operation
  for code, operation in {
    pickle.FRAME: _Unpickler.skip_frame,
    # Python's makes an array of any length before it reads it.
    pickle.BYTEARRAY8: _PythonUnpickler.load_binbytes8,
    pickle.EMPTY_SET: _Unpickler.push_opaque,
    pickle.FROZENSET: _Unpickler.frozenset,
    pickle.SETITEM: _Unpickler.set_item,
    pickle.SETITEMS: _Unpickler.set_items,
    pickle.APPEND: _Unpickler.append_item,
    pickle.APPENDS: _Unpickler.append_items,
    pickle.ADDITEMS: _Unpickler.append_items,
    pickle.BUILD: _Unpickler.build,
    pickle.REDUCE: _Unpickler.call,
    pickle.NEWOBJ: _Unpickler.call,
    pickle.NEWOBJ_EX: _Unpickler.call_with_keywords,
  }.items()
}
