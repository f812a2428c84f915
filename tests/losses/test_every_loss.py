"""What holds for every loss; test_golden.py has the values."""

import doctest
import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kdjax import losses
from kdjax.system import xla

BATCH, CLASSES, CHANNELS = 4, 5, 6
LABELS = jnp.array([0, 3, 1, 3])


def normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


LOGITS = normal(0, BATCH, CLASSES), 2 * normal(1, BATCH, CLASSES)
VIEWS = *LOGITS, normal(2, BATCH, CLASSES), 2 * normal(3, BATCH, CLASSES)
EMBEDDINGS = normal(4, BATCH, CHANNELS), normal(5, BATCH, CHANNELS)
MAPS = normal(6, BATCH, 4, 4, CHANNELS), normal(7, BATCH, 4, 4, CHANNELS)
HALF = jnp.full((BATCH, CLASSES), 1 / CLASSES)
BANK = losses.CRD(
  normal(8, 9, CHANNELS),
  normal(9, 9, CHANNELS),
  jnp.float32(40.0),
  jnp.float32(50.0),
)
CONTRAST = jnp.array([[0, 4, 5], [1, 6, 7], [2, 8, 4], [3, 5, 6]])


def listed(loss, *rest):
  """The loss of features with one stage."""
  return lambda student, teacher: loss([student], [teacher], *rest)


def self_taught(loss, *rest):
  """A loss without a teacher, for the same calls as the others."""
  return lambda student, teacher: loss(student, *rest)


def of_views(loss):
  def call(student, teacher):
    return loss(student, teacher, *VIEWS[2:])

  return call


def sdd(student, teacher):
  return losses.sdd(
    jnp.stack([student, -student], axis=1),
    jnp.stack([teacher, -teacher], axis=1),
    LABELS,
    lambda s, t, y: losses.kd(s, t, 4.0),
  )


# Each loss as a function of student and teacher, with arguments for it.
CASES = {
  'cross_entropy': (self_taught(losses.cross_entropy, LABELS), LOGITS),
  'temperature_kl': (lambda s, t: losses.temperature_kl(s, t, 4.0), LOGITS),
  'response_loss': (
    lambda s, t: losses.response_loss(s, t, LABELS, 4.0, 0.5),
    LOGITS,
  ),
  'dkd': (lambda s, t: losses.dkd(s, t, LABELS), LOGITS),
  'gdkd': (lambda s, t: losses.gdkd(s, t, k=2), LOGITS),
  'rld': (lambda s, t: losses.rld(s, t, LABELS), LOGITS),
  'dist': (losses.dist, LOGITS),
  'standardize_logits': (
    lambda s, t: losses.kd(
      losses.standardize_logits(s), losses.standardize_logits(t), 2.0
    ),
    LOGITS,
  ),
  'normkd': (losses.normkd, LOGITS),
  'nkd': (lambda s, t: losses.nkd(s, t, LABELS), LOGITS),
  'ttm': (losses.ttm, LOGITS),
  'wttm': (losses.wttm, LOGITS),
  'ofa': (lambda s, t: losses.ofa(s, t, LABELS, 1.5), LOGITS),
  'abkd': (losses.abkd, LOGITS),
  'wsld': (lambda s, t: losses.wsld(s, t, LABELS), LOGITS),
  'skd': (losses.skd, LOGITS),
  'ctkd': (lambda s, t: losses.ctkd(s, t, jnp.float32(0.5)), LOGITS),
  'wkd_l': (
    lambda s, t: losses.wkd_l(s, t, LABELS, 1 - jnp.eye(CLASSES)),
    LOGITS,
  ),
  'mlkd': (of_views(losses.mlkd), LOGITS),
  'crld': (of_views(losses.crld), LOGITS),
  'sdd': (sdd, LOGITS),
  'region_logits': (
    lambda s, t: losses.kd(
      *(
        losses.region_logits(
          x, normal(10, CHANNELS, CLASSES), jnp.zeros(CLASSES), (2,)
        ).reshape(BATCH, -1)
        for x in (s, t)
      ),
      4.0,
    ),
    MAPS,
  ),
  'tfkd': (self_taught(losses.tfkd, LABELS), LOGITS),
  'pskd': (self_taught(losses.pskd, LABELS, HALF, 0.3), LOGITS),
  'uskd': (lambda s, t: losses.uskd(s, t, LABELS), LOGITS),
  'byot': (
    lambda s, t: losses.byot([t, s], LABELS, EMBEDDINGS),
    LOGITS,
  ),
  'feature_mse': (losses.feature_mse, MAPS),
  'feature_loss': (
    lambda s, t: losses.feature_loss(
      LOGITS[0], [s], [t], LABELS, 1.0, 0.1, 'sum'
    ),
    MAPS,
  ),
  'at': (listed(losses.at), MAPS),
  'nst': (listed(losses.nst), MAPS),
  'ickd': (losses.ickd, MAPS),
  'ofd': (listed(losses.ofd, [jnp.full(CHANNELS, -0.4)]), MAPS),
  'vid': (lambda s, t: losses.vid(s, t, jnp.full(CHANNELS, 0.7)), MAPS),
  'hcl': (listed(losses.hcl), MAPS),
  'cat_kd': (losses.cat_kd, MAPS),
  'wkd_f': (losses.wkd_f, MAPS),
  'match_sizes': (
    lambda s, t: losses.feature_mse(*losses.match_sizes(s, t[:, ::2, ::2])),
    MAPS,
  ),
  'rkd': (losses.rkd, EMBEDDINGS),
  'sp': (losses.sp, MAPS),
  'pkt': (losses.pkt, EMBEDDINGS),
  'cc': (losses.cc, EMBEDDINGS),
  'cc_pairs': (losses.cc_pairs, EMBEDDINGS),
  'srd': (lambda s, t: losses.srd(s, t, *LOGITS), EMBEDDINGS),
  'itrd': (losses.itrd, EMBEDDINGS),
  'dcd': (
    lambda s, t: losses.dcd(s, t, jnp.float32(0.3), jnp.float32(0.1)),
    EMBEDDINGS,
  ),
  'crd': (
    lambda s, t: losses.crd(s, t, jnp.arange(BATCH), CONTRAST, BANK)[0],
    EMBEDDINGS,
  ),
}
# `kd` is another name; the margin of `ofd` is no loss; `CRD` is a memory.
OTHERS = {'kd', 'ofd_margin', 'pair_stages', 'CRD'}
# Those in which the teacher's embedding is trained as well, or there is none.
TRAINED_TEACHERS = {'cc', 'cc_pairs', 'dcd', 'crd', 'uskd', 'byot'}
# Where a gradient is left out on purpose, so that finite differences differ.
WITHOUT_DIFFERENCES = {'wsld', 'uskd', 'ofa'}

every_loss = pytest.mark.parametrize('name', CASES)


def test_every_public_loss_is_here():
  assert set(losses.__all__) - OTHERS == set(CASES)


@functools.cache
def compiled(name):
  loss, (student, teacher) = CASES[name]
  value = xla.jit(loss)(student, teacher)
  gradients = xla.jit(jax.grad(lambda s, t: loss(s, t).mean(), argnums=(0, 1)))(
    student, teacher
  )
  return value, gradients


@every_loss
def test_there_is_one_finite_float32_value_per_example(name, no_promotion):
  value, _ = compiled(name)
  assert value.shape == (BATCH,)
  assert value.dtype == jnp.float32
  assert np.isfinite(value).all()
  assert np.abs(value).max() > 0


@every_loss
def test_the_student_has_a_gradient_and_the_teacher_none(name):
  _, (to_student, to_teacher) = compiled(name)
  assert np.isfinite(to_student).all()
  assert np.abs(to_student).max() > 0
  if name not in TRAINED_TEACHERS:
    np.testing.assert_array_equal(to_teacher, jnp.zeros_like(to_teacher))


@every_loss
def test_gradients_equal_finite_differences(name):
  if name in WITHOUT_DIFFERENCES:
    pytest.skip('a factor without gradient, on purpose')
  loss, (student, teacher) = CASES[name]
  check_grads(
    lambda s: loss(s, teacher), (student,), order=1, modes=['rev'], rtol=0.02,
    atol=0.02, eps=1e-2,
  )  # fmt: skip


@every_loss
def test_bfloat16_is_computed_in_float32(name):
  loss, arguments = CASES[name]
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arguments)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
  value = jax.jit(loss)(*rounded)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, jax.jit(loss)(*exact), rtol=1e-5, atol=1e-6)


@every_loss
def test_unequal_batches_are_refused(name):
  loss, (student, teacher) = CASES[name]
  with pytest.raises(ValueError, match=r'shape|batch|must'):
    loss(student[:2], teacher)


LABELLED = ('dkd', 'rld', 'nkd', 'ofa', 'wsld', 'wkd_l', 'tfkd', 'uskd')


@pytest.mark.parametrize('name', LABELLED)
def test_mixed_labels_are_refused_where_one_class_is_needed(name):
  arguments = {
    'student_logits': LOGITS[0],
    'teacher_logits': LOGITS[1],
    'auxiliary_logits': LOGITS[1],
    'labels': HALF,
    'cost': 1 - jnp.eye(CLASSES),
  }
  loss = getattr(losses, name)
  wanted = inspect.signature(loss).parameters
  with pytest.raises(ValueError, match=rf'{name} treats .*class indices'):
    loss(**{key: x for key, x in arguments.items() if key in wanted})


@pytest.mark.parametrize(
  'module',
  [module.name for module in pkgutil.iter_modules(losses.__path__)],
)
def test_examples_of_the_docstrings(module):
  module = importlib.import_module(f'kdjax.losses.{module}')
  result = doctest.testmod(module)
  assert result.failed == 0
  assert result.attempted


# Cases where a formula degenerates


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('fill', [0.0, 1.0])
def test_constant_inputs_give_no_nan(name, fill):
  loss, (student, teacher) = CASES[name]
  constant = jnp.full_like(student, fill)

  @xla.jit
  def run(student):
    return jax.value_and_grad(lambda s: loss(s, teacher).mean())(student)

  value, gradient = run(constant)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_dkd_leaves_the_label_out_whatever_the_gap():
  student, teacher = jnp.array([[0.0, 1, 2]]), jnp.array([[8000.0, 0, 1]])
  # Logits of the other classes differ by 1 in both: no divergence.
  others = losses.dkd(
    student, teacher, jnp.array([0]), temperature=4.0, alpha=0.0
  )
  np.testing.assert_allclose(others, 0.0, atol=1e-5)


def test_rld_without_a_class_below_the_label_is_its_first_term():
  student, teacher = jnp.zeros((1, 3)), jnp.array([[0.0, 1, 2]])
  loss = losses.rld(student, teacher, jnp.array([0]), alpha=0.0)
  np.testing.assert_array_equal(loss, 0.0)
