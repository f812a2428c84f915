"""Distillation-oriented trainer: an optimiser that takes two gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class DotState(NamedTuple):
  """Velocities of the two gradients.

  Attributes:
    steps: number of steps done.
    ce: velocity of the gradient of the cross-entropy.
    kd: velocity of the gradient of the distillation loss.
  """

  steps: jax.Array
  ce: Any
  kd: Any


def dot(
  learning_rate: float,
  momentum: float = 0.9,
  delta: float = 0.075,
  weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Makes an SGD that gives the distillation loss a larger momentum.

  v_ce ← g_ce + wd · θ + (μ - Δ) · v_ce, v_kd ← g_kd + (μ + Δ) · v_kd,
  θ ← θ - lr · (v_ce + v_kd). A parameter that has only one of the gradients
  (the other is None) has the momentum μ, and weight decay with either.

  Zhao et al., 2023, https://arxiv.org/abs/2307.08436. As in the authors' code,
  without a gradient of the cross-entropy there is no decay in the first step.

  Args:
    learning_rate: lr.
    momentum: μ.
    delta: Δ, 0.075 for CIFAR and 0.09 for ImageNet.
    weight_decay: wd.

  Returns:
    A transformation with `update(ce_gradients, state, params,
    kd_gradients=kd_gradients)`.
  """

  def init(params: Any) -> DotState:
    zeros = optax.tree.zeros_like(params)
    return DotState(jnp.zeros((), jnp.int32), zeros, zeros)

  def update(
    updates: Any,
    state: DotState,
    params: Any = None,
    *,
    kd_gradients: Any,
    **extra: Any,
  ) -> tuple[Any, DotState]:
    del extra

    def step(
      param: jax.Array, ce: Any, kd: Any, v_ce: jax.Array, v_kd: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
      decay = weight_decay * param
      if kd is None:
        v_ce = ce + decay + momentum * v_ce
      elif ce is None:
        decay = jnp.where(state.steps > 0, decay, 0.0)
        v_kd = kd + decay + momentum * v_kd
      else:
        v_ce = ce + decay + (momentum - delta) * v_ce
        v_kd = kd + (momentum + delta) * v_kd
      return -learning_rate * (v_ce + v_kd), v_ce, v_kd

    leaves, tree = jax.tree.flatten(params)

    def aligned(gradients: Any) -> list[Any]:
      return jax.tree.leaves(gradients, is_leaf=lambda x: x is None)

    steps = [
      step(*arrays)
      for arrays in zip(
        leaves,
        aligned(updates),
        aligned(kd_gradients),
        jax.tree.leaves(state.ce),
        jax.tree.leaves(state.kd),
        strict=True,
      )
    ]
    changes, ce, kd = (
      jax.tree.unflatten(tree, list(each)) for each in zip(*steps, strict=True)
    )
    return changes, DotState(state.steps + 1, ce, kd)

  return optax.GradientTransformationExtraArgs(init, update)
