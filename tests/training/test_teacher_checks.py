"""Teachers from elsewhere that are run otherwise than they were trained."""

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from kdjax import data
from kdjax.evaluation import teacher_outputs
from kdjax.models import features, normalization, resnet
from kdjax.models.network import Network
from kdjax.models.normalization import Normalization
from kdjax.training import teacher_checks
from kdjax.training.teacher import Teacher

# What outputs are


def softmax(logits):
  exponentials = np.exp(logits)
  return exponentials / exponentials.sum(axis=1, keepdims=True)


LOGITS = np.random.default_rng(0).normal(0, 3, (50, 10))


@pytest.mark.parametrize(
  ('outputs', 'expected'),
  [
    (LOGITS, None),
    (softmax(LOGITS), 'probabilities'),
    (softmax(LOGITS).astype(np.float16), 'probabilities'),
    (softmax(LOGITS).round(3), 'probabilities'),
    (np.eye(10), 'probabilities'),
    (100 * softmax(LOGITS), 'probabilities'),
    (np.round(255 * softmax(LOGITS)).astype(np.float16), 'probabilities'),
    (np.maximum(LOGITS, 0), None),
    (np.full((5, 10), 2.0), None),
    (np.log(softmax(LOGITS)).astype(np.float16), 'log-probabilities'),
    (1 / (1 + np.exp(-LOGITS)), 'values between 0 and 1'),
    (np.vstack([softmax(LOGITS), LOGITS]), None),
    (np.full((3, 10), np.nan), None),
    (np.zeros((0, 10)), None),
    (np.ones((5, 1)), None),
  ],
)
def test_what_outputs_are_shows_in_their_values(outputs, expected):
  assert teacher_outputs.kind(outputs) == expected


@pytest.mark.parametrize(
  ('names', 'wanted', 'expected'),
  [
    ('ambulance Bus car', 'Bus ambulance car', [1, 0, 2]),
    ('ambulance bus car', 'Ambulance BUS car', [0, 1, 2]),
    ('cafe\u0301 Stra\u00dfe', 'STRASSE caf\u00e9', [1, 0]),
    ('a A', 'A a', [1, 0]),
    ('a A', 'a b', None),
    ('a b', 'a c', None),
    ('a b c', 'a b', None),
  ],
)
def test_classes_are_found_by_their_names(names, wanted, expected):
  assert teacher_outputs.order(names.split(), wanted.split()) == expected


# What is clear from so many images


def outcomes(*pairs):
  """Whether each of two is right, for so many images each."""
  return (
    np.repeat([pair[place] for *pair, _ in pairs], [n for *_, n in pairs])
    for place in (0, 1)
  )


@pytest.mark.parametrize(
  ('won', 'lost', 'both', 'expected'),
  [
    (9, 0, 1, False),
    (10, 0, 0, True),
    (65, 30, 110, True),
    (16, 10, 974, False),
    (500, 480, 0, False),
    # Sure, and too little to matter.
    (15, 0, 985, False),
    (0, 0, 100, False),
  ],
)
def test_what_is_clearly_better(won, lost, both, expected):
  right, than = outcomes(
    (True, False, won), (False, True, lost), (True, True, both)
  )
  assert teacher_checks.clearly_better(right, than) == expected
  assert not teacher_checks.clearly_better(than, right)


def test_rare_classes_count_as_much_as_frequent_ones():
  labels = np.repeat([0, 2], [95, 5])
  one = teacher_checks.balanced_accuracy(np.zeros(100, int), labels)
  assert one == (0.5, 0.5)
  found, _ = teacher_checks.balanced_accuracy(labels, labels)
  assert found == 1


def test_exchanged_classes_are_found():
  labels = np.arange(200) % 10
  rng = np.random.default_rng(0)
  noise = rng.random(200) < 0.3
  places = np.array([0, 2, 1, 4, 5, 3, 6, 7, 8, 9])
  predicted = np.where(noise, rng.integers(10, size=200), places[labels])
  assert teacher_checks.exchanged(predicted, labels, 10) == [[1, 2], [3, 4, 5]]
  for predicted in (
    rng.integers(10, size=200),
    np.zeros(200, int),
    labels,
    # One is taken for another, which is none of its business.
    np.where(labels == 3, 4, labels),
  ):
    assert teacher_checks.exchanged(predicted, labels, 10) == []


# What is measured

CLASSES = 6
# Red rises from class to class, and blue falls.
LEVELS = np.array([(10 + 20 * c, 40, 190 - 20 * c) for c in range(CLASSES)])


class Nearest(nn.Module):
  """Classifies by the nearest of the colours that it knows."""

  colours: tuple[tuple[float, ...], ...]

  @nn.compact
  def __call__(self, images, train):
    found = images.mean(axis=(1, 2))[:, None]
    return -50 * ((found - np.array(self.colours)) ** 2).sum(-1)


@pytest.fixture(scope='module')
def dataset():
  labels = np.arange(240) % CLASSES
  noise = np.random.default_rng(0).integers(0, 9, (240, 2, 2, 3))
  split = data.Split(
    (LEVELS[labels][:, None, None] + noise).astype(np.uint8), labels
  )
  pixels = split.images.reshape(-1, 3) / 255
  return data.Dataset(
    'colours',
    split,
    split,
    split,
    tuple('abcdef'),
    pixels.mean(axis=0),
    pixels.std(axis=0),
    '',
    np.arange(240),
    np.arange(240),
    240,
    240,
  )


def teacher_of(trained_with, run_with, assumed=(), levels=LEVELS):
  """A teacher that knows colours normalised so, and is run with others."""
  _, mean, std = trained_with
  colours = ((levels + 4) / 255 - mean) / std
  model = Nearest(tuple(map(tuple, colours.tolist())))
  return of_network(model, {'params': {}, 'batch_stats': {}}, run_with, assumed)


def of_network(model, variables, run_with, assumed):
  _, mean, std = run_with
  variables = {
    **variables,
    'normalization': {'mean': np.float32(mean), 'std': np.float32(std)},
  }
  report = {'path': 'x', 'data_digest': None, 'mean': [*mean], 'std': [*std]}
  return Teacher(Network(model, variables), report, assumed=assumed)


def own(dataset):
  return Normalization('own', tuple(dataset.mean), tuple(dataset.std))


@pytest.mark.parametrize('right', normalization.usual(3), ids=lambda n: n.name)
def test_another_normalization_is_found_before_it_teaches_wrongly(
  dataset, caplog, right
):
  wrong = own(dataset)
  with pytest.raises(ValueError, match=r'and guessing 16\.7 %, but ') as error:
    teacher_checks.check_accuracy(
      teacher_of(right, wrong, ('normalization',)), dataset, 500
    )
  assert f'100.0 %  {right.name}: {right.flags()}' in str(error.value)
  assert "%  the data's own: --config.teacher.mean=" in str(error.value)
  # Said, it is believed, and doubted.
  assert 'run otherwise' not in caplog.text
  teacher_checks.check_accuracy(teacher_of(right, wrong), dataset, 500)
  assert 'but 100.0 % if it is run otherwise' in caplog.text
  caplog.clear()
  teacher_checks.check_accuracy(teacher_of(right, right), dataset, 500)
  assert not caplog.text


def test_reversed_channels_are_found(dataset):
  reversed_levels = LEVELS[:, ::-1]
  right = own(dataset)
  flipped = right._replace(mean=right.mean[::-1], std=right.std[::-1])
  teacher = teacher_of(
    flipped, right, ('normalization',), levels=reversed_levels
  )
  with pytest.raises(ValueError, match=r'100\.0 %  .* channels reversed \(BGR'):
    teacher_checks.check_accuracy(teacher, dataset, 500)


def test_exchanged_classes_are_named(dataset, caplog):
  levels = LEVELS[[0, 1, 3, 2, 4, 5]]
  teacher = teacher_of(own(dataset), own(dataset), levels=levels)
  teacher_checks.check_accuracy(teacher, dataset, 500)
  assert 'another order than colours: it classifies 100 % of ' in caplog.text
  assert "of 'c' as 'd', 100 % of 'd' as 'c'. Write the names" in caplog.text


def test_logits_that_are_not_finite_are_refused(dataset):
  levels = np.where(LEVELS == 10, np.nan, LEVELS)
  teacher = teacher_of(own(dataset), own(dataset), levels=levels)
  with pytest.raises(ValueError, match='not finite for 240 of 240 held-out im'):
    teacher_checks.check_accuracy(teacher, dataset, 500)


def test_a_teacher_of_one_class_is_noticed(dataset, caplog):
  """It is right of nearly all images."""
  labels = np.repeat([0, 1], [228, 12])
  split = dataset.validation._replace(labels=labels)
  levels = np.where(np.arange(CLASSES) == 0, 60, 250)[:, None] * np.ones(3)
  teacher = teacher_of(own(dataset), own(dataset), levels=levels)
  teacher_checks.check_accuracy(
    teacher, dataset._replace(validation=split), 500
  )
  assert 'classifies 95.0 % of 240 held-out images of colours, 50.0 %' in (
    caplog.text
  )


@pytest.mark.parametrize('assumed', [('stem',), ()])
def test_a_max_pool_that_weights_do_not_show_is_found(caplog, assumed):
  """Random features, whose last layer is fitted by least squares."""
  dataset = data.load(tiny.config().data)
  right = own(dataset)
  model = resnet.ResNet(
    resnet.BasicBlock, (1,), 10, stem='cifar_pool', width=16
  )
  train = dataset.train
  variables = features.init(
    model, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), np.uint8)
  )
  normalized = {'mean': dataset.mean, 'std': dataset.std}

  @jax.jit
  def pooled(variables, images):
    outputs, _ = features.forward(
      model,
      {**variables, 'normalization': normalized},
      images,
      names=('stage1',),
      train=False,
    )
    return outputs.features['stage1'].mean(axis=(1, 2))

  found = np.asarray(pooled(variables, train.images))
  found = np.append(found, np.ones((len(found), 1)), axis=1)
  weights = np.linalg.lstsq(found, np.eye(10)[train.labels], rcond=None)[0]
  weights = np.float32(weights * 8)
  variables['params']['fc'] = {'kernel': weights[:-1], 'bias': weights[-1]}
  teacher = of_network(model.clone(stem='cifar'), variables, right, assumed)
  flag = 'stem cifar_pool: .* --config.teacher.stem=cifar_pool'
  if assumed:
    with pytest.raises(ValueError, match=flag):
      teacher_checks.check_accuracy(teacher, dataset, 500)
  else:
    teacher_checks.check_accuracy(teacher, dataset, 500)
    assert '--config.teacher.stem=cifar_pool' in caplog.text
