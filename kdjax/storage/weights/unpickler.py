"""The pickles in PyTorch's files, read without running anything.

A pickle is a program. Python's own unpickler runs it: it imports and calls what
the program names. Here a small stack machine goes through the operations and
only puts data together: dictionaries, lists, tuples, strings, numbers, and
descriptions of tensors. Objects of any other class (a namespace of arguments, a
loss function, numbers of NumPy) are passed over and never made; their classes
are named unless they are common and harmless. A file that would start programs
or run code is refused.

Everything is bounded: by the size of the pickle, which has a limit, and by the
number of operations, which has one too.
"""

import dataclasses
import pickletools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from kdjax.system import escape

# A checkpoint of ResNet-101 with Adam's moments has 60,000 operations, 0.5 MB.
MAX_BYTES = 2**26
_MAX_OPERATIONS = 2_000_000
# Larger integers can be chosen so that a dictionary of them takes hours.
_MAX_KEY = 2**60
# So many characters are compared in the time of an operation.
_LONG_KEY = 1000

_STORAGES: Mapping[str, np.dtype] = {
  'DoubleStorage': np.dtype('<f8'),
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
  'UntypedStorage': np.dtype('u1'),
}
_DTYPES: Mapping[str, np.dtype] = {
  'float64': np.dtype('<f8'),
  'float32': np.dtype('<f4'),
  'float16': np.dtype('<f2'),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'int64': np.dtype('<i8'),
  'int32': np.dtype('<i4'),
  'int16': np.dtype('<i2'),
  'int8': np.dtype('i1'),
  'uint8': np.dtype('u1'),
  'uint16': np.dtype('<u2'),
  'uint32': np.dtype('<u4'),
  'uint64': np.dtype('<u8'),
  'bool': np.dtype('?'),
}

# What is passed over without a word: neither imported nor called.
_HARMLESS = frozenset(
  (
    '__builtin__.bytearray',
    '__builtin__.complex',
    '__builtin__.frozenset',
    '__builtin__.object',
    '__builtin__.set',
    '__builtin__.slice',
    '_codecs.encode',
    'argparse.Namespace',
    'builtins.bytearray',
    'builtins.complex',
    'builtins.frozenset',
    'builtins.object',
    'builtins.set',
    'builtins.slice',
    'collections.Counter',
    'collections.defaultdict',
    'collections.deque',
    'copy_reg._reconstructor',
    'copyreg._reconstructor',
    'datetime.datetime',
    'datetime.timedelta',
    'numpy._core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    'numpy._core.numeric._frombuffer',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy.core.numeric._frombuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'pathlib.Path',
    'pathlib.PosixPath',
    'pathlib.PurePosixPath',
    'pathlib.PureWindowsPath',
    'pathlib.WindowsPath',
    'pathlib._local.PosixPath',
    'pathlib._local.WindowsPath',
    'torch.Size',
    'torch.device',
    'types.SimpleNamespace',
    *(f'builtins.{name}' for name in ('dict', 'int', 'list', 'str', 'tuple')),
    *(f'__builtin__.{name}' for name in ('dict', 'int', 'list', 'unicode')),
  )
)
# What no data needs: it starts programs, or runs code.
_EXECUTING = frozenset(
  (
    *('_posixsubprocess', 'code', 'ctypes', 'importlib', 'marshal', 'nt', 'os'),
    *('pickle', '_pickle', 'posix', 'pty', 'runpy', 'shutil', 'socket'),
    *('subprocess', 'sys', 'webbrowser'),
  )
)
_EXECUTING_NAMES = frozenset(
  (
    *(
      f'{module}.{name}'
      for module in ('builtins', '__builtin__')
      for name in ('__import__', 'compile', 'eval', 'exec', 'execfile', 'open')
    ),
    'torch.load',
    'torch.storage._load_from_bytes',
  )
)
_ORDERED_DICT = 'collections.OrderedDict'
_PARAMETER = ('torch.nn.parameter.Parameter', 'torch.nn.parameter.Buffer')
_TENSOR_TYPES = ('torch.Tensor', 'torch._tensor.Tensor', *_PARAMETER)
_REBUILD_TENSOR = tuple(
  f'torch._utils._rebuild_tensor{version}' for version in ('', '_v2', '_v3')
)
# These wrap a tensor, which is the first of their arguments.
_REBUILD_PARAMETER = (
  'torch._utils._rebuild_parameter',
  'torch._utils._rebuild_parameter_with_state',
)
_REBUILD_SUBCLASS = 'torch._tensor._rebuild_from_type_v2'
_WHAT = {
  'torch._utils._rebuild_meta_tensor_no_storage': 'a tensor without values',
  'torch._utils._rebuild_nested_tensor': 'a nested tensor',
  'torch._utils._rebuild_qtensor': 'a quantised tensor',
  'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
}


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


_KNOWN = frozenset(
  (
    *(_ORDERED_DICT, _REBUILD_SUBCLASS),
    *(*_TENSOR_TYPES, *_REBUILD_TENSOR, *_REBUILD_PARAMETER),
  )
)
_NAME = re.compile(r'\w+(?:\.[\w<>-]+)+')
# What to do about a file that holds more than data.
REMEDY = (
  'nothing was executed. Save the weights alone, '
  'torch.save(model.state_dict(), …), where PyTorch and the code that made '
  'this file are installed and trusted'
)
_DAMAGED = 'its pickle takes what is not there: the file is damaged'


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

  Returns:
    What was pickled.

  Raises:
    ValueError: it is damaged, or would run code.
  """
  machine = _Machine()
  while True:
    machine.spend(1)
    code = file.read(1)
    if not code:
      raise ValueError('its pickle ends too soon: the file is truncated')
    if code == b'.':
      return Loaded(machine.pop(), tuple(machine.classes))
    if code == b'c':
      _push_global(machine, _line(file), _line(file))
      continue
    opcode = _OPCODES.get(code.decode('latin-1'))
    if opcode is None:
      raise ValueError(
        f'its pickle has the operation {code!r}, which PyTorch does not write: '
        'the file is damaged; nothing was executed'
      )
    try:
      argument = opcode.arg and opcode.arg.reader(file)
    except ValueError as error:
      raise ValueError(f'its pickle is damaged: {error}') from error
    _OPERATIONS[opcode.name](machine, argument)


def _line(file: Any) -> str:
  return file.readline().removesuffix(b'\n').decode('utf-8', 'replace')


def _push_global(machine: '_Machine', module: str, name: str) -> None:
  """Pushes what stands for a global, which is not imported."""
  full = f'{module}.{name}'
  known: Any = None
  if module == 'torch':
    known = _DTYPES.get(name)
  if known is None and module in ('torch', 'torch.cuda', 'torch.storage'):
    known = _STORAGES.get(name)
  if known is not None:
    machine.push(known)
    return
  what = _WHAT.get(full)
  if module == 'torch' and name.endswith('Storage'):
    what = 'a type of numbers that is not supported'
  elif not _NAME.fullmatch(full):
    what = 'not a name'
  elif module.partition('.')[0] in _EXECUTING or full in _EXECUTING_NAMES:
    what = 'code to run and not data'
  if what:
    raise ValueError(
      f'it holds {escape.listed([full])}, which is {what}: {REMEDY}'
    )
  if full not in _HARMLESS and full not in _KNOWN:
    machine.classes[full] = None
  machine.push(Global(full))


class _Machine:
  """The stack, its marks and the memo."""

  def __init__(self) -> None:
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.classes: dict[str, None] = {}
    self.operations = 0

  def spend(self, operations: int) -> None:
    """Counts operations, and what takes as long as so many.

    What is in the memo can be used again and again, whatever its length.
    """
    self.operations += operations
    if self.operations > _MAX_OPERATIONS:
      raise ValueError(
        f'its pickle has more than {_MAX_OPERATIONS} operations: save '
        'model.state_dict() alone'
      )

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    # What is under a mark belongs to whoever is to pop the mark.
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise ValueError(_DAMAGED)
    return self.stack.pop()

  def pop_tuple(self, size: int) -> tuple:
    return tuple([self.pop() for _ in range(size)][::-1])

  def top(self) -> Any:
    value = self.pop()
    self.push(value)
    return value

  def pop_mark(self) -> list[Any]:
    if not self.marks:
      raise ValueError(_DAMAGED)
    start = self.marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def set_items(self, items: list[Any]) -> None:
    target = self.top()
    if not isinstance(target, dict) or len(items) % 2:
      raise ValueError('its pickle sets items of no dictionary')
    self.update(target, zip(items[::2], items[1::2], strict=True))

  def update(self, target: dict, items: Iterable[Any]) -> None:
    for key, value in items:
      if isinstance(key, str):
        # One that is there already is compared.
        self.spend(len(key) // _LONG_KEY)
      elif not isinstance(key, int):
        continue  # No state dictionary has such keys, and hashing may be slow.
      elif abs(key) > _MAX_KEY:
        raise ValueError(
          'a dictionary has integers as keys that are not small: save '
          'model.state_dict() alone'
        )
      target[key] = value

  def extend(self, items: list[Any]) -> None:
    target = self.top()
    if isinstance(target, list):
      target.extend(items)
    elif not isinstance(target, Opaque):
      raise ValueError('its pickle appends to no list')

  def call(self) -> None:
    function, arguments = self.pop_tuple(2)
    if not isinstance(function, Global | Opaque) or not isinstance(
      arguments, tuple
    ):
      raise ValueError('its pickle calls what is no function')
    name = function.name if isinstance(function, Global) else ''
    self.push(_call(self, name, arguments))

  def build(self) -> None:
    """Passes over attributes, such as the version of a state dictionary."""
    target, state = self.pop_tuple(2)
    # A tensor of PyTorch before 0.4 could get its values here.
    is_parameters = (
      isinstance(state, tuple)
      and len(state) == 3
      and isinstance(state[0], bool)
    )
    if isinstance(target, View) and not is_parameters:
      raise ValueError('it holds a tensor as PyTorch before 0.4 saved them')
    self.push(target)

  def memoize(self, index: int) -> None:
    self.memo[index] = self.top()

  def recall(self, index: int) -> None:
    if index not in self.memo:
      raise ValueError(_DAMAGED)
    self.push(self.memo[index])


def _call(machine: _Machine, name: str, arguments: tuple) -> Any:
  """Stands for the result of a function, which is not called."""
  machine.spend(len(arguments))
  machine.spend(sum(len(a) for a in arguments if isinstance(a, list | tuple)))
  if name == _ORDERED_DICT:
    result: dict = {}
    for pairs in arguments[:1]:  # As Python 2 wrote them.
      if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
      ):
        raise ValueError('an ordered dictionary is not made of pairs')
      machine.update(result, pairs)
    return result
  if name in _REBUILD_TENSOR:
    return _view(name, arguments)
  if name in _REBUILD_PARAMETER or name in _PARAMETER:
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
        return _call(machine, inner, inner_arguments)
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


def _persistent(machine: _Machine, _: None) -> None:
  match machine.pop():
    case ('storage', np.dtype() as dtype, str(key), _, int(size), *view) if (
      0 <= size <= sys.maxsize and view in ([], [None])
    ):
      machine.push(Storage(key, dtype, size))
    case ('module', Global() as kind, *_):
      # A whole module, before PyTorch 1.6: its class and its source code.
      machine.push(kind)
    case _:
      raise ValueError(
        'its pickle refers to something that is no storage: the file is '
        'damaged, or PyTorch before 0.4 wrote it'
      )


def _stack_global(machine: _Machine, _: None) -> None:
  module, name = machine.pop_tuple(2)
  if not isinstance(module, str) or not isinstance(name, str):
    raise ValueError('its pickle names a global by what is no name')
  _push_global(machine, module, name)


def _frozenset(machine: _Machine, _: None) -> None:
  machine.pop_mark()
  machine.push(Opaque())


def _new_with_keywords(machine: _Machine, _: None) -> None:
  function, arguments, _ = machine.pop_tuple(3)
  machine.push(function)
  machine.push(arguments)
  machine.call()


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(make())


def _push(machine: _Machine, value: Any) -> None:
  machine.push(value)


def _nothing(machine: _Machine, _: Any) -> None:
  pass


# By the names in `pickletools`.
_OPERATIONS: Mapping[str, Callable[[_Machine, Any], object]] = {
  'PROTO': _nothing,
  'FRAME': _nothing,
  'NONE': _constant(lambda: None),
  'NEWTRUE': _constant(lambda: True),
  'NEWFALSE': _constant(lambda: False),
  'EMPTY_DICT': _constant(dict),
  'EMPTY_LIST': _constant(list),
  'EMPTY_TUPLE': _constant(tuple),
  'EMPTY_SET': _constant(Opaque),
  **dict.fromkeys(
    (
      *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4'),
      *('BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
      *('SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
      # Python 2's strings.
      *('BINSTRING', 'SHORT_BINSTRING'),
    ),
    _push,
  ),
  'MARK': lambda machine, _: machine.marks.append(len(machine.stack)),
  'POP': lambda machine, _: machine.pop(),
  'POP_MARK': lambda machine, _: machine.pop_mark(),
  'TUPLE': lambda machine, _: machine.push(tuple(machine.pop_mark())),
  'TUPLE1': lambda machine, _: machine.push(machine.pop_tuple(1)),
  'TUPLE2': lambda machine, _: machine.push(machine.pop_tuple(2)),
  'TUPLE3': lambda machine, _: machine.push(machine.pop_tuple(3)),
  'LIST': lambda machine, _: machine.push(machine.pop_mark()),
  'APPEND': lambda machine, _: machine.extend([machine.pop()]),
  'APPENDS': lambda machine, _: machine.extend(machine.pop_mark()),
  'ADDITEMS': lambda machine, _: machine.extend(machine.pop_mark()),
  'SETITEM': lambda machine, _: machine.set_items([*machine.pop_tuple(2)]),
  'SETITEMS': lambda machine, _: machine.set_items(machine.pop_mark()),
  'BINPUT': _Machine.memoize,
  'LONG_BINPUT': _Machine.memoize,
  'MEMOIZE': lambda machine, _: machine.memoize(len(machine.memo)),
  'BINGET': _Machine.recall,
  'LONG_BINGET': _Machine.recall,
  'STACK_GLOBAL': _stack_global,
  'REDUCE': lambda machine, _: machine.call(),
  'NEWOBJ': lambda machine, _: machine.call(),
  'NEWOBJ_EX': _new_with_keywords,
  'FROZENSET': _frozenset,
  'BUILD': lambda machine, _: machine.build(),
  'BINPERSID': _persistent,
}
_OPCODES = {
  opcode.code: opcode
  for opcode in pickletools.opcodes
  if opcode.name in _OPERATIONS
}
