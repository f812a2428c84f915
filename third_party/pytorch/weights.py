"""Network weights made from their names, so that none need be stored.

`tensor('layer1.0.conv1.weight', (64, 64, 3, 3))` gives the same bits on every
machine: the name seeds a counter-based generator, its raw 64-bit output (which,
unlike NumPy's distributions, never changes between versions) becomes uniform
numbers, and only correctly rounded operations follow.

The scales keep activations near 1 through 101 layers in evaluation mode, where
the running statistics below are *not* those of the activations. Every value
differs from its neighbours and from a fresh network's (no zero biases, no unit
variances), so that a swapped, transposed or forgotten tensor shows.

Needs NumPy only.
"""

import math
import zlib

import numpy as np


def uniform(
  name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Returns float64 numbers uniform in [low, high), seeded by `name`."""
  raw = np.random.Philox(zlib.crc32(name.encode())).random_raw(math.prod(shape))
  unit = (raw >> np.uint64(11)) * 2.0**-53
  return (low + (high - low) * unit).reshape(shape)


def tensor(
  name: str, shape: tuple[int, ...], fan_in: bool = False
) -> np.ndarray:
  """Returns the tensor that belongs to one entry of a network's state dict.

  Args:
    name: state-dict name, e.g. 'layer1.0.bn1.running_var'.
    shape: shape in PyTorch's layout: (out, in, height, width) for
      convolutions, (out, in) for the classifier, () for the batch counter.
    fan_in: whether convolutions have the fan-in variance, which suits grouped
      ones, and no BatchNorm a smaller weight.

  Returns:
    float32, except int64 zero for `num_batches_tracked`:

    - convolution: He's fan-out variance, 2 / (out · height · width), or that
      with in;
    - `fc.weight`: ±1 / sqrt(in); `fc.bias`: ±0.1;
    - a ViT's class token and position embeddings: ±1;
    - batch norm `weight`: 0.5…1.5, less where it ends a block's residual
      branch, so that sums over many blocks stay bounded (`bn2` ends a basic
      block's and not a bottleneck's, which its name does not tell, so both
      `bn2` and `bn3` are reduced a little);
    - batch norm `bias` and `running_mean`: ±0.1; `running_var`: 0.5…1.5.

  Raises:
    ValueError: if there is no rule for the name.
  """
  module, _, kind = name.rpartition('.')
  if kind == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  if kind == 'weight' and len(shape) == 4:
    out_channels, in_channels, height, width = shape
    channels = in_channels if fan_in else out_channels
    # A uniform number in ±bound has variance bound² / 3.
    bound = math.sqrt(3 * 2 / (channels * height * width))
    low, high = -bound, bound
  elif kind == 'weight' and len(shape) == 2:
    bound = 1 / math.sqrt(shape[1])
    low, high = -bound, bound
  elif kind == 'weight' and len(shape) == 1:
    last = module.rpartition('.')[2]
    low, high = 0.5, 1.5
    if not fan_in:
      low, high = {'bn2': (0.25, 0.75), 'bn3': (0.5, 1.0)}.get(
        last, (low, high)
      )
  elif len(shape) == 3:
    low, high = -1.0, 1.0
  elif kind == 'running_var':
    low, high = 0.5, 1.5
  elif kind in ('bias', 'running_mean'):
    low, high = -0.1, 0.1
  else:
    raise ValueError(
      f'no rule for {name!r} of shape {shape}: expected a ResNet state-dict '
      'name that ends in weight, bias, running_mean, running_var or '
      'num_batches_tracked'
    )
  return uniform(name, shape, low, high).astype(np.float32)
