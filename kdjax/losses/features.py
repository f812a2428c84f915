"""Losses of feature maps, `[batch, height, width, channels]`.

Connectors, which bring a student's feature to the shape of the teacher's, are
not part of a loss: see `kdjax.methods`.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _arrays
from kdjax.losses.logits import Scalar, cross_entropy

Features = Mapping[str, jax.Array] | Sequence[jax.Array]


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

  >>> feature_mse(jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3)))
  Array([1.], dtype=float32)
  """
  student_feature = jnp.asarray(student_feature)
  teacher_feature = jax.lax.stop_gradient(jnp.asarray(teacher_feature))
  _arrays.check_equal_shapes(
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


def feature_loss(
  student_logits: jax.Array,
  student_features: Features,
  teacher_features: Features,
  labels: jax.Array,
  ce_weight: Scalar,
  feature_weight: Scalar,
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

  >>> feature_loss(
  ...   jnp.zeros((1, 2)),
  ...   [jnp.zeros((1, 2, 2, 3))],
  ...   [jnp.ones((1, 2, 2, 3))],
  ...   jnp.array([0]),
  ...   ce_weight=0.0,
  ...   feature_weight=0.5,
  ...   reduction='mean',
  ... )
  Array([0.5], dtype=float32)
  """
  stages = pair_stages(student_features, teacher_features)
  if reduction not in ('mean', 'sum'):
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
  return weigh_stages(hard, differences, ce_weight, feature_weight, reduction)


def weigh_stages(
  hard: jax.Array,
  differences: Sequence[jax.Array],
  ce_weight: Scalar,
  feature_weight: Scalar,
  reduction: str,
) -> jax.Array:
  """Adds the terms of `feature_loss`.

  Args:
    hard: the cross-entropy, `[batch]`.
    differences: those of each stage, `[batch]`.
    ce_weight: weight of the cross-entropy, a scalar.
    feature_weight: weight of the reduced differences, a scalar.
    reduction: 'mean' or 'sum' over the stages.

  Returns:
    Loss of each example, `[batch]`.
  """
  ce_weight = _arrays.as_scalar('ce_weight', ce_weight)
  feature_weight = _arrays.as_scalar('feature_weight', feature_weight)
  reduce = jnp.mean if reduction == 'mean' else jnp.sum
  return ce_weight * hard + feature_weight * reduce(
    jnp.stack(differences), axis=0
  )


def pair_stages(
  student_features: Features, teacher_features: Features
) -> list[tuple[jax.Array, jax.Array]]:
  """Pairs the stages of student and teacher by name, or else by order.

  Args:
    student_features: feature maps, a mapping by name or a sequence.
    teacher_features: the teacher's, of the same names or order.

  Returns:
    Pairs of the student's and the teacher's feature.

  Raises:
    ValueError: they do not pair up, or there are none.

  >>> pair_stages({'stage1': 'ours'}, {'stage1': 'theirs'})
  [('ours', 'theirs')]
  """
  student, teacher = student_features, teacher_features
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
    raise ValueError('a loss of features needs at least one stage, found none')
  return pairs


def at(student_features: Features, teacher_features: Features) -> jax.Array:
  """Attention transfer, Σ over stages of mean (n(a_s) - n(a_t))².

  a is the mean over channels of the squared map, n divides it by its Euclidean
  norm over the positions. The larger map is averaged to the size of the
  smaller; channels may differ. The published weight is 1000.

  Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1612.03928 (their code;
  the paper has the norm of the difference).

  Args:
    student_features: maps `[batch, height, width, channels]`, a mapping by name
      or a sequence.
    teacher_features: the teacher's, of the same names or order; receive no
      gradient.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the stages do not pair up, or a feature is no map.

  >>> x = jnp.ones((1, 2, 2, 3))
  >>> at([x], [2 * x])
  Array([0.], dtype=float32)
  """
  total = jnp.zeros(())
  for student, teacher in pair_stages(student_features, teacher_features):
    student, teacher = _arrays.match_sizes(*_maps(student, teacher))
    difference = _attention(student) - _attention(teacher)
    total = total + jnp.square(difference).mean(axis=1)
  return total


def nst(student_features: Features, teacher_features: Features) -> jax.Array:
  """Neuron selectivity transfer, a squared maximum mean discrepancy.

  Σ over stages of mean (s_i·s_j)² + mean (t_i·t_j)² - 2 · mean (s_i·t_j)², s_i
  and t_j the channels as unit vectors over the positions. The larger map is
  averaged to the size of the smaller; channels may differ. The published weight
  is 50.

  Where the map has fewer positions than channels it is computed as the squared
  difference of the channels' mean outer products, which is the same, smaller,
  and free of differences of large numbers.

  Huang and Wang, 2017, https://arxiv.org/abs/1707.01219, with the polynomial
  kernel of degree 2.

  Args:
    student_features: maps `[batch, height, width, channels]`, a mapping by name
      or a sequence.
    teacher_features: the teacher's, of the same names or order; receive no
      gradient.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the stages do not pair up, or a feature is no map.

  >>> x = jnp.ones((1, 2, 2, 3))
  >>> loss = nst([x], [2 * x])
  >>> print(f'{loss[0]:.4f}')
  0.0000
  """
  total = jnp.zeros(())
  for student, teacher in pair_stages(student_features, teacher_features):
    student, teacher = _arrays.match_sizes(*_maps(student, teacher))
    ours, theirs = _unit_channels(student), _unit_channels(teacher)
    positions = ours.shape[1]
    if positions**2 <= ours.shape[2] ** 2 + theirs.shape[2] ** 2:
      difference = _products('bpc,bqc->bpq', ours, ours) / ours.shape[2] - (
        _products('bpc,bqc->bpq', theirs, theirs) / theirs.shape[2]
      )
      total = total + jnp.square(difference).sum(axis=(1, 2))
    else:
      for first, second, weight in (
        (ours, ours, 1),
        (theirs, theirs, 1),
        (ours, theirs, -2),
      ):
        products = _products('bpc,bpd->bcd', first, second)
        total = total + weight * jnp.square(products).mean(axis=(1, 2))
  return total


def ickd(student_feature: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Inter-channel correlation, Σ (n(G_s) - n(G_t))² / channels.

  G is the Gram matrix of the channels over the positions, `[channels,
  channels]`, n divides each row by its norm. The published weight is 2.5.

  Liu et al., 2022, https://arxiv.org/abs/2202.03680. Computed without the Gram
  matrices, in batch × positions² floats.

  Args:
    student_feature: `[batch, height, width, channels]`, after its connector.
    teacher_feature: the same shape; receives no gradient.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ, or are no maps.

  >>> x = jnp.ones((1, 2, 2, 3))
  >>> ickd(x, 2 * x)
  Array([0.], dtype=float32)
  """
  student, teacher = _arrays.as_features(student_feature, teacher_feature, 4)
  _arrays.check_equal_shapes(
    'student_feature', student, 'teacher_feature', teacher
  )

  student, teacher = (
    x.reshape(len(x), -1, x.shape[-1]) for x in (student, teacher)
  )

  def products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products of the rows of two Gram matrices, `[batch, channels]`.

    By way of `[positions, positions]`, which are fewer than channels².
    """
    between = _products('bpc,bqc->bpq', a, b)
    return (a * _products('bpq,bqc->bpc', between, b)).sum(axis=1)

  ours, theirs = products(student, student), products(teacher, teacher)
  both = (ours > 0) & (theirs > 0)
  scale = jnp.sqrt(jnp.where(both, ours, 1.0)) * jnp.sqrt(
    jnp.where(both, theirs, 1.0)
  )
  # |n(g_s) - n(g_t)|², of which a row of zeros has the norm 0.
  cosine = jnp.where(both, products(student, teacher) / scale, 0.0)
  present = (ours > 0).astype(jnp.float32) + (theirs > 0).astype(jnp.float32)
  squares = present - 2 * cosine
  return squares.sum(axis=1) / student.shape[-1]


def ofd(
  student_features: Features, teacher_features: Features, margins: Features
) -> jax.Array:
  """Overhaul of feature distillation: a partial distance before the ReLU.

  With t' = max(f_t, m), the sum over positions and channels of (f_s - t')²
  where f_s > t' or t' > 0; stage i of n weighs 2^(i-n). The published weight is
  1e-3 for CIFAR and 1e-4 for ImageNet.

  Heo et al., 2019, https://arxiv.org/abs/1904.01866.

  Args:
    student_features: maps before the ReLU `[batch, height, width, channels]`,
      after their connectors, the last stage last.
    teacher_features: the teacher's before the ReLU, the same shapes; receive no
      gradient.
    margins: m of each stage, `[channels]`; see `ofd_margin`.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the stages do not pair up or the shapes differ.

  >>> ofd(
  ...   [jnp.zeros((1, 1, 1, 2))],
  ...   [jnp.array([[[[1.0, -1.0]]]])],
  ...   [jnp.array([-0.5, -0.5])],
  ... )
  Array([1.25], dtype=float32)
  """
  pairs = pair_stages(student_features, teacher_features)
  bounds = pair_stages(teacher_features, margins)
  total = jnp.zeros(())
  for index, ((student, teacher), (_, margin)) in enumerate(
    zip(pairs, bounds, strict=True)
  ):
    student, teacher = _maps(student, teacher)
    _arrays.check_equal_shapes('student', student, 'teacher', teacher)
    target = jnp.maximum(
      teacher, jax.lax.stop_gradient(margin)[None, None, None]
    )
    active = (student > target) | (target > 0)
    squares = jnp.where(active, jnp.square(student - target), 0.0)
    weight = 2.0 ** (index + 1 - len(pairs))
    total = total + weight * squares.sum(axis=(1, 2, 3))
  return total


def ofd_margin(scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Margin of `ofd`: the mean of a channel's negative values before the ReLU.

  β - |γ| · φ(β/|γ|) / Φ(-β/|γ|), where the channel is negative with a
  probability Φ above 0.001; else -3 · |γ|.

  Heo et al., 2019, https://arxiv.org/abs/1904.01866, section 3.2.

  Args:
    scale: γ of the BatchNorm before the ReLU, `[channels]`.
    bias: its β, `[channels]`.

  Returns:
    float32 `[channels]`.

  Raises:
    ValueError: the shapes differ.

  >>> loss = ofd_margin(jnp.ones(1), jnp.zeros(1))
  >>> print(f'{loss[0]:.4f}')
  -0.7979
  """
  _arrays.check_equal_shapes('scale', scale, 'bias', bias)
  scale = jnp.abs(jnp.asarray(scale, jnp.float32))
  ratio = jnp.asarray(bias, jnp.float32) / jnp.maximum(scale, 1e-12)
  negative = jax.scipy.stats.norm.cdf(-ratio)
  usual = negative > 0.001
  density = jax.scipy.stats.norm.pdf(ratio)
  mean = bias - scale * density / jnp.where(usual, negative, 1.0)
  return jnp.where(usual, mean, -3 * scale)


def vid(
  student_feature: jax.Array, teacher_feature: jax.Array, variance: jax.Array
) -> jax.Array:
  """Variational information distillation, mean of ½ · ((μ - f_t)²/v + log v).

  The negative log-likelihood of the teacher's feature under a Gaussian whose
  mean μ the student predicts, with one trained variance per channel. Summed
  over stages by the caller; the published weight is 1.

  Ahn et al., 2019, https://arxiv.org/abs/1904.05835, equation 6.

  Args:
    student_feature: μ, `[batch, height, width, channels]`, after its connector.
    teacher_feature: the same shape; receives no gradient.
    variance: v > 0, `[channels]`; has a gradient.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ, or are no maps.

  >>> x = jnp.ones((1, 2, 2, 3))
  >>> vid(x, x, jnp.ones(3))
  Array([0.], dtype=float32)
  """
  mean, teacher = _arrays.as_features(student_feature, teacher_feature, 4)
  variance = jnp.asarray(variance, jnp.float32)
  _arrays.check_equal_shapes('variance', variance, 'feature', mean[0, 0, 0])
  variance = variance[None, None, None]
  terms = jnp.square(mean - teacher) / variance + jnp.log(variance)
  return 0.5 * terms.mean(axis=(1, 2, 3))


def hcl(student_features: Features, teacher_features: Features) -> jax.Array:
  """Hierarchical context loss of ReviewKD, at several scales.

  Of each level the mean over scales of the mean squared difference: the map
  itself weighs 1, its averages to 4×4, 2×2 and 1×1 weigh ½, ¼ and ⅛ (those
  smaller than the map), divided by the sum of the weights. Summed over levels.

  Chen et al., 2021, https://arxiv.org/abs/2104.09044, section 3.3.

  Args:
    student_features: maps `[batch, height, width, channels]`, after fusion.
    teacher_features: the teacher's, the same shapes; receive no gradient.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the levels do not pair up or the shapes differ.

  >>> x = jnp.zeros((1, 8, 8, 3))
  >>> hcl([x], [x + 2])
  Array([4.], dtype=float32)
  """
  total = jnp.zeros(())
  for student, teacher in pair_stages(student_features, teacher_features):
    student, teacher = _maps(student, teacher)
    _arrays.check_equal_shapes('student', student, 'teacher', teacher)
    level, weights = feature_mse(student, teacher), 1.0
    weight = 1.0
    for size in (4, 2, 1):
      if size >= student.shape[1]:
        continue
      weight /= 2
      weights += weight
      level += weight * feature_mse(
        _arrays.pool_to(student, size, size),
        _arrays.pool_to(teacher, size, size),
      )
    total = total + level / weights
  return total


def cat_kd(
  student_maps: jax.Array, teacher_maps: jax.Array, resolution: int = 2
) -> jax.Array:
  """Class attention transfer: mean squared difference of class activation maps.

  The maps are averaged to `resolution`×`resolution`, and each class's map is
  divided by its norm. The published weight is 400.

  Guo et al., 2023, https://arxiv.org/abs/2304.12777.

  Args:
    student_maps: `[batch, height, width, classes]`, the last map times the
      kernel of the network's last layer.
    teacher_maps: the teacher's; receive no gradient.
    resolution: positions along a side.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: batches or classes differ.

  >>> x = jnp.ones((1, 4, 4, 3))
  >>> cat_kd(x, 2 * x)
  Array([0.], dtype=float32)
  """
  student, teacher = _maps(student_maps, teacher_maps)
  student, teacher = (
    _unit_channels(_arrays.pool_to(maps, resolution, resolution))
    for maps in (student, teacher)
  )
  return feature_mse(student, teacher)


def wkd_f(
  student_feature: jax.Array,
  teacher_feature: jax.Array,
  mean_weight: Scalar = 2.0,
) -> jax.Array:
  """Wasserstein distance of features as Gaussians with diagonal covariance.

  Σ over channels of r · (m_s - m_t)² + (σ_s - σ_t)², m the mean over positions
  and σ the root of the unbiased variance plus 1e-5. The published weight is
  0.02 for ImageNet and 0.08 for CIFAR. A map of one position has no variance:
  the second term is then 0.

  Lv et al., 2024, https://arxiv.org/abs/2412.08139.

  Args:
    student_feature: `[batch, height, width, channels]`, after its connector.
    teacher_feature: the same shape; receives no gradient.
    mean_weight: r, 2 for ImageNet, 4 for CIFAR.

  Returns:
    Loss of each example, float32 `[batch]`.

  Raises:
    ValueError: the shapes differ, or are no maps.

  >>> x = jnp.ones((1, 2, 2, 3))
  >>> wkd_f(x, x + 1)
  Array([6.], dtype=float32)
  """
  student, teacher = _arrays.as_features(student_feature, teacher_feature, 4)
  mean_weight = _arrays.as_scalar('mean_weight', mean_weight)

  def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.reshape(len(x), -1, x.shape[-1])
    mean = x.mean(axis=1)
    squares = jnp.square(x - mean[:, None]).sum(axis=1)
    return mean, jnp.sqrt(squares / max(x.shape[1] - 1, 1) + 1e-5)

  (our_mean, our_std), (their_mean, their_std) = (
    moments(student),
    moments(teacher),
  )
  return (
    mean_weight * jnp.square(our_mean - their_mean)
    + jnp.square(our_std - their_std)
  ).sum(axis=-1)


def _maps(
  student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return _arrays.as_features(student, teacher, 4, batch_only=True)


def _attention(x: jax.Array) -> jax.Array:
  return _arrays.unit(jnp.square(x).mean(axis=-1).reshape(len(x), -1))


def _unit_channels(x: jax.Array) -> jax.Array:
  """Flattens positions and divides each channel by its norm over them."""
  return _arrays.unit(x.reshape(len(x), -1, x.shape[-1]), axis=1)


def _products(equation: str, first: jax.Array, second: jax.Array) -> jax.Array:
  return jnp.einsum(
    equation, first, second, precision=jax.lax.Precision.HIGHEST
  )
