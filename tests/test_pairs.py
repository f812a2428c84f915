"""Pairs of networks from papers: configurations, and the stages compared."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from kdjax import config as config_lib
from kdjax import methods, models
from kdjax.methods import Batch, Setup
from kdjax.models import features
from kdjax.training import train

PATH = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'pairs.py'
SPEC = importlib.util.spec_from_file_location('pairs', PATH)
pairs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pairs)

BATCH, CLASSES = 4, 100
IMAGES = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)
# A shallower network of each kind, with stages of the same sizes and names.
SHALLOW = {
  'wrn_40_2': 'wrn_16_2',
  'resnet110': 'resnet8',
  'resnet56': 'resnet8',
}
# Methods that compare features; SimKD needs a student of its own.
COMPARED = [
  name
  for name in methods.names()
  if name not in ('combine', 'simkd')
  and methods.build(name)[0].student_features
]


@functools.cache
def variables_of(name):
  model = models.build(name, num_classes=CLASSES, stem='cifar', width=64)
  return model, jax.eval_shape(
    lambda rng: features.init(model, rng, IMAGES), jax.random.key(0)
  )


@functools.cache
def outputs_of(name, names, rows):
  images = jax.ShapeDtypeStruct((rows, *IMAGES.shape[1:]), IMAGES.dtype)
  return features.output_shapes(*variables_of(name), images, names)


@pytest.mark.parametrize('name', pairs.PAIRS)
def test_a_pair_is_built_and_its_stages_are_of_one_size(name):
  config = pairs.get_config(name)
  config_lib.validate(config)
  teacher, student = config.teacher.name, config.student.name
  assert config_lib.teacher_run(config).student.name == teacher
  assert (teacher, student) == pairs.PAIRS[name]
  names = (
    config.method.at,
    config.method.ofd,
    config.method.reviewkd,
  )
  teachers = {n for one in names for n in one.teacher_features}
  norms = {
    f'{norm}/{kind}'
    for norm in config.method.ofd.teacher_norms
    for kind in ('scale', 'bias')
  }
  teachers, norms = sorted(teachers), sorted(norms)
  theirs = outputs_of(teacher, (*teachers, *norms), BATCH).features
  students = {n for one in names for n in one.student_features}
  ours = outputs_of(student, tuple(sorted(students)), BATCH).features
  for one in names:
    assert len(one.student_features) >= 2
    for mine, other in zip(
      one.student_features, one.teacher_features, strict=True
    ):
      assert ours[mine].shape[:3] == theirs[other].shape[:3]
  for norm, feature in zip(
    config.method.ofd.teacher_norms,
    config.method.ofd.teacher_features,
    strict=True,
  ):
    assert theirs[f'{norm}/scale'].shape == theirs[feature].shape[-1:]


@pytest.mark.parametrize(
  'pair', ['wrn40_2_wrn16_2', 'vgg13_mobilenetv2', 'resnet32x4_shufflenetv2']
)
@pytest.mark.parametrize('name', COMPARED)
def test_every_method_takes_the_features_of_a_pair(name, pair):
  config = pairs.get_config(pair)
  for network in (config.teacher, config.student):
    network.name = SHALLOW.get(network.name, network.name)
  teacher, student = config.teacher.name, config.student.name
  config.method.name = name
  method, values = config_lib.build_method(config)
  rows = method.views * BATCH
  ours = outputs_of(student, tuple(method.student_features), rows)
  theirs = None
  if method.teacher is not None:
    which = student if method.teacher == 'ema' else teacher
    theirs = outputs_of(which, tuple(method.teacher_features), rows)

  def loss(rng, ours, theirs, images):
    setup = Setup(ours, theirs, variables_of(student)[0], images, 20, CLASSES)
    variables = method.init(rng, setup)
    batch = Batch(
      ours,
      theirs,
      jnp.arange(BATCH),
      images,
      jnp.arange(BATCH),
      jnp.float32(0),
      rng,
      {key: jnp.float32(value) for key, value in values.items()},
    )
    return method.loss(variables, batch).per_example

  images = jax.ShapeDtypeStruct((rows, *IMAGES.shape[1:]), IMAGES.dtype)
  found = jax.eval_shape(loss, jax.random.key(0), ours, theirs, images)
  assert found.shape == (BATCH,)


def test_a_pair_trains_on_the_digits(tmp_path):
  config = pairs.get_config('resnet56_resnet20')
  config.method.name = 'at'
  config.teacher.name = config.student.name = 'resnet8'
  config.data.update(name='digits', train_limit=64, crop_padding=0, flip=False)
  config.train.update(epochs=1, batch_size=32)
  config.teacher.train.epochs = 1
  result = train.train_and_evaluate(config, tmp_path / 'run')
  assert result['teacher']['model'] == 'resnet8'
  assert 0 <= result['last']['test']['accuracy'] <= 1


def test_an_unknown_pair_is_refused():
  with pytest.raises(ValueError, match="unknown pair 'x': expected one of wrn"):
    pairs.get_config('x')
