"""Vision transformers with a class token (Dosovitskiy et al., 2020).

https://arxiv.org/abs/2010.11929, of the sizes of DeiT (Touvron et al., 2020,
https://arxiv.org/abs/2012.12877), without dropout. Twelve blocks; LayerNorms
have epsilon 1e-6, and GELU is the exact one, so that weights can be exchanged
with timm (`kdjax.storage.weights.vit_names`).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

DEPTH = 12
"""Number of blocks."""

_STAGES = 4
_Normal = nn.initializers.truncated_normal(0.02)
_Dense = functools.partial(nn.Dense, kernel_init=_Normal)
_Norm = functools.partial(nn.LayerNorm, epsilon=1e-6)


class Attention(nn.Module):
  """Multi-head self-attention; the heads have 64 channels each.

  Attributes:
    dtype: dtype of the computation; the softmax is float32.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, tokens, width]` to the same shape."""
    batch, tokens, width = x.shape
    qkv = _Dense(3 * width, dtype=self.dtype, name='qkv')(x)
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, -1, 64), 2, 0)
    x = jax.nn.dot_product_attention(q, k, v)
    x = x.reshape(batch, tokens, width)
    return _Dense(width, dtype=self.dtype, name='proj')(x)


class Block(nn.Module):
  """Attention, and two linear layers with a GELU, each with a LayerNorm before.

  Attributes:
    dtype: dtype of the computation.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, tokens, width]` to the same shape."""
    width = x.shape[-1]
    y = _Norm(dtype=self.dtype, name='norm1')(x)
    x = x + Attention(dtype=self.dtype, name='attn')(y)
    y = _Norm(dtype=self.dtype, name='norm2')(x)
    y = _Dense(4 * width, dtype=self.dtype, name='fc1')(y)
    y = nn.gelu(y, approximate=False)
    return x + _Dense(width, dtype=self.dtype, name='fc2')(y)


class Map(nn.Module):
  """The tokens of the patches as a map, so that it has a name.

  Attributes:
    height: patches from top to bottom.
  """

  height: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, 1 + patches, width]` to `[batch, height, …, width]`."""
    return x[:, 1:].reshape(x.shape[0], self.height, -1, x.shape[-1])


class ViT(nn.Module):
  """A vision transformer.

  The modules `stage1` … `stage4` return the tokens of the patches after blocks
  3, 6, 9 and 12, as maps `[batch, height / patch, width / patch, width]`;
  `block1` … `block12` all tokens, that of the class first; `norm` what the
  linear layer `fc` is given of the class token. Position embeddings are of
  the images that the variables are made for, and others are refused.

  Attributes:
    width: channels of a token, 64 for each head.
    patch: height and width of a patch in pixels.
    num_classes: number of logits.
    dtype: dtype of the computation, bfloat16 or float32.
  """

  width: int
  patch: int
  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: normalised images, `[batch, height, width, channels]`.
      train: changes nothing.

    Returns:
      Logits, float32 `[batch, num_classes]`.

    Raises:
      ValueError: the patch does not divide height and width, or the variables
        are those of images of another size.
    """
    del train
    batch, *size, _ = images.shape
    if any(side % self.patch for side in size):
      raise ValueError(
        f'images of {size[0]}×{size[1]} pixels cannot be divided into patches '
        f'of {self.patch}×{self.patch}: set config.data.image_size to a '
        f'multiple of {self.patch}, or choose a ViT of smaller patches'
      )
    x = nn.Conv(
      self.width,
      (self.patch, self.patch),
      strides=self.patch,
      padding='VALID',
      kernel_init=nn.initializers.lecun_normal(),
      dtype=self.dtype,
      name='patch_embed',
    )(jnp.asarray(images, self.dtype))
    height = x.shape[1]
    x = x.reshape(batch, -1, self.width)
    token = self.param('cls_token', _Normal, (1, 1, self.width))
    token = jnp.broadcast_to(token, (batch, 1, self.width)).astype(self.dtype)
    x = jnp.concatenate([token, x], axis=1)
    x = x + self._places(x.shape[1]).astype(self.dtype)
    for i in range(1, DEPTH + 1):
      x = Block(dtype=self.dtype, name=f'block{i}')(x)
      stage, rest = divmod(i, DEPTH // _STAGES)
      if rest == 0:
        Map(height, name=f'stage{stage}')(x)
    x = _Norm(dtype=jnp.float32, name='norm')(x[:, 0])
    return _Dense(self.num_classes, dtype=jnp.float32, name='fc')(x)

  def _places(self, tokens: int) -> jax.Array:
    """Returns the position embeddings, `[1, tokens, width]`."""
    found: Any = self.get_variable('params', 'pos_embed')
    if found is not None and found.shape[1] != tokens:
      raise ValueError(
        f'the position embeddings are of {found.shape[1] - 1} patches of '
        f'{self.patch}×{self.patch} pixels, and the images have {tokens - 1}: '
        'set config.data.image_size to that of the images that the network '
        'was trained with'
      )
    return self.param('pos_embed', _Normal, (1, tokens, self.width))


MODELS = {
  f'vit_{size}_patch{patch}': functools.partial(ViT, width, patch)
  for size, width in (('tiny', 192), ('small', 384))
  for patch in (4, 16)
}
