"""A program for JAX alone: from pixels to probabilities."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from kdjax import models
from kdjax.export import predictor
from kdjax.models.network import Network
from kdjax.storage import program_files

PLATFORMS = 'cpu', 'cuda', 'rocm', 'tpu'
"""What a program can run on."""
DEFAULT_PLATFORMS = 'cpu', 'cuda', 'tpu'


def write(
  path: pathlib.Path,
  network: Network,
  card: Mapping[str, Any],
  platforms: Sequence[str],
) -> None:
  """Writes a network with its weights as StableHLO, for any number of images.

  Args:
    path: the file; its card is beside it.
    network: its model and variables.
    card: what is known of it, as JSON.
    platforms: what it can run on, some of `PLATFORMS`, that of this device
      among them.

  Raises:
    ValueError: they are others, or JAX cannot export such a model.
  """
  here = export.default_export_platform()
  if here not in platforms or not set(platforms) <= set(PLATFORMS):
    raise ValueError(
      f'cannot export a program for {", ".join(platforms) or "nothing"}: '
      f'expected some of {", ".join(PLATFORMS)}, and {here} among them, where '
      'it is compared with the network'
    )
  model, variables = models.fold(*network)
  function = jax.jit(functools.partial(predictor.classify, model, variables))
  shape = f'size, {", ".join(map(str, predictor.image_shape(card)))}'
  images = jax.ShapeDtypeStruct(export.symbolic_shape(shape), np.uint8)
  try:
    exported = export.export(function, platforms=platforms)(images)
    program = bytes(exported.serialize())
  # It raises errors of many kinds, and so may a model of one's own.
  except Exception as error:
    raise ValueError(
      f'{card["model"]["name"]} cannot be exported as StableHLO: {error}'
    ) from error
  program_files.write(path, program, card)
