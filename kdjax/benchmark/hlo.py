"""Reads the programs that XLA has compiled, in their text form (HLO).

Only what `kdjax.benchmark.costs` counts: computations, their instructions, and
the arrays that these read and write. The form is that of
https://openxla.org/xla/hlo_dump.
"""

import math
import re
from typing import NamedTuple

_BITS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  's8': 8,
  'u8': 8,
  's16': 16,
  'u16': 16,
  'bf16': 16,
  'f16': 16,
  's32': 32,
  'u32': 32,
  'f32': 32,
  's64': 64,
  'u64': 64,
  'f64': 64,
}

# An array's dtype, shape and, if it is written, layout.
_ARRAY = re.compile(
  rf'(?<![\w%.-])({"|".join(_BITS)})\[([\d,]*)\](?:\{{([^}}]*)\}})?'
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*)$')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_TILE = re.compile(r'([\d,]*):(?:.*?)T\(([\d,]+)\)')


class Array(NamedTuple):
  """An array.

  Attributes:
    dtype: its dtype, as XLA names it.
    shape: its shape.
    layout: order of its axes in memory, the fastest first, and its tiles.
  """

  dtype: str
  shape: tuple[int, ...]
  layout: str = ''

  @property
  def size(self) -> int:
    """Bytes in the device's memory; 0 in the memory on the chip.

    The space of memory on the chip is not 0.
    """
    return 0 if re.search(r'S\([1-9]', self.layout) else self.padded_size

  @property
  def padded_size(self) -> int:
    """Bytes, with the padding of tiles."""
    shape = list(self.shape)
    if tiled := _TILE.match(self.layout):
      order, tile = (_numbers(group) for group in tiled.groups())
      for axis, length in zip(order, reversed(tile), strict=False):
        shape[axis] = -(-shape[axis] // length) * length
    return math.prod(shape) * _BITS[self.dtype] // 8


class Instruction(NamedTuple):
  """An instruction.

  Attributes:
    name: its name, unique in its computation.
    opcode: what it does.
    results: the arrays that it computes.
    operands: names of the instructions whose results it reads.
    argument: what stands in its parentheses.
    attributes: what follows these.
    is_root: whether its results are those of its computation.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  argument: str
  attributes: str
  is_root: bool

  def attribute(self, pattern: str) -> str | None:
    """Returns the first group of a pattern in the attributes, if any."""
    found = re.search(pattern, self.attributes)
    return found and found[1]

  @property
  def scope(self) -> str:
    """Where in the program it comes from, as `jax.named_scope` names it."""
    return self.attribute(r'op_name="((?:[^"\\]|\\.)*)"') or ''

  @property
  def called(self) -> str | None:
    """Name of the computation that it consists of, or repeats."""
    return self.attribute(r'(?:calls|body|to_apply)=%?([\w.-]+)')

  @property
  def target(self) -> str:
    """What a custom call calls."""
    return self.attribute(r'custom_call_target="([^"]*)"') or ''


Computation = dict[str, Instruction]


class Module(NamedTuple):
  """A compiled program.

  Attributes:
    computations: its computations, by name.
    entry: name of the one that begins.
  """

  computations: dict[str, Computation]
  entry: str

  def step(self) -> str:
    """Names the computation of one step.

    It is the longest loop of a program of several steps, and the entry where no
    loop is nearly as long.
    """
    size = {name: len(body) for name, body in self.computations.items()}
    bodies = [
      each.called
      for each in self.computations[self.entry].values()
      if each.opcode == 'while' and each.called
    ]
    longest = max(bodies, key=lambda name: size[name], default=self.entry)
    return longest if 2 * size[longest] > size[self.entry] else self.entry


def parse(text: str) -> Module:
  """Reads a program.

  Args:
    text: its text form.

  Returns:
    The program.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  current: Computation | None = None
  entry = ''
  for line in text.splitlines():
    if current is None:
      if begins := _COMPUTATION.match(line):
        current = computations.setdefault(begins[2], {})
        entry = begins[2] if begins[1] else entry
    elif line.startswith('}'):
      current = None
    elif found := _INSTRUCTION.match(line):
      instruction = _instruction(*found.groups())
      current[instruction.name] = instruction
  if not entry:
    raise ValueError(
      'a compiled program has no entry computation: expected HLO, the text '
      'form of XLA'
    )
  return Module(computations, entry)


def trip_count(loop: Instruction) -> int:
  """Returns how often a `while` repeats its body; 1 if XLA does not know."""
  count = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
  return int(count) if count else 1


def arrays(text: str) -> tuple[Array, ...]:
  """Reads the arrays of a type."""
  return tuple(
    Array(dtype, _numbers(shape), layout)
    for dtype, shape, layout in _ARRAY.findall(text)
  )


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  opcode = _OPCODE.search(rest)
  if opcode is None:
    return Instruction(name, '', (), (), '', rest, bool(root))
  end = _closing(rest, opcode.end())
  argument = rest[opcode.end() : end]
  return Instruction(
    name,
    opcode[1],
    arrays(rest[: opcode.start()]),
    tuple(re.findall(r'%([\w.-]+)', argument)),
    argument,
    rest[end + 1 :],
    bool(root),
  )


def _closing(text: str, start: int) -> int:
  """Finds the parenthesis that closes the one before a position."""
  depth = 1
  for found in re.compile(r'[()]').finditer(text, start):
    depth += 1 if found[0] == '(' else -1
    if not depth:
      return found.start()
  return len(text)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(',') if number)
