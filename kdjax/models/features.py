"""Named features of a model's forward pass.

The only file that knows Flax's collections. A model is any Flax module called
as `model(images, train=…)` that returns logits; it needs to know nothing of
distillation: the outputs of its submodules are captured by their path.

Beside `params` and `batch_stats`, a network's variables hold `normalization`,
the mean and standard deviation that its images are normalised with, so that two
networks with different preprocessing can share one batch. Where a network from
elsewhere returns something else than logits, or those of the classes in another
order, `adaptation` says how logits are made of it (see `to_logits`).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import _adapter
from kdjax.system import xla

Variables = Mapping[str, Any]

TRAINED = 'params', 'batch_stats'
"""The collections of a model that change in training, and are saved."""


class Outputs(NamedTuple):
  """The outputs of a forward pass.

  Attributes:
    logits: float32 `[batch, classes]`.
    features: output of each captured module, by the module's path.
  """

  logits: jax.Array
  features: dict[str, jax.Array]


def normalize(
  images: jax.Array, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
) -> jax.Array:
  """Normalises pixels, (x / 255 - mean) / std, channel by channel.

  Args:
    images: pixels from 0 to 255, `[..., channels]`.
    mean: mean of the pixels scaled to 0 … 1, `[channels]`.
    std: their standard deviation, `[channels]`.

  Returns:
    float32 of the images' shape.
  """
  return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def to_logits(
  outputs: jax.Array, adaptation: Mapping[str, jax.typing.ArrayLike]
) -> jax.Array:
  """Makes logits of the outputs of a network.

  Args:
    outputs: its outputs, `[batch, classes]`.
    adaptation: `smallest`, if they are probabilities: the smallest that is told
      from zero, so that all logarithms are finite. `order`, int32 `[classes]`,
      if they are of other places: for each class the index of its output.

  Returns:
    Logits, float32 `[batch, classes]`.
  """
  logits = outputs.astype(jnp.float32)
  if 'smallest' in adaptation:
    logits = jnp.log(jnp.maximum(logits, adaptation['smallest']))
  if 'order' in adaptation:
    logits = logits[:, jnp.asarray(adaptation['order'])]
  return logits


def name_of(model: nn.Module) -> str:
  """Names a model for messages."""
  if isinstance(model, _adapter.Adapter):
    return model.label
  return type(model).__name__


def init(
  model: nn.Module, rng: jax.Array, images: jax.ShapeDtypeStruct | jax.Array
) -> dict[str, Any]:
  """Makes a model's variables.

  Args:
    model: a Flax module called as `model(images, train=…)`.
    rng: a key.
    images: images or their shape and dtype, `[batch, height, width, channels]`.

  Returns:
    `{'params': …, 'batch_stats': …}`; `batch_stats` is empty for a model
    without such statistics.

  Raises:
    ValueError: the model has collections of other names.
  """
  # Jitted: one program, rather than one for every operation of the model.
  initialize = xla.jit(functools.partial(model.init, train=False))
  variables = initialize(rng, jnp.zeros(images.shape))
  others = variables.keys() - TRAINED
  if others:
    raise ValueError(
      f'{name_of(model)} has the collections {", ".join(sorted(others))}:'
      f' expected no others than {" and ".join(TRAINED)}, which are trained '
      'and saved'
    )
  return {'batch_stats': {}, **variables}


def forward(
  model: nn.Module,
  variables: Variables,
  images: jax.Array,
  *,
  names: Sequence[str] = (),
  train: bool,
  rngs: dict[str, jax.Array] | None = None,
) -> tuple[Outputs, Any]:
  """Applies a model and captures the outputs of named modules.

  Args:
    model: a Flax module called as `model(images, train=…)`.
    variables: its collections, `params` and `batch_stats`. With a further one,
      `normalization` (`mean` and `std`, each `[channels]`), images are pixels
      from 0 to 255 and are normalised first; with `adaptation`, the model's
      outputs are made logits (see `to_logits`).
    images: `[batch, height, width, channels]`.
    names: paths of the modules to capture: `stage1`, `stage1/block2/conv1`, …;
      or of parameters: `fc/kernel`, ….
    train: whether batch statistics are used and their running means updated.
    rngs: keys for what is random in the model, such as `dropout`, by name.

  Returns:
    The outputs, and the `batch_stats` after the pass (changed only if `train`).

  Raises:
    ValueError: no module has one of the names; the message lists those there
      are. Or the model returns no array of two axes.
  """

  def wanted(module: nn.Module, method: str) -> bool:
    return method == '__call__' and '/'.join(module.path) in names

  collections = dict(variables)
  normalization = collections.pop('normalization', None)
  adaptation = collections.pop('adaptation', {})
  if normalization is not None:
    images = normalize(images, **normalization)
  with _adapter.capturing(names):
    logits, changed = model.apply(
      collections,
      images,
      train=train,
      rngs=rngs,
      capture_intermediates=wanted if names else False,
      mutable=['intermediates', *(['batch_stats'] if train else [])],
    )
  shape = getattr(logits, 'shape', None)
  if shape is None or len(shape) != 2:
    found = type(logits).__name__ if shape is None else f'shape {shape}'
    raise ValueError(
      f'{name_of(model)} returns {found}: expected logits, one array '
      '[batch, classes]'
    )
  intermediates = changed.get('intermediates', {})
  features = _captured(names, intermediates, collections.get('params', {}))
  missing = [name for name in names if name not in features]
  if missing:
    raise ValueError(
      f'{name_of(model)} has no module named {", ".join(missing)}; it '
      f'has {", ".join(feature_names(model, variables, images))}'
    )
  batch_stats = collections.get('batch_stats', {})
  return Outputs(to_logits(logits, adaptation), features), changed.get(
    'batch_stats', batch_stats
  )


def _captured(
  names: Sequence[str], intermediates: Variables, params: Variables
) -> dict[str, jax.Array]:
  """Returns the outputs of modules, and the parameters, that have the names."""
  if not names:
    return {}
  outputs, values = (
    flax.traverse_util.flatten_dict(flax.core.unfreeze(dict(tree)), sep='/')
    for tree in (intermediates, params)
  )
  # A module that is called several times has one output per call: the last.
  return {name: values[name] for name in names if name in values} | {
    name: outputs[f'{name}/__call__'][-1]
    for name in names
    if f'{name}/__call__' in outputs
  }


def feature_names(
  model: nn.Module, variables: Variables, images: Any
) -> list[str]:
  """Lists the path of every submodule, which `forward` can capture, sorted."""
  with _adapter.capturing(None):
    _, changed = jax.eval_shape(
      lambda variables, images: model.apply(
        variables, images, train=False, capture_intermediates=True
      ),
      variables,
      images,
    )
  paths = flax.traverse_util.flatten_dict(changed['intermediates'])
  return sorted('/'.join(path[:-1]) for path in paths if len(path) > 1)


def output_shapes(
  model: nn.Module, variables: Variables, images: Any, names: Sequence[str]
) -> Outputs:
  """Returns the shapes and dtypes of what `forward` returns, computing nothing.

  Variables and images may be their shapes and dtypes.
  """
  outputs, _ = jax.eval_shape(
    lambda variables, images: forward(
      model, variables, images, names=names, train=False
    ),
    variables,
    images,
  )
  return outputs


def batch_norm_values(
  model: nn.Module, images: jax.ShapeDtypeStruct
) -> dict[str, int]:
  """Counts the values that each BatchNorm takes statistics of in training.

  Computed from the shape of the images that the model sees at once.

  Returns:
    Values per channel, by the module's path; the fewest where it is called
    several times.
  """
  counts: dict[str, int] = {}

  def count(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == '__call__':
      bound = inspect.signature(call).bind(*arguments, **keywords).arguments
      running = bound.get('use_running_average')
      if running is None:
        running = module.use_running_average
      if not running:
        shape, axes = bound['x'].shape, np.atleast_1d(module.axis)
        channels = math.prod(shape[axis] for axis in axes)
        path = '/'.join(module.path)
        values = math.prod(shape) // channels
        counts[path] = min(counts.get(path, values), values)
    return call(*arguments, **keywords)

  def train(rng: jax.Array) -> jax.Array:
    variables = init(model, rng, images)
    pixels = jnp.zeros(images.shape)
    with nn.intercept_methods(count):
      outputs, _ = forward(
        model, variables, pixels, train=True, rngs={'dropout': rng}
      )
    return outputs.logits

  jax.eval_shape(train, jax.random.key(0))
  return counts
