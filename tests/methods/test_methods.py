"""What every method must do, and what each one computes.

A new method in kdjax/methods/ is covered by the first part as it is.
"""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from kdjax import config as config_lib
from kdjax import losses, methods, models, testing
from kdjax.methods._connectors import conv as connect
from kdjax.models import features
from kdjax.models.features import Outputs
from kdjax.models.network import Network
from kdjax.training import state

BATCH, CLASSES = 6, 10
RNG = jax.random.key(0)
LABELS = jnp.array([0, 3, 9, 3, 1, 7], jnp.int32)


@pytest.mark.parametrize('name', methods.names())
def test_every_method_keeps_the_contract(name):
  method, _ = methods.build(name, tiny.SETTINGS.get(name))
  networks = ()
  if name == 'simkd':
    networks = tuple(
      models.build(model, num_classes=7, stem='cifar', width=width)
      for model, width in (('resnet10_simkd', 4), ('resnet10', 16))
    )
  testing.check_method(method, *networks)


def loss_of(method, params, hyperparameters, student, teacher, labels):
  """What a method's loss returns, per example and as metrics."""
  count = len(labels)
  loss, metrics, _ = method.loss(
    methods.Variables(params),
    methods.Batch(
      student,
      teacher,
      labels,
      images=jnp.zeros((count, 8, 8, 3)),
      ids=jnp.arange(count),
      epoch=jnp.float32(0),
      rng=RNG,
      hyperparameters=hyperparameters,
    ),
  )
  return loss, metrics


def init(method, student, teacher):
  setup = methods.Setup(student, teacher, None, None, 0, CLASSES)
  return method.init(RNG, setup).params


# What the conformance test finds


def with_loss(change):
  method, _ = methods.build('kd')
  return method._replace(
    loss=lambda variables, batch: change(method.loss(variables, batch), batch)
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda result, _: result.per_example,
      'loss returns .*expected a kdjax.methods.Loss',
    ),
    (
      lambda result, _: result._replace(per_example=result.per_example.mean()),
      r'the loss has shape \(\): expected one value per example',
    ),
    (
      lambda result, _: result._replace(
        per_example=result.per_example.astype(jnp.bfloat16)
      ),
      'the loss is bfloat16: expected float32',
    ),
    (
      lambda result, _: result._replace(
        per_example=jax.lax.stop_gradient(result.per_example)
      ),
      'the student has no gradient',
    ),
    (
      lambda result, batch: result._replace(
        per_example=result.per_example * jnp.arange(len(batch.ids))
      ),
      'in another order the examples have other losses',
    ),
    (
      lambda result, batch: result._replace(
        per_example=result.per_example + (batch.labels.ndim == 2)
      ),
      'probabilities of 0 and 1 as labels give another loss',
    ),
    (
      lambda result, batch: result._replace(
        per_example=result.per_example
        + jnp.log(jax.nn.softmax(batch.student.logits)).mean(axis=-1)
      ),
      'with logits of ±1e4 the loss or a gradient is not finite',
    ),
    (
      lambda result, _: result._replace(state={'new': jnp.zeros(3)}),
      'loss returns a state of .*expected the shapes and dtypes of init',
    ),
    (
      lambda result, _: result._replace(metrics={'x': jnp.zeros(())}),
      r"the metric 'x' has shape \(\)",
    ),
  ],
)
def test_a_broken_method_is_described(change, message):
  with pytest.raises(AssertionError, match=message):
    testing.check_method(with_loss(change))


@pytest.mark.parametrize(
  ('hyperparameter', 'message'),
  [
    ((2.0, 0.0, 1.0), 'the default of extra is 2.0: expected from 0.0 to 1.0'),
    ((0.5, 0.0, 1.0), 'another extra changes nothing'),
  ],
)
def test_a_useless_hyperparameter_is_described(hyperparameter, message):
  method, _ = methods.build('scratch')
  method = method._replace(
    hyperparameters={'extra': methods.Hyperparameter(*hyperparameter)}
  )
  with pytest.raises(AssertionError, match=message):
    testing.check_method(method)


# Methods of the user's


def test_a_method_by_import_path(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'my_methods.py').write_text(
    'from kdjax import methods\n'
    'def half(*, name="kd"):\n'
    '  return methods.build(name)[0]\n'
    'def nothing():\n'
    '  return 3\n'
  )
  assert methods.defaults('my_methods:half') == {
    'name': 'kd',
    **methods.defaults('kd'),
  }
  _, values = methods.build('my_methods:half', {'temperature': 2.0})
  assert values['temperature'] == 2.0
  testing.check_method('my_methods:half')
  for path, message in (
    ('my_methods:gone', "'my_methods:gone' cannot be imported"),
    ('gone:half', "'gone:half' cannot be imported"),
    ('my_methods:nothing', "'my_methods:nothing' returns int: expected"),
  ):
    with pytest.raises(ValueError, match=message):
      methods.build(path)


# Names and settings


@pytest.fixture
def half_written(tmp_path, monkeypatch):
  """Files in the folders of plug-ins that cannot be imported."""
  for package in (methods, models):
    folder = tmp_path / package.__name__
    folder.mkdir()
    (folder / 'half_written.py').write_text('def half_written(:\n')
    monkeypatch.setattr(package, '__path__', [*package.__path__, str(folder)])


def test_a_half_written_file_breaks_its_own_use_only(half_written):
  config = config_lib.default()
  config_lib.validate(config)
  assert models.build('resnet10', num_classes=3)
  with pytest.raises(ValueError, match=r"'half_written' cannot .*SyntaxError"):
    methods.build('half_written')
  with pytest.raises(ValueError, match=r'models/half_written.py .*SyntaxError'):
    models.build('half_written', num_classes=3)


def test_an_entry_point_names_a_method(monkeypatch):
  point = importlib.metadata.EntryPoint(
    'theirs', 'kdjax.methods.kd:kd', 'kdjax.methods'
  )
  monkeypatch.setattr(
    'kdjax.system.plugins.entry_points',
    lambda group: {'theirs': point} if group == 'kdjax.methods' else {},
  )
  assert 'theirs' in methods.names()
  method, values = methods.build('theirs', {'temperature': 2.0})
  assert values['temperature'] == 2.0
  assert method.needs_teacher
  assert config_lib.default().method.theirs.temperature == 4.0


def test_names_are_the_files():
  assert {'feature', 'response', 'scratch'} <= set(methods.names())
  assert not any(name.startswith('_') for name in methods.names())


def test_an_unknown_method_is_refused_with_those_that_exist():
  expected = r"'hint'.*feature.*response.*scratch"
  with pytest.raises(ValueError, match=expected):
    methods.build('hint')
  with pytest.raises(ValueError, match=expected):
    methods.defaults('hint')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('response', "'response' has no setting beta, gamma; it has temp.*, alpha"),
    ('feature', "'feature' has no setting beta, gamma; it has .*ce_weight"),
    ('scratch', "'scratch' has no setting beta, gamma; it has none"),
  ],
)
def test_unknown_settings_are_refused_with_those_that_exist(name, message):
  with pytest.raises(ValueError, match=message):
    methods.build(name, {'beta': 1.0, 'gamma': 1.0})


@pytest.mark.parametrize(
  ('name', 'key', 'value', 'range_'),
  [
    ('response', 'temperature', 0.0, '0.01 to 1000.0'),
    ('response', 'temperature', -4.0, '0.01 to 1000.0'),
    ('response', 'temperature', float('nan'), '0.01 to 1000.0'),
    ('response', 'temperature', float('inf'), '0.01 to 1000.0'),
    ('response', 'alpha', 1.001, '0.0 to 1.0'),
    ('response', 'alpha', -0.1, '0.0 to 1.0'),
    ('feature', 'ce_weight', -1.0, '0.0 to'),
    ('feature', 'feature_weight', float('inf'), '0.0 to'),
  ],
)
def test_hyperparameters_out_of_range_are_refused(name, key, value, range_):
  with pytest.raises(ValueError, match=rf'{name}\.{key} is {value}.*{range_}'):
    methods.build(name, {key: value})


def test_settings_split_into_options_and_hyperparameters():
  settings = {
    'reduction': 'sum',
    'student_features': ['stage3', 'stage4'],
    'teacher_features': ['stage2', 'stage3'],
    'ce_weight': 1,
  }
  method, hyperparameters = methods.build('feature', settings)
  assert method.student_features == ('stage3', 'stage4')
  assert method.teacher_features == ('stage2', 'stage3')
  assert hyperparameters == {'ce_weight': 1.0, 'feature_weight': 0.7}
  defaults = methods.defaults('feature')
  assert settings.keys() <= defaults.keys()
  assert defaults['reduction'] == 'mean'


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'reduction': 'max'}, "feature.reduction is 'max': expected 'mean' or"),
    ({'student_features': ('stage1',)}, r"found \('stage1',\) and \('stage1',"),
    ({'student_features': (), 'teacher_features': ()}, r'found \(\) and \(\)'),
  ],
)
def test_feature_options_that_do_not_fit_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    methods.build('feature', settings)


# Scratch


def test_scratch_is_cross_entropy_and_needs_no_teacher():
  method, _ = methods.build('scratch')
  _, batch = testing.make_problem(method)
  np.testing.assert_array_equal(
    method.loss(methods.Variables(), batch).per_example,
    losses.cross_entropy(batch.student.logits, batch.labels),
  )
  assert method.teacher is None
  assert not method.needs_teacher


# Response


def test_response_defaults_are_the_first_published_variant():
  assert methods.defaults('response') == {'temperature': 4.0, 'alpha': 0.5}


@pytest.mark.parametrize(('temperature', 'alpha'), [(4.0, 0.5), (2.0, 0.7)])
def test_response_is_the_published_loss(temperature, alpha):
  arrays = reference.losses()
  method, hyperparameters = methods.build(
    'response', {'temperature': temperature, 'alpha': alpha}
  )
  student, teacher, labels = (
    jnp.asarray(arrays[f'response/8x10/{key}'])
    for key in ('student_logits', 'teacher_logits', 'labels')
  )
  loss, metrics = loss_of(
    method,
    {},
    hyperparameters,
    Outputs(student, {}),
    Outputs(teacher, {}),
    labels,
  )
  i = arrays['response/temperatures'].tolist().index(temperature)
  j = arrays['response/alphas'].tolist().index(alpha)
  np.testing.assert_allclose(
    loss.mean(), arrays['response/8x10/loss/float64'][i, j], rtol=1e-5
  )
  np.testing.assert_array_equal(
    loss, losses.response_loss(student, teacher, labels, temperature, alpha)
  )
  np.testing.assert_allclose(
    metrics['cross_entropy'],
    arrays['response/8x10/cross_entropy/float64'],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    metrics['temperature_kl'],
    arrays['response/8x10/temperature_kl/float64'][i],
    rtol=1e-4,
  )


# Feature


def test_feature_defaults_are_the_second_published_variant():
  defaults = methods.defaults('feature')
  stages = ('stage1', 'stage2', 'stage3', 'stage4')
  assert defaults == {
    'reduction': 'mean',
    'student_features': stages,
    'teacher_features': stages,
    'ce_weight': 0.3,
    'feature_weight': 0.7,
  }


@pytest.mark.parametrize(
  ('ce_weight', 'feature_weight', 'reduction'),
  [(1.0, 0.1, 'sum'), (0.3, 0.7, 'mean')],
)
def test_feature_is_the_published_loss(ce_weight, feature_weight, reduction):
  arrays = reference.losses()
  method, hyperparameters = methods.build(
    'feature',
    {
      'ce_weight': ce_weight,
      'feature_weight': feature_weight,
      'reduction': reduction,
    },
  )
  logits = jnp.asarray(arrays['feature/student_logits'])
  labels = jnp.asarray(arrays['feature/labels'])
  student, teacher = (
    Outputs(
      logits,
      {
        stage: jnp.asarray(arrays[f'feature/{who}_{stage}'])
        for stage in method.student_features
      },
    )
    for who in ('student', 'teacher')
  )
  # The reference's channels agree, so its connectors are identities.
  identities = {
    stage: {
      'kernel': jnp.eye(x.shape[-1])[None, None],
      'bias': jnp.zeros(x.shape[-1]),
    }
    for stage, x in student.features.items()
  }
  loss, metrics = loss_of(
    method, identities, hyperparameters, student, teacher, labels
  )
  np.testing.assert_allclose(
    loss.mean(), arrays[f'feature/{reduction}/loss/float64'], rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['cross_entropy'],
    arrays['feature/cross_entropy/float64'],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    [metrics[f'feature_mse/{stage}'] for stage in method.student_features],
    arrays['feature/mse_per_example/float64'],
    rtol=1e-5,
  )


def test_feature_compares_connected_features_of_other_names():
  method, hyperparameters = methods.build(
    'feature',
    {
      'student_features': ('b', 'a'),
      'teacher_features': ('y', 'x'),
      'ce_weight': 0.0,
      'feature_weight': 1.0,
      'reduction': 'sum',
    },
  )
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  student = Outputs(
    normal(6, 10), {'a': normal(6, 2, 2, 3), 'b': normal(6, 4, 4, 5)}
  )
  teacher = Outputs(
    normal(6, 10), {'x': normal(6, 2, 2, 9), 'y': normal(6, 4, 4, 7)}
  )
  parameters = init(method, student, teacher)
  assert parameters['b->y']['kernel'].shape == (1, 1, 5, 7)
  assert parameters['a->x']['kernel'].shape == (1, 1, 3, 9)
  loss, _ = loss_of(
    method, parameters, hyperparameters, student, teacher, LABELS
  )
  expected = 0.0
  for ours, theirs in [('b', 'y'), ('a', 'x')]:
    connector = parameters[f'{ours}->{theirs}']
    mapped = np.einsum(
      'bhwi,io->bhwo', student.features[ours], connector['kernel'][0, 0]
    )
    squares = (mapped + connector['bias'] - teacher.features[theirs]) ** 2
    expected = expected + squares.mean(axis=(1, 2, 3))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_student_feature_may_imitate_two_teacher_features():
  method, _ = methods.build(
    'feature',
    {'student_features': ('a', 'a'), 'teacher_features': ('x', 'y')},
  )
  student = Outputs(jnp.zeros((6, 10)), {'a': jnp.ones((6, 2, 2, 3))})
  teacher = Outputs(
    jnp.zeros((6, 10)),
    {'x': jnp.ones((6, 2, 2, 4)), 'y': jnp.ones((6, 2, 2, 4))},
  )
  parameters = init(method, student, teacher)
  assert len(jax.tree.leaves(parameters)) == 4


# Connectors


def test_connectors_start_as_in_pytorch_and_differ_from_each_other():
  method, _ = methods.build('feature')
  names = method.student_features
  student = Outputs(None, {name: jnp.zeros((2, 1, 1, 64)) for name in names})
  teacher = Outputs(None, {name: jnp.zeros((2, 1, 1, 256)) for name in names})
  parameters = init(method, student, teacher)
  again = init(method, student, teacher)
  jax.tree.map(np.testing.assert_array_equal, parameters, again)
  bound = 1 / np.sqrt(64)
  for connector in parameters.values():
    kernel = connector['kernel']
    assert kernel.shape == (1, 1, 64, 256)
    assert 0.99 * bound < jnp.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
    assert connector['bias'].shape == (256,)
  first, *others = (parameters[name]['kernel'] for name in names)
  assert all((other != first).any() for other in others)


def test_connector_and_its_gradients_are_pytorchs():
  arrays = {
    key.removeprefix('connector/'): value
    for key, value in reference.losses().items()
    if key.startswith('connector/')
  }
  feature = jnp.asarray(arrays['student_feature'])
  connector = {
    'kernel': jnp.asarray(arrays['weight'].transpose(2, 3, 1, 0)),
    'bias': jnp.asarray(arrays['bias']),
  }

  def batch_mean(connector, feature):
    output = connect(connector, feature)
    loss = losses.feature_mse(output, jnp.asarray(arrays['teacher_feature']))
    return loss.mean(), output

  (loss, output), (to_connector, to_feature) = jax.value_and_grad(
    batch_mean, argnums=(0, 1), has_aux=True
  )(connector, feature)
  for found, key in [
    (output, 'output'),
    (loss, 'loss'),
    (to_feature, 'student_feature_gradient'),
    (to_connector['kernel'].transpose(3, 2, 0, 1), 'weight_gradient'),
    (to_connector['bias'], 'bias_gradient'),
  ]:
    expected = arrays[f'{key}/float64']
    np.testing.assert_allclose(
      found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
    )


def test_a_connector_computes_in_the_dtype_of_its_feature():
  connector = {'kernel': jnp.ones((1, 1, 3, 4)), 'bias': jnp.ones(4)}
  found = connect(connector, jnp.ones((2, 2, 2, 3), jnp.bfloat16))
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, jnp.full((2, 2, 2, 4), 4, found.dtype))


def abstract_state(student, teacher, method):
  """Shapes of a run's first state; computes nothing."""
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda rng: features.init(teacher, rng, images), RNG
  )
  return jax.eval_shape(
    lambda rng: state.create_state(
      rng,
      student,
      method,
      optax.sgd(0.1),
      state.Start(images, Network(teacher, variables)),
    ),
    RNG,
  )


def test_connectors_of_resnet18_and_resnet50_have_the_published_shapes():
  method, _ = methods.build('feature')
  student, teacher = (
    models.build(name, num_classes=10, stem='cifar')
    for name in ('resnet18', 'resnet50')
  )
  params = abstract_state(student, teacher, method).params
  assert jax.tree.map(jnp.shape, params['method']) == {
    f'stage{i + 1}': {
      'kernel': (1, 1, channels, 4 * channels),
      'bias': (4 * channels,),
    }
    for i, channels in enumerate([64, 128, 256, 512])
  }
  # They are no part of the student.
  count = sum(x.size for x in jax.tree.leaves(params['student']))
  assert count == 11_173_962


def test_stages_of_other_spatial_shapes_are_refused():
  method, _ = methods.build('feature')
  student = models.build('resnet10', num_classes=10, stem='cifar')
  teacher = models.build('resnet10', num_classes=10, stem='imagenet')
  with pytest.raises(ValueError, match='the same stem') as error:
    abstract_state(student, teacher, method)
  assert 'stage1 of the student has shape (2, 32, 32, 64)' in str(error.value)
  assert 'stage1 of the teacher (2, 8, 8, 64)' in str(error.value)


def test_a_feature_that_a_network_lacks_is_refused():
  method, _ = methods.build(
    'feature',
    {'student_features': ('stage5',), 'teacher_features': ('stage4',)},
  )
  student = models.build('resnet10', num_classes=10, stem='cifar')
  with pytest.raises(ValueError, match=r'named stage5; it has .*stage4'):
    abstract_state(student, student, method)
