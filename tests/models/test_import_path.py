"""Models that are named by where Python finds them."""

import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_cnn

from kdjax import methods, models
from kdjax.models import features
from kdjax.training import state

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8)


class NoCall(nn.Module):
  pass


class NoTrain(nn.Module):
  @nn.compact
  def __call__(self, images):
    return images


class Unhashable(nn.Module):
  sizes: list

  def __call__(self, images, train):
    return images


class Map(nn.Module):
  def __call__(self, images, train):
    return images


class Statistics(nn.Module):
  """It keeps a collection that nobody trains or saves."""

  @nn.compact
  def __call__(self, images, train):
    self.variable('memory', 'seen', jnp.zeros, ())
    return nn.Dense(3)(images.mean(axis=(1, 2)))


class Pair(nn.Module):
  @nn.compact
  def __call__(self, images, train):
    logits = nn.Dense(3)(images.mean(axis=(1, 2)))
    return logits, logits


@pytest.fixture
def mine(monkeypatch):
  """A module of a user's, `mine`."""
  module = types.ModuleType('mine')
  monkeypatch.setitem(sys.modules, 'mine', module)
  return module


def test_a_class_is_given_what_it_takes():
  model = models.build(
    'small_cnn:SmallCNN', num_classes=5, dtype='bfloat16', stem='cifar', width=4
  )
  # It has no stem.
  assert model == small_cnn.SmallCNN(5, 4, dtype=jnp.dtype('bfloat16'))


def test_a_function_with_keywords_is_given_everything(mine):
  def make(**options) -> nn.Module:
    mine.given = options
    return small_cnn.SmallCNN(options['num_classes'])

  mine.make = make
  models.build('mine:make', num_classes=5, stem='cifar', width=4)
  assert mine.given == {
    'num_classes': 5,
    'dtype': jnp.dtype('float32'),
    'stem': 'cifar',
    'width': 4,
  }


def test_what_a_partial_has_set_stays(mine):
  mine.nets = types.SimpleNamespace(
    wide=functools.partial(small_cnn.SmallCNN, width=32)
  )
  model = models.build('mine:nets.wide', num_classes=5, stem='cifar', width=4)
  assert (model.width, model.num_classes) == (32, 5)


def test_names_are_those_of_kdjax():
  models.build('small_cnn:SmallCNN', num_classes=5)
  assert not any(':' in name for name in models.names())
  with pytest.raises(ValueError, match=r"'small_cnn'.* or package.module:attr"):
    models.build('small_cnn', num_classes=5)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('no.such:Net', r"'no.such:Net' cannot be imported .*No module named 'no'"),
    ('mine:Net', "cannot be imported .*no attribute 'Net'"),
    ('mine:', 'cannot be imported'),
    (':Net', 'cannot be imported'),
    ('mine:size', "'mine:size' is 3: expected a subclass of flax.linen.Module"),
    ('mine:text', "'mine:text' returns str, expected a subclass of flax"),
    ('mine:needy', "'mine:needy' cannot be called.*'depth'"),
    ('mine:broken', r"'mine:broken' cannot be called.*\(OSError: its own\)"),
    (
      'mine:unknown',
      "annotations of 'mine:unknown' cannot be .*Nothing",
    ),
    ('mine:NoCall', 'NoCall, whose __call__ cannot be called'),
    ('mine:NoTrain', r'NoTrain, whose __call__ .* as model\(images, train=…\)'),
    ('mine:unhashable', 'Unhashable with a field that cannot be hashed'),
  ],
)
def test_what_is_no_model_is_refused(mine, name, message):
  def text() -> nn.Module:
    return 'text'

  def needy(depth) -> nn.Module:
    return depth

  def broken() -> NoCall:
    raise OSError('its own')

  def unhashable() -> nn.Module:
    return Unhashable([1, 2])

  def unknown() -> 'Nothing':  # noqa: F821
    return NoCall()

  mine.size, mine.text, mine.needy, mine.broken = 3, text, needy, broken
  mine.NoCall, mine.NoTrain = NoCall, NoTrain
  mine.unhashable, mine.unknown = unhashable, unknown
  with pytest.raises(ValueError, match=message):
    models.build(name, num_classes=5, width=4)


def test_nothing_but_modules_and_their_makers_is_called(mine):
  called = []

  def make(num_classes):
    called.append(num_classes)
    return small_cnn.SmallCNN(num_classes)

  class Maker:
    def __call__(self) -> nn.Module:
      called.append(self)
      return small_cnn.SmallCNN(3)

  def number(num_classes) -> int:
    called.append(num_classes)
    return num_classes

  mine.make, mine.maker, mine.Maker, mine.number = make, Maker(), Maker, number
  mine.partial = functools.partial(make, 3)
  for name in (
    *(f'mine:{name}' for name in vars(mine) if not name.startswith('_')),
    'subprocess:Popen',
    'os:abort',
    'sys:exit',
  ):
    with pytest.raises(ValueError, match=f"'{name}' is .*expected a sub"):
      models.build(name, num_classes=5)
  assert called == []


def test_options_that_only_it_could_know_must_be_taken():
  with pytest.raises(ValueError, match=r"cannot be called.*'depth'"):
    models.build('small_cnn:SmallCNN', num_classes=5, depth=3)


def test_a_module_that_breaks_when_imported_is_named(tmp_path, monkeypatch):
  (tmp_path / 'breaks.py').write_text('1 / 0')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match=r"'breaks:Net'.*ZeroDivisionError"):
    models.build('breaks:Net', num_classes=5)


# What is done with one


def test_its_features_are_captured_by_name_and_its_logits_are_float32():
  model = models.build('small_cnn:SmallCNN', num_classes=5, dtype='bfloat16')
  variables = features.init(model, jax.random.key(0), IMAGES)
  assert variables['batch_stats'] == {}
  outputs, stats = features.forward(
    model, variables, jnp.ones(IMAGES.shape), names=('conv2',), train=True
  )
  assert outputs.logits.dtype == jnp.float32
  assert outputs.features['conv2'].shape == (2, 4, 4, 16)
  assert stats == {}
  with pytest.raises(ValueError, match=r'no module named stage1; .*conv1, con'):
    features.forward(
      model,
      variables,
      jnp.ones(IMAGES.shape),
      names=('stage1',),
      train=False,
    )


def test_its_dropout_draws_in_training_only():
  model = models.build('small_cnn:dropping', num_classes=5)
  variables = features.init(model, jax.random.key(0), IMAGES)
  images = jax.random.uniform(jax.random.key(1), IMAGES.shape)

  def logits(train, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return features.forward(model, variables, images, train=train, rngs=rngs)[
      0
    ].logits

  assert (logits(True, 0) != logits(True, 1)).any()
  np.testing.assert_array_equal(logits(False, 0), logits(False, 1))


def test_it_is_left_as_it_is_where_it_cannot_be_changed():
  model = models.build('small_cnn:SmallCNN', num_classes=5)
  variables = features.init(model, jax.random.key(0), IMAGES)
  assert models.fold(model, variables) == (model, variables)
  with pytest.raises(ValueError, match='SmallCNN has no method `rematerialize'):
    models.rematerialize(model, ('conv1',))


def test_a_collection_that_is_not_trained_is_refused():
  with pytest.raises(ValueError, match='Statistics has the collections memory'):
    features.init(Statistics(), jax.random.key(0), IMAGES)


def test_what_is_no_array_of_logits_is_refused():
  variables = features.init(Pair(), jax.random.key(0), IMAGES)
  with pytest.raises(ValueError, match='Pair returns tuple: expected logits'):
    features.output_shapes(Pair(), variables, IMAGES, ())
  with pytest.raises(ValueError, match=r'Map returns shape \(2, 8, 8, 1\)'):
    features.forward(Map(), {}, jnp.ones(IMAGES.shape), train=False)


def test_another_number_of_logits_than_classes_is_refused():
  model = models.build('small_cnn:SmallCNN', num_classes=5)
  with pytest.raises(
    ValueError, match='the student returns 5 logits, and there '
  ):
    jax.eval_shape(
      lambda rng: state.create_state(
        rng,
        model,
        methods.build('scratch')[0],
        optax.identity(),
        state.Start(IMAGES, num_classes=3),
      ),
      jax.random.key(0),
    )
