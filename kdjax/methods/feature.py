"""Feature-based distillation: the student's stages imitate the teacher's."""

from collections.abc import Mapping
from typing import Any

import jax

from kdjax import losses
from kdjax.losses import features
from kdjax.methods import _connectors
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)
from kdjax.methods._connectors import pair
from kdjax.models.features import Outputs

_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def feature(
  *,
  reduction: str = 'mean',
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _STAGES,
) -> Method:
  """Trains on w_ce · cross-entropy + w_f · reduce over stages of MSE.

  Channels of student and teacher differ, so each student feature first passes a
  connector: a 1×1 convolution with bias, trained with the student and not part
  of it. Romero et al., 2015, https://arxiv.org/abs/1412.6550 (hints, at every
  stage). Hyperparameters: `ce_weight`, w_ce; `feature_weight`, w_f.

  Args:
    reduction: 'mean' or 'sum' over the stages.
    student_features: names of the student's features, by default its stages.
    teacher_features: names of the teacher's, in the same order.

  Returns:
    A Method whose loss is `kdjax.losses.feature_loss`.

  Raises:
    ValueError: the names do not pair up or there are none, or the reduction is
      unknown.
  """
  if reduction not in ('mean', 'sum'):
    raise ValueError(
      f"feature.reduction is '{reduction}': expected 'mean' or 'sum'"
    )
  if not student_features or len(student_features) != len(teacher_features):
    raise ValueError(
      'feature.student_features and feature.teacher_features must name as many '
      f'features, at least one each: found {tuple(student_features)} and '
      f'{tuple(teacher_features)}'
    )

  pairs = pair(student_features, teacher_features)

  def init(rng: jax.Array, setup: Setup) -> Variables:
    connectors = {}
    for index, (name, (ours, theirs)) in enumerate(pairs.items()):
      source = setup.student.features[ours].shape
      target = setup.teacher.features[theirs].shape
      if source[:-1] != target[:-1]:
        raise ValueError(
          f'{ours} of the student has shape {source}, {theirs} '
          f'of the teacher {target}: a 1×1 connector changes channels only. '
          'Give both networks the same stem, or pair other features'
        )
      connectors[name] = _connectors.init_conv(
        jax.random.fold_in(rng, index), source[-1], target[-1]
      )
    return Variables(connectors)

  def loss(variables: Variables, batch: Batch) -> Loss:
    errors = {
      name: _connectors.connected_mse(
        variables.params[name],
        batch.student.features[ours],
        batch.teacher.features[theirs],
      )
      for name, (ours, theirs) in pairs.items()
    }
    hard = losses.cross_entropy(batch.student.logits, batch.labels)
    per_example = features.weigh_stages(
      hard, list(errors.values()), reduction=reduction, **batch.hyperparameters
    )
    metrics = {f'feature_mse/{name}': error for name, error in errors.items()}
    return Loss(per_example, {'cross_entropy': hard, **metrics})

  return Method(
    loss,
    init,
    student_features=tuple(student_features),
    teacher_features=tuple(teacher_features),
    hyperparameters={
      'ce_weight': Hyperparameter(0.3),
      'feature_weight': Hyperparameter(0.7),
    },
  )


def connect_all(
  connectors: Mapping[str, Any],
  pairs: Mapping[str, tuple[str, str]],
  student: Outputs,
) -> dict[str, jax.Array]:
  """Applies each pair's connector to the student's feature.

  Args:
    connectors: the method's parameters, a connector for each pair.
    pairs: as `pair` returns them.
    student: the student's outputs, with its feature of each pair.

  Returns:
    For each pair what is compared with the teacher's feature,
    `[batch, height, width, channels of the teacher]`.
  """
  return {
    name: _connectors.conv(connectors[name], student.features[source])
    for name, (source, _) in pairs.items()
  }
