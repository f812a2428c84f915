"""What is read back of a real run of the method feature."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import synthetic
import tiny

from kdjax import config as config_lib
from kdjax import data, methods, models
from kdjax.evaluation import predict
from kdjax.methods import _connectors
from kdjax.models import features
from kdjax.report import collect, feature_maps
from kdjax.storage import checkpoint, digests
from kdjax.training import state as state_lib
from kdjax.training import train


def save_teacher(workdir, config):
  """Writes a finished run of a network that has learned nothing."""
  dataset = data.load(config.data)
  model = config_lib.model_arguments(config_lib.teacher_run(config), 10)
  state = state_lib.create_state(
    jax.random.key(1),
    models.build(**model),
    methods.build('scratch')[0],
    optax.identity(),
    state_lib.Start(jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8)),
  )
  metadata = {
    'model': model,
    'normalization': {'mean': [0.5], 'std': [0.25]},
    'step': 40,
    'wall_time_s': 0.0,
    'validation_accuracy': None,
    'data_digest': dataset.digest,
    'class_names': dataset.class_names,
    'image_shape': [8, 8, 1],
  }
  with checkpoint.Checkpoints(workdir, keep=1) as checkpoints:
    checkpoints.save(state.replace(step=jnp.int32(40)), metadata)
  synthetic.write_run(workdir)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('inspect')
  config = tiny.config('feature')
  config.train.epochs = 1
  config.data.train_limit = 64
  config.log.tensorboard = False
  config.teacher.path = str(root / 'teacher')
  config.method.feature.student_features = ('stage3', 'stage1')
  config.method.feature.teacher_features = ('stage3/block1', 'stage1')
  save_teacher(root / 'teacher', config)
  result = train.train_and_evaluate(config, root / 'feature')
  # As a report reads it.
  return collect.Run(root / 'feature', json.loads(json.dumps(result)), [], None)


def captured(network, names, images):
  forward = functools.partial(
    features.forward, network.model, names=names, train=False
  )
  return jax.jit(forward)(network.variables, images)[0].features


def test_the_test_images_are_those_that_were_measured(run):
  images, class_names = feature_maps.test_images(run)
  assert (images.dtype, images.shape) == (np.uint8, (360, 8, 8, 1))
  assert class_names == tuple(map(str, range(10)))
  logits = predict.predict_images(
    checkpoint.restore(run.path), jnp.asarray(images), 360
  )
  assert len(logits) == run.result['best']['test']['count']


def test_other_images_are_refused(run):
  other = run.result | {'data': run.result['data'] | {'digest': 'abc'}}
  with pytest.raises(ValueError, match='begun with another data: SHA-256 abc'):
    feature_maps.test_images(run._replace(result=other))


def test_maps_are_channel_means_of_the_connected_student_and_the_teacher(run):
  image = feature_maps.test_images(run)[0][7]
  maps = feature_maps.stage_maps(run, image)
  # In the order in which the configuration has them.
  assert list(maps) == ['stage3->stage3/block1', 'stage1']

  connectors = checkpoint.restore_method(run.path)
  ours = captured(
    checkpoint.restore(run.path), ('stage1', 'stage3'), image[None]
  )
  # Not folded, unlike the one that taught.
  theirs = captured(
    checkpoint.restore(run.result['teacher']['path']),
    ('stage1', 'stage3/block1'),
    image[None],
  )
  for pair, source, target, size in (
    ('stage3->stage3/block1', 'stage3', 'stage3/block1', 2),
    ('stage1', 'stage1', 'stage1', 8),
  ):
    student, teacher = maps[pair]
    assert student.shape == teacher.shape == (size, size)
    expected = _connectors.conv(connectors[pair], ours[source])
    assert expected.shape == theirs[target].shape
    np.testing.assert_allclose(
      student, np.mean(expected[0], axis=-1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      teacher, np.mean(theirs[target][0], axis=-1), rtol=1e-4, atol=1e-5
    )


def test_only_the_method_feature_has_maps(run):
  result = run.result | {'method': 'response'}
  with pytest.raises(ValueError, match='a run of the method response'):
    feature_maps.stage_maps(
      run._replace(result=result), np.zeros((8, 8, 1), np.uint8)
    )


def test_the_teacher_must_be_the_one_that_taught(run):
  other = run.result['teacher'] | {'digest': 'abc'}
  with pytest.raises(ValueError, match='begun with another teacher'):
    feature_maps.stage_maps(
      run._replace(result=run.result | {'teacher': other}),
      np.zeros((8, 8, 1), np.uint8),
    )


def test_connectors_are_restored_as_they_were_saved(run):
  restored = checkpoint.restore_method(run.path)
  assert set(restored) == {'stage1', 'stage3->stage3/block1'}
  # Four channels in the student's first stage, eight in the teacher's.
  assert restored['stage1']['kernel'].shape == (1, 1, 4, 8)
  # Trained: the bias starts from zero.
  assert np.abs(restored['stage1']['bias']).max() > 0
  assert digests.digest(restored) == digests.digest(
    checkpoint.restore_method(run.path, 'last')
  )
