"""Ensembles against their members, and their averages against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_cnn
from flax import linen as nn

from kdjax import methods, models
from kdjax.models import ensemble, features
from kdjax.models.network import Network
from kdjax.training import state as state_lib
from kdjax.training import step

SHAPE = (4, 8, 8, 1)
PIXELS = jax.random.randint(jax.random.key(9), SHAPE, 0, 256).astype(jnp.uint8)


class Constant(nn.Module):
  """Logits that do not depend on the images."""

  logits: tuple[float, ...]

  @nn.compact
  def __call__(self, images, train):
    return jnp.tile(jnp.array(self.logits), (len(images), 1))


@pytest.fixture(scope='module')
def networks():
  """Other architectures, dtypes and normalisations; one is folded."""

  def network(seed, model):
    variables = features.init(model, jax.random.key(seed), PIXELS)
    variables['normalization'] = {
      'mean': np.float32([0.1 * seed]),
      'std': np.float32([0.2 + 0.3 * seed]),
    }
    return models.fold(model, variables)

  options = {'num_classes': 5, 'width': 4, 'stem': 'cifar'}
  return [
    network(0, small_cnn.SmallCNN(5)),
    network(1, models.build('resnet10', **options)),
    network(2, small_cnn.SmallCNN(5, width=4, dtype=jnp.bfloat16)),
  ]


def constants(logits, average):
  """The prediction of an ensemble whose members have these logits."""
  normalization = {'mean': np.float32([0]), 'std': np.float32([1])}
  empty = {'params': {}, 'batch_stats': {}, 'normalization': normalization}
  model, variables = ensemble.join(
    [(Constant(tuple(row)), empty) for row in np.asarray(logits).tolist()],
    average,
  )
  outputs, _ = features.forward(model, variables, PIXELS, train=False)
  return np.asarray(outputs.logits[0])


def test_probabilities_are_averaged():
  logits = np.random.default_rng(0).normal(0, 3, (3, 5))
  each = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  found = constants(logits, 'probabilities')
  np.testing.assert_allclose(np.exp(found), each.mean(axis=0), rtol=1e-5)


def test_logits_are_averaged():
  logits = np.random.default_rng(0).normal(0, 3, (3, 5))
  np.testing.assert_allclose(
    constants(logits, 'logits'), logits.mean(axis=0), rtol=1e-5
  )


def test_probabilities_that_underflow_stay_finite():
  found = constants([[1e4, 0, -1e4], [0, 1e4, -1e4]], 'probabilities')
  np.testing.assert_allclose(found[:2], np.log(0.5), rtol=1e-5)
  assert found[2] == pytest.approx(-2e4 + np.log(1), rel=1e-4)


def test_one_member_predicts_what_it_predicts_alone():
  logits = [[3.0, -1.0, 0.5]]
  np.testing.assert_allclose(constants(logits, 'logits'), logits[0])
  np.testing.assert_allclose(
    constants(logits, 'probabilities'),
    jax.nn.log_softmax(np.array(logits[0])),
    rtol=1e-6,
  )


def test_each_member_sees_its_own_images_and_shows_its_features(networks):
  model, variables = ensemble.join(networks, 'probabilities')
  names = ('member2/stage1', 'member1/conv2')

  @jax.jit
  def predict(variables, images):
    together, _ = features.forward(
      model, variables, images, names=names, train=False
    )
    alone = [
      features.forward(
        *network, images, names=('conv2', 'stage1')[i : i + 1], train=False
      )[0]
      for i, network in enumerate(networks)
    ]
    return together, alone

  outputs, alone = predict(variables, PIXELS)
  each = np.array([one.logits for one in alone], np.float64)
  each = np.exp(each) / np.exp(each).sum(axis=-1, keepdims=True)
  expected = np.log(each.mean(axis=0))
  assert outputs.logits.dtype == jnp.float32
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-3, atol=1e-3)
  for name, index in (('member1/conv2', 0), ('member2/stage1', 1)):
    np.testing.assert_allclose(
      outputs.features[name],
      alone[index].features[name.partition('/')[2]],
      rtol=1e-4,
      atol=1e-4,
    )
  with pytest.raises(
    ValueError, match=r'named stage1; it has .*member2/stage1'
  ):
    features.forward(model, variables, PIXELS, names=('stage1',), train=False)


def test_it_teaches_and_is_not_taught(networks):
  teacher = Network(*ensemble.join(networks, 'probabilities'))
  student = small_cnn.SmallCNN(5, width=4)
  method, hyperparameters = methods.build(
    'feature',
    {
      'student_features': ('conv1', 'conv2'),
      'teacher_features': ('member2/stage1', 'member1/conv2'),
    },
  )
  transformation = optax.sgd(0.1)
  state = state_lib.create_state(
    jax.random.key(0),
    student,
    method,
    transformation,
    state_lib.Start(PIXELS, teacher),
  )
  train_step = step.make_train_step(
    student, method, transformation, teacher.model
  )
  labels = jnp.arange(4)
  normalization = {'mean': jnp.zeros(1), 'std': jnp.ones(1)}

  @jax.jit
  def gradient(variables):
    def loss(variables):
      inputs = step.Inputs(
        PIXELS,
        labels,
        jnp.arange(4),
        jnp.zeros(()),
        normalization,
        variables,
        hyperparameters,
      )
      return train_step(state, inputs)[1]['loss']

    return jax.value_and_grad(loss)(variables)

  loss, gradients = gradient(teacher.variables)
  assert np.isfinite(loss)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_it_is_not_trained(networks):
  model, variables = ensemble.join(networks, 'logits')
  with pytest.raises(ValueError, match='an ensemble cannot be trained'):
    features.forward(model, variables, PIXELS, train=True)


def test_it_is_no_model_that_a_run_can_name():
  assert not any('ensemble' in name for name in models.names())
