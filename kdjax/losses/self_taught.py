"""Losses without a trained teacher: the student, another student, or a rule."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _arrays
from kdjax.losses.features import feature_mse
from kdjax.losses.logits import Scalar, cross_entropy, temperature_kl


def tfkd(
  student_logits: jax.Array,
  labels: jax.Array,
  temperature: Scalar = 20.0,
  multiplier: Scalar = 100.0,
) -> jax.Array:
  """Teacher-free distillation with a made-up teacher, m / C · KL(q ‖ p(z_s)).

  q = softmax(u / T), u = 0.99 on the label and 0.01 / (C - 1) elsewhere. The
  student is not tempered, and the divergence is divided by the number of
  classes C, both as in the published code.

  Yuan et al., 2019, https://arxiv.org/abs/1909.11723.

  Args:
    student_logits: `[batch, classes]`.
    labels: class indices, integer `[batch]`.
    temperature: T > 0, a scalar.
    multiplier: m.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> loss = tfkd(jnp.zeros((1, 2)), jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  0.0150
  """
  student_logits = _arrays.as_logits('student_logits', student_logits)
  temperature = _arrays.as_scalar('temperature', temperature)
  classes = student_logits.shape[-1]
  labels = _arrays.as_classes('tfkd', labels, student_logits)
  target = jax.nn.one_hot(labels, classes, dtype=bool)
  made_up = jnp.where(target, 0.99, 0.01 / max(classes - 1, 1))
  divergence = _arrays.kl_divergence(
    jax.nn.log_softmax(made_up / temperature),
    jax.nn.log_softmax(student_logits),
  )
  return _arrays.as_scalar('multiplier', multiplier) / classes * divergence


def pskd(
  student_logits: jax.Array,
  labels: jax.Array,
  past_probabilities: jax.Array,
  alpha: Scalar,
) -> jax.Array:
  """Progressive self-distillation: labels softened by the student's own past.

  Cross-entropy with (1 - α) · onehot(y) + α · p, p the student's probabilities
  of the last epoch; α grows over the epochs.

  Kim et al., 2020, https://arxiv.org/abs/2006.12000.

  Args:
    student_logits: `[batch, classes]`.
    labels: class indices or probabilities, as for `cross_entropy`.
    past_probabilities: `[batch, classes]`; receive no gradient.
    alpha: α in [0, 1].

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit.

  >>> half = jnp.array([[0.5, 0.5]])
  >>> loss = pskd(jnp.zeros((1, 2)), jnp.array([0]), half, 0.8)
  >>> print(f'{loss[0]:.4f}')
  0.6931
  """
  student_logits = _arrays.as_logits('student_logits', student_logits)
  alpha = _arrays.as_scalar('alpha', alpha)
  labels = jnp.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    labels = jax.nn.one_hot(labels, student_logits.shape[-1])
  past = jax.lax.stop_gradient(jnp.asarray(past_probabilities, jnp.float32))
  _arrays.check_equal_shapes('labels', labels, 'past_probabilities', past)
  return cross_entropy(student_logits, (1 - alpha) * labels + alpha * past)


def uskd(
  student_logits: jax.Array,
  auxiliary_logits: jax.Array,
  labels: jax.Array,
  alpha: Scalar = 1.0,
  beta: Scalar = 0.1,
  mu: Scalar = 0.005,
) -> jax.Array:
  """Universal self-distillation from a classifier on an earlier stage.

  α · [-q · log p(z_s)_y] with q = p_y² + 1 - mean p_y², + β · [-Σ_{c≠y} ẑ_c ·
  log ŝ_c] with ẑ from one over the rank of each class (Zipf's law), + μ · CE of
  the auxiliary classifier with labels 0.9 + 0.1 / C.

  Yang et al., 2023, https://arxiv.org/abs/2303.13005. Ranks are of
  w / (1 - w_y + 1e-6) + log p / (1 - log p_y + 1e-6), w the auxiliary
  probabilities, with the logarithm of the published code.

  Args:
    student_logits: `[batch, classes]`.
    auxiliary_logits: of a linear classifier on an earlier stage, the same
      shape.
    labels: class indices, integer `[batch]`.
    alpha: α.
    beta: β.
    mu: μ.

  Returns:
    Loss of each example, float32 `[batch]`; q depends on the batch.

  Raises:
    ValueError: the shapes do not fit, or the labels are no class indices.

  >>> zeros = jnp.zeros((1, 2))
  >>> loss = uskd(zeros, zeros, jnp.array([0]))
  >>> print(f'{loss[0]:.4f}')
  0.6966
  """
  student_logits = _arrays.as_logits('student_logits', student_logits)
  auxiliary = _arrays.as_logits('auxiliary_logits', auxiliary_logits)
  _arrays.check_equal_shapes('student', student_logits, 'auxiliary', auxiliary)
  labels = _arrays.as_classes('uskd', labels, student_logits)
  target = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
  log_p = jax.nn.log_softmax(student_logits)

  def of_label(values: jax.Array) -> jax.Array:
    return jnp.where(target, values, 0.0).sum(axis=-1)

  squared = jnp.exp(2 * of_label(log_p))
  soft_target = jax.lax.stop_gradient(squared + 1 - squared.mean())
  others = _arrays.masked_log_softmax(student_logits, ~target)
  zipf = _zipf_labels(log_p, jax.nn.softmax(auxiliary), target)
  classes = student_logits.shape[-1]
  smooth = jnp.where(target, 0.9, 0.0) + 0.1 / classes
  alpha, beta, mu = (
    _arrays.as_scalar(name, value)
    for name, value in (('alpha', alpha), ('beta', beta), ('mu', mu))
  )
  return (
    -alpha * soft_target * of_label(log_p)
    - beta * (zipf * others).sum(axis=-1)
    + mu * cross_entropy(auxiliary, smooth)
  )


def _zipf_labels(
  log_p: jax.Array, auxiliary: jax.Array, target: jax.Array
) -> jax.Array:
  """Computes ẑ of `uskd`, 0 for the label's class."""

  def divide(values: jax.Array) -> jax.Array:
    own = jnp.where(target, values, 0.0).sum(axis=-1, keepdims=True)
    return values / (1 - own + 1e-6)

  order = jax.lax.stop_gradient(divide(auxiliary) + divide(log_p))
  ranks = 1 + jnp.argsort(jnp.argsort(-order, axis=-1), axis=-1)
  inverse = jnp.where(target, 0.0, 1 / ranks)
  total = inverse.sum(axis=-1, keepdims=True)
  return inverse / jnp.where(total > 0, total, 1.0)


def byot(
  logits: Sequence[jax.Array],
  labels: jax.Array,
  embeddings: Sequence[jax.Array],
  temperature: Scalar = 3.0,
  kd_weight: Scalar = 0.3,
  feature_weight: Scalar = 0.03,
) -> jax.Array:
  """Be your own teacher: the deepest classifier teaches those before it.

  CE₀ + Σ_k [(1 - a) · CE_k + a · T² · KL(p_T(z_0) ‖ p_T(z_k)) + b · mean (e_k -
  e_0)²], 0 the deepest classifier, from which the others get no gradient.

  Zhang et al., 2019, https://arxiv.org/abs/1905.08094 (the paper's losses; the
  published code leaves out T² and squares).

  Args:
    logits: of the classifiers, the deepest first, each `[batch, classes]`.
    labels: as for `cross_entropy`.
    embeddings: of each classifier, after a linear layer to the deepest's size,
      each `[batch, channels]`.
    temperature: T > 0, a scalar.
    kd_weight: a.
    feature_weight: b.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes do not fit.

  >>> zeros = jnp.zeros((1, 2))
  >>> loss = byot([zeros, zeros], jnp.array([0]), [zeros, zeros])
  >>> print(f'{loss[0]:.4f}')
  1.1784
  """
  total = cross_entropy(logits[0], labels)
  for ours, embedding in zip(logits[1:], embeddings[1:], strict=True):
    total += (1 - kd_weight) * cross_entropy(ours, labels)
    total += kd_weight * temperature_kl(ours, logits[0], temperature)
    total += feature_weight * feature_mse(embedding, embeddings[0])
  return total
