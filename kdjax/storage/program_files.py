"""Networks in files as programs, StableHLO or ONNX, which need no kdjax.

Beside such a file is the card of its network (see `kdjax.storage.networks`),
with the SHA-256 of the file and of itself.
"""

import datetime
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from kdjax.storage import card as card_lib
from kdjax.system import atomic, xla

_PROMISE = datetime.timedelta(days=180)

# Where the card has the SHA-256 of the file.
_PROGRAM = 'program'

Function = Callable[[np.ndarray], Any]


def card_of(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the card of a program's file."""
  return path.with_name(f'{path.name}.json')


def new_card_of(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the card of a program's file that is being replaced.

  It is there before the file is, and until the card is: whichever of both files
  a process that is killed has replaced, the file has its card.
  """
  return path.with_name(f'{path.name}.json.new')


def promise() -> dict[str, str]:
  """Says when a StableHLO program is written, and how long it will be read.

  Returns:
    `written`, a date; `jax`, the version; and `promised_until`: JAX promises to
    read such files for six months
    (https://docs.jax.dev/en/latest/export/export.html).
  """
  today = datetime.datetime.now(datetime.UTC).date()
  return {
    'written': today.isoformat(),
    'jax': jax.__version__,
    'promised_until': (today + _PROMISE).isoformat(),
  }


def write(path: pathlib.Path, program: bytes, card: Mapping[str, Any]) -> None:
  """Writes a program and its card.

  Args:
    path: the program's file; its card is beside it.
    program: the content of the file.
    card: what is known of its network, as JSON.

  Raises:
    OSError: one cannot be written.
  """
  text = card_lib.to_json(
    card, **{_PROGRAM: hashlib.sha256(program).hexdigest()}
  )
  atomic.write(path, program)
  atomic.write(card_of(path), text.encode())


def load(path: pathlib.Path) -> tuple[Function, dict[str, Any]]:
  """Loads a program.

  Args:
    path: its file.

  Returns:
    A function that returns the probabilities, float32 `[size, classes]`, of
    images, uint8 `[size, height, width, channels]`; and the card.

  Raises:
    FileNotFoundError: there is no such file, or no card beside it.
    ValueError: the card is not that of the file, or one of both is damaged or
      is no such thing, or what runs it is not installed.
  """
  program = path.read_bytes()
  card = _read_card(path, program)
  load_program, needed = _LOADERS[path.suffix]
  try:
    return load_program(program), card
  except ImportError as error:
    raise ValueError(
      f'{path} is read by {needed}, which is not installed: pip install '
      f'{needed}'
    ) from error
  # They raise errors of many kinds.
  except Exception as error:
    until = card.get('program_format', {}).get('promised_until')
    hint = (
      f'. JAX promised to read it until {until}: export it again, or renew it '
      'with the version of JAX that wrote it (kdjax export --renew)'
      if until
      else ''
    )
    raise ValueError(
      f'cannot read {path} ({type(error).__name__}: {error}){hint}'
    ) from error


def _read_card(path: pathlib.Path, program: bytes) -> dict[str, Any]:
  """Reads the card of a program, of the one or two that are there."""
  beside = card_of(path)
  cards = [card for card in (beside, new_card_of(path)) if card.exists()]
  if not cards:
    raise FileNotFoundError(
      f'there is no {beside}, which says what images and classes {path.name} '
      'knows: both files belong together'
    )
  digest = hashlib.sha256(program).hexdigest()
  for card_path in cards:
    card = card_lib.read(card_path.read_bytes(), card_path)
    if card.pop(_PROGRAM, None) == digest:
      return card
  raise ValueError(
    f'{path} is damaged, or {beside.name} is the card of another: the SHA-256 '
    'there is not that of the file. Export it again'
  )


def _load_stablehlo(program: bytes) -> Function:
  exported = export.deserialize(bytearray(program))
  function = xla.jit(exported.call)
  # What is in it is parsed now rather than at the first call.
  (images,) = exported.in_avals
  function.lower(jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
  return function


def _load_onnx(program: bytes) -> Function:
  import onnxruntime

  available = onnxruntime.get_available_providers()
  session = onnxruntime.InferenceSession(
    program,
    providers=[
      name
      for name in ('CUDAExecutionProvider', 'CPUExecutionProvider')
      if name in available
    ],
  )
  (images,) = session.get_inputs()
  return lambda pixels: session.run(None, {images.name: pixels})[0]


# What loads them, and the package that it needs.
_LOADERS: dict[str, tuple[Callable[[bytes], Function], str]] = {
  '.stablehlo': (_load_stablehlo, 'flatbuffers'),
  '.onnx': (_load_onnx, 'onnxruntime'),
}

SUFFIXES = tuple(_LOADERS)
"""How names of programs' files end."""
