"""The ResNets: sizes, shapes, dtypes, and PyTorch's outputs."""

import functools
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch_files

from kdjax import models
from kdjax.models import features, resnet
from kdjax.storage import weights

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
REFERENCES = reference.resnets()


@functools.cache
def shapes_of(model, images=(2, 32, 32, 3)):
  """Shapes of a model's variables, and of its logits and stages."""
  images = jax.ShapeDtypeStruct(images, jnp.float32)
  variables = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  return variables, features.output_shapes(model, variables, images, STAGES)


def assert_close_to_largest(found, expected, tolerance):
  expected = np.asarray(expected)
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=tolerance * np.abs(expected).max()
  )


# Sizes and shapes


@pytest.mark.parametrize(
  ('name', 'stem', 'num_classes', 'expected'),
  [
    ('resnet18', 'imagenet', 1000, 11_689_512),
    ('resnet34', 'imagenet', 1000, 21_797_672),
    ('resnet50', 'imagenet', 1000, 25_557_032),
    ('resnet101', 'imagenet', 1000, 44_549_160),
    ('resnet18', 'cifar', 10, 11_173_962),
    ('resnet50', 'cifar', 10, 23_520_842),
  ],
)
def test_number_of_parameters_is_the_published_one(
  name, stem, num_classes, expected
):
  model = models.build(name, num_classes=num_classes, stem=stem)
  variables, _ = shapes_of(model)
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(variables['params'])]
  assert sum(sizes) == expected


@pytest.mark.parametrize(
  ('name', 'stem', 'side', 'sides'),
  [
    ('resnet50', 'imagenet', 224, (56, 28, 14, 7)),
    ('resnet18', 'imagenet', 33, (9, 5, 3, 2)),
    ('resnet50', 'cifar', 32, (32, 16, 8, 4)),
    ('resnet18', 'cifar', 9, (9, 5, 3, 2)),
    ('resnet18', 'cifar_pool', 9, (5, 3, 2, 1)),
  ],
)
def test_stages_have_the_published_shapes(name, stem, side, sides):
  expansion = 4 if name == 'resnet50' else 1
  channels = [expansion * width for width in (64, 128, 256, 512)]
  model = models.build(name, num_classes=7, stem=stem)
  _, outputs = shapes_of(model, (5, side, side, 3))
  assert outputs.logits.shape == (5, 7)
  assert [outputs.features[stage].shape for stage in STAGES] == [
    (5, size, size, width) for size, width in zip(sides, channels, strict=True)
  ]


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize(('stem', 'kernel'), [('imagenet', 7), ('cifar', 3)])
def test_images_may_have_any_number_of_channels(channels, stem, kernel):
  model = models.build('resnet18', num_classes=10, stem=stem)
  variables, outputs = shapes_of(model, (2, 32, 32, channels))
  shape = variables['params']['conv1']['kernel'].shape
  assert shape == (kernel, kernel, channels, 64)
  assert outputs.logits.shape == (2, 10)


def test_width_scales_every_stage():
  model = models.build('resnet10', num_classes=10, stem='cifar', width=8)
  _, outputs = shapes_of(model)
  widths = [outputs.features[stage].shape[-1] for stage in STAGES]
  assert widths == [8, 16, 32, 64]


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', jnp.bfloat16])
def test_variables_and_logits_are_float32_whatever_the_dtype(name, dtype):
  model = models.build(name, num_classes=10, stem='cifar', dtype=dtype)
  variables, outputs = shapes_of(model, (2, 8, 8, 3))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert outputs.logits.dtype == jnp.float32
  stages = {outputs.features[stage].dtype for stage in STAGES}
  assert stages == {jnp.dtype(dtype)}


@pytest.mark.parametrize('block', [resnet.BasicBlock, resnet.Bottleneck])
def test_blocks_that_keep_the_shape_start_as_the_identity(block):
  width = 4
  stage = resnet.Stage(block, size=2, width=width, stride=1)
  images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 4 * width))
  images = images[..., : width * block.expansion]
  variables = stage.init(jax.random.key(0), images, train=False)
  found = stage.apply(variables, images, train=False)
  np.testing.assert_array_equal(found, images)


# Against PyTorch


def through_files(state):
  """Variables from a file of PyTorch, written for PyTorch and read again."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'weights.pth')
    torch_files.write_zip(path, state)
    imported = weights.load(path)
    path = path.with_suffix('.safetensors')
    weights.save(path, imported.variables, {})
    again = weights.load(path)
  assert again.model == imported.model
  assert again.channels == imported.channels == 3
  return again.model, again.variables


@functools.cache
def outputs_of(name, stem):
  """Outputs in both modes, with the weights that PyTorch's were made with."""
  state = reference.resnet_state(f'{name}/{stem}')
  told, variables = through_files(state)
  assert told == {'name': name, 'num_classes': 10, 'stem': stem, 'width': 64}
  jax.tree.map(
    np.testing.assert_array_equal, variables, reference.flax_variables(state)
  )
  model = models.build(**told)

  # Compiled once for both modes, and without XLA's optimisations, which take
  # longer than everything else here.
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def forward(variables, eval_images, train_images):
    evaluated, unchanged = features.forward(
      model, variables, eval_images, names=STAGES, train=False
    )
    if (name, stem) not in TRAINED:
      return evaluated, unchanged
    trained, changed = features.forward(
      model, variables, train_images, train=True
    )
    return evaluated, unchanged, trained.logits, changed

  outputs = forward(
    variables,
    REFERENCES[f'eval_images/{stem}'],
    REFERENCES[f'train_images/{stem}'],
  )
  return variables['batch_stats'], *jax.device_get(outputs)


EVALUATED = [tuple(model.split('/')) for model in REFERENCES['models'].tolist()]
# A stem or a block trains alike in all of them.
TRAINED = [
  model
  for model in EVALUATED
  if model not in (('resnet34', 'cifar'), ('resnet101', 'cifar'))
]
each_trained = pytest.mark.parametrize(('name', 'stem'), TRAINED)


@pytest.mark.parametrize('model', ['resnet18/imagenet', 'resnet50/cifar'])
def test_variables_are_named_and_shaped_like_pytorchs(model):
  name, stem = model.split('/')
  variables, _ = shapes_of(models.build(name, num_classes=10, stem=stem))
  expected = reference.resnet_variables(model)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


@pytest.mark.parametrize(('name', 'stem'), EVALUATED)
def test_evaluation_mode_gives_pytorchs_logits_and_stages(name, stem):
  before, outputs, after, *_ = outputs_of(name, stem)
  key = f'{name}/{stem}'
  # An epsilon of 2e-5 in BatchNorm, for 1e-5, would change them by 4e-5.
  assert_close_to_largest(
    outputs.logits, REFERENCES[f'{key}/eval_logits'], 1e-5
  )
  for stage in STAGES:
    assert_close_to_largest(
      outputs.features[stage], REFERENCES[f'{key}/eval_{stage}'], 1e-5
    )
  jax.tree.map(np.testing.assert_array_equal, after, before)


@each_trained
def test_training_mode_gives_pytorchs_logits(name, stem):
  *_, logits, _ = outputs_of(name, stem)
  # Batch statistics amplify rounding errors layer by layer: those of PyTorch
  # itself reach 6e-5 in ResNet-101.
  tolerance = 3e-4 if name == 'resnet101' else 1e-4
  assert_close_to_largest(
    logits, REFERENCES[f'{name}/{stem}/train_logits'], tolerance
  )


@each_trained
def test_training_mode_updates_running_statistics_as_pytorch_does(name, stem):
  before, *_, after = outputs_of(name, stem)
  key = f'{name}/{stem}'
  assert_close_to_largest(
    after['bn1']['mean'], REFERENCES[f'{key}/train_bn1_mean'], 1e-6
  )
  # PyTorch adds the batch's unbiased variance, Flax the biased one.
  count = REFERENCES[f'{key}/train_bn1_count']
  kept = 0.9 * before['bn1']['var']
  unbiased = kept + (after['bn1']['var'] - kept) * count / (count - 1)
  assert_close_to_largest(unbiased, REFERENCES[f'{key}/train_bn1_var'], 1e-6)
  for new, old in zip(
    jax.tree.leaves(after), jax.tree.leaves(before), strict=True
  ):
    assert (new != old).any()


# Dtypes and compilation


def test_bfloat16_is_close_to_float32():
  variables = reference.resnet_variables('resnet18/cifar')
  model = models.build(
    'resnet18', num_classes=10, stem='cifar', dtype='bfloat16'
  )

  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def forward(variables, eval_images, train_images):
    evaluated, _ = features.forward(model, variables, eval_images, train=False)
    return evaluated.logits, features.forward(
      model, variables, train_images, train=True
    )

  eval_logits, ((train_logits, _), batch_stats) = forward(
    variables, REFERENCES['eval_images/cifar'], REFERENCES['train_images/cifar']
  )
  assert {x.dtype for x in jax.tree.leaves(batch_stats)} == {
    jnp.dtype('float32')
  }
  for found, mode, tolerance in [
    (eval_logits, 'eval', 0.02),
    (train_logits, 'train', 0.05),
  ]:
    expected = REFERENCES[f'resnet18/cifar/{mode}_logits']
    assert found.dtype == jnp.float32
    assert_close_to_largest(found, expected, tolerance)
    # It would be closer than this if it were not computed in bfloat16.
    assert np.abs(found - expected).max() > 1e-4


@pytest.mark.parametrize('train', [False, True])
def test_jit_equals_eager(train):
  model = resnet.ResNet(resnet.BasicBlock, (1,), 3, stem='cifar', width=4)
  images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
  shapes = jax.eval_shape(
    lambda rng: features.init(model, rng, images), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype), shapes
  )

  def run(variables, images):
    return features.forward(model, variables, images, train=train)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    jax.jit(run)(variables, images),
    run(variables, images),
  )


# Building by name


def test_names_are_those_of_the_resnets():
  expected = {f'resnet{depth}' for depth in (10, 18, 34, 50, 101)}
  assert expected <= set(models.names())


def test_an_unknown_name_is_refused_with_those_that_exist():
  with pytest.raises(ValueError, match=r"'resnet19'.*resnet18.*resnet50"):
    models.build('resnet19', num_classes=10)


def test_an_unknown_option_is_refused():
  with pytest.raises(ValueError, match=r"resnet18 does not.*\['depth'\]"):
    models.build('resnet18', num_classes=10, depth=3)


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'int32', jnp.float16])
def test_a_dtype_that_is_not_supported_is_refused(dtype):
  expected = f'float32 or bfloat16, not in {jnp.dtype(dtype).name}'
  with pytest.raises(ValueError, match=expected):
    models.build('resnet18', num_classes=10, dtype=dtype)


def test_a_word_that_is_no_dtype_is_refused():
  with pytest.raises(ValueError, match='bf16'):
    models.build('resnet18', num_classes=10, dtype='bf16')


def test_an_unknown_stem_is_refused():
  model = models.build('resnet18', num_classes=10, stem='mnist')
  with pytest.raises(
    ValueError, match=r"'mnist': expected one of imagenet, cif"
  ):
    shapes_of(model)
