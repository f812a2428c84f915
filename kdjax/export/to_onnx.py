"""A program for ONNX Runtime and others: from pixels to probabilities."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import models
from kdjax.export import predictor
from kdjax.models.network import Network
from kdjax.storage import program_files


def write(
  path: pathlib.Path,
  network: Network,
  card: Mapping[str, Any],
  platforms: Sequence[str],
) -> None:
  """Writes a network with its weights as ONNX, for any number of images.

  It computes in float32: few runtimes know bfloat16.

  Args:
    path: the file; its card is beside it.
    network: its model and variables.
    card: what is known of it, as JSON.
    platforms: ignored: its runtime decides.

  Raises:
    ValueError: what converts it is not installed, or cannot.
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
  try:
    converted = jax2onnx.to_onnx(
      functools.partial(
        predictor.classify, *models.fold(model, network.variables)
      ),
      inputs=[images],
      model_name='student',
      input_names=['images'],
      output_names=['probabilities'],
    )
  # It raises errors of many kinds.
  except Exception as error:
    raise ValueError(
      f'jax2onnx cannot convert {card["model"]["name"]}: {error}'
    ) from error
  program_files.write(path, converted.SerializeToString(), card)
