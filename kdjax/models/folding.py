"""BatchNorms folded into the convolutions before them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5
"""Epsilon of the BatchNorms, PyTorch's default."""


class Folding:
  """A network whose BatchNorms `fold` can fold."""

  @nn.nowrap
  def fold(
    self: '_Network', variables: Mapping[str, Any], names: Sequence[str] = ()
  ) -> 'tuple[_Network, Mapping[str, Any]]':
    """Folds BatchNorms into convolutions (see `kdjax.models.folding.fold`)."""
    return fold(self, variables, names)


class Foldable(Protocol):
  """A network with a field `folded` and the dtype that it computes in."""

  dtype: Any
  folded: bool

  def clone(self, **fields: Any) -> Any:
    """Returns a copy of it with other fields."""


_Network = TypeVar('_Network', bound=Foldable)


def fold(
  model: _Network, variables: Mapping[str, Any], names: Sequence[str] = ()
) -> tuple[_Network, Mapping[str, Any]]:
  """Folds each BatchNorm into the convolution before it.

  In evaluation mode a BatchNorm is one affine map per channel, so that with
  a = scale / √(var + ε) a convolution's kernel becomes kernel · a, and its bias
  (bias of the convolution - mean) · a + bias.

  Args:
    model: a network whose BatchNorms are named as the convolutions before them,
      `bn` in place of `conv`.
    variables: the network's collections, concrete arrays.
    names: modules whose outputs will be captured.

  Returns:
    The folded network and its collections: kernels and biases of its
    convolutions are in the dtype that it computes in, `batch_stats` is empty,
    all else is the same. The network as it is if one of the names is that of
    a convolution, whose output would be normalised, or of a BatchNorm, which
    would be gone. Stages, blocks and `fc` return what they did.
  """
  params = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  stats = flax.traverse_util.flatten_dict(variables['batch_stats'], sep='/')
  norms = {path.rpartition('/')[0] for path in stats}
  convs = {norm: norm.replace('bn', 'conv') for norm in norms}
  parents = {name.rpartition('/')[0] for name in names}
  if not parents.union(names).isdisjoint((*convs.keys(), *convs.values())):
    return model, variables
  for bn, conv in convs.items():
    kernel, before, scale, bias, mean, var = (
      # Double precision, so that folding itself rounds only once.
      np.asarray(array, np.float64)
      for array in (
        params[f'{conv}/kernel'],
        params.get(f'{conv}/bias', 0.0),
        params.pop(f'{bn}/scale'),
        params.pop(f'{bn}/bias'),
        stats[f'{bn}/mean'],
        stats[f'{bn}/var'],
      )
    )
    scale = scale / np.sqrt(var + EPSILON)
    bias = bias + (before - mean) * scale
    params[f'{conv}/kernel'] = jnp.asarray(kernel * scale, model.dtype)
    params[f'{conv}/bias'] = jnp.asarray(bias, model.dtype)
  return model.clone(folded=True), {
    **variables,
    'params': flax.traverse_util.unflatten_dict(params, sep='/'),
    'batch_stats': {},
  }
