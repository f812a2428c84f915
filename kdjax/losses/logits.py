"""Losses of logits and labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdjax.losses import _arrays
from kdjax.losses._arrays import as_logit_pair, as_scalar

Scalar = jax.typing.ArrayLike


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

  >>> loss = cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
  >>> print(f'{loss[0]:.4f}')
  1.3863
  """
  logits = _arrays.as_logits('logits', logits)
  labels = jnp.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    _arrays.check_equal_shapes('labels', labels, 'logits[:, 0]', logits[:, 0])
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, labels
    )
  _arrays.check_equal_shapes('labels', labels, 'logits', logits)
  # optax multiplies log-probabilities by labels of any dtype; float32 as above.
  return optax.losses.softmax_cross_entropy(logits, labels.astype(jnp.float32))


def temperature_kl(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: Scalar
) -> jax.Array:
  """Tempered Kullback-Leibler divergence, T² · KL(p_T(z_t) ‖ p_T(z_s)).

  Summed over classes, in nats. The factor T² keeps the gradient's size when T
  changes. Computed from two log-softmaxes, so that it and its gradient stay
  finite where a probability underflows. Also called `kd`.

  Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    temperature: T > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ, or the temperature is not a scalar.

  >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
  >>> loss = temperature_kl(student, teacher, temperature=4.0)
  >>> print(f'{loss[0]:.4f}')
  0.4848
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(student_logits / temperature),
    jax.nn.log_softmax(teacher_logits / temperature),
  )


kd = temperature_kl


def response_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar,
  alpha: Scalar,
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

  >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
  >>> loss = response_loss(student, teacher, jnp.array([0]), 4.0, 0.5)
  >>> print(f'{loss[0]:.4f}')
  0.5890
  """
  alpha = as_scalar('alpha', alpha)
  hard = cross_entropy(student_logits, labels)
  soft = temperature_kl(student_logits, teacher_logits, temperature)
  return (1 - alpha) * hard + alpha * soft


def dkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar = 4.0,
  alpha: Scalar = 1.0,
  beta: Scalar = 8.0,
) -> jax.Array:
  """Decoupled knowledge distillation, T² · (α · KL₂ + β · KLₙ).

  KL₂ compares (p_y, 1 - p_y) of teacher and student at temperature T, KLₙ the
  softmaxes over the other classes. The label is left out exactly, where the
  published code subtracts 1000 from its logit; all masses are differences of
  log-sum-exps, so that nothing overflows. With two classes KLₙ is 0.

  Zhao et al., 2022, https://arxiv.org/abs/2203.08679, equation 7.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    temperature: T > 0, a scalar.
    alpha: α, weight of the label's class against the rest.
    beta: β, weight of the classes beside the label.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> student, teacher = jnp.array([[0.0, 0, 0]]), jnp.array([[4.0, 4, 0]])
  >>> loss = dkd(student, teacher, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  14.4755
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  target = _one_hot('dkd', labels, student_logits)
  student, teacher = student_logits / temperature, teacher_logits / temperature
  binary = _grouped_kl(student, teacher, (target, ~target))
  others = _masked_kl(student, teacher, ~target)
  return temperature**2 * (alpha * binary + beta * others)


def gdkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: Scalar = 4.0,
  k: int = 5,
  group_weight: Scalar = 1.0,
  top_weight: Scalar = 1.0,
  rest_weight: Scalar = 8.0,
) -> jax.Array:
  """Generalised decoupled distillation around the teacher's top k classes.

  T² · (w₀ · KL₂ + w₁ · KL within the top k + w₂ · KL within the rest), KL₂
  between the masses of the two groups. Of classes with equal teacher logits the
  first come first.

  Zheng and Cheng, 2025, https://arxiv.org/abs/2512.04625.

  Args:
    student_logits: `[batch, classes]`, more than k classes.
    teacher_logits: `[batch, classes]`; receive no gradient.
    temperature: T > 0, a scalar.
    k: size of the first group.
    group_weight: w₀.
    top_weight: w₁.
    rest_weight: w₂.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or there are not more than k classes.

  >>> student, teacher = jnp.zeros((1, 3)), jnp.array([[8.0, 0, 0]])
  >>> loss = gdkd(student, teacher, k=1)
  >>> print(f'{loss[0]:.4f}')
  6.9286
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  classes = student_logits.shape[-1]
  if not 0 < k < classes:
    raise ValueError(
      f'gdkd has k = {k}: expected from 1 to {classes - 1}, fewer than the '
      f'{classes} classes'
    )
  temperature = as_scalar('temperature', temperature)
  chosen = jax.lax.top_k(teacher_logits, k)[1]
  top = jax.nn.one_hot(chosen, classes, dtype=bool).any(axis=1)
  student, teacher = student_logits / temperature, teacher_logits / temperature
  return temperature**2 * (
    group_weight * _grouped_kl(student, teacher, (top, ~top))
    + top_weight * _masked_kl(student, teacher, top)
    + rest_weight * _masked_kl(student, teacher, ~top)
  )


def rld(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar = 4.0,
  alpha: Scalar = 1.0,
  beta: Scalar = 8.0,
  alpha_temperature: Scalar = 4.0,
) -> jax.Array:
  """Refined logit distillation, α · A² · KL₂ + β · T² · KLₘ.

  KL₂ compares (the teacher's largest probability, the rest) with (the student's
  probability of the label, the rest), both at temperature A. KLₘ compares the
  softmaxes at T over the classes whose teacher logit is below the label's: a
  class that the teacher wrongly prefers is not taught. It is 0 where no class
  is left.

  Sun et al., 2024, https://arxiv.org/abs/2408.07703.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    temperature: T > 0, of KLₘ.
    alpha: α, weight of KL₂.
    beta: β, weight of KLₘ.
    alpha_temperature: A > 0, of KL₂.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> student, teacher = jnp.array([[0.0, 0, 0]]), jnp.array([[4.0, 4, 0]])
  >>> loss = rld(student, teacher, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  0.2746
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  first = as_scalar('alpha_temperature', alpha_temperature)
  target = _one_hot('rld', labels, student_logits)
  best = jax.nn.one_hot(
    teacher_logits.argmax(axis=-1), teacher_logits.shape[-1], dtype=bool
  )
  confidence = _arrays.kl_divergence(
    _group_masses(teacher_logits / first, (best, ~best)),
    _group_masses(student_logits / first, (target, ~target)),
  )
  label_logit = jnp.where(target, teacher_logits, 0).sum(axis=-1, keepdims=True)
  correlation = _masked_kl(
    student_logits / temperature,
    teacher_logits / temperature,
    teacher_logits < label_logit,
  )
  alpha, beta = as_scalar('alpha', alpha), as_scalar('beta', beta)
  return alpha * first**2 * confidence + beta * temperature**2 * correlation


def dist(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: Scalar = 1.0,
  beta: Scalar = 1.0,
  gamma: Scalar = 1.0,
) -> jax.Array:
  """Distillation from a stronger teacher: correlations instead of a divergence.

  T² · (β · (1 - ρ of each row) + γ · (1 - mean over classes of ρ of each
  column)), ρ Pearson's correlation of the probabilities p_T of student and
  teacher. The second term is of the whole batch: each example has the same. A
  constant row or column has ρ = 0 and no gradient.

  Huang et al., 2022, https://arxiv.org/abs/2205.10536. The factor T² is that of
  the authors' code; their weight of the whole is 2.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    temperature: T > 0, a scalar.
    beta: β, weight of the correlation over classes.
    gamma: γ, weight of the correlation over the batch.

  Returns:
    Loss of each example, float32 `[batch]`; its second term depends on the
    batch.

  Raises:
    ValueError: the shapes differ.

  >>> logits = jnp.array([[0.0, 1, 2], [2, 0, 1]])
  >>> loss = dist(logits, logits)
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  student = jax.nn.softmax(student_logits / temperature)
  teacher = jax.nn.softmax(teacher_logits / temperature)
  within = 1 - _correlation(student, teacher, axis=1)
  between = 1 - _correlation(student, teacher, axis=0).mean()
  return temperature**2 * (beta * within + gamma * between)


def standardize_logits(logits: jax.Array) -> jax.Array:
  """Logit standardisation, (z - mean z) / (1e-7 + std z) over the classes.

  A transformation of both networks' logits before any logit loss, with which
  the student need not match the scale of the teacher. The deviation is the
  unbiased one. A constant row becomes 0, and the loss's gradient there is as
  much as 1e7 times that of the result: give a last layer random initial
  weights. With two classes only the sign is left, and no gradient.

  Sun et al., 2024, https://arxiv.org/abs/2403.01427.

  Args:
    logits: `[batch, classes]`.

  Returns:
    float32 `[batch, classes]`.

  Raises:
    ValueError: the logits have another shape.

  >>> standardize_logits(jnp.array([[1.0, 2, 3]]))
  Array([[-0.9999999,  0.       ,  0.9999999]], dtype=float32)
  """
  logits = _arrays.as_logits('logits', logits)
  centered = logits - logits.mean(axis=-1, keepdims=True)
  return centered / (1e-7 + _arrays.unbiased_std(centered))


def normkd(
  student_logits: jax.Array, teacher_logits: jax.Array, scale: Scalar = 2.0
) -> jax.Array:
  """Normalised distillation: temperatures k · std(z) of each example's own.

  T_t² · KL(softmax(z_t / T_t) ‖ softmax(z_s / T_s)) with T = k · std(z),
  unbiased over the classes; T_s has a gradient. A row of constant logits has
  uniform probabilities and no gradient.

  Chi et al., 2023, https://arxiv.org/abs/2308.00520.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    scale: k > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> logits = jnp.array([[0.0, 1, 2]])
  >>> loss = normkd(logits, 3 * logits)
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  scale = as_scalar('scale', scale)

  def temper(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    centered = _arrays.center(logits, axis=-1)
    temperature = scale * _arrays.unbiased_std(centered)
    safe = jnp.where(temperature > 0, temperature, 1.0)
    return jax.nn.log_softmax(centered / safe), temperature[:, 0]

  student, _ = temper(student_logits)
  teacher, temperature = temper(teacher_logits)
  return temperature**2 * _arrays.kl_divergence(teacher, student)


def nkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar = 1.0,
  gamma: Scalar = 1.5,
) -> jax.Array:
  """Normalised knowledge distillation: two cross-entropies.

  -p(z_t)_y · log p(z_s)_y - γ · T² · Σ_{c≠y} t̂_c · log ŝ_c, hats the softmaxes
  over the classes beside the label at temperature T; the first term is at
  T = 1. Its smallest value is not 0.

  Yang et al., 2023, https://arxiv.org/abs/2303.13005.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    temperature: T > 0, of the second term.
    gamma: γ, weight of the second term.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> zeros = jnp.zeros((1, 3))
  >>> loss = nkd(zeros, zeros, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  1.4059
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  target = _one_hot('nkd', labels, student_logits)
  label_term = _label_cross_entropy(student_logits, teacher_logits, target)
  teacher = _arrays.masked_log_softmax(teacher_logits / temperature, ~target)
  student = _arrays.masked_log_softmax(student_logits / temperature, ~target)
  others = -jnp.where(target, 0.0, jnp.exp(teacher) * student).sum(axis=-1)
  return label_term + gamma * temperature**2 * others


def ttm(
  student_logits: jax.Array, teacher_logits: jax.Array, power: Scalar = 0.1
) -> jax.Array:
  """Transformed teacher matching, KL(q ‖ softmax(z_s)), q ∝ softmax(z_t)^γ.

  Only the teacher is tempered, which is the same as T = 1/γ on its side; no
  factor T².

  Zheng and Yang, 2024, https://arxiv.org/abs/2402.11148.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    power: γ in (0, 1].

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> loss = ttm(jnp.zeros((1, 2)), jnp.array([[10.0, 0]]))
  >>> print(f'{loss[0]:.4f}')
  0.1109
  """
  divergence, _ = _transformed_teacher(student_logits, teacher_logits, power)
  return divergence


def wttm(
  student_logits: jax.Array, teacher_logits: jax.Array, power: Scalar = 0.1
) -> jax.Array:
  """Weighted transformed teacher matching, U · KL(q ‖ softmax(z_s)).

  U = Σ_c softmax(z_t)_c^γ is large where the teacher is unsure; q is that of
  `ttm`.

  Zheng and Yang, 2024, https://arxiv.org/abs/2402.11148.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    power: γ in (0, 1].

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> loss = wttm(jnp.zeros((1, 2)), jnp.array([[10.0, 0]]))
  >>> print(f'{loss[0]:.4f}')
  0.1518
  """
  divergence, mass = _transformed_teacher(student_logits, teacher_logits, power)
  return mass * divergence


def ofa(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  power: Scalar = 1.0,
  temperature: Scalar = 1.0,
) -> jax.Array:
  """The loss of one-for-all distillation, for any pair of architectures.

  -Σ_c [(p(z_t)_c + 1[c = y])^ε - 1[c = y]] · log p(z_s)_c, all at temperature
  T. For ε = 1 it is the cross-entropy with the teacher.

  Hao et al., 2023, https://arxiv.org/abs/2310.19444, equation 8.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    power: ε ≥ 1.
    temperature: T > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> zeros = jnp.zeros((1, 4))
  >>> loss = ofa(zeros, zeros, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  1.3863
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  target = _one_hot('ofa', labels, student_logits).astype(jnp.float32)
  teacher = jax.nn.softmax(teacher_logits / temperature)
  student = jax.nn.log_softmax(student_logits / temperature)
  weights = (teacher + target) ** as_scalar('power', power) - target
  return -(weights * student).sum(axis=-1)


def abkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  alpha: Scalar = 0.8,
  beta: Scalar = 0.3,
  temperature: Scalar = 1.0,
) -> jax.Array:
  """The α-β-divergence of teacher and student.

  -1/(αβ) · Σ_c [p_t^α · p_s^β - α/(α+β) · p_t^(α+β) - β/(α+β) · p_s^(α+β)], all
  at temperature T, without T². Powers are exponentials of log-probabilities, so
  that gradients stay finite where a probability is 0.

  Wang et al., 2025, https://arxiv.org/abs/2505.04560.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    alpha: α, not 0.
    beta: β, not 0; α + β is not 0 either.
    temperature: T > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> loss = abkd(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  alpha, beta = as_scalar('alpha', alpha), as_scalar('beta', beta)
  temperature = as_scalar('temperature', temperature)
  student = jax.nn.log_softmax(student_logits / temperature)
  teacher = jax.nn.log_softmax(teacher_logits / temperature)
  both = alpha + beta
  terms = (
    jnp.exp(alpha * teacher + beta * student)
    - alpha / both * jnp.exp(both * teacher)
    - beta / both * jnp.exp(both * student)
  )
  return -terms.sum(axis=-1) / (alpha * beta)


def wsld(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar = 2.0,
) -> jax.Array:
  """Weighted soft labels, T² · w · H(p_T(z_t), p_T(z_s)).

  w = 1 - exp(-CE_s / (CE_t + 1e-7)), without gradient, is small for examples
  that the student knows better than the teacher. H is the cross-entropy.

  Zhou et al., 2021, https://arxiv.org/abs/2102.00650.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    temperature: T > 0, a scalar.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> zeros = jnp.zeros((1, 2))
  >>> loss = wsld(zeros, zeros, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  1.7526
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  labels = _arrays.as_classes('wsld', labels, student_logits)
  ratio = cross_entropy(student_logits, labels) / (
    cross_entropy(teacher_logits, labels) + 1e-7
  )
  weight = jax.lax.stop_gradient(1 - jnp.exp(-ratio))
  soft = cross_entropy(
    student_logits / temperature, jax.nn.softmax(teacher_logits / temperature)
  )
  return temperature**2 * weight * soft


def skd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: Scalar = 4.0,
  ridge: Scalar = 0.1,
  direction_weight: Scalar = 1.0,
) -> jax.Array:
  """Divergence and a Mahalanobis distance of Gram matrices of logits.

  KL(p_T(z_t) ‖ p_T(z_s)) + w · √(D_iᵀ (Σ + λI)⁻¹ D_i), D the difference of the
  Gram matrices of normalised logits `[batch, batch]`, D_i its rows, Σ the
  unbiased covariance of its columns. No T².

  Jeong et al., CVPR 2026, as torchdistill computes it.

  Args:
    student_logits: `[batch, classes]`, at least two rows.
    teacher_logits: `[batch, classes]`; receive no gradient.
    temperature: T > 0, a scalar.
    ridge: λ > 0.
    direction_weight: w.

  Returns:
    Loss of each example, float32 `[batch]`; it depends on the batch.

  Raises:
    ValueError: the shapes differ.

  >>> logits = jnp.array([[0.0, 1], [1, 0]])
  >>> loss = skd(logits, logits)
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  student, teacher = _arrays.unit(student_logits), _arrays.unit(teacher_logits)
  difference = _arrays.dot(student, student.T) - _arrays.dot(teacher, teacher.T)
  centered = difference - difference.mean(axis=0, keepdims=True)
  batch = len(difference)
  covariance = _arrays.dot(centered.T, centered) / max(batch - 1, 1)
  solved = jnp.linalg.solve(covariance + ridge * jnp.eye(batch), difference.T)
  distance = _arrays.square_root((difference * solved.T).sum(axis=-1))
  divergence = _arrays.kl_divergence(
    jax.nn.log_softmax(teacher_logits / temperature),
    jax.nn.log_softmax(student_logits / temperature),
  )
  return divergence + direction_weight * distance


def ctkd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  theta: jax.Array,
  strength: Scalar = 1.0,
  start: Scalar = 1.0,
  span: Scalar = 20.0,
) -> jax.Array:
  """Curriculum temperature: distillation at a temperature that resists.

  `temperature_kl` at T = start + span · sigmoid(θ). T has a gradient through
  both softmaxes and T²; that of θ is multiplied by -λ, so that minimising the
  loss makes T harder while λ grows from 0 to 1.

  Li et al., 2022, https://arxiv.org/abs/2211.16231.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    theta: θ, a trained scalar, or an array of one.
    strength: λ, how strongly the gradient of θ is reversed.
    start: smallest temperature.
    span: largest temperature less the smallest.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
  >>> loss = ctkd(student, teacher, theta=jnp.array(1.0))
  >>> print(f'{loss[0]:.4f}')
  0.4990
  """
  theta = as_scalar('theta', jnp.asarray(theta).reshape(()))
  strength = as_scalar('strength', strength)
  reversed_theta = jax.lax.stop_gradient((1 + strength) * theta) - (
    strength * theta
  )
  temperature = start + span * jax.nn.sigmoid(reversed_theta)
  return temperature_kl(student_logits, teacher_logits, temperature)


def wkd_l(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  cost: jax.Array,
  temperature: Scalar = 2.0,
  weight: Scalar = 30.0,
  regularization: float = 0.05,
  iterations: int = 10,
) -> jax.Array:
  """Wasserstein distillation of logits, by entropic optimal transport.

  -p(z_t)_y · log p(z_s)_y + w · ⟨plan, D⟩, D = max(cost, 0) + 1e-8. The plan is
  what ten Sinkhorn steps find between the student's and the teacher's
  probabilities of the classes beside the label at temperature T.

  Lv et al., 2024, https://arxiv.org/abs/2412.08139. Memory: batch × classes²
  floats.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.
    labels: class indices, integer `[batch]`.
    cost: of moving mass from one class to another, `[classes, classes]`.
    temperature: T > 0, a scalar.
    weight: w.
    regularization: ε of the entropy.
    iterations: number of Sinkhorn steps; the gradient goes through them.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> zeros = jnp.zeros((1, 3))
  >>> loss = wkd_l(zeros, zeros, jnp.array([0]), 1 - jnp.eye(3))
  >>> print(f'{loss[0]:.4f}')
  0.3662
  """
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  temperature = as_scalar('temperature', temperature)
  labels = _arrays.as_classes('wkd_l', labels, student_logits)
  classes = student_logits.shape[-1]
  cost = jnp.asarray(cost, jnp.float32)
  if cost.shape != (classes, classes):
    raise ValueError(
      f'cost has shape {cost.shape}: expected {(classes, classes)}, from each '
      'class to each class'
    )
  target = jax.nn.one_hot(labels, classes, dtype=bool)
  # The classes beside the label, in their order.
  others = jnp.arange(classes - 1)[None]
  others = jnp.where(others >= labels[:, None], others + 1, others)

  def rest(logits: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits / temperature, others, axis=-1)
    return jax.nn.softmax(chosen)

  student, teacher = rest(student_logits), rest(teacher_logits)
  distance = jnp.maximum(cost, 0.0) + 1e-8
  distance = distance[others[:, :, None], others[:, None, :]]
  kernel = jnp.exp(-distance / regularization)
  high = jax.lax.Precision.HIGHEST
  rows = jnp.full_like(student, 1 / max(classes - 1, 1))
  columns = rows
  for _ in range(iterations):
    columns = teacher / (
      jnp.einsum('bij,bi->bj', kernel, rows, precision=high) + 1e-8
    )
    rows = student / (
      jnp.einsum('bij,bj->bi', kernel, columns, precision=high) + 1e-8
    )
  plan = rows[:, :, None] * kernel * columns[:, None, :]
  transport = (plan * distance).sum(axis=(1, 2))
  label_term = _label_cross_entropy(student_logits, teacher_logits, target)
  return label_term + weight * transport


def mlkd(
  student_weak: jax.Array,
  teacher_weak: jax.Array,
  student_strong: jax.Array,
  teacher_strong: jax.Array,
  temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> jax.Array:
  """Multi-level logit distillation, of two views of each image.

  The sum over temperatures T of T² · KL on the weak view, T² · KL on the strong
  view, ‖P_s P_sᵀ - P_t P_tᵀ‖² / B and ‖P_sᵀ P_s - P_tᵀ P_t‖² / C, P the
  probabilities of the weak view at T, `[B, C]`. The last two are of the whole
  batch; each example has its rows of the first and the same of the second.

  Jin et al., Multi-level logit distillation, CVPR 2023. The published code
  also multiplies by the share of uncertain examples and classes.

  Args:
    student_weak: logits of the weakly augmented view, `[batch, classes]`.
    teacher_weak: the teacher's; receive no gradient.
    student_strong: logits of the strongly augmented view, `[batch, classes]`.
    teacher_strong: the teacher's; receive no gradient.
    temperatures: each T > 0.

  Returns:
    Loss of each example, float32 `[batch]`; it depends on the batch.

  Raises:
    ValueError: the shapes differ.

  >>> logits = jnp.array([[0.0, 1], [1, 0]])
  >>> mlkd(logits, logits, logits, logits)
  Array([0., 0.], dtype=float32)
  """
  student, teacher = as_logit_pair(student_weak, teacher_weak)
  batch, classes = student.shape
  total = jnp.zeros(batch)
  for temperature in temperatures:
    total += temperature_kl(student_weak, teacher_weak, temperature)
    total += temperature_kl(student_strong, teacher_strong, temperature)
    ours = jax.nn.softmax(student / temperature)
    theirs = jax.nn.softmax(teacher / temperature)
    examples = _arrays.dot(ours, ours.T) - _arrays.dot(theirs, theirs.T)
    total += jnp.square(examples).sum(axis=-1)
    by_class = _arrays.dot(ours.T, ours) - _arrays.dot(theirs.T, theirs)
    total += jnp.square(by_class).sum() / classes
  return total


def crld(
  student_weak: jax.Array,
  teacher_weak: jax.Array,
  student_strong: jax.Array,
  teacher_strong: jax.Array,
  temperature: Scalar = 4.0,
  within_weight: Scalar = 2.0,
  cross_weight: Scalar = 0.5,
  weak_threshold: Scalar = 0.9,
  strong_threshold: Scalar = 0.2,
) -> jax.Array:
  """Cross-view distillation where the teacher is confident.

  w · m_w · (k(s_w, t_w) + k(s_s, t_s)) + c · m_s · (k(s_s, t_w) + k(s_w, t_s)),
  k = T² · KL; s and t are student and teacher, their indices the weak and the
  strong view. m_w and m_s are 1 where the teacher's largest probability on that
  view reaches its threshold.

  Zhang et al., 2024, https://arxiv.org/abs/2412.16493.

  Args:
    student_weak: logits of the weakly augmented view, `[batch, classes]`.
    teacher_weak: the teacher's; receive no gradient.
    student_strong: logits of the strongly augmented view, `[batch, classes]`.
    teacher_strong: the teacher's; receive no gradient.
    temperature: T > 0, a scalar.
    within_weight: w.
    cross_weight: c.
    weak_threshold: of m_w.
    strong_threshold: of m_s.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> logits = jnp.array([[0.0, 1]])
  >>> crld(logits, logits, logits, logits)
  Array([0.], dtype=float32)
  """
  _, teacher_w = as_logit_pair(student_weak, teacher_weak)
  _, teacher_s = as_logit_pair(student_strong, teacher_strong)
  sure_weak = jax.nn.softmax(teacher_w).max(axis=-1) >= weak_threshold
  sure_strong = jax.nn.softmax(teacher_s).max(axis=-1) >= strong_threshold

  def divergence(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return temperature_kl(student, teacher, temperature)

  within = divergence(student_weak, teacher_weak) + divergence(
    student_strong, teacher_strong
  )
  across = divergence(student_strong, teacher_weak) + divergence(
    student_weak, teacher_strong
  )
  within_weight = as_scalar('within_weight', within_weight)
  cross_weight = as_scalar('cross_weight', cross_weight)
  return jnp.where(sure_weak, within_weight * within, 0.0) + jnp.where(
    sure_strong, cross_weight * across, 0.0
  )


def sdd(
  student_region_logits: jax.Array,
  teacher_region_logits: jax.Array,
  labels: jax.Array,
  loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """Scale-decoupled distillation: a logit loss on regions of the image.

  The mean over regions of w · loss, w = 2 where the teacher is right in the
  region and wrong on the whole image or the reverse, else 1.

  Wei et al., 2024, https://arxiv.org/abs/2403.13512.

  Args:
    student_region_logits: `[batch, regions, classes]`, the whole image first;
      see `region_logits`.
    teacher_region_logits: the teacher's, the same shape; receive no gradient.
    labels: class indices, integer `[batch]`.
    loss: `loss(student_logits, teacher_logits, labels)`, one value per row.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> logits = jnp.zeros((1, 5, 3))
  >>> sdd(logits, logits, jnp.array([0]), lambda s, t, y: kd(s, t, 4.0))
  Array([0.], dtype=float32)
  """
  student = jnp.asarray(student_region_logits, jnp.float32)
  teacher = jnp.asarray(teacher_region_logits, jnp.float32)
  _arrays.check_equal_shapes('student', student, 'teacher', teacher)
  batch, regions, classes = student.shape
  labels = _arrays.as_classes('sdd', labels, student[:, 0])
  every_label = jnp.repeat(labels, regions)
  per_region = loss(
    student.reshape(-1, classes), teacher.reshape(-1, classes), every_label
  ).reshape(batch, regions)
  right = teacher.argmax(axis=-1) == labels[:, None]
  weights = jnp.where(right != right[:, :1], 2.0, 1.0)
  return (weights * per_region).mean(axis=1)


def region_logits(
  feature: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  levels: tuple[int, ...] = (1, 2, 4),
) -> jax.Array:
  """Logits of regions of an image, through the network's own last layer.

  The map is averaged to the finest level, from it to the coarser ones.

  Args:
    feature: the last map, `[batch, height, width, channels]`.
    kernel: of the last layer, `[channels, classes]`.
    bias: of the last layer, `[classes]`.
    levels: numbers of regions along a side, ascending.

  Returns:
    float32 `[batch, Σ levels², classes]`, level by level, row by row.

  >>> region_logits(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 5)), jnp.ones(5)).shape
  (2, 21, 5)
  """
  feature = jnp.asarray(feature, jnp.float32)
  finest = _arrays.pool_to(feature, levels[-1], levels[-1])
  regions = [
    _arrays.pool_to(finest, level, level).reshape(
      len(feature), -1, feature.shape[-1]
    )
    for level in levels
  ]
  return (
    _arrays.dot(jnp.concatenate(regions, axis=1), kernel) + bias[None, None]
  )


def _one_hot(name: str, labels: jax.Array, logits: jax.Array) -> jax.Array:
  labels = _arrays.as_classes(name, labels, logits)
  return jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)


def _group_masses(
  logits: jax.Array, groups: tuple[jax.Array, ...]
) -> jax.Array:
  """Computes log-probabilities of groups of classes, `[batch, groups]`."""
  log_probabilities = jax.nn.log_softmax(logits)
  return jnp.stack(
    [_arrays.log_mass(log_probabilities, group) for group in groups], axis=-1
  )


def _grouped_kl(
  student: jax.Array, teacher: jax.Array, groups: tuple[jax.Array, ...]
) -> jax.Array:
  """Computes the divergence between the masses of groups of classes."""
  return _arrays.kl_divergence(
    _group_masses(teacher, groups), _group_masses(student, groups)
  )


def _masked_kl(
  student: jax.Array, teacher: jax.Array, mask: jax.Array
) -> jax.Array:
  """Computes the divergence of the softmaxes over some classes of each row."""
  return _arrays.kl_divergence(
    _arrays.masked_log_softmax(teacher, mask),
    _arrays.masked_log_softmax(student, mask),
    where=mask,
  )


def _label_cross_entropy(
  student_logits: jax.Array, teacher_logits: jax.Array, target: jax.Array
) -> jax.Array:
  """Computes -p(z_t)_y · log p(z_s)_y."""
  probability = jax.nn.softmax(teacher_logits)
  terms = probability * jax.nn.log_softmax(student_logits)
  return -jnp.where(target, terms, 0.0).sum(axis=-1)


def _correlation(
  student: jax.Array, teacher: jax.Array, axis: int
) -> jax.Array:
  """Computes Pearson's correlation along an axis."""
  student, teacher = (
    _arrays.center(student, axis),
    _arrays.center(teacher, axis),
  )
  lengths = _arrays.norm(student, axis) * _arrays.norm(teacher, axis)
  products = (student * teacher).sum(axis=axis, keepdims=True)
  return jnp.squeeze(products / (lengths + 1e-8), axis)


def _transformed_teacher(
  student_logits: jax.Array, teacher_logits: jax.Array, power: Scalar
) -> tuple[jax.Array, jax.Array]:
  """Computes the divergence of `ttm`, and U."""
  student_logits, teacher_logits = as_logit_pair(student_logits, teacher_logits)
  powers = as_scalar('power', power) * jax.nn.log_softmax(teacher_logits)
  divergence = _arrays.kl_divergence(
    jax.nn.log_softmax(powers), jax.nn.log_softmax(student_logits)
  )
  return divergence, jnp.exp(jax.nn.logsumexp(powers, axis=-1))
