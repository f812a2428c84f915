"""A cache of the teacher's logits of a run, replayed by other runs.

Which example comes when, its crop and its flip are pure functions of (seed,
epoch, position), so all runs with one seed and recipe show the teacher the same
images. A method that needs nothing of it but logits needs no teacher once these
are kept. Beyer et al., 2022, https://arxiv.org/abs/2106.05237, show why they
must be those of the very crop that the student sees.

A directory holds `replay.json`, which says what the logits were made from, and
a file for each epoch.
"""

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.storage import run_directory, schema
from kdjax.system import atomic

_ABOUT = 'replay.json'


class Replay:
  """The kept logits of one teacher, data set, seed and recipe.

  Args:
    directory: where they are kept; made if need be.
    about: what they are made from: digests of teacher and data, the seed, and
      all else that decides which pixels the teacher sees; as JSON has it.
    dtype: 'float32', or 'bfloat16' for half the size. Runs use what was kept,
      the one that computes it too.

  Raises:
    ValueError: the directory holds logits that were made from something else;
      the message says what differs.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    about: Mapping[str, Any],
    dtype: str = 'float32',
  ):
    self._directory = pathlib.Path(directory)
    self._dtype = jnp.dtype(dtype)
    about = {**about, 'dtype': dtype}
    self._key = _sha256(json.dumps(about, sort_keys=True).encode())
    path = self._directory / _ABOUT
    if path.exists():
      try:
        kept = schema.parse(path.read_bytes())
      except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): remove it') from error
      if differing := run_directory.compare(kept, about):
        shown = '\n  '.join(differing.values())
        raise ValueError(
          f'the teacher outputs kept in {directory} are not those of this run:'
          f'\n  {shown}\nChoose another config.teacher.replay, or remove that '
          'directory'
        )
    else:
      self._directory.mkdir(parents=True, exist_ok=True)
      run_directory.write_json(path, about)

  def epoch(
    self, number: int, steps: int, seen: str, compute: Callable[[], np.ndarray]
  ) -> np.ndarray:
    """Reads the logits of an epoch; computes and keeps them if there are none.

    Args:
      number: number of the epoch, from 0.
      steps: how many of its steps are needed.
      seen: digest of what the run shows the teacher in this epoch.
      compute: returns the logits of the epoch's first `steps` steps, float32
        `[steps, batch, classes]`.

    Returns:
      At least so many steps, float32 `[steps, batch, classes]`.

    Raises:
      ValueError: the cache is damaged, or was made from other images.
    """
    path = self._directory / f'epoch_{number:04d}.npz'
    if path.exists():
      logits = self._read(path, number, seen)
      if len(logits) >= steps:
        return logits.astype(np.float32)
    logits = compute().astype(self._dtype)
    # NumPy has no bfloat16: its bits are stored.
    bits = logits.view(np.uint16) if self._dtype.itemsize == 2 else logits
    about = self._shard(number, seen) | {'sha256': _sha256(bits.tobytes())}
    with atomic.replacing(path) as file:
      np.savez(file, logits=bits, **about)
    return logits.astype(np.float32)

  def _shard(self, number: int, seen: str) -> dict[str, Any]:
    return {'key': self._key, 'epoch': number, 'seen': seen}

  def _read(self, path: pathlib.Path, number: int, seen: str) -> np.ndarray:
    try:
      with path.open('rb') as file, np.load(file) as arrays:
        shard = dict(arrays)
      bits = shard.pop('logits')
      checksum = str(shard.pop('sha256'))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as e:
      raise ValueError(f'{path} is damaged ({e}): remove it') from e
    if checksum != _sha256(bits.tobytes()):
      raise ValueError(f'{path} is damaged (its checksum differs): remove it')
    for name, expected in self._shard(number, seen).items():
      found = shard[name].item()
      if found != expected:
        raise ValueError(
          f'the teacher outputs kept in {path} were made from other images '
          f'than those of this run ({name}: {found} there, {expected} now): '
          'remove that file, or choose another config.teacher.replay'
        )
    return bits.view(self._dtype)


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
