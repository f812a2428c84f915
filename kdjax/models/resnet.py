"""ResNet-10/18/34/50/101 (He et al., 2015, https://arxiv.org/abs/1512.03385).

Architecture as in PyTorch's reference implementations, so that weights can be
exchanged: the bottleneck's stride sits in its 3×3 convolution, paddings are
symmetric, BatchNorm has epsilon 1e-5 and keeps 0.9 of its running statistics at
each step. (PyTorch stores the unbiased batch variance there, Flax the biased
one; the outputs in training mode are the same.)

The last BatchNorm of each block starts with scale zero, so that every block
starts as the identity (Goyal et al., 2017, https://arxiv.org/abs/1706.02677).

A network that only predicts can be had without BatchNorm, which is then part of
its convolutions: `ResNet.fold`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.models import batch_norm, cpu_conv, cpu_pool, folding

# Kernel size and stride of the first convolution, and whether a 3×3 max-pool
# of stride 2 follows it.
STEMS = {
  'imagenet': (7, 2, True),
  'cifar': (3, 1, False),
  'cifar_pool': (3, 1, True),
}

Conv = functools.partial(
  nn.Conv,
  kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
  conv_general_dilated=cpu_conv.conv_general_dilated,
)
BatchNorm = functools.partial(
  batch_norm.BatchNorm, momentum=0.9, epsilon=folding.EPSILON
)


def conv_norm(
  x: jax.Array,
  width: int,
  kernel_size: tuple[int, int],
  *,
  name: str,
  train: bool,
  folded: bool,
  dtype: Any,
  bias: bool = False,
  scale_init: nn.initializers.Initializer = nn.initializers.ones,
  **options: Any,
) -> jax.Array:
  """A convolution, with a bias if asked, and its BatchNorm unless folded.

  The norm of `conv1` is `bn1`, that of `downsample_conv` is `downsample_bn`.
  """
  x = Conv(
    width,
    kernel_size,
    use_bias=folded or bias,
    dtype=dtype,
    name=name,
    **options,
  )(x)
  if folded:
    return x
  return BatchNorm(
    use_running_average=not train,
    dtype=dtype,
    scale_init=scale_init,
    name=name.replace('conv', 'bn'),
  )(x)


def layers(train: bool, folded: bool, dtype: Any) -> Callable[..., jax.Array]:
  """Returns `conv_norm` with these three arguments."""
  return functools.partial(conv_norm, train=train, folded=folded, dtype=dtype)


def depthwise(
  layer: Callable[..., jax.Array], x: jax.Array, stride: int, name: str
) -> jax.Array:
  """Applies a 3×3 convolution to each channel by itself, and a BatchNorm.

  Args:
    layer: what `layers` returns.
    x: `[batch, height, width, channels]`.
    stride: its stride.
    name: its name.
  """
  channels = x.shape[-1]
  return layer(
    x,
    channels,
    (3, 3),
    strides=stride,
    padding=1,
    feature_group_count=channels,
    name=name,
  )


def check_mode(train: bool, folded: bool) -> None:
  """Checks that a folded network is not to be trained.

  Raises:
    ValueError: it is.
  """
  if train and folded:
    raise ValueError(
      'a folded network cannot be trained: its BatchNorms are part of its '
      'convolutions'
    )


def classify(x: jax.Array, num_classes: int) -> jax.Array:
  """Averages a map over its positions and applies the linear layer `fc`.

  Args:
    x: `[batch, height, width, channels]`.
    num_classes: number of logits.

  Returns:
    Logits, float32 `[batch, num_classes]`.
  """
  x = x.mean(axis=(1, 2), dtype=jnp.float32)
  return nn.Dense(
    num_classes,
    # PyTorch's default: uniform within ±1/√fan_in.
    kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
    dtype=jnp.float32,
    name='fc',
  )(x)


Identity = Callable[[jax.Array], jax.Array]


class Preactivation(nn.Module):
  """The identity, so that what a stage's last ReLU is given has a name."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns `x`."""
    return x


def unnamed(x: jax.Array) -> jax.Array:
  """Returns `x`, where `Preactivation` would give it a name."""
  return x


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """ReLU of a sum, whose gradient reads what it returns.

  That of `jax.nn.relu` has the sum computed again from both its terms, where
  the output is in memory for what follows.

  Args:
    x: an array of any shape.
  """
  return nn.relu(x)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  y = relu(x)
  return y, y


def _relu_backward(y: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
  # Without the barrier XLA computes it from the terms after all.
  return (jnp.where(lax.optimization_barrier(y) > 0, cotangent, 0),)


relu.defvjp(_relu_forward, _relu_backward)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut, the block of ResNet-18 and -34.

  Attributes:
    width: channels inside the block.
    stride: stride of the first convolution and of the shortcut.
    dtype: dtype of the computation.
    folded: as in `ResNet`.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  folded: bool = False
  expansion = 1

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, name_sum: Identity = unnamed
  ) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, width]`."""
    layer = layers(train, self.folded, self.dtype)
    conv3x3 = functools.partial(
      layer, width=self.width, kernel_size=(3, 3), padding=1
    )
    y = nn.relu(conv3x3(x, strides=self.stride, name='conv1'))
    y = conv3x3(y, scale_init=nn.initializers.zeros, name='conv2')
    return relu(name_sum(y + _shortcut(x, y, self.stride, layer)))


class Bottleneck(nn.Module):
  """1×1, 3×3 and 1×1 convolutions and a shortcut: ResNet-50 and deeper.

  Attributes:
    width: channels of the 3×3 convolution; the block returns four times more.
    stride: stride of the 3×3 convolution and of the shortcut.
    dtype: dtype of the computation.
    folded: as in `ResNet`.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  folded: bool = False
  expansion = 4

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, name_sum: Identity = unnamed
  ) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, 4·width]`."""
    layer = layers(train, self.folded, self.dtype)
    y = nn.relu(layer(x, self.width, (1, 1), name='conv1'))
    y = nn.relu(
      layer(y, self.width, (3, 3), strides=self.stride, padding=1, name='conv2')
    )
    y = layer(
      y,
      self.width * self.expansion,
      (1, 1),
      scale_init=nn.initializers.zeros,
      name='conv3',
    )
    return relu(name_sum(y + _shortcut(x, y, self.stride, layer)))


def _shortcut(
  x: jax.Array, y: jax.Array, stride: int, layer: Callable[..., jax.Array]
) -> jax.Array:
  """The identity, or a projection where the block changes the shape."""
  if stride == 1 and x.shape == y.shape:
    return x
  return layer(x, y.shape[-1], (1, 1), strides=stride, name='downsample_conv')


class Stage(nn.Module):
  """Blocks that work at one resolution (conv2_x … conv5_x in the paper).

  The module `preact` returns what the last ReLU is given.

  Attributes:
    block: class of the blocks.
    size: number of blocks, named `block1`, `block2`, ….
    width: width of each block.
    stride: stride of the first block.
    dtype: dtype of the computation.
    folded: as in `ResNet`.
  """

  block: type[BasicBlock] | type[Bottleneck]
  size: int
  width: int
  stride: int
  dtype: Any = jnp.float32
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[batch, H, W, C]` to `[batch, H/stride, W/stride, channels]`."""
    preactivation = Preactivation(name='preact')
    for i in range(self.size):
      x = self.block(
        self.width,
        self.stride if i == 0 else 1,
        dtype=self.dtype,
        folded=self.folded,
        name=f'block{i + 1}',
      )(x, train, preactivation if i == self.size - 1 else unnamed)
    return x


class ResNet(folding.Folding, nn.Module):
  """A residual network; its stages are the modules `stage1` … `stage4`.

  Parameters and BatchNorm statistics are float32 whatever `dtype` is.

  Attributes:
    block: class of the blocks.
    stage_sizes: number of blocks of each stage.
    num_classes: number of logits.
    stem: 'imagenet' (7×7 stride 2, then 3×3 max-pool stride 2), 'cifar' (3×3
      stride 1, no pool) or 'cifar_pool' (3×3 stride 1, then that max-pool), the
      weights of which are those of 'cifar'.
    width: stage i works at width · 2^(i-1) channels.
    dtype: dtype of the computation, bfloat16 or float32.
    folded: whether each convolution has a bias and no BatchNorm after it; for
      evaluation only (see `fold`).
    remat: names of the stages that compute their activations again when
      gradients are taken (see `rematerialize`).
    stem_width: channels of the stem; 0 for `width`.
  """

  block: type[BasicBlock] | type[Bottleneck]
  stage_sizes: tuple[int, ...]
  num_classes: int
  stem: str = 'imagenet'
  width: int = 64
  dtype: Any = jnp.float32
  folded: bool = False
  remat: tuple[str, ...] = ()
  stem_width: int = 0

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`, any number
        of channels.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones (collection `batch_stats`, then passed as mutable).

    Returns:
      Logits, float32 `[batch, num_classes]`.

    Raises:
      ValueError: the stem is unknown, or a folded network is to be trained.
    """
    check_mode(train, self.folded)
    if self.stem not in STEMS:
      raise ValueError(
        f"unknown stem '{self.stem}': expected one of {', '.join(STEMS)}"
      )
    kernel_size, stride, pooled = STEMS[self.stem]
    x = conv_norm(
      jnp.asarray(images, self.dtype),
      self.stem_width or self.width,
      (kernel_size, kernel_size),
      strides=stride,
      padding=kernel_size // 2,
      name='conv1',
      train=train,
      folded=self.folded,
      dtype=self.dtype,
    )
    x = nn.relu(x)
    if pooled:
      x = cpu_pool.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    # Of its arguments, itself included, `train` is no array.
    remat_stage = nn.remat(Stage, static_argnums=(2,))
    for i, size in enumerate(self.stage_sizes):
      name = f'stage{i + 1}'
      stage = remat_stage if name in self.remat else Stage
      x = stage(
        self.block,
        size,
        self.width * 2**i,
        stride=1 if i == 0 else 2,
        dtype=self.dtype,
        folded=self.folded,
        name=name,
      )(x, train)
    return self.classify(x, train)

  def classify(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps the last stage's output to logits; part of `__call__`."""
    del train
    return classify(x, self.num_classes)

  @nn.nowrap
  def rematerialize(self, names: Sequence[str]) -> 'ResNet':
    """Recomputes activations of stages in the backward pass.

    Args:
      names: their names.

    Returns:
      The network, whose variables and features are the same.

    Raises:
      ValueError: a name is not that of a stage.
    """
    stages = [f'stage{i + 1}' for i in range(len(self.stage_sizes))]
    if unknown := [name for name in names if name not in stages]:
      raise ValueError(
        f'a ResNet cannot rematerialise {", ".join(unknown)}: expected some of '
        f'{", ".join(stages)}'
      )
    return self.clone(remat=tuple(names))


def stems_like(stem: str) -> list[str]:
  """Lists the other stems whose weights have the same shapes."""
  return [
    other
    for other in STEMS
    if stem in STEMS and other != stem and STEMS[other][0] == STEMS[stem][0]
  ]


MODELS = {
  'resnet10': functools.partial(ResNet, BasicBlock, (1, 1, 1, 1)),
  'resnet18': functools.partial(ResNet, BasicBlock, (2, 2, 2, 2)),
  'resnet34': functools.partial(ResNet, BasicBlock, (3, 4, 6, 3)),
  'resnet50': functools.partial(ResNet, Bottleneck, (3, 4, 6, 3)),
  'resnet101': functools.partial(ResNet, Bottleneck, (3, 4, 23, 3)),
}
