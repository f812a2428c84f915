"""Logits of images, computed in evaluation mode."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from kdjax.data import Split, Stream, stream
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import devices, target, xla


def predict_images(
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
  count = target.device_count()
  batch_size = batch_size // count * count or batch_size
  variables, images = devices.replicate((network.variables, images))
  batches = []
  for first in range(0, size, batch_size):
    # All batches are full, so that one program serves: the last begins early,
    # and the rows that it repeats are dropped.
    start = min(first, size - batch_size)
    logits = xla.wait_on_cpu(
      _compiled(devices.replicated())(
        network.model, variables, images, start, batch_size
      )
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
  return xla.wait_on_cpu(
    _compiled(devices.replicated())(
      network.model, network.variables, images, 0, len(images)
    )
  )


def lower(network: Network, images: Any, batch_size: int) -> jax.stages.Lowered:
  """Lowers the program of one batch, and compiles nothing.

  Args:
    network: the model and its variables, or their shapes and dtypes.
    images: those of a split on the devices, or their shape and dtype.
    batch_size: images of a batch.

  Returns:
    What XLA is to compile.
  """
  compiled: Any = _compiled(devices.replicated())
  return compiled.lower(network.model, network.variables, images, 0, batch_size)


# Made at its first use: its options depend on the devices.
@functools.cache
def _compiled(everywhere: NamedSharding) -> Callable[..., jax.Array]:
  @functools.partial(
    xla.jit,
    static_argnames=('model', 'batch_size'),
    out_shardings=everywhere,
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


def on_devices(split: Split | Stream) -> Split | Stream:
  """Puts the images of a split on the devices, if it is in memory."""
  if isinstance(split, Stream):
    return split
  return split._replace(images=devices.replicate(split.images))


def predict_split(
  network: Network, split: Split | Stream, batch_size: int
) -> tuple[jax.Array, np.ndarray]:
  """Computes the logits of a split in evaluation mode, each exactly once.

  A stream is read by the threads of this process: worker processes would start
  for longer than they read.

  Args:
    network: the model and its variables.
    split: the split, best as `on_devices` returns it.
    batch_size: how many images to compute at once.

  Returns:
    Logits, float32 `[size, classes]`, in the split's order, and labels, int32
    `[size]`. Images that cannot be read are left out.

  Raises:
    ValueError: an image cannot be read, or none can.
  """
  if isinstance(split, Split):
    return predict_images(network, split.images, batch_size), split.labels
  # The last batch is filled up, so every one can be divided.
  count = target.device_count()
  batch_size = -(-min(batch_size, split.size) // count) * count
  network = network._replace(variables=devices.replicate(network.variables))
  logits, labels = [], []
  with stream.eval_batches(
    split, batch_size=batch_size, rows=devices.local_rows(batch_size)
  ) as batches:
    for batch in batches:
      images, batch_labels = devices.assemble(
        (batch.images, batch.labels), batch_size
      )
      found = jax.device_get(devices.gather(batch_labels))
      present = np.flatnonzero(found >= 0)
      logits.append(predict_batch(network, images)[present])
      labels.append(found[present])
  if not sum(map(len, labels)):
    raise ValueError(f'none of {split.size} images can be read')
  return jax.numpy.concatenate(logits), np.concatenate(labels)
