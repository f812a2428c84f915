"""Strong augmentation, missing labels, several views, and memory banks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import taken
import tiny
from processes import cut_off, losses_of, outcome, state_of

import kdjax
from kdjax import data, losses, methods, models
from kdjax.data import augment
from kdjax.data import stream as stream_lib
from kdjax.export import write
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import checkpoint, metrics_log
from kdjax.training import compiled, state, step, train
from kdjax.training.shared import Session

STRONG = {
  'data.trivial_augment': True,
  'data.cutout': 2,
  'data.mixup': 1.0,
  'data.cutmix': 1.0,
  'data.label_fraction': 0.5,
  'data.label_noise': 0.2,
}
# The batches themselves


@pytest.mark.parametrize('views', [1, 2])
def test_batches_in_memory_and_of_a_stream_are_equal(views):
  """Pixel by pixel, and label by label."""
  resident, streamed = (
    data.load(config('scratch', **STRONG, **{'data.streaming': stream}).data)
    for stream in (False, True)
  )
  key = jax.random.key(1)
  order = augment.epoch_order(key, 1, resident.train.size)
  augmentation = compiled.augmentation_of(config('scratch', **STRONG))
  augmentation = augmentation._replace(views=views)

  @jax.jit
  def from_memory(number, images, labels):
    return taken.batch(key, number, order, images, labels, 32, augmentation)

  @jax.jit
  def from_stream(number, images, labels, ids):
    labels = jax.nn.one_hot(labels, 10)
    batch = augment.TrainBatch(images, labels, ids)
    return augment.augment_batch(key, number, batch, 5, augmentation)

  steps = range(5, 8)
  with stream_lib.train_batches(
    streamed.train, key, batch_size=32, steps=steps
  ) as batches:
    for number, read in zip(steps, batches, strict=True):
      expected = from_memory(jnp.int32(number), *resident.train)
      found = from_stream(
        jnp.int32(number), read.images, read.labels, expected.ids
      )
      jax.tree.map(np.testing.assert_array_equal, found, expected)
      assert expected.labels.dtype == np.float32
      assert expected.images.shape == (32 * views, 8, 8, 1)


# Whole runs

BANKS = {'train.epochs': 2}


def config(method, **changes):
  config = tiny.config(method)
  config.method[method].update(tiny.SETTINGS.get(method, {}))
  config.update_from_flattened_dict({'train.epochs': 1, **changes})
  return config


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Where all runs lie, beside their teacher."""
  root = tmp_path_factory.mktemp('recipes')
  train.train_and_evaluate(tiny.config('scratch'), root / 'teacher')
  return root


@pytest.fixture(scope='module')
def session():
  return Session()


def run(root, session, name, method, **changes):
  changes = {'teacher.path': str(root / 'teacher'), **changes}
  if method in ('scratch', 'ema_teacher'):
    del changes['teacher.path']
  return train.train_and_evaluate(
    config(method, **changes), root / name, session
  )


@pytest.mark.parametrize('method', ['response', 'mlkd'])
def test_strong_augmentation_is_the_same_in_memory_and_in_a_stream(
  root, session, method
):
  resident = run(root, session, f'{method}_resident', method, **STRONG)
  run(
    root,
    session,
    f'{method}_streamed',
    method,
    **STRONG,
    **{'data.streaming': True},
  )
  # Two programs, which may round differently what they compute of the batches.
  np.testing.assert_allclose(
    losses_of(root / f'{method}_streamed'),
    losses_of(root / f'{method}_resident'),
    rtol=1e-5,
  )
  plain = run(root, session, f'{method}_plain', method)
  assert plain['last']['digest'] != resident['last']['digest']


@pytest.mark.parametrize(
  ('method', 'changes'),
  [('crd', BANKS), ('mlkd', {**STRONG, **BANKS})],
  ids=['crd', 'mlkd'],
)
def test_a_run_cut_off_ends_where_an_undisturbed_one_does(
  root, session, method, changes
):
  whole = run(root, session, f'{method}_whole', method, **changes)
  with cut_off(8):
    run(root, session, f'{method}_cut', method, **changes)
  assert metrics_log.read_records(root / f'{method}_cut')[-1]['step'] < 8
  resumed = run(root, session, f'{method}_cut', method, **changes)
  assert outcome(resumed) == outcome(whole)
  # What the method keeps too, to the last bit.
  first, second = (
    jax.tree.leaves(state_of(root / f'{method}_{which}', 'last'))
    for which in ('whole', 'cut')
  )
  for ours, theirs in zip(first, second, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_logits_are_kept_and_replayed_for_mixed_images(root, session):
  changes = {**STRONG, 'teacher.replay': str(root / 'replay')}
  live = run(root, session, 'live', 'response', **STRONG)
  kept = run(root, session, 'kept', 'response', **changes)
  replayed = run(root, session, 'replayed', 'response', **changes)
  assert outcome(replayed) == outcome(kept)
  assert kept['last']['test']['loss'] == pytest.approx(
    live['last']['test']['loss'], rel=1e-3
  )
  with pytest.raises(ValueError, match=r'mixup'):
    run(
      root,
      session,
      'other',
      'response',
      **{**changes, 'data.mixup': 0.5},
    )


@pytest.mark.parametrize(
  ('method', 'changes', 'message'),
  [
    ('sp', {'train.accumulate': 2}, 'sp compares the examples of a batch'),
    ('crld', {'train.accumulate': 2}, 'crld has 2 views of each example'),
    ('mlkd', {'teacher.replay': 'x'}, 'mlkd trains on 2 views of each image'),
    ('dkd', {'data.mixup': 1.0}, 'mixup is 1.0, .*dkd needs one class'),
    ('dkd', {'data.cutmix': 1.0}, 'cutmix is 1.0, .*dkd needs one class'),
    ('nkd', {'data.label_fraction': 0.5}, 'nkd needs the class of each image'),
    ('ema_teacher', {}, 'ema_decay is 0, and the teacher of ema_teacher'),
    ('simkd', {}, 'no module named projector'),
  ],
)
def test_what_does_not_suit_a_method_is_refused_before_it_trains(
  root, session, method, changes, message
):
  with pytest.raises(ValueError, match=message):
    run(root, session, 'refused', method, **changes)
  assert not (root / 'refused').exists()


def make_step(method, labels, smoothing=0.0):
  """The metrics of a step on a batch with given labels."""
  model = models.build(**tiny.MODEL | {'num_classes': 4})
  network, _ = methods.build(method)
  images = jax.random.uniform(jax.random.key(0), (6, 16, 16, 3)) * 255
  shape = jax.eval_shape(lambda: images)
  start = state.create_state(
    jax.random.key(1), model, network, optax.sgd(0.1), state.Start(shape)
  )
  normalization = {'mean': jnp.zeros(3), 'std': jnp.ones(3)}
  train_step = step.make_train_step(
    model,
    network,
    optax.sgd(0.1),
    options=step.Options(label_smoothing=smoothing),
  )
  _, metrics = jax.jit(train_step)(
    start,
    step.Inputs(
      images, labels, jnp.arange(6), jnp.float32(0), normalization, None, {}
    ),
  )
  variables = state.student_variables(start, normalization)
  logits = features.forward(model, variables, images, train=True)[0].logits
  return metrics, logits


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_an_image_without_a_label_has_no_cross_entropy(smoothing):
  classes = jnp.array([0, 1, 2, 3, 0, 1])
  labels = jax.nn.one_hot(classes, 4).at[3:].set(0)
  metrics, logits = make_step('scratch', labels, smoothing)
  smooth = (1 - smoothing) * labels[:3] + smoothing / 4
  expected = losses.cross_entropy(logits[:3], smooth).sum() / 6
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  right = (logits[:3].argmax(-1) == classes[:3]).mean()
  np.testing.assert_allclose(metrics['accuracy'], right, rtol=1e-6)
  # The mean over those that have a label, whatever the smoothing.
  plain = losses.cross_entropy(logits[:3], classes[:3]).mean()
  np.testing.assert_allclose(metrics['nll'], plain, rtol=1e-5)


def test_the_nll_of_training_means_what_that_of_a_validation_does():
  labels = jnp.array([0, 1, 2, 3, 0, 1])
  metrics, logits = make_step('scratch', labels, smoothing=0.3)
  nll = -np.log(jax.nn.softmax(logits)[np.arange(6), labels]).mean()
  np.testing.assert_allclose(metrics['nll'], nll, rtol=1e-5)
  assert abs(metrics['loss'] - nll) > 0.01


def test_a_batch_without_labels_has_no_loss_and_no_nan():
  metrics, _ = make_step('scratch', jnp.zeros((6, 4)))
  assert metrics['loss'] == 0
  assert metrics['accuracy'] == metrics['nll'] == 0
  assert metrics['gradient_norm'] == 0


def test_simkd_keeps_the_last_layer_of_its_teacher(root, session):
  result = run(
    root,
    session,
    'simkd',
    'simkd',
    **{
      'teacher.path': '',
      'teacher.sibling': 'resnet_teacher',
      'teacher.name': 'resnet10',
      'teacher.width': 16,
      'teacher.train.epochs': 1,
      'student.name': 'resnet10_simkd',
      'train.weight_decay': 0.5,
      'train.ema_decay': 0.9,
    },
  )
  student, teacher = (
    checkpoint.restore(root / name, 'best').variables['params']
    for name in ('simkd', 'resnet_teacher')
  )
  last = checkpoint.restore(root / 'simkd', 'last').variables['params']
  for params in (student, last):
    np.testing.assert_array_equal(
      params['teacher_fc']['matrix'], teacher['fc']['kernel']
    )
    np.testing.assert_array_equal(
      params['teacher_fc']['offset'], teacher['fc']['bias']
    )
  assert 'fc' not in student
  # It is exported and predicts like any other.
  write.export(
    root / 'simkd',
    ['stablehlo'],
    root / 'export.stablehlo',
    write.Options(images=4),
  )
  images = data.load(config('simkd').data).test.images[:4]
  from_run, from_export = (
    kdjax.load_student(root / name)(images)
    for name in ('simkd', 'export.stablehlo')
  )
  np.testing.assert_allclose(from_export, from_run, atol=1e-5)
  assert result['student']['model'] == 'resnet10_simkd'


def simkd_state(teacher):
  student = models.build('resnet10_simkd', num_classes=4, stem='cifar', width=4)
  method, _ = methods.build('simkd')
  return state.create_state(
    jax.random.key(0),
    student,
    method,
    optax.sgd(0.1),
    state.Start(jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8), teacher),
  )


def test_a_student_with_another_width_than_its_teacher_says_so():
  model = models.build('resnet10', num_classes=4, stem='cifar', width=8)
  shape = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)
  teacher = Network(model, features.init(model, jax.random.key(0), shape))
  with pytest.raises(ValueError, match=r'\(64, 4\), .*128 channels'):
    simkd_state(teacher)


def test_a_student_that_borrows_a_layer_needs_a_network(root, session):
  with pytest.raises(ValueError, match='there is no teacher'):
    run(
      root,
      session,
      'refused',
      'scratch',
      **{'student.name': 'resnet10_simkd'},
    )
