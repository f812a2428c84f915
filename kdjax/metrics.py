"""What is reported of a classifier, computed from its logits."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses


def classification(
  logits: jax.typing.ArrayLike,
  labels: np.ndarray,
  teacher_logits: jax.typing.ArrayLike | None = None,
) -> dict[str, float]:
  """Measures a classifier on a split.

  Args:
    logits: `[size, classes]`.
    labels: class indices, integer `[size]`.
    teacher_logits: `[size, classes]`, if there is a teacher.

  Returns:
    `accuracy` from 0 to 1, `loss` (mean cross-entropy, nats), `count`; with a
    teacher also `agreement`, the share of examples where both predict the same
    class, and `kl_to_teacher`, the mean KL(teacher ‖ student) in nats.
  """
  per_example = jax.device_get(_per_example(logits, labels, teacher_logits))
  # Means in float64: the same whatever the order and size of the split.
  return {
    **{
      name: float(np.mean(values, dtype=np.float64))
      for name, values in per_example.items()
    },
    'count': len(labels),
  }


@jax.jit
def _per_example(
  logits: jax.Array, labels: jax.Array, teacher_logits: jax.Array | None
) -> dict[str, jax.Array]:
  predictions = jnp.argmax(logits, axis=-1)
  values = {
    'accuracy': predictions == labels,
    'loss': losses.cross_entropy(logits, labels),
  }
  if teacher_logits is not None:
    values |= {
      'agreement': predictions == jnp.argmax(teacher_logits, axis=-1),
      'kl_to_teacher': losses.temperature_kl(logits, teacher_logits, 1.0),
    }
  return values
