"""The optimiser and learning-rate schedule of a training recipe, from optax."""

import logging
from typing import Any

import jax
import ml_collections
import optax

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
  peak = config.learning_rate
  decay_steps = max(total_steps - warmup, 1)
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, warmup),
      optax.cosine_decay_schedule(peak, decay_steps)
      if config.schedule == 'cosine'
      else optax.constant_schedule(peak),
    ],
    [warmup],
  )
  stages = []
  if config.clip_norm:
    stages.append(optax.clip_by_global_norm(config.clip_norm))
  if config.optimizer == 'adamw':
    stages.append(
      optax.adamw(
        schedule, weight_decay=config.weight_decay, mask=_only_kernels
      )
    )
  else:
    stages.append(
      optax.add_decayed_weights(config.weight_decay, mask=_only_kernels)
    )
    stages.append(optax.sgd(schedule, config.momentum, nesterov=True))
  return optax.chain(*stages), schedule


def _only_kernels(params: Any) -> Any:
  def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    name = path[-1].key
    # That of a normalisation, too, which has one axis.
    return name == 'kernel' or (name == 'weight' and leaf.ndim > 1)

  return jax.tree_util.tree_map_with_path(is_kernel, params)
