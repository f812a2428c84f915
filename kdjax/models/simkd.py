"""Students that borrow the last layer of their teacher (SimKD).

Chen et al., 2022, https://arxiv.org/abs/2203.14001. A projector maps the last
stage to the teacher's channels, and the teacher's own last layer, which is not
trained, classifies the result. The network is trained by the method `simkd`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import resnet


class Projector(nn.Module):
  """1×1, 3×3 and 1×1 convolutions, each with BatchNorm and ReLU.

  Attributes:
    channels: channels of the output; inside there are half as many.
    dtype: dtype of the computation.
    folded: as in `ResNet`.
  """

  channels: int
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H, W, channels]`."""
    conv_norm = functools.partial(
      resnet.conv_norm, train=train, folded=self.folded, dtype=self.dtype
    )
    inside = self.channels // 2
    x = nn.relu(conv_norm(x, inside, (1, 1), name='conv1'))
    x = nn.relu(conv_norm(x, inside, (3, 3), padding=1, name='conv2'))
    return nn.relu(conv_norm(x, self.channels, (1, 1), name='conv3'))


class FrozenHead(nn.Module):
  """A last layer that is not trained: no gradient and no weight decay.

  Attributes:
    num_classes: number of logits.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, channels]` to logits, `[batch, num_classes]`."""
    shape = x.shape[-1], self.num_classes
    # Other names than `kernel`, which would decay.
    matrix = self.param('matrix', nn.initializers.zeros, shape)
    offset = self.param('offset', nn.initializers.zeros, shape[1:])
    return x @ jax.lax.stop_gradient(matrix) + jax.lax.stop_gradient(offset)


class SimKD(resnet.ResNet):
  """A ResNet with a projector and the last layer of its teacher.

  Its modules are those of `ResNet` with `projector` and `teacher_fc` in place
  of `fc`.

  Attributes:
    teacher_channels: channels of the teacher's last stage; 0 for those of a
      ResNet-50 of the same width, 32 · width.
  """

  teacher_channels: int = 0

  def classify(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps the last stage's output to logits; part of `__call__`."""
    x = Projector(
      self.teacher_channels or 32 * self.width,
      dtype=self.dtype,
      folded=self.folded,
      name='projector',
    )(x, train)
    x = x.mean(axis=(1, 2), dtype=jnp.float32)
    return FrozenHead(self.num_classes, name='teacher_fc')(x)

  @nn.nowrap
  def adopt(
    self, variables: Mapping[str, Any], teacher: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Copies the last layer of the teacher.

    Args:
      variables: the student's collections.
      teacher: the teacher's.

    Returns:
      The student's collections with that layer.

    Raises:
      ValueError: the teacher has no layer `fc`, or one of another shape.
    """
    head = teacher['params'].get('fc', {})
    params = flax.core.unfreeze(variables['params'])
    own = params['teacher_fc']
    if head.keys() != {'kernel', 'bias'}:
      raise ValueError(
        'the teacher has no last layer `fc` with kernel and bias, which this '
        f'student takes over; it has {", ".join(teacher["params"])}'
      )
    if head['kernel'].shape != own['matrix'].shape:
      raise ValueError(
        f"the teacher's last layer has shape {head['kernel'].shape}, and this "
        f'student projects to {own["matrix"].shape[0]} channels for '
        f'{self.num_classes} classes: choose a student whose '
        '`teacher_channels` are those of the teacher'
      )
    params['teacher_fc'] = {'matrix': head['kernel'], 'offset': head['bias']}
    return {**variables, 'params': params}


MODELS = {
  'resnet10_simkd': functools.partial(SimKD, resnet.BasicBlock, (1, 1, 1, 1)),
  'resnet18_simkd': functools.partial(SimKD, resnet.BasicBlock, (2, 2, 2, 2)),
}
