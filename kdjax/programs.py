"""Networks in files as programs, StableHLO or ONNX, which need no kdjax.

Beside such a file is the card of its network (see
`kdjax.pretrained.Pretrained`), with the SHA-256 of the file.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from kdjax import files, runtime

# What of the card is of the file.
_SHA256 = 'sha256'

Function = Callable[[np.ndarray], Any]


def card_of(path: pathlib.Path) -> pathlib.Path:
  """Gives the path of the card of a program's file."""
  return path.with_name(f'{path.name}.json')


def write(path: pathlib.Path, program: bytes, card: Mapping[str, Any]) -> None:
  """Writes a program and its card.

  Args:
    path: the program's file; its card is beside it.
    program: what is to be in it.
    card: what is known of its network, as JSON.

  Raises:
    OSError: one cannot be written.
  """
  content = {**card, _SHA256: hashlib.sha256(program).hexdigest()}
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  for file_path, file_content in (
    (path, program),
    (card_of(path), text.encode()),
  ):
    with files.replacing(file_path) as file:
      file.write(file_content)


def load(path: pathlib.Path) -> tuple[Function, dict[str, Any]]:
  """Loads a program.

  Args:
    path: its file.

  Returns:
    A function that gives the probabilities, float32 `[size, classes]`, of
    images, uint8 `[size, height, width, channels]`; and the card.

  Raises:
    FileNotFoundError: there is no such file, or no card beside it.
    ValueError: the card is not that of the file, or one of both is damaged, or
      what runs it is not installed.
  """
  program = path.read_bytes()
  beside = card_of(path)
  if not beside.exists():
    raise FileNotFoundError(
      f'there is no {beside}, which says what images and classes {path.name} '
      'knows: both files belong together'
    )
  try:
    card = dict(json.loads(beside.read_bytes()))
    expected = card.pop(_SHA256)
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{beside} is damaged: {error!r}') from error
  if expected != hashlib.sha256(program).hexdigest():
    raise ValueError(
      f'{path} is damaged, or {beside.name} is the card of another: the '
      'SHA-256 there is not that of the file. Export it again'
    )
  return _LOADERS[path.suffix](program), card


def _load_stablehlo(program: bytes) -> Function:
  exported = export.deserialize(bytearray(program))
  return jax.jit(exported.call, compiler_options=runtime.compiler_options())


def _load_onnx(program: bytes) -> Function:
  try:
    import onnxruntime
  except ImportError as error:
    raise ValueError(
      'ONNX is run by onnxruntime, which is not installed: pip install '
      'onnxruntime'
    ) from error
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


_LOADERS = {'.stablehlo': _load_stablehlo, '.onnx': _load_onnx}

SUFFIXES = tuple(_LOADERS)
"""How names of programs' files end."""
