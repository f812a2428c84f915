"""The training step and the prediction step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import methods, models
from kdjax.evaluation import predict
from kdjax.models import features, resnet
from kdjax.models.network import Network
from kdjax.training import state as state_lib
from kdjax.training import step

IMAGES = jax.random.randint(jax.random.key(1), (6, 8, 8, 2), 0, 256, 'uint8')
LABELS = jnp.arange(6) % 3
NORMALIZATION = {'mean': jnp.array([0.4, 0.5]), 'std': jnp.array([0.2, 0.3])}
RNG = jax.random.key(0)
PUBLISHED = ('scratch', 'response', 'feature')
STUDENT = models.build('resnet10', num_classes=3, stem='cifar', width=4)


@functools.cache
def make_teacher():
  model = models.build('resnet10', num_classes=3, stem='cifar', width=8)
  variables = features.init(model, jax.random.key(7), IMAGES)
  return Network(model, variables | {'normalization': NORMALIZATION})


class Counted:
  """A function jitted, and how often it was traced."""

  def __init__(self, function):
    self.traces = 0
    self.jitted = jax.jit(self._count(function))

  def _count(self, function):
    def counted(*arguments):
      self.traces += 1
      return function(*arguments)

    return counted


def step_of(*arguments, teacher=None, **options):
  """The training step as a function of the state and each of the inputs."""
  train_step = step.make_train_step(
    *arguments, teacher, step.Options(**options)
  )

  def run(state, images, labels, *rest):
    ids = jnp.arange(len(labels))
    return train_step(
      state, step.Inputs(images, labels, ids, jnp.float32(0), *rest)
    )

  return run


@functools.cache
def make(method_name, label_smoothing=0.0, skip_nonfinite=False):
  """State, training step and its other arguments; made once per method."""
  method, hyperparameters = methods.build(method_name)
  teacher = make_teacher() if method.needs_teacher else None
  optimizer = optax.sgd(0.1)
  train_step = step_of(
    STUDENT,
    method,
    optimizer,
    teacher=teacher.model if teacher else None,
    label_smoothing=label_smoothing,
    skip_nonfinite=skip_nonfinite,
  )
  state = state_lib.create_state(
    RNG, STUDENT, method, optimizer, state_lib.Start(IMAGES, teacher)
  )
  arguments = (
    IMAGES,
    LABELS,
    NORMALIZATION,
    teacher.variables if teacher else None,
    {name: jnp.float32(value) for name, value in hyperparameters.items()},
  )
  return state, Counted(train_step), arguments


@pytest.mark.parametrize('method', PUBLISHED)
def test_a_few_steps_lower_the_loss_with_one_trace(method):
  state, train_step, arguments = make(method)
  before = jax.device_get(arguments[3])
  losses = []
  for i in range(8):
    state, metrics = train_step.jitted(state, *arguments)
    losses.append(float(metrics['loss']))
    assert int(state.step) == i + 1
  assert losses[-1] < losses[0]
  assert np.isfinite(losses).all()
  assert all(value.shape == () for value in metrics.values())
  # The teacher is an argument, and unchanged: bit for bit.
  jax.tree.map(np.testing.assert_array_equal, before, arguments[3])
  # Other hyperparameters, same program.
  halved = jax.tree.map(lambda value: value / 2, arguments[4])
  train_step.jitted(state, *arguments[:4], halved)
  assert train_step.traces == 1


def test_step_is_gradient_descent_on_the_mean_loss():
  state, train_step, arguments = make('scratch')
  after, metrics = train_step.jitted(state, *arguments)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    logits, _ = STUDENT.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      (IMAGES / 255 - NORMALIZATION['mean']) / NORMALIZATION['std'],
      train=True,
      mutable=['batch_stats'],
    )
    return -jax.nn.log_softmax(logits)[jnp.arange(6), LABELS].mean()

  value, gradient = loss(state.params['student'])
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
  np.testing.assert_allclose(
    metrics['gradient_norm'], optax.tree.norm(gradient), rtol=1e-5
  )
  jax.tree.map(
    lambda new, old, g: np.testing.assert_allclose(
      new, old - 0.1 * g, rtol=1e-4, atol=1e-6
    ),
    after.params['student'],
    state.params['student'],
    gradient,
  )


def test_label_smoothing_spreads_probability():
  plain, smooth = (
    train_step.jitted(state, *arguments)[1]['loss']
    for state, train_step, arguments in (make('scratch'), make('scratch', 0.3))
  )
  state, _, _ = make('scratch')
  outputs, _ = jax.jit(
    functools.partial(features.forward, STUDENT, train=True)
  )(
    {
      'params': state.params['student'],
      'batch_stats': state.batch_stats,
      'normalization': NORMALIZATION,
    },
    IMAGES,
  )
  log_probabilities = jax.nn.log_softmax(outputs.logits)
  uniform = -log_probabilities.mean()
  np.testing.assert_allclose(smooth, 0.7 * plain + 0.3 * uniform, rtol=1e-5)


def assert_close(found, expected, tolerance=1e-5):
  """Relative to the largest element of each array."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3)
    ),
    found,
    expected,
  )


@functools.cache
def make_in_parts(accumulate):
  """As `make`, of networks with a single stage and a teacher's logits."""
  method, hyperparameters = methods.build('response')
  model, teacher = (
    resnet.ResNet(resnet.BasicBlock, (1,), 3, stem='cifar', width=width)
    for width in (4, 8)
  )
  variables = features.init(teacher, jax.random.key(7), IMAGES)
  variables['normalization'] = NORMALIZATION
  network, optimizer = Network(teacher, variables), optax.sgd(0.1)
  train_step = step_of(
    model, method, optimizer, teacher=teacher, accumulate=accumulate
  )
  state = state_lib.create_state(
    RNG, model, method, optimizer, state_lib.Start(IMAGES, network)
  )
  return state, Counted(train_step), (network, hyperparameters)


def test_weights_of_classes_make_up_for_their_images():
  # Six images, three classes with 4, 2 and 0: 6 / (2 · 4) and 6 / (2 · 2).
  weights = step.balanced_weights([4, 2, 0])
  assert weights == (0.75, 1.5, 1.0)
  labels = jnp.array([0, 0, 1, 0, 1, 0])
  np.testing.assert_array_equal(
    step.example_weights(labels, weights), [0.75, 0.75, 1.5, 0.75, 1.5, 0.75]
  )
  mixed = jnp.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])
  np.testing.assert_array_equal(
    step.example_weights(mixed, weights), [0.75, 1.125, 1]
  )


def test_the_loss_of_each_image_is_weighted_by_its_class():
  state, _, arguments = make('scratch')
  method, _ = methods.build('scratch')

  def loss_of(**options):
    run = step_of(STUDENT, method, optax.sgd(0.1), **options)
    _, metrics = jax.jit(run)(state, *arguments)
    return float(metrics['loss'])

  # Weights of 3 for one class are as three times the images of it.
  alone = [
    loss_of(class_weights=tuple(float(i == j) for j in range(3)))
    for i in range(3)
  ]
  assert loss_of() == pytest.approx(sum(alone), rel=1e-6)
  assert loss_of(class_weights=(1.0, 2.0, 3.0)) == pytest.approx(
    alone[0] + 2 * alone[1] + 3 * alone[2], rel=1e-6
  )


def test_a_batch_in_parts_is_a_loop_over_them_with_one_update():
  state, in_parts, (teacher, hyperparameters) = make_in_parts(2)
  _, whole, _ = make_in_parts(1)
  rest = NORMALIZATION, teacher.variables, hyperparameters
  found, metrics = in_parts.jitted(state, IMAGES, LABELS, *rest)

  # With plain gradient descent the mean of updates is that of the gradients.
  ends, logged, batch_stats = [], [], state.batch_stats
  for i in range(2):
    end, values = whole.jitted(
      state.replace(batch_stats=batch_stats),
      IMAGES[i::2],
      LABELS[i::2],
      *rest,
    )
    batch_stats = end.batch_stats
    ends.append(end.params)
    logged.append(values)
  mean = functools.partial(jax.tree.map, lambda a, b: (a + b) / 2)
  expected = mean(*ends)
  update = optax.tree.sub(expected, state.params)
  assert_close(optax.tree.sub(found.params, state.params), update, 1e-4)
  assert_close(found.batch_stats, batch_stats)
  assert found.step == 1
  norm = optax.tree.norm(update) / 0.1
  assert_close(metrics, mean(*logged) | {'gradient_norm': norm}, 1e-4)


def test_equal_parts_give_the_gradient_of_the_whole_batch():
  images, labels = (jnp.repeat(x[:3], 2, axis=0) for x in (IMAGES, LABELS))
  found, expected = (
    train_step.jitted(
      state, images, labels, NORMALIZATION, teacher.variables, hyperparameters
    )
    for state, train_step, (teacher, hyperparameters) in map(
      make_in_parts, (2, 1)
    )
  )
  assert_close(found[1], expected[1])
  assert_close(found[0].params, expected[0].params)


def test_known_outputs_of_the_teacher_are_divided_as_the_images_are():
  state, train_step, (teacher, hyperparameters) = make_in_parts(2)
  outputs, _ = jax.jit(
    functools.partial(features.forward, teacher.model, train=False)
  )(teacher.variables, IMAGES)
  _, expected = train_step.jitted(
    state, IMAGES, LABELS, NORMALIZATION, teacher.variables, hyperparameters
  )
  _, found = train_step.jitted(
    state, IMAGES, LABELS, NORMALIZATION, outputs, hyperparameters
  )
  assert_close(found, expected)


class Dropped(nn.Module):
  """Logits that are parameters, half of them dropped."""

  @nn.compact
  def __call__(self, images, train):
    logits = self.param('logits', nn.initializers.ones, (64,))
    dropped = nn.Dropout(0.5, deterministic=not train)(logits)
    return jnp.tile(dropped, (len(images), 1))


def test_each_part_drops_something_else():
  method, _ = methods.build('scratch')
  model, optimizer = Dropped(), optax.sgd(1.0)
  state = state_lib.create_state(
    RNG, model, method, optimizer, state_lib.Start(IMAGES)
  )
  train_step = step_of(model, method, optimizer, accumulate=6)
  after, _ = jax.jit(train_step)(state, IMAGES, LABELS, NORMALIZATION, None, {})
  # A logit that is dropped has no gradient; half of them would have none.
  changed = after.params['student']['logits'] != 1
  assert changed.mean() > 0.9


def test_a_step_that_is_not_finite_changes_nothing():
  state, plain, arguments = make('scratch')
  _, skipping, _ = make('scratch', skip_nonfinite=True)
  expected, metrics = plain.jitted(state, *arguments)
  after, found = skipping.jitted(state, *arguments)
  jax.tree.map(
    np.testing.assert_array_equal, plain_keys(after), plain_keys(expected)
  )
  assert found.pop('skipped') == 0
  assert found == metrics

  params = jax.tree.map(lambda x: x.at[...].set(jnp.inf), state.params)
  broken = state.replace(params=params)
  after, found = skipping.jitted(broken, *arguments)
  assert int(after.step) == int(state.step) + 1
  after = after.replace(step=state.step)
  jax.tree.map(
    np.testing.assert_array_equal, plain_keys(after), plain_keys(broken)
  )
  assert found == dict.fromkeys(metrics, 0) | {'skipped': 1}


class Mean(nn.Module):
  """Logits from the mean colour of an image."""

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(3)(images.mean(axis=(1, 2)))


def test_the_learning_rate_goes_on_in_a_step_that_is_skipped():
  method, _ = methods.build('scratch')

  def make(learning_rate):
    optimizer = optax.adamw(learning_rate)
    state = state_lib.create_state(
      RNG, Mean(), method, optimizer, state_lib.Start(IMAGES)
    )
    return state, jax.jit(
      step_of(Mean(), method, optimizer, skip_nonfinite=True)
    )

  def rest(normalization):
    return IMAGES, LABELS, normalization, None, {}

  state, train_step = make(lambda count: 0.5 / (1 + count))
  nowhere = jax.tree.map(lambda x: x * jnp.nan, NORMALIZATION)
  skipped, metrics = train_step(state, *rest(nowhere))
  assert metrics['skipped'] == 1
  found, _ = train_step(skipped, *rest(NORMALIZATION))
  # The second step with its own learning rate, and with the first's moments.
  state, train_step = make(0.25)
  expected, _ = train_step(state, *rest(NORMALIZATION))
  assert_close(found.params, expected.params)


def plain_keys(state):
  return state.replace(rng=jax.random.key_data(state.rng))


def test_averages_are_weighted_sums_of_what_each_step_gave():
  method, _ = methods.build('scratch')
  model = resnet.ResNet(resnet.BasicBlock, (1,), 3, stem='cifar', width=4)
  optimizer = optax.sgd(0.1)
  state = state_lib.create_state(
    RNG, model, method, optimizer, state_lib.Start(IMAGES, ema=True)
  )
  train_step = jax.jit(step_of(model, method, optimizer, ema_decay=0.2))
  states = [state]
  for _ in range(4):
    state, _ = train_step(state, IMAGES, LABELS, NORMALIZATION, None, {})
    states.append(state)

  # (1 + t) / (10 + t), but no more than 0.2.
  kept = np.array([0.1, 2 / 11, 0.2, 0.2])
  weights = [
    (1 if t == 0 else 1 - kept[t - 1]) * kept[t:].prod() for t in range(5)
  ]
  assert sum(weights) == pytest.approx(1)
  expected = jax.tree.map(
    lambda *values: sum(w * x for w, x in zip(weights, values, strict=True)),
    *(
      {'params': each.params['student'], 'batch_stats': each.batch_stats}
      for each in states
    ),
  )
  assert_close(state.ema, expected)
  # They are averages: not what the last step gave.
  with pytest.raises(AssertionError):
    assert_close(state.ema['params'], state.params['student'], 1e-3)
  found = state_lib.student_variables(state, NORMALIZATION, ema=True)
  assert found == {**state.ema, 'normalization': NORMALIZATION}


def test_a_state_keeps_no_averages_unless_asked_to():
  state, train_step, arguments = make('scratch')
  after = jax.eval_shape(train_step.jitted, state, *arguments)[0]
  assert state.ema == after.ema == {}


@pytest.mark.parametrize('method_name', PUBLISHED)
def test_every_method_trains_in_parts_with_rematerialisation(method_name):
  """Traced, not compiled: modules keep the features that methods want."""
  state, _, arguments = make(method_name)
  method, _ = methods.build(method_name)
  names = ('stage1', 'stage2', 'stage3', 'stage4')
  train_step = step_of(
    models.rematerialize(STUDENT, names),
    method,
    optax.sgd(0.1),
    teacher=make_teacher().model if method.needs_teacher else None,
    accumulate=3,
  )
  after, metrics = jax.eval_shape(train_step, state, *arguments)
  shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert shapes(after) == shapes(state)
  assert all(value.shape == () for value in metrics.values())


def test_same_key_same_state_and_methods_share_the_student():
  states = [make(name)[0] for name in ('scratch', 'response', 'feature')]
  for state in states[1:]:
    jax.tree.map(
      np.testing.assert_array_equal,
      state.params['student'],
      states[0].params['student'],
    )
  assert set(states[2].params) == {'student', 'method'}
  assert states[0].params['method'] == {}


def test_a_teacher_is_there_exactly_when_it_is_needed():
  for name, teacher in (('response', None), ('scratch', make_teacher())):
    method, _ = methods.build(name)
    with pytest.raises(ValueError, match='teacher'):
      state_lib.create_state(
        RNG, STUDENT, method, optax.sgd(0.1), state_lib.Start(IMAGES, teacher)
      )
    train_step = step_of(STUDENT, method, optax.sgd(0.1))
    state, _, (images, labels, normalization, *_) = make('scratch')
    with pytest.raises(ValueError, match='teacher'):
      train_step(
        state,
        images,
        labels,
        normalization,
        teacher and teacher.variables,
        {},
      )


@pytest.mark.parametrize('batch_size', [1, 2, 4, 5, 6, 100])
def test_every_example_is_predicted_once(batch_size):
  network = make_teacher()
  outputs, _ = jax.jit(
    functools.partial(features.forward, network.model, train=False)
  )(network.variables, IMAGES)
  logits = predict.predict_images(network, IMAGES, batch_size)
  assert logits.shape == (6, 3)
  np.testing.assert_allclose(logits, outputs.logits, rtol=1e-4, atol=1e-5)


def test_data_key_is_not_the_key_of_the_parameters():
  key = jax.random.key_data(state_lib.data_key(RNG))
  assert not np.array_equal(key, jax.random.key_data(RNG))


@pytest.mark.parametrize(
  ('result', 'message'),
  [
    (lambda rows: jnp.zeros(rows), 'loss returns .*: expected a kdjax'),
    (lambda rows: methods.Loss(jnp.zeros(3)), r'shape \(3,\): .* \(6,\)'),
    (lambda rows: methods.Loss(jnp.zeros(())), r'shape \(\): expected'),
    (
      lambda rows: methods.Loss(jnp.zeros(rows, jnp.bfloat16)),
      'the loss is bfloat16: expected float32',
    ),
    (
      lambda rows: methods.Loss(jnp.zeros(rows), {'kl': jnp.zeros(2)}),
      r"the metric 'kl' has shape \(2,\)",
    ),
    (
      lambda rows: methods.Loss(jnp.zeros(rows), {}, {'bank': 1.0}),
      'expected the shapes and dtypes of init',
    ),
  ],
)
def test_what_a_loss_returns_is_checked_when_it_is_traced(result, message):
  method = methods.Method(lambda _, batch: result(len(batch.ids)), teacher=None)
  model, optimizer = Mean(), optax.sgd(1.0)
  state = state_lib.create_state(
    RNG, model, method, optimizer, state_lib.Start(IMAGES)
  )
  train_step = step_of(model, method, optimizer)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(train_step, state, IMAGES, LABELS, NORMALIZATION, None, {})


def test_each_step_drops_something_else():
  method, _ = methods.build('scratch')
  model, optimizer = Dropped(), optax.sgd(1.0)
  state = state_lib.create_state(
    RNG, model, method, optimizer, state_lib.Start(IMAGES)
  )
  train_step = jax.jit(step_of(model, method, optimizer))

  def dropped(number):
    after, _ = train_step(
      state.replace(step=jnp.int32(number)),
      IMAGES,
      LABELS,
      NORMALIZATION,
      None,
      {},
    )
    return np.asarray(after.params['student']['logits'] == 1)

  np.testing.assert_array_equal(dropped(0), dropped(0))
  assert (dropped(0) != dropped(1)).any()
  # What the method draws with, too.
  first, second = (
    jax.random.key_data(state_lib.loss_key(state.replace(step=number)))
    for number in (0, 1)
  )
  assert (first != second).any()
