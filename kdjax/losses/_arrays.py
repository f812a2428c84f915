"""Checks of arguments, and arithmetic whose gradients stay finite."""

import jax
import jax.numpy as jnp
import numpy as np


def as_logits(name: str, logits: jax.Array) -> jax.Array:
  """Casts logits to float32.

  Raises:
    ValueError: they are not `[batch, classes]`.
  """
  logits = jnp.asarray(logits)
  if logits.ndim != 2:
    raise ValueError(
      f'{name} must have shape [batch, classes], found {logits.shape}'
    )
  return logits.astype(jnp.float32)


def as_scalar(name: str, value: jax.typing.ArrayLike) -> jax.Array:
  """Casts a hyperparameter to float32.

  Raises:
    ValueError: it is not a scalar.
  """
  scalar = jnp.asarray(value, jnp.float32)
  if scalar.ndim:
    raise ValueError(f'{name} must be a scalar, found shape {scalar.shape}')
  return scalar


def check_equal_shapes(
  first_name: str, first: jax.Array, second_name: str, second: jax.Array
) -> None:
  """Refuses to broadcast.

  Raises:
    ValueError: the shapes differ.
  """
  if first.shape != second.shape:
    raise ValueError(
      f'{first_name} has shape {first.shape}, {second_name} has shape '
      f'{second.shape}: they must be equal (nothing is broadcast here)'
    )


def as_logit_pair(
  student_logits: jax.Array, teacher_logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Casts logits to float32 and stops the gradient at the teacher.

  Raises:
    ValueError: they are not `[batch, classes]`, or their shapes differ.
  """
  student_logits = as_logits('student_logits', student_logits)
  teacher_logits = as_logits('teacher_logits', teacher_logits)
  check_equal_shapes(
    'student_logits', student_logits, 'teacher_logits', teacher_logits
  )
  return student_logits, jax.lax.stop_gradient(teacher_logits)


def as_classes(name: str, labels: jax.Array, logits: jax.Array) -> jax.Array:
  """Checks labels of a loss that treats the label's class apart.

  Raises:
    ValueError: they are not class indices, one for each row of the logits.
  """
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f'{name} treats the class of the label apart: labels must be class '
      f'indices, integers [batch], found {labels.dtype} {labels.shape}'
    )
  check_equal_shapes('labels', labels, 'logits[:, 0]', logits[:, 0])
  return labels


def as_features(
  student: jax.Array, teacher: jax.Array, ndim: int, batch_only: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Casts features to float32 and stops the gradient at the teacher.

  Args:
    student: the student's feature.
    teacher: the teacher's.
    ndim: number of axes: 4 for maps `[batch, height, width, channels]`, 2 for
      embeddings `[batch, channels]`.
    batch_only: whether only the batches must be equal.

  Raises:
    ValueError: the axes are others, or the shapes differ.
  """
  student = jnp.asarray(student, jnp.float32)
  teacher = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
  axes = (
    '[batch, channels]' if ndim == 2 else '[batch, height, width, channels]'
  )
  for name, feature in (('student', student), ('teacher', teacher)):
    if feature.ndim != ndim:
      raise ValueError(
        f'the feature of the {name} must have shape {axes}, found '
        f'{feature.shape}'
      )
  if batch_only:
    student_name, teacher_name = 'student[:, 0, …]', 'teacher[:, 0, …]'
    axis = (slice(None), *(0,) * (ndim - 1))
    check_equal_shapes(student_name, student[axis], teacher_name, teacher[axis])
  else:
    check_equal_shapes('student feature', student, 'teacher feature', teacher)
  return student, teacher


def flatten_rows(
  student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Flattens features of any shape to float32 rows `[batch, …]` of equal batch.

  The gradient stops at the teacher.

  Raises:
    ValueError: the batches differ.
  """
  student = jnp.asarray(student, jnp.float32)
  teacher = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
  if student.ndim < 2 or student.shape[:1] != teacher.shape[:1]:
    raise ValueError(
      f'features of student and teacher have shapes {student.shape} and '
      f'{teacher.shape}: expected the same batch, and at least one more axis'
    )
  batch = len(student)
  return student.reshape(batch, -1), teacher.reshape(batch, -1)


def dot(first: jax.Array, second: jax.Array) -> jax.Array:
  """Multiplies matrices in full float32, on GPUs too."""
  return jnp.matmul(first, second, precision=jax.lax.Precision.HIGHEST)


def square_root(x: jax.Array) -> jax.Array:
  """Computes √x, with gradient 0 where x is 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def norm(x: jax.Array, axis: int = -1) -> jax.Array:
  """Computes the Euclidean norm, with gradient 0 at 0; keeps the axis."""
  return square_root(jnp.square(x).sum(axis=axis, keepdims=True))


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Divides by the norm, at least 1e-12; a zero vector has gradient 0."""
  length = norm(x, axis)
  positive = length > 0
  length = jnp.where(positive, jnp.maximum(length, 1e-12), 1.0)
  return jnp.where(positive, x / length, 0.0)


def center(x: jax.Array, axis: int) -> jax.Array:
  """Subtracts the mean; what is left of a constant by rounding becomes 0."""
  centered = x - x.mean(axis=axis, keepdims=True)
  largest = jnp.abs(x).max(axis=axis, keepdims=True)
  constant = jnp.abs(centered).max(axis=axis, keepdims=True) <= 1e-6 * largest
  return jnp.where(constant, 0.0, centered)


def unbiased_std(centered: jax.Array) -> jax.Array:
  """Computes the unbiased deviation of centred rows; keeps the axis."""
  count = max(centered.shape[-1] - 1, 1)
  return square_root(jnp.square(centered).sum(axis=-1, keepdims=True) / count)


def kl_divergence(
  teacher_log: jax.Array,
  student_log: jax.Array,
  where: jax.Array | None = None,
) -> jax.Array:
  """Computes Σ p_t · (log p_t - log p_s) over the last axis."""
  terms = jnp.exp(teacher_log) * (teacher_log - student_log)
  if where is not None:
    terms = jnp.where(where, terms, 0.0)
  return terms.sum(axis=-1)


def masked_log_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Computes the log-softmax over some classes of each row; 0 elsewhere.

  Classes are left out exactly: not by subtracting a large number, which fails
  for large logits. A row without classes is all 0.
  """
  some = mask.any(axis=-1, keepdims=True)
  logits = jnp.where(mask | ~some, logits, -jnp.inf)
  return jnp.where(mask, jax.nn.log_softmax(logits), 0.0)


def log_mass(log_probabilities: jax.Array, mask: jax.Array) -> jax.Array:
  """Computes the log of the sum of some probabilities of each row.

  At least one of them must be left in.
  """
  return jax.nn.logsumexp(jnp.where(mask, log_probabilities, -jnp.inf), axis=-1)


def pool_to(x: jax.Array, height: int, width: int) -> jax.Array:
  """Averages a map `[batch, height, width, channels]` to another size.

  As PyTorch's `adaptive_avg_pool2d`: bin i of n over N positions begins at
  floor(i·N/n) and ends before ceil((i+1)·N/n).
  """
  if x.shape[1:3] == (height, width):
    return x
  for axis, size in ((1, height), (2, width)):
    x = jnp.moveaxis(
      jnp.tensordot(
        _averages(x.shape[axis], size),
        x,
        axes=(1, axis),
        precision=jax.lax.Precision.HIGHEST,
      ),
      0,
      axis,
    )
  return x


def match_sizes(
  student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Averages the larger of two maps to the size of the smaller.

  Args:
    student: `[batch, height, width, channels]`.
    teacher: the same, of any size and number of channels.

  Returns:
    Both maps, of the smaller height and width, averaged as PyTorch's
    `adaptive_avg_pool2d` does.

  >>> x, y = match_sizes(jnp.ones((1, 8, 8, 3)), jnp.ones((1, 4, 4, 5)))
  >>> x.shape, y.shape
  ((1, 4, 4, 3), (1, 4, 4, 5))
  """
  height = min(student.shape[1], teacher.shape[1])
  width = min(student.shape[2], teacher.shape[2])
  return pool_to(student, height, width), pool_to(teacher, height, width)


def _averages(count: int, bins: int) -> np.ndarray:
  matrix = np.zeros((bins, count), np.float32)
  for i in range(bins):
    start, end = i * count // bins, -(-(i + 1) * count // bins)
    matrix[i, start:end] = 1 / (end - start)
  return matrix
