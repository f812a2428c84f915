"""Reads hostile and damaged files of weights, in a process of its own.

    PYTHONPATH=.:tests python tests/weights/hostile.py FOLDER NUMBER

writes each file into FOLDER, has kdjax read it, and prints as JSON what came of
it. Whatever a file could have executed is watched by an audit hook, and memory
has a limit.
"""

import collections
import json
import pathlib
import pickle
import random
import resource
import struct
import sys
import time
import traceback
import zipfile

import flax
import numpy as np
import reference
import safetensors.numpy
import torch_files
from torch_files import Call, Global, Raw, Tensor

from kdjax.storage import weights
from kdjax.storage.weights import resnet_names

# Beyond what Python and its packages have taken before the first file.
MEMORY = 2**29
NAMESPACE = Call(Global('argparse', 'Namespace'), ())
STATE = {
  'x': np.arange(6, dtype=np.float32).reshape(2, 3),
}


def state_of(width=1):
  model = {
    'name': 'resnet10',
    'num_classes': 3,
    'stem': 'cifar',
    'width': width,
  }
  shapes = resnet_names._shapes(model, False, [1, 1, 1, 1], (3, 3), 3)
  state = {name: reference.tensor(name, shape) for name, shape in shapes}
  return resnet_names.with_counters(state)


# Files made by hand


def shared(levels, container):
  """What contains itself twice, so often that no one can look at all of it."""
  code = container(b'K\x01', b'K\x02') + b'q\0'
  for _ in range(levels):
    code += b'0' + container(b'h\0', b'h\0') + b'q\0'
  return Raw(code)


def pair(a, b):
  return a + b + b'\x86'


def dictionary(a, b):
  return b'}(K\x01' + a + b'K\x02' + b + b'u'


def with_length(code, length, size):
  return Raw(code + length.to_bytes(size, 'little') + b'abc')


# What torch.save never writes, and what a pickle may hold beside weights.
CALLS = {
  f'calls {module}.{name}': {
    **STATE,
    'y': Call(Global(module, name), arguments),
  }
  for module, name, arguments in [
    ('os', 'system', ('touch executed',)),
    ('posix', 'system', ('touch executed',)),
    ('builtins', 'eval', ('open("executed", "w")',)),
    ('builtins', 'exec', ('open("executed", "w")',)),
    ('__builtin__', 'eval', ('open("executed", "w")',)),
    ('builtins', '__import__', ('this',)),
    ('subprocess', 'Popen', (['touch', 'executed'],)),
    ('importlib', 'import_module', ('this',)),
    ('pickle', 'loads', (pickle.dumps(1),)),
    ('torch', 'load', ('executed',)),
    ('torch.storage', '_load_from_bytes', (b'',)),
    ('ctypes', 'CDLL', ('libc.so.6',)),
    ('socket', 'create_connection', (('localhost', 1),)),
    ('torch._utils', '_rebuild_qtensor', ()),
    ('torch._utils', '_rebuild_sparse_tensor', ()),
    ('torch\n', 'x', ()),
  ]
}
X = STATE['x']
PICKLES = {
  **CALLS,
  'a method by its name': {
    **STATE,
    'y': Call(
      Call(Global('builtins', 'getattr'), (NAMESPACE, '__class__')), ('a',)
    ),
  },
  'code of a package': {
    **STATE,
    'y': Call(Global('mine.code', 'run'), ('touch executed',)),
  },
  'many classes': Raw(
    b'(' + b''.join(b'cm\n%x\n' % i for i in range(200_000)) + b't'
  ),
  'a call of a call': Call(Call(Global('os', 'system'), ('a',)), ('b',)),
  'a call of what is harmless': Call(NAMESPACE, ('touch executed',)),
  'a call of a tensor': Call(X, (1,)),
  'a call with a list': Call(Global('os', 'system'), ['touch executed']),
  'a new object': Call(Global('os', 'popen'), ('a',), b'\x81'),
  'a stack global': Raw(b'\x8c\x02os\x8c\x06system\x93)R'),
  'a stack global of numbers': Raw(b'K\x01K\x02\x93'),
  'an instance': Raw(b'(ios\nsystem\n'),
  'an object': Raw(b'(cos\nsystem\no'),
  'an extension': Raw(b'\x82\x01'),
  'a text identity': Raw(b'Pos.system\n'),
  'an identity that is a number': Raw(b'K\x01Q'),
  'a string to be evaluated': Raw(b"S'\\d'\n"),
  'a namespace with methods': Call(
    Global('argparse', 'Namespace'), (), b'R', {'__class__': 'os'}
  ),
  'a number in place of a state': 3,
  'a tensor in place of a state': X,
  'an empty dictionary': {},
  'a memo of gigabytes': Raw(b'}r\xff\xff\xff\xff'),
  'a memo that is not there': Raw(b'h\x07'),
  'a dictionary of dictionaries': shared(200, dictionary),
  'a tuple of tuples': shared(200, pair),
  'a key that is a tuple of tuples': Raw(
    b'}' + shared(200, pair).code + b'K\x01s'
  ),
  'keys that collide': {k * (2**61 - 1): 0 for k in range(1, 1000)},
  'a key that is a tensor': Raw(b'}cargparse\nNamespace\n)RK\x01s'),
  'a key that is a fraction': {0.5: X},
  'a dictionary in itself': Raw(b'}q\0X\1\0\0\0ah\0s'),
  'a list in itself': Raw(b']q\0h\0a'),
  'a list in lists': Raw(b']' * 200_000 + b'a' * 199_999),
  'a tuple in tuples': Raw(b')' + b'\x85' * 200_000),
  'marks': Raw(b'(' * 200_000),
  'nothing to take': Raw(b'0'),
  'no mark to take': Raw(b't'),
  'a mark to take': Raw(b'(K\x01(0'),
  'a dictionary of an odd number': Raw(b'}(K\x01u'),
  'items of a number': Raw(b'K\x01K\x01K\x01s'),
  'a member of a number': Raw(b'K\x01K\x01a'),
  'a list without end': Raw(b']' * 2_100_000),
  'a long name': {'a' * 100_000: X},
  'a name of names': {'a' * 300: {'b' * 300: X}},
  'pairs again and again': Raw(
    b'ccollections\nOrderedDict\nq\0](K\x01K\x02\x86q\1'
    + b'h\1' * 99_999
    + b'e\x85q\2'
    + b'h\0h\2R0' * 2_000
  ),
  'arguments again and again': Raw(
    b'cargparse\nNamespace\nq\0(' + b'N' * 100_000 + b'tq\1'
    b'' + b'h\0h\1R0' * 2_000
  ),
  'long keys again and again': Raw(
    b'}'
    + b''.join(
      b'X' + (10**6).to_bytes(4, 'little') + b'a' * 10**6 + memo + b'K\1s'
      for memo in (b'q\0', b'q\1')
    )
    + b'h\0K\1sh\1K\1s' * 2_000
  ),
  'many entries': {f'{i}': 0 for i in range(100_001)},
  'a number of gigabytes': with_length(b'\x8b', 2**31 - 1, 4),
  'a negative length': with_length(b'\x8b', 2**31, 4),
  'a number of many digits': Raw(b'L' + b'9' * 10_000 + b'L\n'),
  'a string of gigabytes': with_length(b'X', 2**32 - 1, 4),
  'a string of exabytes': with_length(b'\x8d', 2**62, 8),
  'bytes of exabytes': with_length(b'\x8e', 2**62, 8),
  'a byte array of exabytes': with_length(b'\x96', 2**62, 8),
  'a string that is no text': Raw(b'X\1\0\0\0\xff'),
  'a name that cannot be printed': Raw(b'}X\3\0\0\0\xed\xa0\x80' + b'K\x01s'),
  'the end of a line missing': Raw(b'cos'),
  'no end': Raw(b'}.')[:0] or Raw(b'}' * 3),
  'a tensor of terabytes': {'x': Tensor(X.ravel(), 0, (2**40,), (0,))},
  'a tensor of an impossible size': {
    'x': Tensor(X.ravel(), 0, (2**62, 2**62), (0, 0))
  },
  'a tensor with a negative stride': {'x': Tensor(X.ravel(), 5, (6,), (-1,))},
  'a tensor before its storage': {'x': Tensor(X.ravel(), -1, (6,), (1,))},
  'a tensor behind its storage': {'x': Tensor(X.ravel(), 1, (6,), (1,))},
  'a tensor of other strides': {'x': Tensor(X.ravel(), 0, (2, 3), (4, 1))},
  'a tensor of many axes': {'x': Tensor(X.ravel(), 0, (1,) * 65, (1,) * 65)},
  'a tensor with fewer strides': {'x': Tensor(X.ravel(), 0, (2, 3), (1,))},
  'a tensor of half an element': {'x': Tensor(X.ravel(), 0, (0.5,), (1,))},
  'a tensor of a list': {'x': Tensor(X.ravel(), 0, 6, 1)},
  'a tensor of no storage': {
    'x': Call(Global('torch._utils', '_rebuild_tensor_v2'), (1, 0, (), ()))
  },
  'a tensor of no known type': {
    'x': Tensor(
      X.ravel(),
      *(0, (6,), (1,)),
      Global('torch._utils', '_rebuild_tensor_v3'),
      (False, {}, 'float32'),
    )
  },
  'a tensor set anew': {
    'x': Call(
      *(Global('torch._utils', '_rebuild_parameter'), (X, True, {})),
      state=(X, 0),
    )
  },
  'a parameter of nothing': Call(
    Global('torch._utils', '_rebuild_parameter'), (1, True, {})
  ),
  'a tensor of a subclass': Call(
    Global('torch._tensor', '_rebuild_from_type_v2'),
    (
      Global('torch._tensor', '_rebuild_from_type_v2'),
      *(Global('torch', 'Tensor'), (), {}),
    ),
  ),
  'an ordered dictionary of numbers': Call(torch_files.ORDERED_DICT, ([1, 2],)),
  'a storage of a negative size': Raw(
    b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0'
    + b'0NJ\xff\xff\xff\xfftQ'
  ),
  'complex numbers': {'x': Global('torch', 'ComplexFloatStorage')},
}


def archives(folder):
  """Yields names of zip archives, written to a path that is yielded too."""
  path = folder / 'file'

  def written(change=None, **options):
    torch_files.write_zip(path, state_of(), **options)
    if change:
      content = bytearray(path.read_bytes())
      change(content)
      path.write_bytes(content)
    return path

  def directory(offset, value):
    """Changes the entry of the member data/0."""

    def change(content):
      start = content.rindex(b'archive/data/0') - 46
      content[start + offset : start + offset + len(value)] = value

    return change

  yield (
    'a pickle that is compressed',
    written(
      compression=zipfile.ZIP_DEFLATED, pickled=b'\x80\x02' + b'}0' * 10**7
    ),
  )
  yield 'a wrong checksum', written(directory(16, b'abcd'))
  yield 'a member of another method', written(directory(10, b'\x08\0'))
  yield 'a member that is encrypted', written(directory(8, b'\x01\0'))
  yield (
    'a member of gigabytes',
    written(directory(20, b'\xf0\xff\xff\x7f\xf0\xff\xff\x7f')),
  )
  yield 'a member elsewhere', written(directory(42, b'\x01\0\0\0'))
  yield 'a member outside', written(directory(42, b'\xf0\xff\xff\x7f'))
  yield 'a member that needs a later version', written(directory(6, b'\xff\0'))
  yield 'a name that is a path', written(root='../..')
  for name, options in {
    'a member twice': {'archive/data/0': b'x'},
    'another pickle': {'other/data.pkl': b'}.'},
    'paths': {'../../etc/passwd': b'x', '/etc/passwd': b'x'},
  }.items():
    written()
    with zipfile.ZipFile(path, 'a') as archive:
      for member, content in options.items():
        # `writestr` warns of a name that is there already.
        archive.NameToInfo.pop(member, None)
        archive.writestr(member, content)
    yield name, path
  # All of them in the same few bytes.
  storage = np.ones(10_000, np.float32)
  wide = state_of(width=8)
  torch_files.write_zip(
    path,
    {
      name: Tensor(storage, 0, array.shape, contiguous(array))
      if array.size <= storage.size
      else array
      for name, array in wide.items()
      if array.dtype == np.float32
    },
  )
  yield 'tensors in the same place', path
  torch_files.write_zip(
    path,
    {
      name: Tensor(storage[:1], 0, array.shape, (0,) * array.ndim)
      if array.dtype == np.float32
      else array
      for name, array in state_of(width=32).items()
    },
  )
  yield 'tensors of one element', path


def contiguous(array):
  return tuple(stride // array.itemsize for stride in array.strides)


def legacies(folder):
  path = folder / 'file'

  def written(change=None, **options):
    torch_files.write_legacy(path, STATE, **options)
    if change:
      content = path.read_bytes()
      path.write_bytes(change(content))
    return path

  count = struct.pack('<q', 6)
  for name, number in {
    'a storage of exabytes': 2**60,
    'a storage of a negative size': -1,
    'a storage that is too short': 5,
  }.items():
    yield (
      name,
      written(
        lambda content, number=number: content.replace(
          count, struct.pack('<q', number)
        )
      ),
    )
  yield 'no storages', written(keys=[])
  yield 'a storage twice', written(keys=['0', '0'])
  yield 'a storage too many', written(keys=['0', '1'])
  yield 'storages that are numbers', written(keys=[0])
  yield 'storages that are none', written(keys=3)
  yield 'truncated in a number', written(lambda content: content[:-28])
  yield 'truncated in a storage', written(lambda content: content[:-1])
  yield (
    'another protocol',
    written(lambda content: content.replace(b'M\xe9\x03.', b'M\xea\x03.', 1)),
  )


HEADERS = {
  'a shape of exabytes': '{"a":{"dtype":"F32","shape":[4611686018427387904],'
  '"data_offsets":[0,4]}}',
  'a shape that overflows': '{"a":{"dtype":"F32",'
  '"shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
  'an empty shape that is large': '{"a":{"dtype":"F32","shape":'
  '[0,9223372036854775807],"data_offsets":[0,0]}}',
  'an empty shape that is larger': '{"a":{"dtype":"F32","shape":'
  '[0,18446744073709551615],"data_offsets":[0,0]}}',
  'an empty shape that is there': '{"a":{"dtype":"F32","shape":'
  '[0,9223372036854775807],"data_offsets":[0,0]},'
  '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
  'offsets outside': '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
  'offsets turned': '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
  'a negative offset': '{"a":{"dtype":"F32","shape":[1],'
  '"data_offsets":[-4,0]}}',
  'two in one place': '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
  '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
  'a type that is not known': '{"a":{"dtype":"X","shape":[1],'
  '"data_offsets":[0,4]}}',
  'a type that is not supported': '{"a":{"dtype":"F8_E4M3","shape":[4],'
  '"data_offsets":[0,4]}}',
  'metadata that is a number': '{"__metadata__":{"a":1}}',
  'a name twice': '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
  '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
  'brackets': '{"a":' + '[' * 100_000,
  'a list': '[]',
  'no JSON': '{',
}


def headers(folder):
  path = folder / 'file'
  for name, header in HEADERS.items():
    header = header.encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + b'\0' * 4)
    yield name, path
  for name, length in {
    'a header of gigabytes': 2**32,
    'a header of exabytes': 2**63,
    'a header longer than the file': 1000,
  }.items():
    path.write_bytes(struct.pack('<Q', length) + b'{}')
    yield name, path


# Dictionaries of Flax, by what stands behind the first key.
DICTIONARIES = {
  'a list of billions': b'\xdd\xff\xff\xff\xff',
  'a dictionary of billions': b'\xdf\xff\xff\xff\xff',
  'a string of gigabytes': b'\xdb\xff\xff\xff\xff',
  'bytes of gigabytes': b'\xc6\xff\xff\xff\xff',
  'an array of gigabytes': b'\xc9\xff\xff\xff\xff\x01',
  'a shape of exabytes': b'\xc7\x15\x01\x93\x91\xcf\x40'
  + b'\0' * 7
  + b'\xa5uint8\xc4\x02\0\0',
  'a shape of billions of axes': b'\xc7\x0e\x01\x93\xdd\xff\xff\xff\xff'
  b'\xa5uint8\xc4\0',
  'a negative shape': b'\xc7\x0b\x01\x93\x91\xff\xa5uint8\xc4\0',
  'a shape of a string': b'\xc7\x0b\x01\x93\xa1x\xa5uint8\xc4\0',
  'an array of objects': b'\xc7\x0c\x01\x93\x91\x01\xa6object\xc4\0',
  'lists in lists': b'\x91' * 100_000 + b'\xc0',
  'lists of many': b'\xdc\xff\xff' * 1000,
  'a name that is no text': b'\x81\xa1\xff\xc0',
  'a key that is a number': b'\x81\x01\xc0',
  'a key twice': b'\x82\xa1a\xc0\xa1a\xc0',
  'a long name': b'\x81\xda\x7f\xff' + b'a' * 0x7FFF + b'\xc0',
  'a type that does not exist': b'\xc1',
  'more behind the end': b'\xc0\xc0',
  'nothing': b'',
}


def dictionaries(folder):
  path = folder / 'file'
  for name, code in DICTIONARIES.items():
    path.write_bytes(b'\x81\xa6params' + code)
    yield name, path


def made_by_hand(folder):
  path = folder / 'file'
  for name, value in PICKLES.items():
    writer = torch_files.Writer()
    end = b'' if name == 'no end' else b'.'
    code = b'\x80\x02' + writer.encode(value) + end
    torch_files.write_zip(path, list(writer.storages), pickled=code)
    yield f'pickle: {name}', path
    if name in CALLS:
      torch_files.write_legacy(path, value)
      yield f'legacy: {name}', path
  for kind, cases in {
    'zip': archives,
    'legacy': legacies,
    'safetensors': headers,
    'msgpack': dictionaries,
  }.items():
    for name, case in cases(folder):
      yield f'{kind}: {name}', case


# Files made by chance


def mutated(content, generator):
  """Truncates bytes, flips bits, or puts bytes in other places."""
  content = bytearray(content)
  for _ in range(generator.choice([1, 1, 1, 2, 5])):
    if not content:
      break
    # Headers and directories are at the beginning and at the end.
    near = generator.choice([len(content), len(content), 4000, 200])
    position = min(generator.randrange(near), len(content) - 1)
    if generator.random() < 0.3:
      position = len(content) - 1 - position
    other = generator.randrange(len(content))
    size = generator.choice([1, 2, 4, 8, 30, 300])
    match generator.randrange(8):
      case 0:
        del content[position:]
      case 1 | 2:
        content[position] ^= 1 << generator.randrange(8)
      case 3:
        content[position : position + size] = generator.randbytes(size)
      case 4:
        content[position:position] = content[other : other + size]
      case 5:
        content[position : position + size] = content[other : other + size]
      case 6:
        del content[position : position + size]
      case 7:
        number = generator.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        content[position : position + 8] = number.to_bytes(8, 'little')
  return bytes(content)


def made_by_chance(folder, number, state):
  """Yields kinds and paths of damaged files, and whether that must show."""
  generator = random.Random(number)
  path = folder / 'file'
  content = {'state_dict': state, 'epoch': 3, 'args': NAMESPACE}
  torch_files.write_zip(path, content)
  zipped = path.read_bytes()
  torch_files.write_legacy(path, content)
  legacy = path.read_bytes()
  flat = safetensors.numpy.save(state, {'format': 'pt'})
  code = torch_files.Writer().pickle(content)
  tree = flax.serialization.to_bytes({'params': state})
  length = int.from_bytes(flat[:8], 'little')
  header, data = flat[8 : 8 + length], flat[8 + length :]
  for _ in range(number):
    kind = generator.choice(
      ['zip', 'pickle', 'legacy', 'safetensors', 'header', 'msgpack']
    )
    if kind == 'zip':
      path.write_bytes(mutated(zipped, generator))
    elif kind == 'pickle':
      # With the right checksum, so that it is read.
      torch_files.write_zip(path, content, pickled=mutated(code, generator))
    elif kind == 'legacy':
      path.write_bytes(mutated(legacy, generator))
    elif kind == 'safetensors':
      path.write_bytes(mutated(flat, generator))
    elif kind == 'msgpack':
      path.write_bytes(mutated(tree, generator))
    else:
      new = mutated(header, generator)
      path.write_bytes(struct.pack('<Q', len(new)) + new + data)
    yield kind, path


# Watching


EVENTS = []
WATCHED = (
  *(
    'os.',
    'subprocess.',
    'pickle.',
    'marshal.',
    'ctypes.',
    'socket.',
    'shutil.',
  ),
  *('exec', 'compile', 'import', 'code.', 'webbrowser.'),
)
watching = False


def hook(event, arguments):
  if not watching or not event.startswith(WATCHED):
    return
  # Names in archives may have any encoding.
  if event == 'import' and str(arguments[0]).startswith('encodings.'):
    return
  EVENTS.append(f'{event} {arguments!r:.200}')
  raise RuntimeError(f'executed: {event}')


def outcome(path):
  """Loads a file; gives what came of it, and the weights if there are any."""
  global watching
  watching = True
  try:
    for tensor in weights.read(path).tensors.values():
      tensor.read()
    imported = weights.load(path)
  except (ValueError, OSError) as error:
    watching = False
    # It says which file, and can be printed.
    if str(path) in str(error) and str(error).encode():
      return f'{type(error).__name__}: {error}', None
    return f'WRONG: {error!r}', None
  except BaseException:
    watching = False
    return f'WRONG: {traceback.format_exc()}', None
  watching = False
  return 'loaded', imported


def sound(imported):
  """Whether weights have the shapes of the network that they are said to be."""
  arrays = weights.to_torchvision(imported.variables)
  return all(np.isfinite(array).all() for array in arrays.values())


def same(imported, expected):
  return all(
    np.array_equal(array, expected[name])
    for name, array in weights.to_torchvision(imported.variables).items()
  )


def main():
  folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  state = state_of()
  path = folder / 'file'
  for write in (torch_files.write_zip, torch_files.write_legacy):
    write(path, state)
    assert same(weights.load(path), state)
  path.write_bytes(safetensors.numpy.save(state))
  assert same(weights.load(path), state)
  sys.addaudithook(hook)
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  slowest = (0.0, '')
  by_hand, by_chance, wrong = {}, collections.Counter(), []
  for name, path in made_by_hand(folder):
    start = time.perf_counter()
    by_hand[name] = outcome(path)[0]
    slowest = max(slowest, (time.perf_counter() - start, name))
  for kind, path in made_by_chance(folder, number, state):
    start = time.perf_counter()
    what, imported = outcome(path)
    slowest = max(slowest, (time.perf_counter() - start, kind))
    by_chance[f'{kind}: {what.partition(":")[0]}'] += 1
    if (
      what.startswith('WRONG')
      or (imported and not sound(imported))
      # All that a zip archive holds has checksums.
      or (imported and kind == 'zip' and not same(imported, state))
    ):
      wrong.append(f'{kind}: {what}')
      (folder / f'wrong{len(wrong)}').write_bytes(path.read_bytes())
  growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  print(
    json.dumps(
      {
        'by hand': by_hand,
        'by chance': by_chance,
        'wrong': wrong,
        'events': EVENTS,
        'slowest': slowest,
        'megabytes': growth / 1024,
      }
    )
  )


if __name__ == '__main__':
  main()
