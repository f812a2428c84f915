"""Overhaul of feature distillation."""

from typing import Any

import jax

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import Batch, Method, Setup, Variables
from kdjax.methods._weighted import weighted

_STAGES = ('stage1/preact', 'stage2/preact', 'stage3/preact', 'stage4/preact')
# The BatchNorms before the last ReLUs of ResNet-50's stages.
_NORMS = ('stage1/block3/bn3', 'stage2/block4/bn3', 'stage3/block6/bn3',
          'stage4/block3/bn3')  # fmt: skip


def ofd(
  *,
  student_features: tuple[str, ...] = _STAGES,
  teacher_features: tuple[str, ...] = _STAGES,
  teacher_norms: tuple[str, ...] = _NORMS,
) -> Method:
  """Trains on w_ce · cross-entropy + w · partial distance before the ReLU.

  Heo et al., 2019, https://arxiv.org/abs/1904.01866; see `kdjax.losses.ofd`.
  The student's maps pass a 1×1 convolution and a BatchNorm; the teacher runs in
  evaluation mode, where the authors' ran in training mode.

  Args:
    student_features: names of the student's maps before the ReLU.
    teacher_features: names of the teacher's, of the same sizes.
    teacher_norms: names of the BatchNorms that the margins are computed from.
  """
  if not len(student_features) == len(teacher_features) == len(teacher_norms):
    raise ValueError(
      'ofd.student_features, ofd.teacher_features and ofd.teacher_norms must '
      f'name as many: found {len(student_features)}, {len(teacher_features)} '
      f'and {len(teacher_norms)}'
    )
  scales = tuple(f'{name}/scale' for name in teacher_norms)
  biases = tuple(f'{name}/bias' for name in teacher_norms)
  pairs = list(zip(student_features, teacher_features, strict=True))

  def init(rng: jax.Array, setup: Setup) -> Variables:
    params = {}
    for index, (ours, theirs) in enumerate(pairs, start=1):
      _connectors.check_maps(setup, ours, theirs, equal=True)
      source = setup.student.features[ours].shape[-1]
      target = setup.teacher.features[theirs].shape[-1]
      key = jax.random.fold_in(rng, index)
      params[f'stage{index}'] = {
        'conv': _connectors.init_conv(key, source, target, bias=False),
        'bn': _connectors.init_batch_norm(target),
      }
    return Variables(params)

  def term(params: Any, batch: Batch) -> jax.Array:
    ours, theirs = batch.student.features, batch.teacher.features
    connected = []
    for index, name in enumerate(student_features, start=1):
      level = params[f'stage{index}']
      x = _connectors.conv(level['conv'], ours[name])
      connected.append(_connectors.batch_norm(level['bn'], x))
    margins = [
      losses.ofd_margin(theirs[scale], theirs[bias])
      for scale, bias in zip(scales, biases, strict=True)
    ]
    return losses.ofd(
      connected, [theirs[name] for name in teacher_features], margins
    )

  return weighted(
    'ofd',
    term,
    init=init,
    weight=1e-3,
    student_features=tuple(student_features),
    teacher_features=(*teacher_features, *scales, *biases),
    batch_level=True,
  )
