"""Safetensors files: a JSON header, then arrays."""

import functools
import pathlib
import re
from typing import Any

import numpy as np
import safetensors

from kdjax.storage.weights import stored_tensors
from kdjax.system import escape

# A ResNet-101 takes 60 kB; the parser needs many times as much.
MAX_HEADER = 2**24

# F64, I8, U16, …
_DTYPES = {
  re.sub('[a-z]+', name[0].upper(), name): dtype
  for name, dtype in stored_tensors.DTYPES.items()
  if name not in ('bool', 'bfloat16')
} | {
  'BOOL': stored_tensors.DTYPES['bool'],
  'BF16': stored_tensors.DTYPES['bfloat16'],
}


def read(path: pathlib.Path) -> stored_tensors.Stored:
  """Reads what is in a safetensors file, as `loading.read`."""
  with path.open('rb') as raw:
    header = int.from_bytes(raw.read(8), 'little')
  if header > MAX_HEADER:
    raise ValueError(
      f'its header is said to have {header} bytes: expected at most '
      f'{MAX_HEADER}; the file is damaged'
    )
  try:
    file = safetensors.safe_open(path, framework='numpy')
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    metadata = file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(f'not a sound safetensors file: {error}') from error
  types = {name: entry.get_dtype() for name, entry in slices.items()}
  if unknown := [
    f'{name} ({kind})' for name, kind in types.items() if kind not in _DTYPES
  ]:
    raise ValueError(
      f'arrays of types that are not supported: {escape.listed(unknown)}'
    )
  return stored_tensors.Stored(
    tensors={
      name: stored_tensors.Tensor(
        shape=tuple(entry.get_shape()),
        dtype=_DTYPES[types[name]],
        read=functools.partial(_read, file, name),
      )
      for name, entry in slices.items()
    },
    metadata=metadata,
    others=(),
    format='safetensors',
  )


def _read(file: Any, name: str) -> np.ndarray:
  try:
    return file.get_tensor(name)
  except (safetensors.SafetensorError, OverflowError) as error:
    raise ValueError(f'it cannot be read: {error}') from error
