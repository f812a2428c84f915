"""The formats of an export, each with the function that writes it.

They take the path, the network, its card (what is known of it, as JSON) and the
platforms that a StableHLO program can run on, which the other formats ignore.
Where a network cannot be written so, they raise ValueError.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from kdjax import models
from kdjax.export import predictor
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import (
  checkpoint,
  digests,
  flax_variables,
  networks,
  program_files,
  weights,
)

PLATFORMS = 'cpu', 'cuda', 'rocm', 'tpu'
"""What a StableHLO program can run on."""
DEFAULT_PLATFORMS = 'cpu', 'cuda', 'tpu'

_Card = Mapping[str, Any]


def write_orbax(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes a directory: the variables as an Orbax PyTree, and the card."""
  del platforms
  checkpoint.save_network(path, network, card)


def write_safetensors(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes the weights, the card as header.

  A ResNet's have torchvision's names; those of a model by import path its own.
  """
  del platforms
  arrays = {name: network.variables[name] for name in features.TRAINED}
  text = card_lib.to_json(card, **{networks.DIGEST: digests.digest(arrays)})
  if ':' in card['model']['name']:
    flax_variables.save(path, arrays, {networks.CARD: text})
    return
  try:
    weights.save(path, arrays, {networks.CARD: text})
  except ValueError as error:
    raise ValueError(
      f'{card["model"]["name"]} cannot be written with the names of '
      f"torchvision's ResNets: {error}. Choose another format"
    ) from error


def write_stablehlo(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes a program for JAX, from pixels to probabilities; the card beside it.

  It takes any number of images. This device's platform must be among its
  platforms.
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
  # JAX raises errors of many kinds, and so may a user's model.
  except Exception as error:
    raise ValueError(
      f'{card["model"]["name"]} cannot be exported as StableHLO: {error}'
    ) from error
  program_files.write(path, program, card)


def write_onnx(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes a program for ONNX runtimes, as `write_stablehlo` does for JAX.

  It computes in float32: few runtimes know bfloat16.
  """
  del platforms
  try:
    import jax2onnx
  except ImportError as error:
    raise ValueError(
      'ONNX is made by jax2onnx, which is not installed: pip install '
      "'kdjax[onnx]'"
    ) from error
  model = network.model
  if getattr(model, 'dtype', None) == jnp.bfloat16:
    model = model.clone(dtype=jnp.float32)
  images = jax.ShapeDtypeStruct(
    ('size', *predictor.image_shape(card)), np.uint8
  )
  folded = models.fold(model, network.variables)
  try:
    converted = jax2onnx.to_onnx(
      functools.partial(predictor.classify, *folded),
      inputs=[images],
      model_name='student',
      input_names=['images'],
      output_names=['probabilities'],
    )
  # jax2onnx raises errors of many kinds.
  except Exception as error:
    raise ValueError(
      f'jax2onnx cannot convert {card["model"]["name"]}: {error}'
    ) from error
  program_files.write(path, converted.SerializeToString(), card)


WRITERS: dict[str, Callable[..., None]] = {
  'orbax': write_orbax,
  'safetensors': write_safetensors,
  'stablehlo': write_stablehlo,
  'onnx': write_onnx,
}
