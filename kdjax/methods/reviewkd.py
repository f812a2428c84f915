"""ReviewKD: every level learns from the levels below it too."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted

_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
_BEFORE = ('stage1/preact', 'stage2/preact', 'stage3/preact', 'stage4/preact')


def reviewkd(
  *,
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _BEFORE,
) -> Method:
  """Trains on w_ce · cross-entropy + w · hierarchical context loss.

  Chen et al., 2021, https://arxiv.org/abs/2104.09044; see `kdjax.losses.hcl`.
  The last level is the mean of the last map, after its ReLU. The authors raise
  `weight` linearly over the first 20 epochs (`config.method.schedule`).

  Args:
    student_features: names of the student's maps, the shallowest first; on
      ImageNet the authors take those before the ReLU.
    teacher_features: names of the teacher's maps before the ReLU, of the same
      sizes.
  """
  pairs = list(zip(student_features, teacher_features, strict=True))

  def levels(features: Any, names: tuple[str, ...]) -> list[jax.Array]:
    maps = [features[name] for name in names]
    last = jax.nn.relu(maps[-1])
    return [*maps, last.mean(axis=(1, 2), keepdims=True)]

  def init(rng: jax.Array, setup: Setup) -> Variables:
    for ours, theirs in pairs:
      _connectors.check_maps(setup, ours, theirs, equal=True)
    student, teacher = jax.eval_shape(
      lambda: (
        levels(_zeros(setup.student.features), student_features),
        levels(_zeros(setup.teacher.features), teacher_features),
      )
    )
    return Variables(_connectors.init_fusion(rng, student, teacher))

  def term(params: Any, batch: Batch) -> jax.Array:
    fused = _connectors.fuse(
      params, levels(batch.student.features, student_features)
    )
    return losses.hcl(fused, levels(batch.teacher.features, teacher_features))

  return weighted(
    'reviewkd',
    term,
    init=init,
    weight=5.0,
    student_features=tuple(student_features),
    teacher_features=tuple(teacher_features),
    batch_level=True,
  )


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)
