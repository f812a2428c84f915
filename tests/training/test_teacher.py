"""Loading a teacher from its checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import MODEL

from kdjax import methods, models
from kdjax.models import features
from kdjax.storage import checkpoint, digests
from kdjax.training import state as state_lib
from kdjax.training import teacher as teacher_lib

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A checkpoint whose BatchNorms all do something."""
  workdir = tmp_path_factory.mktemp('teacher')
  state = state_lib.create_state(
    jax.random.key(0),
    models.build(**MODEL),
    methods.build('scratch')[0],
    optax.identity(),
    state_lib.Start(jax.ShapeDtypeStruct((1, *PIXELS.shape[1:]), jnp.uint8)),
  )
  rng = np.random.default_rng(1)
  params, batch_stats = jax.tree.map(
    lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(x.dtype),
    (state.params, state.batch_stats),
  )
  metadata = {
    'model': MODEL,
    'normalization': {'mean': [0.1], 'std': [0.3]},
    'step': 7,
    'wall_time_s': 1.5,
    'validation_accuracy': None,
    'data_digest': 'digest',
    'class_names': ['a', 'b', 'c'],
    'image_shape': [8, 8, 1],
  }
  with checkpoint.Checkpoints(workdir, keep=1) as checkpoints:
    checkpoints.save(
      state.replace(step=jnp.int32(7), params=params, batch_stats=batch_stats),
      metadata,
    )
  return checkpoint.find(workdir)


def outputs_of(network, names=()):
  forward = functools.partial(
    features.forward, network.model, names=names, train=False
  )
  return jax.jit(forward)(network.variables, PIXELS)[0]


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 3e-2)]
)
def test_a_teacher_is_folded_and_predicts_the_same(path, dtype, tolerance):
  config = tiny.config()
  config.teacher.dtype = dtype
  names = ('stage1', 'stage4')
  saved = checkpoint.restore(path)
  network = teacher_lib.load(path, config, names).network
  assert network.model.folded
  assert network.variables['batch_stats'] == {}
  expected, found = (outputs_of(each, names) for each in (saved, network))
  assert found.logits.dtype == jnp.float32
  pairs = [(found.logits, expected.logits)]
  pairs += [(found.features[name], expected.features[name]) for name in names]
  for got, want in pairs:
    np.testing.assert_allclose(
      np.asarray(got, np.float32),
      want,
      rtol=0,
      atol=tolerance * np.abs(want).max(),
    )


def test_a_teacher_whose_convolutions_are_wanted_is_not_folded(path):
  names = ('stage1/block1/conv2',)
  network = teacher_lib.load(path, tiny.config(), names).network
  assert not network.model.folded
  expected = outputs_of(checkpoint.restore(path), names)
  jax.tree.map(
    np.testing.assert_array_equal, outputs_of(network, names), expected
  )


def test_the_report_describes_the_network_as_it_was_saved(path):
  report = teacher_lib.load(path, tiny.config()).report
  _, variables = checkpoint.restore(path)
  assert report['digest'] == digests.digest(variables)
  assert report['parameters'] == optax.tree.size(variables['params'])
  assert (report['path'], report['step']) == (str(path), 7)


def test_the_colours_of_images_are_named():
  assert teacher_lib.images_of(1) == 'grey (1 channel)'
  assert teacher_lib.images_of(3) == 'colour (3 channels)'
  assert teacher_lib.images_of(4) == 'of 4 channels'
