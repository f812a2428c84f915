"""Stages that compute their activations again."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models import features, resnet
from kdjax.system import xla

STAGES = ('stage1', 'stage2')
NAMES = (*STAGES, 'stage1/block1/conv1', 'fc')
PLAIN = resnet.ResNet(resnet.BasicBlock, (3, 3), 3, stem='cifar', width=8)
IMAGES = jax.random.normal(jax.random.key(1), (64, 16, 16, 3))


@functools.cache
def compiled(names):
  """The compiled gradient of a loss on features, and its variables."""
  model = models.rematerialize(PLAIN, names)
  variables = features.init(model, jax.random.key(0), IMAGES)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params, batch_stats):
    variables = {'params': params, 'batch_stats': batch_stats}
    outputs, after = features.forward(
      model, variables, IMAGES, names=NAMES, train=True
    )
    values = [outputs.logits, *outputs.features.values()]
    return sum(jnp.square(x).mean() for x in values), (outputs, after)

  arguments = variables['params'], variables['batch_stats']
  jitted = jax.jit(loss, compiler_options=xla.compiler_options())
  return jitted.lower(*arguments).compile(), arguments


@pytest.mark.parametrize('names', [STAGES, ('stage2',)])
def test_variables_outputs_and_gradients_are_those_of_the_plain_model(names):
  plain, arguments = compiled(())
  again, same_arguments = compiled(names)
  jax.tree.map(np.testing.assert_array_equal, same_arguments, arguments)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    again(*arguments),
    plain(*arguments),
  )


def test_activations_are_not_kept_but_computed_again():
  """After all of the compiler's passes, which may undo it."""
  plain, some, all_stages = (
    compiled(names)[0] for names in ((), ('stage2',), STAGES)
  )
  assert operations(plain) < operations(some) < operations(all_stages)
  plain, again = (
    found.memory_analysis().temp_size_in_bytes for found in (plain, all_stages)
  )
  # A BatchNorm keeps its input only, which a network so small hardly feels.
  assert again < 0.95 * plain


def operations(found):
  return found.as_text().count(' convolution(')


def test_a_name_that_is_none_of_a_stage_is_refused_with_those_that_are():
  with pytest.raises(ValueError, match=r'rematerialise conv1, x: .*1, stage2$'):
    models.rematerialize(PLAIN, ('conv1', 'stage1', 'x'))


def test_a_model_that_cannot_is_refused_only_if_it_is_asked_to():
  model = nn.Dense(3)
  assert models.rematerialize(model, ()) is model
  with pytest.raises(ValueError, match=r'Dense has no method `rematerialize`'):
    models.rematerialize(model, ('stage1',))
