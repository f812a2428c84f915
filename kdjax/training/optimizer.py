"""The optimiser and learning-rate schedule of a training recipe, from optax."""

import ast
import inspect
import logging
from typing import Any

import jax
import ml_collections
import optax

OPTIMIZERS = {
  'sgd': optax.sgd,
  'adamw': optax.adamw,
  'lion': optax.lion,
  'muon': optax.contrib.muon,
}
"""Functions of optax by `config.train.optimizer`."""

# What other fields say.
_OURS = (
  'learning_rate',
  'weight_decay',
  'mask',
  'weight_decay_mask',
  'muon_weight_dimension_numbers',
)

logger = logging.getLogger(__package__)


def build(
  config: ml_collections.ConfigDict, *, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimiser of a recipe.

  Args:
    config: the section `train` of a run's configuration.
    steps_per_epoch: training steps in an epoch.
    total_steps: training steps in the run.

  Returns:
    The optimiser, and the learning rate as a function of the step. SGD has
    Nesterov momentum and couples the weight decay to the gradient, as PyTorch
    does; AdamW decouples it. Only kernels decay, which Equinox calls `weight`.
  """
  # A run too short for its warm-up spends at most half of it there.
  wanted = round(config.warmup_epochs * steps_per_epoch)
  warmup = min(wanted, total_steps // 2)
  if wanted > total_steps:
    logger.warning(
      'config.train.warmup_epochs is %g, longer than the whole training of %d '
      'steps: the warm-up takes half of it, %d steps',
      config.warmup_epochs,
      total_steps,
      warmup,
    )
  decay = _decay(config, warmup, steps_per_epoch, total_steps)
  schedule = optax.join_schedules(
    [optax.linear_schedule(0.0, config.learning_rate, warmup), decay], [warmup]
  )
  options = parse_options(config)
  weight_decay, mask = config.weight_decay, _only_kernels
  stages = []
  if config.clip_norm:
    stages.append(optax.clip_by_global_norm(config.clip_norm))
  if config.optimizer == 'sgd':
    options = {'momentum': config.momentum, 'nesterov': True, **options}
    stages.append(optax.add_decayed_weights(weight_decay, mask=mask))
    stages.append(optax.sgd(schedule, **options))
  elif config.optimizer == 'muon':
    options = {
      'weight_decay_mask': mask,
      'muon_weight_dimension_numbers': _as_matrices,
      'adam_weight_decay': weight_decay,
      **options,
    }
    muon = OPTIMIZERS['muon']
    stages.append(muon(schedule, weight_decay=weight_decay, **options))
  else:
    make = OPTIMIZERS[config.optimizer]
    stages.append(
      make(schedule, weight_decay=weight_decay, mask=mask, **options)
    )
  return optax.chain(*stages), schedule


def _decay(
  config: ml_collections.ConfigDict,
  warmup: int,
  steps_per_epoch: int,
  total_steps: int,
) -> optax.Schedule:
  """Makes the learning rate after the warm-up, of the steps from there."""
  peak = config.learning_rate
  steps = max(total_steps - warmup, 1)
  if config.schedule == 'cosine':
    return optax.cosine_decay_schedule(peak, steps)
  if config.schedule == 'polynomial':
    return optax.polynomial_schedule(peak, 0.0, config.power, steps)
  if config.schedule == 'step':
    return optax.piecewise_constant_schedule(
      peak,
      {
        max(round(epoch * steps_per_epoch) - warmup, 0): config.decay
        for epoch in config.milestones
      },
    )
  return optax.constant_schedule(peak)


def parse_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Reads further arguments of the optimiser.

  Args:
    config: the section `train` of a run's configuration.

  Returns:
    `config.optimizer_options` by name.

  Raises:
    ValueError: one is not `NAME=VALUE`, or the optimiser takes none of that
      name.
  """
  options = {}
  signature = inspect.signature(OPTIMIZERS[config.optimizer])
  known = [name for name in signature.parameters if name not in _OURS]
  for text in config.optimizer_options:
    name, equals, value = text.partition('=')
    if not equals or name not in known:
      raise ValueError(
        f'config.train.optimizer_options has {text!r}: expected NAME=VALUE, '
        f'and {config.optimizer} takes {", ".join(known)}'
      )
    try:
      options[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
      raise ValueError(
        f'config.train.optimizer_options has {text!r}: {value!r} is no number, '
        'true value or text in quotes'
      ) from error
  return options


def _as_matrices(params: Any) -> Any:
  """Says which axes of a kernel Muon takes as those of a matrix.

  A convolution's kernel is one from all inputs of an output to the outputs; all
  else, such as biases, is left to Adam.
  """

  def axes(path: tuple[Any, ...], leaf: jax.Array) -> Any:
    inputs = tuple(range(leaf.ndim))
    if leaf.ndim < 2 or path[-1].key not in ('kernel', 'weight'):
      return None
    # Of a `weight` the first axis is that of the outputs, as in PyTorch.
    output = leaf.ndim - 1 if path[-1].key == 'kernel' else 0
    return optax.contrib.MuonDimensionNumbers(
      inputs[:output] + inputs[output + 1 :], output
    )

  return jax.tree_util.tree_map_with_path(axes, params)


def _only_kernels(params: Any) -> Any:
  def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    name = path[-1].key
    # That of a normalisation, too, which has one axis.
    return name == 'kernel' or (name == 'weight' and leaf.ndim > 1)

  return jax.tree_util.tree_map_with_path(is_kernel, params)
