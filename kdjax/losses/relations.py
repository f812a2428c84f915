"""Losses of relations between the examples of a batch, and contrastive losses.

They depend on which examples share a batch: gradient accumulation changes them.
On several devices a jitted function sees the whole batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax.losses import _arrays
from kdjax.losses.logits import Scalar, temperature_kl


def rkd(
  student: jax.Array,
  teacher: jax.Array,
  distance_weight: Scalar = 25.0,
  angle_weight: Scalar = 50.0,
) -> jax.Array:
  """Relational distillation of distances and angles between examples.

  w_d · mean huber(d_s - d_t) + w_a · mean huber(a_s - a_t) over all pairs and
  triples; d are distances, at least 1e-6 but for an
  example from itself, divided by their mean; a_ijk is the
  cosine of the angle at example i. A batch of one returns 0.

  Park et al., 2019, https://arxiv.org/abs/1904.05068. Memory: batch³ floats.

  Args:
    student: embeddings, `[batch, channels]`.
    teacher: the teacher's, of any number of channels; receive no gradient.
    distance_weight: w_d.
    angle_weight: w_a.

  Returns:
    Loss of each example, that of its rows, float32 `[batch]`.

  Raises:
    ValueError: the batches differ, or they are no embeddings.

  >>> x = jnp.array([[0.0, 0], [1, 0], [0, 1]])
  >>> loss = rkd(x, 2 * x)
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  student, teacher = _arrays.as_features(student, teacher, 2, batch_only=True)
  distance_weight = _arrays.as_scalar('distance_weight', distance_weight)
  angle_weight = _arrays.as_scalar('angle_weight', angle_weight)
  ours, theirs = _distances_and_angles(student), _distances_and_angles(teacher)
  distances, angles = (
    optax.losses.huber_loss(a, b) for a, b in zip(ours, theirs, strict=True)
  )
  return distance_weight * distances.mean(axis=1) + (
    angle_weight * angles.mean(axis=(1, 2))
  )


def sp(student_feature: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Similarity-preserving distillation, mean (n(F_s F_sᵀ) - n(F_t F_tᵀ))².

  F are the flattened features, n divides each row of the matrix `[batch,
  batch]` by its norm. The published weight is 3000.

  Tung and Mori, 2019, https://arxiv.org/abs/1907.09682.

  Args:
    student_feature: `[batch, ...]`.
    teacher_feature: `[batch, ...]`, other axes may differ; receives no
      gradient.

  Returns:
    Loss of each example, that of its row, float32 `[batch]`.

  Raises:
    ValueError: the batches differ.

  >>> x = jnp.array([[0.0, 1], [1, 0]])
  >>> sp(x, 2 * x)
  Array([0., 0.], dtype=float32)
  """
  student, teacher = _arrays.flatten_rows(student_feature, teacher_feature)
  difference = _arrays.unit(_arrays.dot(student, student.T)) - _arrays.unit(
    _arrays.dot(teacher, teacher.T)
  )
  return jnp.square(difference).mean(axis=1)


def pkt(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Probabilistic knowledge transfer between similarities of examples.

  mean q_t · log((q_t + 1e-7) / (q_s + 1e-7)) over all pairs, q the rows of
  (cosine + 1) / 2 divided by their sums. The published weight is 30000.

  Passalis and Tefas, 2018, https://arxiv.org/abs/1803.10837.

  Args:
    student: embeddings, `[batch, channels]`.
    teacher: the teacher's, of any number of channels; receive no gradient.

  Returns:
    Loss of each example, that of its row, float32 `[batch]`.

  Raises:
    ValueError: the batches differ, or they are no embeddings.

  >>> x = jnp.array([[0.0, 1], [1, 0]])
  >>> bool((jnp.abs(pkt(x, 2 * x)) < 1e-6).all())
  True
  """
  student, teacher = _arrays.as_features(student, teacher, 2, batch_only=True)

  def similarities(x: jax.Array) -> jax.Array:
    x = x / (_arrays.norm(x) + 1e-7)
    affinities = (_arrays.dot(x, x.T) + 1) / 2
    return affinities / affinities.sum(axis=1, keepdims=True)

  ours, theirs = similarities(student), similarities(teacher)
  terms = theirs * (jnp.log(theirs + 1e-7) - jnp.log(ours + 1e-7))
  return terms.mean(axis=1)


def cc(
  student: jax.Array, teacher: jax.Array, gamma: Scalar = 0.4, order: int = 2
) -> jax.Array:
  """Correlation congruence, mean (K_s - K_t)² of Gaussian kernel matrices.

  K = Σ_{p ≤ order} exp(-2γ) · (2γ)^p / p! · (x xᵀ)^p, the Taylor expansion of a
  Gaussian kernel of unit vectors x.

  Peng et al., 2019, https://arxiv.org/abs/1904.01802, equation 6.

  Args:
    student: embeddings, `[batch, channels]`.
    teacher: the teacher's, of any number of channels. It has a gradient here:
      the method trains an embedding of the teacher's as well.
    gamma: γ > 0.
    order: last power of the expansion.

  Returns:
    Loss of each example, that of its row, float32 `[batch]`.

  Raises:
    ValueError: the batches differ, or they are no embeddings.

  >>> x = jnp.array([[0.0, 1], [1, 0]])
  >>> cc(x, 2 * x)
  Array([0., 0.], dtype=float32)
  """
  _arrays.as_features(student, teacher, 2, batch_only=True)
  gamma = _arrays.as_scalar('gamma', gamma)

  def kernel(x: jax.Array) -> jax.Array:
    x = _arrays.unit(jnp.asarray(x, jnp.float32))
    similarity = _arrays.dot(x, x.T)
    term = jnp.ones_like(similarity)
    total = term
    for power in range(1, order + 1):
      term = term * similarity * (2 * gamma / power)
      total = total + term
    return jnp.exp(-2 * gamma) * total

  return jnp.square(kernel(student) - kernel(teacher)).mean(axis=1)


def cc_pairs(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Correlation congruence of neighbours, mean over i of |Δ_i| · |Δ_{i+1}|.

  Δ is the difference of the embeddings. The form of public code, not that of
  the paper, which is `cc`; it depends on the order of the batch.

  Args:
    student: embeddings, `[batch, channels]`, at least two rows.
    teacher: the teacher's, the same shape. It has a gradient, as in `cc`.

  Returns:
    Loss of each example, float32 `[batch]`; all have the same.

  Raises:
    ValueError: the shapes differ, or they are no embeddings.

  >>> cc_pairs(jnp.ones((2, 3)), jnp.zeros((2, 3)))
  Array([3., 3.], dtype=float32)
  """
  _arrays.as_features(student, teacher, 2)
  difference = jnp.abs(
    jnp.asarray(student, jnp.float32) - jnp.asarray(teacher, jnp.float32)
  )
  products = (difference[:-1] * difference[1:]).sum(axis=1)
  return jnp.full(len(difference), products.sum() / max(len(products), 1))


def srd(
  student: jax.Array,
  teacher: jax.Array,
  student_logits: jax.Array,
  teacher_logits: jax.Array,
) -> jax.Array:
  """Simple recipe distillation: a log-distance after normalisation, and a KL.

  2 · log Σ |BN(f_s) - BN(f_t)|⁴ over batch and channels, BN normalisation by
  the batch's statistics with ε = 1e-4 and without scale, + KL(t ‖ s) at T = 1.
  The first term is of the whole batch; its gradient does not shrink with the
  batch. Equal features have no gradient.

  Miles and Mikolajczyk, 2023, https://arxiv.org/abs/2303.11098.

  Args:
    student: embeddings after a linear projection, `[batch, channels]`.
    teacher: the teacher's, the same shape; receive no gradient.
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`; receive no gradient.

  Returns:
    Loss of each example, float32 `[batch]`; it depends on the batch.

  Raises:
    ValueError: the shapes differ.

  >>> x, logits = jnp.array([[0.0], [1]]), jnp.zeros((2, 2))
  >>> loss = srd(x, -x, logits, logits)
  >>> print(f'{loss[0]:.4f}')
  6.9299
  """
  student, teacher = _arrays.as_features(student, teacher, 2)

  def normalize(x: jax.Array) -> jax.Array:
    centered = x - x.mean(axis=0, keepdims=True)
    variance = jnp.square(centered).mean(axis=0, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-4)

  distance = (normalize(student) - normalize(teacher)) ** 4
  total = distance.sum()
  # Equal features: a large negative number, not -inf.
  tiny = jnp.finfo(jnp.float32).tiny
  feature_term = 2 * jnp.log(jnp.maximum(total, tiny))
  return feature_term + temperature_kl(student_logits, teacher_logits, 1.0)


def itrd(
  student: jax.Array,
  teacher: jax.Array,
  correlation_weight: Scalar = 2.0,
  mutual_weight: Scalar = 1.0,
  alpha: float = 1.5,
) -> jax.Array:
  """Information-theoretic distillation: correlation and mutual information.

  w_c · log₂ Σ_d ((c_d - 1)²)^α + w_m · Σ ((G_s/tr)² - (G_st/tr)²): c_d
  correlates channel d of student and teacher over the batch, G are Gram
  matrices of unit rows, G_st = G_s ∘ G_t. Both are of the whole batch.

  Miles et al., 2021, https://arxiv.org/abs/2112.00459.

  Args:
    student: embeddings after a linear projection, `[batch, channels]`.
    teacher: the teacher's, the same shape; receive no gradient.
    correlation_weight: w_c.
    mutual_weight: w_m.
    alpha: α.

  Returns:
    Loss of each example, float32 `[batch]`; all have the same.

  Raises:
    ValueError: the shapes differ.

  >>> x = jnp.array([[0.0, 1], [1, 0]])
  >>> loss = itrd(x, -x)
  >>> print(f'{loss[0]:.4f}')
  5.5098
  """
  student, teacher = _arrays.as_features(student, teacher, 2)
  batch = len(student)

  def standardize(x: jax.Array) -> jax.Array:
    centered = _arrays.center(x, axis=0)
    std = _arrays.unbiased_std(centered.T).T
    return jnp.where(std > 0, centered / jnp.where(std > 0, std, 1.0), 0.0)

  correlation = (standardize(student) * standardize(teacher)).sum(axis=0)
  distance = jnp.square(correlation / batch - 1)
  tiny = jnp.finfo(jnp.float32).tiny
  first = jnp.log2(jnp.maximum((distance**alpha).sum(), tiny))

  def gram(x: jax.Array) -> jax.Array:
    x = _arrays.unit(x)
    return _arrays.dot(x, x.T)

  ours = gram(student)
  both = ours * gram(teacher)

  def purity(matrix: jax.Array) -> jax.Array:
    trace = jnp.trace(matrix)
    safe = jnp.where(trace > 0, trace, 1.0)
    return jnp.square(matrix / safe).sum()

  total = _arrays.as_scalar('correlation_weight', correlation_weight) * first
  total += _arrays.as_scalar('mutual_weight', mutual_weight) * (
    purity(ours) - purity(both)
  )
  return jnp.full(batch, total)


def dcd(
  student: jax.Array,
  teacher: jax.Array,
  log_scale: jax.Array,
  offset: jax.Array,
  alpha: Scalar = 0.5,
  largest_scale: float = 10.0,
) -> jax.Array:
  """Discriminative and consistent distillation.

  L = n(e_s) n(e_t)ᵀ · min(exp τ, 10) + b, `[batch, batch]`: the cross-entropy
  of its rows with the diagonal + α · KL(softmax of its columns ‖ of its rows).

  Giakoumoglou and Stathaki, 2024, https://arxiv.org/abs/2407.11802.

  Args:
    student: embeddings, `[batch, channels]`.
    teacher: the teacher's, the same shape. Both have a gradient: the method
      trains an embedding of each.
    log_scale: τ, a trained scalar.
    offset: b, a trained scalar; its gradient is 0 but for rounding.
    alpha: α.
    largest_scale: bound of exp τ.

  Returns:
    Loss of each example, that of its row, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ.

  >>> x = jnp.array([[0.0, 1], [1, 0]])
  >>> loss = dcd(x, x, jnp.array(0.0), jnp.array(0.0))
  >>> print(f'{loss[0]:.4f}')
  0.3133
  """
  _arrays.as_features(student, teacher, 2)
  student, teacher = (
    _arrays.unit(jnp.asarray(x, jnp.float32)) for x in (student, teacher)
  )
  scale = jnp.minimum(jnp.exp(log_scale), largest_scale)
  logits = _arrays.dot(student, teacher.T) * scale + offset
  rows, columns = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits.T)
  return -jnp.diagonal(rows) + _arrays.as_scalar('alpha', alpha) * (
    _arrays.kl_divergence(columns, rows)
  )


class CRD(NamedTuple):
  """Memory of contrastive distillation.

  Attributes:
    student: embeddings of the training examples, `[examples, channels]`.
    teacher: the teacher's, of the same shape.
    student_constant: Z of the student's scores, a scalar; -1 before the first
      batch.
    teacher_constant: Z of the teacher's.
  """

  student: jax.Array
  teacher: jax.Array
  student_constant: jax.Array
  teacher_constant: jax.Array


def crd(
  student: jax.Array,
  teacher: jax.Array,
  ids: jax.Array,
  contrast_ids: jax.Array,
  memory: CRD,
  temperature: Scalar = 0.07,
  momentum: Scalar = 0.5,
) -> tuple[jax.Array, CRD]:
  """Contrastive representation distillation, with a memory of all examples.

  Each example's embedding is scored against the other network's stored ones,
  exp(m·v / T) / Z: its own must stand out from K drawn negatives. -log x₀/(x₀ +
  K/n + 1e-7) - Σ_k log (K/n)/(x_k + K/n + 1e-7), added over both directions; n
  is the number of stored examples. Z is n times the mean score of the first
  batch, then constant. After the loss an example's stored embeddings become
  n(momentum · stored + (1 - momentum) · new).

  Tian et al., 2019, https://arxiv.org/abs/1910.10699.

  Args:
    student: embeddings after a linear layer, `[batch, channels]`.
    teacher: the teacher's. Both have a gradient: both layers are trained.
    ids: index of each example in the memory, `[batch]`.
    contrast_ids: index of the example itself, then of K negatives, `[batch,
      1 + K]`.
    memory: the memory before the batch.
    temperature: T > 0.
    momentum: share that a stored embedding keeps.

  Returns:
    Loss of each example, float32 `[batch]`, and the memory after the batch.

  Raises:
    ValueError: the shapes differ.

  >>> x = jnp.eye(2)
  >>> memory = CRD(x, x, jnp.array(-1.0), jnp.array(-1.0))
  >>> loss, memory = crd(
  ...   x, x, jnp.arange(2), jnp.array([[0, 1], [1, 0]]), memory
  ... )
  >>> loss.shape, bool(memory.student_constant > 0)
  ((2,), True)
  """
  _arrays.as_features(student, teacher, 2)
  student, teacher = (
    _arrays.unit(jnp.asarray(x, jnp.float32)) for x in (student, teacher)
  )
  ours, our_constant = _contrast(
    student, memory.teacher, contrast_ids, memory.student_constant, temperature
  )
  theirs, their_constant = _contrast(
    teacher, memory.student, contrast_ids, memory.teacher_constant, temperature
  )

  momentum = _arrays.as_scalar('momentum', momentum)

  def replace(bank: jax.Array, new: jax.Array) -> jax.Array:
    mixed = momentum * bank[ids] + (1 - momentum) * jax.lax.stop_gradient(new)
    return bank.at[ids].set(_arrays.unit(mixed))

  return ours + theirs, CRD(
    replace(memory.student, student),
    replace(memory.teacher, teacher),
    our_constant,
    their_constant,
  )


def _contrast(
  embeddings: jax.Array,
  bank: jax.Array,
  contrast_ids: jax.Array,
  constant: jax.Array,
  temperature: Scalar,
) -> tuple[jax.Array, jax.Array]:
  """Computes one direction of `crd`, and its constant Z."""
  count = len(bank)
  noise = (contrast_ids.shape[1] - 1) / count
  stored = jax.lax.stop_gradient(bank)[contrast_ids]
  logits = jnp.einsum(
    'bkc,bc->bk', stored, embeddings, precision=jax.lax.Precision.HIGHEST
  ) / jnp.asarray(temperature, jnp.float32)
  scores = jnp.exp(logits)
  first = jax.lax.stop_gradient(scores.mean() * count)
  constant = jnp.where(constant > 0, constant, first)
  scores = scores / constant
  # Logarithms of quotients as differences, which do not underflow.
  own = jnp.log(scores[:, 0]) - jnp.log(scores[:, 0] + noise + 1e-7)
  others = jnp.log(noise) - jnp.log(scores[:, 1:] + noise + 1e-7)
  return -own - others.sum(axis=1), constant


def _distances_and_angles(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  differences = x[:, None] - x[None]
  squares = jnp.square(differences).sum(axis=-1)
  count = len(x) * (len(x) - 1)
  # At least 1e-6, as published; equal embeddings have no gradient.
  positive = squares > 1e-12
  distances = jnp.where(
    positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 1e-6
  )
  distances = jnp.where(jnp.eye(len(x), dtype=bool), 0.0, distances)
  mean = distances.sum() / max(count, 1)
  # Element by element: XLA would multiply by the reciprocal of a scalar, and
  # distances that are all equal would not become 1.
  means = jnp.full_like(distances, mean if count else 1.0)
  distances = distances / jax.lax.optimization_barrier(means)
  directions = _arrays.unit(differences)
  angles = jnp.einsum(
    'ijc,ikc->ijk',
    directions,
    directions,
    precision=jax.lax.Precision.HIGHEST,
  )
  return distances, angles
