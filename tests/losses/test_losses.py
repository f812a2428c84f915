"""The losses against sums done by hand, and against PyTorch's values."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from kdjax import losses

pytestmark = pytest.mark.usefixtures('no_promotion')

ARRAYS = reference.losses()
CASES = ARRAYS['response/cases'].tolist()
STAGES = ('stage1', 'stage2', 'stage3', 'stage4')

# Two examples of three classes whose probabilities are plain fractions. The
# logarithms carry a constant, which no loss may notice.
STUDENT = np.array([[1, 2, 5], [4, 3, 1]]) / 8
TEACHER = np.array([[2, 4, 2], [1, 1, 6]]) / 8
LABELS = np.array([2, 0])
SHIFT = np.array([[3.0], [-2.0]])
CROSS_ENTROPY = [math.log(8 / 5), math.log(2)]
# Σ p log(p / q), class by class.
KL = [
  0.25 * math.log(2) + 0.5 * math.log(2) + 0.25 * math.log(2 / 5),
  0.125 * math.log(1 / 4) + 0.125 * math.log(1 / 3) + 0.75 * math.log(6),
]


def logits_of(probabilities, temperature=1.0):
  """Logits that give the probabilities at a temperature."""
  return jnp.asarray(
    temperature * np.log(probabilities) + SHIFT, dtype=jnp.float32
  )


@functools.cache
def example(dtype=jnp.float32):
  """Each loss with its student's arguments and the rest of them."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  student, teacher = 3 * normal(6, 10), 3 * normal(6, 10)
  student_features, teacher_features = (
    {'stage1': normal(6, 4, 4, 3), 'stage2': normal(6, 2, 2, 5)}
    for _ in range(2)
  )
  labels = jnp.asarray(rng.integers(10, size=6), jnp.int32)
  return {
    'cross_entropy': (losses.cross_entropy, (student,), (labels,)),
    'temperature_kl': (losses.temperature_kl, (student,), (teacher, 3.0)),
    'feature_mse': (
      losses.feature_mse,
      (student_features['stage1'],),
      (teacher_features['stage1'],),
    ),
    'response_loss': (
      losses.response_loss,
      (student,),
      (teacher, labels, 3.0, 0.4),
    ),
    **{
      f'feature_loss_{reduction}': (
        functools.partial(losses.feature_loss, reduction=reduction),
        (student, student_features),
        (teacher_features, labels, 0.3, 0.7),
      )
      for reduction in ('mean', 'sum')
    },
  }


each_loss = pytest.mark.parametrize('name', list(example()))


def assert_close(found, expected, rtol, atol_of_largest=0.0):
  expected = np.asarray(expected, np.float64)
  np.testing.assert_allclose(
    found,
    expected,
    rtol=rtol,
    atol=atol_of_largest * np.abs(expected).max(initial=0),
  )


# By hand


def test_cross_entropy_is_minus_the_log_of_the_labels_probability():
  found = losses.cross_entropy(logits_of(STUDENT), jnp.asarray(LABELS))
  assert_close(found, CROSS_ENTROPY, rtol=1e-6)


def test_cross_entropy_of_soft_labels_weighs_each_class():
  soft = np.array([[0.5, 0.0, 0.5], [0.25, 0.25, 0.5]])
  found = losses.cross_entropy(logits_of(STUDENT), jnp.asarray(soft))
  expected = [
    0.5 * math.log(8) + 0.5 * math.log(8 / 5),
    0.25 * math.log(2) + 0.25 * math.log(8 / 3) + 0.5 * math.log(8),
  ]
  assert_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0, 4.0])
def test_temperature_kl_is_teacher_to_student_times_the_temperature_squared(
  temperature,
):
  found = losses.temperature_kl(
    logits_of(STUDENT, temperature),
    logits_of(TEACHER, temperature),
    temperature,
  )
  assert_close(found, temperature**2 * np.array(KL), rtol=1e-6)


def test_temperature_kl_of_equal_distributions_is_zero():
  logits = logits_of(STUDENT)
  found = losses.temperature_kl(logits, logits + 1, 2.0)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_feature_mse_averages_all_axes_but_the_first():
  student = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
  teacher = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -2.0]]])
  found = losses.feature_mse(student, teacher)
  assert_close(found, [(0 + 4 + 9 + 16) / 4, (1 + 1 + 1 + 4) / 4], rtol=1e-6)


@pytest.mark.parametrize(('temperature', 'alpha'), [(4.0, 0.5), (2.0, 0.7)])
def test_response_loss_mixes_cross_entropy_and_kl(temperature, alpha):
  # At this temperature the student's probabilities are STUDENT; at 1, where
  # the cross-entropy is taken, they are its powers.
  powers = STUDENT**temperature
  hard = -np.log(powers[[0, 1], LABELS] / powers.sum(axis=1))
  found = losses.response_loss(
    logits_of(STUDENT, temperature),
    logits_of(TEACHER, temperature),
    jnp.asarray(LABELS),
    temperature,
    alpha,
  )
  expected = (1 - alpha) * hard + alpha * temperature**2 * np.array(KL)
  assert_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize(('alpha', 'expected'), [(0, CROSS_ENTROPY), (1, KL)])
def test_response_loss_at_the_ends_of_alpha_is_one_term_alone(alpha, expected):
  found = losses.response_loss(
    logits_of(STUDENT), logits_of(TEACHER), jnp.asarray(LABELS), 1.0, alpha
  )
  assert_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('ce_weight', 'feature_weight', 'reduction', 'stages'),
  [(1.0, 0.1, 'sum', 1), (0.3, 0.7, 'mean', 2)],
)
def test_feature_loss_adds_weighted_terms(
  ce_weight, feature_weight, reduction, stages
):
  # Squared differences of 4 and 25 in the first stage, 1 and 9 in the second.
  first = np.array([[2.0, 2.0], [5.0, -5.0]], np.float32)
  second = np.array([[[1.0]], [[3.0]]], np.float32)
  found = losses.feature_loss(
    logits_of(STUDENT),
    [first, second],
    [np.zeros_like(first), np.zeros_like(second)],
    jnp.asarray(LABELS),
    ce_weight,
    feature_weight,
    reduction,
  )
  features = np.array([4 + 1, 25 + 9]) / stages
  expected = ce_weight * np.array(CROSS_ENTROPY) + feature_weight * features
  assert_close(found, expected, rtol=1e-6)


def test_feature_loss_pairs_stages_of_mappings_by_name():
  student = {'a': jnp.ones((2, 3)), 'b': jnp.zeros((2, 3))}
  teacher = {'b': jnp.zeros((2, 3)), 'a': jnp.ones((2, 3))}
  found = losses.feature_loss(
    logits_of(STUDENT), student, teacher, jnp.asarray(LABELS), 0.0, 1.0, 'sum'
  )
  np.testing.assert_array_equal(found, [0, 0])


# Against PyTorch


@pytest.mark.parametrize('case', CASES)
def test_response_values_and_gradients_are_pytorchs(case):
  prefix = f'response/{case}'
  student = jnp.asarray(ARRAYS[f'{prefix}/student_logits'])
  teacher = jnp.asarray(ARRAYS[f'{prefix}/teacher_logits'])
  labels = jnp.asarray(ARRAYS[f'{prefix}/labels'], jnp.int32)
  alphas = jnp.asarray(ARRAYS['response/alphas'], jnp.float32)

  assert_close(
    losses.cross_entropy(student, labels),
    ARRAYS[f'{prefix}/cross_entropy/float64'],
    rtol=1e-5,
    atol_of_largest=1e-7,
  )

  def batch_mean(student, temperature, alpha):
    return losses.response_loss(
      student, teacher, labels, temperature, alpha
    ).mean()

  @jax.jit
  def at_temperature(temperature):
    kl = losses.temperature_kl(student, teacher, temperature)
    over_alphas = jax.vmap(jax.value_and_grad(batch_mean), (None, None, 0))
    return kl, *over_alphas(student, temperature, alphas)

  for i, temperature in enumerate(ARRAYS['response/temperatures'].tolist()):
    kl, loss, gradient = at_temperature(temperature)
    # Nearly equal distributions cancel most digits of their divergence.
    expected = ARRAYS[f'{prefix}/temperature_kl/float64'][i]
    assert_close(kl, expected, rtol=1e-5, atol_of_largest=1e-5)
    expected = ARRAYS[f'{prefix}/loss/float64'][i]
    assert_close(loss, expected, rtol=1e-5)
    expected = ARRAYS[f'{prefix}/loss_gradient/float64'][i]
    assert_close(gradient, expected, rtol=1e-5, atol_of_largest=1e-6)


@pytest.mark.parametrize('variant', ARRAYS['feature/variants'].tolist())
@pytest.mark.parametrize('container', [dict, list])
def test_feature_values_and_gradients_are_pytorchs(variant, container):
  def stages(who):
    named = {k: jnp.asarray(ARRAYS[f'feature/{who}_{k}']) for k in STAGES}
    return named if container is dict else list(named.values())

  def batch_mean(logits, features):
    return losses.feature_loss(
      logits,
      features,
      stages('teacher'),
      jnp.asarray(ARRAYS['feature/labels'], jnp.int32),
      float(ARRAYS[f'feature/{variant}/ce_weight']),
      float(ARRAYS[f'feature/{variant}/feature_weight']),
      variant,
    ).mean()

  loss, (logits_gradient, stage_gradients) = jax.jit(
    jax.value_and_grad(batch_mean, argnums=(0, 1))
  )(jnp.asarray(ARRAYS['feature/student_logits']), stages('student'))

  prefix = f'feature/{variant}'
  assert_close(loss, ARRAYS[f'{prefix}/loss/float64'], rtol=1e-5)
  assert_close(
    logits_gradient,
    ARRAYS[f'{prefix}/logits_gradient/float64'],
    rtol=1e-5,
    atol_of_largest=1e-6,
  )
  for stage, gradient in zip(
    STAGES, jax.tree.leaves(stage_gradients), strict=True
  ):
    assert_close(
      gradient, ARRAYS[f'{prefix}/{stage}_gradient/float64'], rtol=1e-5
    )


@pytest.mark.parametrize('index', range(4))
def test_feature_mse_is_pytorchs_per_example_and_as_a_batch_mean(index):
  found = losses.feature_mse(
    ARRAYS[f'feature/student_stage{index + 1}'],
    ARRAYS[f'feature/teacher_stage{index + 1}'],
  )
  expected = ARRAYS['feature/mse_per_example/float64'][index]
  assert_close(found, expected, rtol=1e-5)
  expected = ARRAYS['feature/mse/float64'][index]
  assert_close(found.mean(), expected, rtol=1e-5)


# Properties of every loss


@each_loss
def test_there_is_one_float32_value_per_example(name):
  loss, student, rest = example()[name]
  values = loss(*student, *rest)
  assert values.shape == (6,)
  assert values.dtype == jnp.float32
  assert (values > 0).all()


@each_loss
def test_jit_equals_eager_hyperparameters_traced(name):
  loss, student, rest = example()[name]
  np.testing.assert_allclose(
    jax.jit(loss)(*student, *rest), loss(*student, *rest), rtol=1e-6
  )


@each_loss
def test_gradients_equal_finite_differences(name):
  loss, student, rest = example()[name]
  check_grads(
    jax.jit(lambda *student: loss(*student, *rest)),
    student,
    # The second derivatives of the sums are those of their terms.
    order=1 if name.startswith(('response', 'feature_loss')) else 2,
    modes=['rev'],
    atol=2e-2,  # Differences of float32 numbers keep few digits.
    rtol=2e-2,
  )


@each_loss
def test_bfloat16_is_computed_in_float32(name):
  loss, student, rest = example(jnp.bfloat16)[name]

  def widen(x):
    is_bfloat16 = getattr(x, 'dtype', None) == jnp.bfloat16
    return x.astype(jnp.float32) if is_bfloat16 else x

  values = loss(*student, *rest)
  assert values.dtype == jnp.float32
  np.testing.assert_array_equal(
    values, loss(*jax.tree.map(widen, student), *jax.tree.map(widen, rest))
  )


@each_loss
def test_an_example_is_blind_to_the_others(name):
  loss, student, rest = example()[name]

  def spoil(x):
    if getattr(x, 'shape', ())[:1] != (6,):
      return x
    wrong = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return x.at[3:].set(wrong)

  values = loss(*student, *rest)
  spoiled = loss(*jax.tree.map(spoil, student), *jax.tree.map(spoil, rest))
  np.testing.assert_array_equal(spoiled[:3], values[:3])


@each_loss
def test_a_masked_example_gives_no_gradient(name):
  loss, student, rest = example()[name]
  mask = jnp.array([True, True, True, False, False, True])

  def masked_mean(*student):
    return loss(*student, *rest).mean(where=mask)

  gradients = jax.jit(
    jax.grad(masked_mean, argnums=tuple(range(len(student))))
  )(*student)
  for gradient in jax.tree.leaves(gradients):
    touched = np.abs(gradient).reshape(6, -1).max(axis=1) > 0
    np.testing.assert_array_equal(touched, mask)


@pytest.mark.parametrize(
  'name', [name for name in example() if name != 'cross_entropy']
)
def test_the_teacher_gets_no_gradient(name):
  loss, student, (teacher, *rest) = example()[name]
  gradients = jax.grad(
    lambda student, teacher: loss(*student, teacher, *rest).sum(),
    argnums=(0, 1),
  )(student, teacher)
  for gradient in jax.tree.leaves(gradients[0]):
    assert jnp.abs(gradient).max() > 0
  for gradient in jax.tree.leaves(gradients[1]):
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'name', ['cross_entropy', 'response_loss', 'feature_loss_mean']
)
def test_one_hot_probabilities_equal_integer_labels(name, dtype):
  loss, student, rest = example()[name]

  def one_hot(x):
    if jnp.issubdtype(jnp.result_type(x), jnp.integer):
      return jax.nn.one_hot(x, 10, dtype=dtype)
    return x

  found = loss(*student, *jax.tree.map(one_hot, rest))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, loss(*student, *rest), rtol=1e-6)


# Extreme logits


def extreme(dtype):
  """Every combination of ±1e4 for three classes, teacher and label."""
  corners = list(itertools.product([1e4, -1e4], repeat=3))
  rows = list(itertools.product(corners, corners, range(3)))
  student, teacher, labels = (
    np.array(column) for column in zip(*rows, strict=True)
  )
  return (
    jnp.asarray(student, dtype),
    jnp.asarray(teacher, dtype),
    jnp.asarray(labels, jnp.int32),
  )


def log_softmax(x):
  x = x - x.max(axis=1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def response_gradient(student, teacher, labels, temperature):
  values = losses.response_loss(student, teacher, labels, temperature, 0.5)
  return values.sum(), values


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('temperature', [0.01, 1.0, 4.0, 1000.0])
def test_response_loss_is_exact_at_extreme_logits(dtype, temperature):
  student, teacher, labels = extreme(dtype)
  one_hot = np.eye(3)[labels]

  gradient, values = response_gradient(student, teacher, labels, temperature)

  wide_student, wide_teacher = (
    np.asarray(x, np.float64) for x in (student, teacher)
  )
  hard = log_softmax(wide_student)
  soft_student = log_softmax(wide_student / temperature)
  soft_teacher = log_softmax(wide_teacher / temperature)
  kl = (np.exp(soft_teacher) * (soft_teacher - soft_student)).sum(axis=1)
  expected = -0.5 * (one_hot * hard).sum(axis=1) + 0.5 * temperature**2 * kl
  assert_close(values, expected, rtol=1e-5, atol_of_largest=1e-6)
  expected = 0.5 * (np.exp(hard) - one_hot) + 0.5 * temperature * (
    np.exp(soft_student) - np.exp(soft_teacher)
  )
  assert gradient.dtype == dtype
  assert_close(
    gradient.astype(jnp.float32),
    expected,
    # It is the sum of two terms, each rounded to the input's dtype.
    rtol=1e-5 if dtype == jnp.float32 else 2**-6,
    atol_of_largest=1e-6,
  )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_feature_loss_is_finite_at_extreme_values(dtype, reduction):
  student, teacher, labels = extreme(dtype)

  def total(logits, features):
    values = losses.feature_loss(
      logits, [features], [teacher], labels, 0.3, 0.7, reduction
    )
    return values.sum(), values

  gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
    student, student
  )
  assert jnp.isfinite(values).all()
  for gradient in gradients:
    assert jnp.isfinite(gradient).all()


def test_float16_features_do_not_overflow_when_squared():
  student = jnp.full((2, 3), 300, jnp.float16)
  found = losses.feature_mse(student, -student)
  np.testing.assert_array_equal(found, [600.0**2, 600.0**2])


# Errors

LOGITS = jnp.zeros((4, 10))
INTEGERS = jnp.zeros(4, jnp.int32)


def zeros(*shape, dtype=jnp.float32):
  return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
  'labels',
  [
    zeros(3, dtype=jnp.int32),
    zeros(1, dtype=jnp.int32),
    zeros(4, 1, dtype=jnp.int32),
    zeros(4, 10, dtype=jnp.int32),
    zeros(dtype=jnp.int32),
  ],
  ids=lambda labels: str(labels.shape),
)
def test_integer_labels_of_another_shape_are_refused(labels):
  with pytest.raises(ValueError, match='must be equal') as error:
    losses.cross_entropy(LOGITS, labels)
  assert str(labels.shape) in str(error.value)
  assert str((4,)) in str(error.value)


@pytest.mark.parametrize(
  'shape', [(4,), (4, 1), (1, 10), (1, 1), (4, 9), (10,), (4, 10, 1)]
)
def test_label_probabilities_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match='must be equal') as error:
    losses.cross_entropy(LOGITS, zeros(*shape))
  assert f'labels has shape {shape}' in str(error.value)
  assert 'logits has shape (4, 10)' in str(error.value)


@pytest.mark.parametrize('shape', [(4, 1), (1, 10), (1, 1), (4, 9), (3, 10)])
@pytest.mark.parametrize('loss', ['temperature_kl', 'response_loss'])
def test_unequal_logits_are_refused(loss, shape):
  rest = {'temperature_kl': (2.0,), 'response_loss': (INTEGERS, 2.0, 0.5)}
  with pytest.raises(ValueError, match='must be equal') as error:
    getattr(losses, loss)(LOGITS, zeros(*shape), *rest[loss])
  assert 'student_logits has shape (4, 10)' in str(error.value)
  assert f'teacher_logits has shape {shape}' in str(error.value)


@pytest.mark.parametrize('shape', [(10,), (4, 10, 1), ()])
@pytest.mark.parametrize(
  ('name', 'call'),
  [
    ('logits', lambda x: losses.cross_entropy(x, INTEGERS)),
    ('student_logits', lambda x: losses.temperature_kl(x, LOGITS, 1.0)),
    ('teacher_logits', lambda x: losses.temperature_kl(LOGITS, x, 1.0)),
  ],
)
def test_logits_that_are_not_two_dimensional_are_refused(name, call, shape):
  with pytest.raises(ValueError, match=r'must have shape') as error:
    call(zeros(*shape))
  assert str(error.value).startswith(f'{name} must have shape [batch, classes]')
  assert str(shape) in str(error.value)


@pytest.mark.parametrize(
  'shape',
  [
    (4, 1, 1, 8),
    (4, 2, 2, 1),
    (1, 2, 2, 8),
    (1, 1, 1, 1),
    (4, 2, 2, 16),
    (4, 4, 4, 8),
    (2, 2, 8),
    (4, 32),
  ],
)
def test_unequal_features_are_refused(shape):
  for student, teacher in [((4, 2, 2, 8), shape), (shape, (4, 2, 2, 8))]:
    for call in (
      lambda s, t: losses.feature_mse(s, t),
      lambda s, t: losses.feature_loss(
        LOGITS, {'a': s}, {'a': t}, INTEGERS, 1.0, 1.0, 'mean'
      ),
    ):
      with pytest.raises(ValueError, match='must be equal') as error:
        call(zeros(*student), zeros(*teacher))
      assert f'student_feature has shape {student}' in str(error.value)
      assert f'teacher_feature has shape {teacher}' in str(error.value)


@pytest.mark.parametrize('batch', [1, 3])
def test_features_of_another_batch_than_the_logits_are_refused(batch):
  feature = zeros(batch, 2, 2, 8)
  with pytest.raises(ValueError, match=rf'\(4, 10\).*\({batch}, 2, 2, 8\)'):
    losses.feature_loss(
      LOGITS, [feature], [feature], INTEGERS, 1.0, 1.0, 'mean'
    )


@pytest.mark.parametrize('shape', [(), (4,)])
def test_features_without_an_axis_beside_the_batch_are_refused(shape):
  with pytest.raises(
    ValueError, match='a batch axis and at least one'
  ) as error:
    losses.feature_mse(zeros(*shape), zeros(*shape))
  assert str(shape) in str(error.value)


MAP = jnp.zeros((4, 2, 2, 8))


@pytest.mark.parametrize(
  ('student', 'teacher', 'message'),
  [
    (
      {'stage1': MAP, 'stage2': MAP},
      {'stage1': MAP},
      r"\['stage1', 'stage2'\].*\['stage1'\]",
    ),
    (
      {'stage1': MAP},
      {'stage2': MAP},
      r"\['stage1'\].*\['stage2'\]",
    ),
    ([MAP, MAP], [MAP], 'has 2 stages, teacher_features 1'),
    ([], [MAP], 'has 0 stages, teacher_features 1'),
    ({'stage1': MAP}, [MAP], 'both be mappings or both.*dict and list'),
    ([MAP], {'stage1': MAP}, 'both be mappings or both.*list and dict'),
    ([], [], 'at least one stage'),
    ({}, {}, 'at least one stage'),
  ],
)
def test_stages_that_do_not_pair_up_are_refused(student, teacher, message):
  with pytest.raises(ValueError, match=message):
    losses.feature_loss(LOGITS, student, teacher, INTEGERS, 1.0, 1.0, 'mean')


@pytest.mark.parametrize('reduction', ['batchmean', 'none', '', 'Mean'])
def test_an_unknown_reduction_is_refused(reduction):
  with pytest.raises(ValueError, match=f"'{reduction}'.*'mean' or 'sum'"):
    losses.feature_loss(LOGITS, [MAP], [MAP], INTEGERS, 1.0, 1.0, reduction)
