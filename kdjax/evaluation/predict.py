"""Logits of images, computed in evaluation mode."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import devices, xla


def predict(
  network: Network, images: jax.Array | np.ndarray, batch_size: int
) -> jax.Array:
  """Computes the logits of images in evaluation mode, each exactly once.

  On an accelerator it does not wait for them.

  Args:
    network: the model and its variables.
    images: pixels from 0 to 255, `[size, height, width, channels]`, best
      already on the devices (`kdjax.system.devices.replicate`).
    batch_size: how many to compute at once.

  Returns:
    Logits, float32 `[size, classes]`, in the order of the images.
  """
  size = images.shape[0]
  batch_size = min(batch_size, size)
  # As many as can be divided over the devices, or else each does all of them.
  count = jax.device_count()
  batch_size = batch_size // count * count or batch_size
  variables, images = devices.replicate((network.variables, images))
  batches = []
  for first in range(0, size, batch_size):
    # All batches are full, so that one program serves: the last begins early,
    # and the rows that it repeats are dropped.
    start = min(first, size - batch_size)
    logits = xla.settle(
      _predict_batch()(network.model, variables, images, start, batch_size)
    )
    batches.append(logits[first - start :])
  return jnp.concatenate(batches)


def predict_batch(network: Network, images: jax.Array) -> jax.Array:
  """Computes the logits of one batch in evaluation mode.

  On an accelerator it does not wait for them.

  Args:
    network: the model and its variables, on every device.
    images: pixels from 0 to 255, `[batch, height, width, channels]`, divided
      over the devices.

  Returns:
    Logits, float32 `[batch, classes]`, whole on every device.
  """
  return xla.settle(
    _predict_batch()(network.model, network.variables, images, 0, len(images))
  )


# Made at its first use: its options depend on the device.
@functools.cache
def _predict_batch() -> Callable[..., jax.Array]:
  @functools.partial(
    xla.jit,
    static_argnames=('model', 'batch_size'),
    out_shardings=devices.replicated(),
  )
  def predict_batch(
    model: nn.Module,
    variables: features.Variables,
    images: jax.Array,
    start: jax.typing.ArrayLike,
    batch_size: int,
  ) -> jax.Array:
    batch = devices.divide(
      jax.lax.dynamic_slice_in_dim(images, start, batch_size)
    )
    outputs, _ = features.forward(model, variables, batch, train=False)
    return outputs.logits

  return predict_batch
