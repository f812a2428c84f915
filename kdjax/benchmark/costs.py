"""What a compiled program costs at least, counted in its text.

Arithmetic is that of convolutions and matrix products, memory traffic what each
operation reads and writes when nothing stays in a cache. An operation takes no
less than the longer of both takes (the roofline of Williams et al., 2009,
https://doi.org/10.1145/1498765.1498785); what devices tell each other, and
starting an operation, takes no time here. So these are bounds.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from kdjax.benchmark import hlo

PARTS = (
  'data',
  'teacher',
  'student forward',
  'student backward',
  'loss',
  'optimizer',
  'other',
)
"""Parts of a training step. The first word is the scope that its code has."""

# These move nothing.
_FREE = {
  'after-all',
  'bitcast',
  'constant',
  'get-tuple-element',
  'iota',
  'opt-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
}
# These read no more of their first operand than they return.
_SLICES = {'dynamic-slice', 'gather', 'slice'}
_COLLECTIVES = re.compile(
  r'(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)'
)
_LAYOUT = {'bitcast', 'copy', 'parameter', 'tuple', 'transpose'}


class Operation(NamedTuple):
  """What an operation costs, each time.

  Attributes:
    instruction: the operation.
    times: how often a step does it.
    flops: FLOPs of its convolutions and matrix products.
    traffic: bytes that it reads from memory and writes to it.
    opcodes: what it consists of, itself or what is fused.
    float32_convolutions: how many of these are convolutions of float32 images.
  """

  instruction: hlo.Instruction
  times: int
  flops: float
  traffic: int
  opcodes: Set[str]
  float32_convolutions: int

  def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
    """Computes the least time that it takes in a step, all times together."""
    each = max(self.flops / flops_per_s, self.traffic / bytes_per_s)
    return self.times * each


def summarize(
  text: str, *, images: int, flops_per_s: float, bytes_per_s: float
) -> dict[str, Any]:
  """Counts what a step of a program costs on one device.

  Args:
    text: the compiled program, as HLO.
    images: images of a step on one device.
    flops_per_s: FLOPs that the device can do in a second.
    bytes_per_s: bytes that its memory can deliver in a second.

  Returns:
    Of a step `flops_per_image`, `bytes_per_image`, `operations`, `loops` within
    it, `float32_convolutions`, `layout_copies` (`count` and `bytes`),
    `collectives` (`count` and `bytes` by name and dtype), `parts` (bytes for
    each image by part, see `PARTS`) and `images_per_s`, the most that one
    device can do.
  """
  module = hlo.parse(text)
  name = module.step()
  found = list(_operations(module, name))
  parts = dict.fromkeys(PARTS, 0.0)
  for operation in found:
    part = part_of(operation.instruction.scope)
    parts[part] += operation.times * operation.traffic / images
  seconds = sum(each.seconds(flops_per_s, bytes_per_s) for each in found)
  copies = [each for each in found if _is_copy(each)]
  return {
    'flops_per_image': sum(each.times * each.flops for each in found) / images,
    'bytes_per_image': sum(parts.values()),
    'operations': sum(each.times for each in found),
    'loops': sum(
      each.opcode == 'while' for each in module.computations[name].values()
    ),
    'float32_convolutions': sum(
      each.times * each.float32_convolutions for each in found
    ),
    'layout_copies': {
      'count': sum(each.times for each in copies),
      'bytes': sum(each.times * each.traffic for each in copies),
    },
    'collectives': _collectives(found),
    'parts': parts,
    'images_per_s': images / seconds if seconds else math.inf,
  }


def part_of(scope: str) -> str:
  """Tells the part of a training step from the scope of an operation."""
  for name in scope.split('/'):
    plain = re.sub(r'^(?:[a-z]+\()*|\)*$', '', name)
    if plain == 'student':
      backward = 'transpose(' in scope
      return 'student backward' if backward else 'student forward'
    if plain in PARTS:
      return plain
  return 'other'


def _operations(
  module: hlo.Module, name: str, times: int = 1
) -> Iterator[Operation]:
  """Lists what a computation does, and the loops and calls in it."""
  computation = module.computations[name]
  for instruction in computation.values():
    opcode = instruction.opcode
    if opcode in ('while', 'call', 'conditional'):
      again = hlo.trip_count(instruction) if opcode == 'while' else 1
      if instruction.called in module.computations:
        yield from _operations(module, instruction.called, times * again)
    elif opcode not in _FREE and not opcode.endswith(('-done', '-update')):
      inner = list(_inner(module, computation, instruction))
      yield Operation(
        instruction,
        times,
        sum(_flops(*each) for each in inner),
        _traffic(module, computation, instruction),
        {each.opcode for _, each in inner},
        sum(_is_float32_convolution(*each) for each in inner),
      )


def _inner(
  module: hlo.Module,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
  """Lists what is fused, with the computation that it is in; or itself."""
  body = module.computations.get(instruction.called or '')
  if body is None or instruction.opcode not in ('fusion', 'async-start'):
    yield computation, instruction
    return
  for each in body.values():
    yield from _inner(module, body, each)


def _traffic(
  module: hlo.Module,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> int:
  """Counts the bytes that an instruction reads and writes."""
  opcode, results = instruction.opcode, instruction.results
  if opcode == 'copy-start':
    # Destination, source, and what others wait for.
    return sum(array.size for array in results[:2])
  if opcode == 'slice-start':
    # Source, destination, and what others wait for.
    return results[-2].size + results[-2].padded_size
  operands = [computation[name] for name in instruction.operands]
  if opcode in _SLICES:
    read = sum(array.padded_size for array in results)
    return _size(instruction) + min(read, _size(operands[0]))
  if opcode == 'dynamic-update-slice':
    return 2 * _size(operands[1])
  body = module.computations.get(instruction.called or '')
  if opcode != 'fusion' or body is None:
    written = 0 if opcode.endswith('-start') else _size(instruction)
    return written + sum(map(_size, operands))
  return _written(body, instruction) + sum(
    min(_size(operand), _read(body, index))
    for index, operand in enumerate(operands)
  )


def _size(instruction: hlo.Instruction) -> int:
  return sum(array.size for array in instruction.results)


def _written(body: hlo.Computation, fusion: hlo.Instruction) -> int:
  """Bytes that a fusion writes; of an array changed in place the changed."""
  root = next(each for each in body.values() if each.is_root)
  while root.opcode == 'bitcast':
    root = body[root.operands[0]]
  if root.opcode == 'dynamic-update-slice':
    return min(_size(fusion), _size(body[root.operands[1]]))
  return _size(fusion)


def _read(body: hlo.Computation, index: int) -> int:
  """Bytes that a fusion reads of a parameter at most."""
  total = 0
  todo = [
    each.name
    for each in body.values()
    if each.opcode == 'parameter' and each.argument == str(index)
  ]
  while todo:
    name = todo.pop()
    for user in (each for each in body.values() if name in each.operands):
      first = user.operands[0] == name and name not in user.operands[1:]
      if user.opcode == 'bitcast':
        todo.append(user.name)
      elif user.opcode in _SLICES and first:
        total += _size(user)
      elif user.opcode != 'dynamic-update-slice' or not first:
        return sys.maxsize
  return total


def _flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
  """Counts the FLOPs of a convolution or a matrix product; 0 of all else."""
  if not _is_product(instruction):
    return 0.0
  shapes = [
    computation[name].results[0].shape for name in instruction.operands[:2]
  ]
  result = instruction.results[0].shape
  if contracted := instruction.attribute(r'lhs_contracting_dims=\{([\d,]*)\}'):
    axes = [int(axis) for axis in contracted.split(',') if axis]
    return 2.0 * math.prod(result) * math.prod(shapes[0][i] for i in axes)
  if 'dim_labels=' not in instruction.attributes:
    return 0.0
  # The gradients that cuDNN computes are described as the convolution is.
  if 'BackwardFilter' in instruction.target:
    shapes, result = [shapes[0], result], shapes[1]
  elif 'BackwardInput' in instruction.target:
    shapes, result = [result, shapes[1]], shapes[0]
  images, kernel = shapes
  return convolution_flops(instruction.attributes, images, kernel, result)


def _is_product(instruction: hlo.Instruction) -> bool:
  """Whether it is a convolution or a matrix product, a library's included."""
  return (
    instruction.opcode in ('convolution', 'dot')
    or '__cudnn$conv' in instruction.target
    or '__cublas$' in instruction.target
  )


def convolution_flops(
  attributes: str,
  images: Sequence[int],
  kernel: Sequence[int],
  result: Sequence[int],
) -> float:
  """Counts the FLOPs of a convolution, those with padding left out.

  Args:
    attributes: those of the instruction, with its `window` and `dim_labels`.
    images: shape of the images.
    kernel: shape of the kernel.
    result: shape of the result.

  Returns:
    Multiplications and additions.
  """
  found = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', attributes)
  assert found is not None
  of_images, of_kernel, of_result = found.groups()
  window = re.search(r'window=\{([^}]*)\}', attributes)
  settings = dict(
    part.split('=') for part in (window[1].split() if window else ())
  )
  total = 2.0 * kernel[of_kernel.index('i')]
  total *= result[of_result.index('b')] * result[of_result.index('f')]
  for axis in filter(str.isdigit, of_kernel):
    total *= _pairs(
      {name: value.split('x')[int(axis)] for name, value in settings.items()},
      images[of_images.index(axis)],
      kernel[of_kernel.index(axis)],
      result[of_result.index(axis)],
    )
  return total


def _pairs(
  setting: Mapping[str, str], images: int, kernel: int, result: int
) -> int:
  """Counts the pairs of a place in the kernel and one in the images."""
  low = int(setting.get('pad', '0_0').split('_')[0])
  stride, spread, reach = (
    int(setting.get(name, 1)) for name in ('stride', 'lhs_dilate', 'rhs_dilate')
  )
  places = (
    out * stride + tap * reach - low
    for out in range(result)
    for tap in range(kernel)
  )
  return sum(
    place >= 0 and place % spread == 0 and place // spread < images
    for place in places
  )


def _is_float32_convolution(
  computation: hlo.Computation, instruction: hlo.Instruction
) -> bool:
  convolution = (
    instruction.opcode == 'convolution' or '__cudnn$conv' in instruction.target
  )
  return (
    convolution
    and computation[instruction.operands[0]].results[0].dtype == 'f32'
  )


def _is_copy(operation: Operation) -> bool:
  """Whether an operation only brings an array into another layout."""
  moved = operation.opcodes & {'copy', 'transpose'}
  return bool(moved) and operation.opcodes <= _LAYOUT and operation.traffic > 0


def _collectives(found: Sequence[Operation]) -> dict[str, dict[str, int]]:
  """Counts what devices exchange, by name and dtype."""
  totals: dict[str, dict[str, int]] = {}
  for operation in found:
    kind = _COLLECTIVES.match(operation.instruction.opcode)
    if not kind:
      continue
    for array in operation.instruction.results:
      total = totals.setdefault(
        f'{kind[1]} {array.dtype}', {'count': 0, 'bytes': 0}
      )
      total['count'] += operation.times
      total['bytes'] += operation.times * array.padded_size
  return totals
