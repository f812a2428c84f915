"""Distillation losses: pure functions of arrays, one value per example.

Notation: z_s and z_t are the logits of student and teacher, y the labels, T the
temperature, p_T(z) = softmax(z / T). Every function returns an array of shape
`[batch]`, so that the caller can mask and average; the batch mean is the
published form of the loss. Logits are cast to float32 first, and gradients stop
at the teacher.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

Features = Mapping[str, jax.Array] | Sequence[jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy, -Σ_c q_c · log softmax(z)_c, in nats.

  Args:
    logits: unnormalised log-probabilities, `[batch, classes]`.
    labels: class indices, integer `[batch]`, or class probabilities q (smoothed
      or mixed labels), float `[batch, classes]`.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the labels' shape is neither `[batch]` (integers) nor that of
      the logits (probabilities).
  """
  logits = _as_logits('logits', logits)
  labels = jnp.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    _check_equal_shapes('labels', labels, 'logits[:, 0]', logits[:, 0])
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, labels
    )
  _check_equal_shapes('labels', labels, 'logits', logits)
  # optax multiplies log-probabilities by labels of any dtype; float32 as above.
  return optax.losses.softmax_cross_entropy(logits, labels.astype(jnp.float32))


def temperature_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: jax.typing.ArrayLike,
) -> jax.Array:
  """Tempered Kullback-Leibler divergence, T² · KL(p_T(z_t) ‖ p_T(z_s)).

  Summed over classes, in nats. The factor T² keeps the gradient's size when T
  changes. Computed from two log-softmaxes, so that it and its gradient stay
  finite where a probability underflows.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    temperature: T > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ, or the temperature is not a scalar.
  """
  student_logits = _as_logits('student_logits', student_logits)
  teacher_logits = _as_logits('teacher_logits', teacher_logits)
  _check_equal_shapes(
    'student_logits', student_logits, 'teacher_logits', teacher_logits
  )
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  temperature = _as_scalar('temperature', temperature)
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(student_logits / temperature),
    jax.nn.log_softmax(teacher_logits / temperature),
  )


def feature_mse(
  student_feature: jax.Array, teacher_feature: jax.Array
) -> jax.Array:
  """Mean squared difference of two feature maps.

  Romero et al., 2015, https://arxiv.org/abs/1412.6550, equation 3 (there half
  the sum; here the mean, as the published variants of `feature_loss` have it).

  Args:
    student_feature: `[batch, ...]`, after its connector.
    teacher_feature: `[batch, ...]`, same shape; receives no gradient.

  Returns:
    Squared difference averaged over all axes but the first, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ (they are never broadcast), or have no axis
      beside the batch.
  """
  student_feature = jnp.asarray(student_feature)
  teacher_feature = jax.lax.stop_gradient(jnp.asarray(teacher_feature))
  _check_equal_shapes(
    'student_feature', student_feature, 'teacher_feature', teacher_feature
  )
  if student_feature.ndim < 2:
    raise ValueError(
      'student_feature and teacher_feature need a batch axis and at least one '
      f'more, found shape {student_feature.shape}'
    )
  difference = student_feature.astype(jnp.float32) - teacher_feature.astype(
    jnp.float32
  )
  return jnp.square(difference).mean(axis=range(1, difference.ndim))


def response_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: jax.typing.ArrayLike,
  alpha: jax.typing.ArrayLike,
) -> jax.Array:
  """Response-based distillation, (1-α) · CE(z_s, y) + α · T² · KL.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: as for `cross_entropy`.
    temperature: T > 0, a scalar.
    alpha: α in [0, 1], weight of the divergence, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, as in `cross_entropy`, `temperature_kl`.
  """
  alpha = _as_scalar('alpha', alpha)
  hard = cross_entropy(student_logits, labels)
  soft = temperature_kl(student_logits, teacher_logits, temperature)
  return (1 - alpha) * hard + alpha * soft


def feature_loss(
  student_logits: jax.Array,
  student_features: Features,
  teacher_features: Features,
  labels: jax.Array,
  ce_weight: jax.typing.ArrayLike,
  feature_weight: jax.typing.ArrayLike,
  reduction: str,
) -> jax.Array:
  """Feature-based distillation, w_ce · CE + w_f · reduce over stages of MSE.

  Romero et al., 2015, https://arxiv.org/abs/1412.6550, at every stage.

  Args:
    student_logits: `[batch, classes]`.
    student_features: feature maps after their connectors, one per stage, a
      mapping by name or a sequence.
    teacher_features: the teacher's, of the same names or order, and shapes;
      receive no gradient.
    labels: as for `cross_entropy`.
    ce_weight: weight of the cross-entropy, a scalar.
    feature_weight: weight of the reduced feature differences, a scalar.
    reduction: 'mean' or 'sum' over the stages.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the stages or their shapes do not pair up, there are none, or
      the reduction is unknown.
  """
  stages = list(_pair_stages(student_features, teacher_features))
  reducers = {'mean': jnp.mean, 'sum': jnp.sum}
  if reduction not in reducers:
    raise ValueError(
      f"unknown reduction '{reduction}': expected 'mean' or 'sum' over stages"
    )
  hard = cross_entropy(student_logits, labels)
  differences = [feature_mse(s, t) for s, t in stages]
  for feature, _ in stages:
    if feature.shape[:1] != hard.shape:
      raise ValueError(
        f'student_logits has shape {student_logits.shape}, a feature has shape '
        f'{feature.shape}: they must have the same batch'
      )
  ce_weight = _as_scalar('ce_weight', ce_weight)
  feature_weight = _as_scalar('feature_weight', feature_weight)
  feature_term = reducers[reduction](jnp.stack(differences), axis=0)
  return ce_weight * hard + feature_weight * feature_term


def _pair_stages(
  student: Features, teacher: Features
) -> Sequence[tuple[jax.Array, jax.Array]]:
  """Pairs the stages of student and teacher by name, or else by order."""
  if isinstance(student, Mapping) != isinstance(teacher, Mapping):
    raise ValueError(
      'student_features and teacher_features must both be mappings or both be '
      f'sequences, found {type(student).__name__} and {type(teacher).__name__}'
    )
  if isinstance(student, Mapping) and isinstance(teacher, Mapping):
    if student.keys() != teacher.keys():
      raise ValueError(
        f'student_features has stages {sorted(student)}, teacher_features '
        f'{sorted(teacher)}: they must be the same'
      )
    pairs = [(student[name], teacher[name]) for name in student]
  elif len(student) == len(teacher):
    pairs = list(zip(student, teacher, strict=True))  # type: ignore[arg-type]
  else:
    raise ValueError(
      f'student_features has {len(student)} stages, teacher_features '
      f'{len(teacher)}: they must pair up'
    )
  if not pairs:
    raise ValueError('feature_loss needs at least one stage, found none')
  return pairs


def _as_logits(name: str, logits: jax.Array) -> jax.Array:
  logits = jnp.asarray(logits)
  if logits.ndim != 2:
    raise ValueError(
      f'{name} must have shape [batch, classes], found {logits.shape}'
    )
  return logits.astype(jnp.float32)


def _as_scalar(name: str, value: jax.typing.ArrayLike) -> jax.Array:
  scalar = jnp.asarray(value, jnp.float32)
  if scalar.ndim:
    raise ValueError(f'{name} must be a scalar, found shape {scalar.shape}')
  return scalar


def _check_equal_shapes(
  first_name: str, first: jax.Array, second_name: str, second: jax.Array
) -> None:
  if first.shape != second.shape:
    raise ValueError(
      f'{first_name} has shape {first.shape}, {second_name} has shape '
      f'{second.shape}: they must be equal (nothing is broadcast here)'
    )
