"""The formats of an export, each with the function that writes it.

They take the path, the network, its card (what is known of it, as JSON) and the
platforms that a StableHLO program can run on, which the other formats ignore.
Where a network cannot be written so, they raise ValueError.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


WEIGHTS = 'float32', 'float16', 'int8'
"""What the weights inside a program can be stored as."""


def _program(network: Network, card: _Card) -> Callable[[jax.Array], jax.Array]:
  """Makes the function from pixels to probabilities, weights inside.

  Kernels are stored as the card's `weights` say, and computed with in the
  network's own dtype: float16 by rounding; int8 as the nearest of 255 multiples
  of 1/127 of the largest weight of each output (Jacob et al., 2018,
  https://arxiv.org/abs/1712.05877, without activations).
  """
  model, variables = models.fold(*network)
  stored = card.get('weights', WEIGHTS[0])
  packed = jax.tree.map(functools.partial(_pack, stored), dict(variables))

  def classify(images: jax.Array) -> jax.Array:
    unpacked = jax.tree.map(
      _unpack, packed, is_leaf=lambda leaf: isinstance(leaf, _Packed)
    )
    return predictor.classify(model, unpacked, images)

  return classify


class _Packed(NamedTuple):
  """A kernel that is stored in fewer bits: `values · scale`, of a dtype."""

  values: np.ndarray
  scale: np.ndarray
  dtype: Any


def _pack(stored: str, leaf: jax.Array) -> Any:
  array = np.asarray(leaf)
  if stored == 'float32' or array.ndim < 2:
    return leaf
  if stored == 'float16':
    return _Packed(array.astype(np.float16), np.ones(()), leaf.dtype)
  axes = tuple(range(array.ndim - 1))
  largest = np.abs(array.astype(np.float32)).max(axis=axes)
  scale = np.where(largest, largest, 1) / 127
  return _Packed(
    np.rint(array / scale).astype(np.int8), scale.astype(np.float32), leaf.dtype
  )


def _unpack(leaf: Any) -> Any:
  if not isinstance(leaf, _Packed):
    return leaf
  values = jnp.asarray(leaf.values).astype(jnp.float32)
  return (values * leaf.scale).astype(leaf.dtype)


def _check_whole(name: str, card: _Card) -> None:
  """Checks that weights are to be written as they are."""
  stored = card.get('weights', WEIGHTS[0])
  if stored != WEIGHTS[0]:
    raise ValueError(
      f'{name} keeps the weights as they are, and --weights is {stored}: '
      'export as stablehlo or onnx'
    )


def write_orbax(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes a directory: the variables as an Orbax PyTree, and the card."""
  del platforms
  _check_whole('orbax', card)
  checkpoint.save_network(path, network, card)


def write_safetensors(
  path: pathlib.Path, network: Network, card: _Card, platforms: Sequence[str]
) -> None:
  """Writes the weights, the card as header.

  A ResNet's have torchvision's names; those of a model by import path its own.
  """
  del platforms
  _check_whole('safetensors', card)
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
  function = jax.jit(_program(network, card))
  shape = f'size, {", ".join(map(str, predictor.image_shape(card)))}'
  images = jax.ShapeDtypeStruct(export.symbolic_shape(shape), np.uint8)
  try:
    exported = export.export(function, platforms=platforms)(images)
    program = bytes(exported.serialize())
  # JAX raises errors of many kinds, and so may a user's model.
  except Exception as error:
    hint = (
      '. The number of images is not known then: take x.shape[0], not len(x)'
      if '_DimExpr' in str(error)
      else ''
    )
    raise ValueError(
      f'{card["model"]["name"]} cannot be exported as StableHLO: {error}{hint}'
    ) from error
  program_files.write(
    path, program, {**card, 'program_format': program_files.promise()}
  )


def renew(path: pathlib.Path) -> str:
  """Writes a StableHLO file again with this version of JAX.

  JAX reads such files for six months at least. What the program computes stays;
  it is compared on noise before the new file takes its place.

  Args:
    path: the file; its card is beside it.

  Returns:
    What was done, a line.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it cannot be read, or the new one computes something else.
  """
  old, card = program_files.load(path)
  exported = export.deserialize(bytearray(path.read_bytes()))
  shape = predictor.image_shape(card)
  images = jax.ShapeDtypeStruct(
    export.symbolic_shape(f'size, {", ".join(map(str, shape))}'), np.uint8
  )
  again = export.export(jax.jit(exported.call), platforms=exported.platforms)(
    images
  )
  noise = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
  found, expected = jax.jit(again.call)(noise), old(noise)
  if not np.allclose(found, expected, atol=1e-6):
    raise ValueError(
      f'{path} computes something else with jax {jax.__version__}: export it '
      'again from its run'
    )
  promise = program_files.promise()
  program_files.write(
    path, bytes(again.serialize()), {**card, 'program_format': promise}
  )
  return (
    f'{path}: written with jax {promise["jax"]}, which is promised to be read '
    f'until {promise["promised_until"]}'
  )


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
  function = _program(Network(model, network.variables), card)
  try:
    converted = jax2onnx.to_onnx(
      function,
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
  # For those who have the file alone.
  converted.metadata_props.add(key='kdjax', value=card_lib.to_json(card))
  program_files.write(path, converted.SerializeToString(), card)


WRITERS: dict[str, Callable[..., None]] = {
  'orbax': write_orbax,
  'safetensors': write_safetensors,
  'stablehlo': write_stablehlo,
  'onnx': write_onnx,
}
