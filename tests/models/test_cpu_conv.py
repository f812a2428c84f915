"""The convolution that is lowered to suit the platform, against JAX's own."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from kdjax.models import cpu_conv

NHWC = lax.conv_dimension_numbers(
  (1, 1, 1, 1), (1, 1, 1, 1), ('NHWC', 'HWIO', 'NHWC')
)
MAPS = [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (5, 3)]
SETTINGS = [
  *itertools.product(
    [(1, 1), (3, 3), (7, 7)],
    [(1, 1), (2, 2)],
    [[(0, 0)] * 2, [(1, 1)] * 2, [(3, 3)] * 2, 'SAME', 'VALID'],
  ),
  ((1, 3), (2, 1), 'SAME'),
  ((3, 2), (1, 2), [(2, 0), (1, 3)]),
  ((1, 1), (1, 3), [(0, 1), (0, 0)]),
]


def normal(seed, shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def meets_image(size, kernel, strides, padding):
  """Whether any sum of the convolution holds a value that is not padding."""
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, kernel, strides, padding)
  for n, k, stride, (low, high) in zip(
    size, kernel, strides, padding, strict=True
  ):
    starts = np.arange(0, n + low + high - k + 1, stride)
    read = np.add.outer(starts, np.arange(k)) - low
    if not ((read >= 0) & (read < n)).any():
      return False
  return True


def in_nhwc(convolution, strides, padding):
  return functools.partial(
    convolution,
    window_strides=strides,
    padding=padding,
    dimension_numbers=NHWC,
  )


def value_and_gradients(convolve, lhs, rhs):
  """A convolution's value, and both gradients of its value's weighted sum."""
  value, pull_back = jax.vjp(convolve, lhs, rhs)
  # Weights that differ, so that no two outputs can be swapped.
  weights = jnp.cos(jnp.arange(value.size, dtype=value.dtype))
  return value, *pull_back(weights.reshape(value.shape))


@pytest.mark.parametrize(
  ('size', 'dtype'),
  [
    *((size, 'float32') for size in MAPS),
    ((1, 2), 'bfloat16'),
    ((3, 3), 'bfloat16'),
  ],
  ids=str,
)
def test_values_and_gradients_are_those_of_jax(size, dtype):
  settings = [setting for setting in SETTINGS if meets_image(size, *setting)]
  lhs = normal(0, (2, *size, 3), dtype)
  kernels = {
    kernel: normal(1, (*kernel, 3, 4), dtype) for kernel, *_ in settings
  }

  # One program for all settings: compiling is what costs.
  @functools.partial(
    jax.jit,
    static_argnames='convolution',
    compiler_options={'xla_backend_optimization_level': 0},
  )
  def run(lhs, kernels, convolution):
    return [
      value_and_gradients(
        in_nhwc(convolution, strides, padding),
        lhs,
        kernels[kernel],
      )
      for kernel, strides, padding in settings
    ]

  found = run(lhs, kernels, cpu_conv.conv_general_dilated)
  expected = run(lhs, kernels, lax.conv_general_dilated)
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  for setting, ours, theirs in zip(settings, found, expected, strict=True):
    for a, b in zip(ours, theirs, strict=True):
      assert a.dtype == dtype
      a, b = (np.asarray(x, np.float32) for x in (a, b))
      np.testing.assert_allclose(
        a,
        b,
        rtol=tolerance,
        atol=tolerance * np.abs(b).max(),
        err_msg=str(setting),
      )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('size', 'kernel', 'channels', 'groups', 'strides', 'padding'),
  [
    ((5, 4), (3, 3), (6, 6), 6, (1, 1), [(1, 1), (1, 1)]),
    ((5, 4), (3, 3), (6, 6), 6, (2, 2), [(1, 1), (1, 1)]),
    ((1, 1), (3, 3), (6, 6), 6, (2, 2), [(1, 1), (1, 1)]),
    ((6, 5), (1, 2), (6, 6), 6, (2, 1), 'SAME'),
    # The kernel does not fit.
    ((2, 2), (3, 3), (6, 6), 6, (1, 1), 'VALID'),
    ((5, 4), (1, 1), (6, 9), 3, (1, 1), [(0, 0), (0, 0)]),
    ((5, 4), (1, 1), (6, 3), 3, (2, 3), 'VALID'),
  ],
)
def test_grouped_convolutions_are_those_of_jax(
  size, kernel, channels, groups, strides, padding, dtype
):
  before, after = channels
  lhs = normal(0, (2, *size, before), dtype)
  rhs = normal(1, (*kernel, before // groups, after), dtype)
  found, expected = (
    jax.jit(
      functools.partial(
        value_and_gradients,
        functools.partial(
          in_nhwc(convolution, strides, padding), feature_group_count=groups
        ),
      )
    )(lhs, rhs)
    for convolution in (cpu_conv.conv_general_dilated, lax.conv_general_dilated)
  )
  tolerance = 1e-5 if dtype == 'float32' else 3e-2
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs, tolerance)


def assert_close(found, expected, tolerance):
  found, expected = (np.asarray(x, np.float32) for x in (found, expected))
  np.testing.assert_allclose(
    found,
    expected,
    rtol=tolerance,
    atol=tolerance * np.abs(expected).max(initial=0),
  )


@pytest.mark.parametrize(
  ('size', 'kernel', 'strides', 'padding'),
  [
    # The kernel does not fit: the output is empty.
    ((1, 1), 3, (1, 1), 'VALID'),
    ((2, 2), 3, (1, 1), 'VALID'),
    # It steps over the map, from padding to padding: the output is zero.
    ((1, 1), 1, (2, 2), [(1, 1), (1, 1)]),
    # Negative padding cuts the map.
    ((2, 2), 1, (1, 1), [(-1, 3), (0, 2)]),
    ((1, 3), 1, (1, 1), [(0, 0), (1, -1)]),
  ],
)
def test_a_kernel_that_never_meets_the_map_is_as_in_jax(
  size, kernel, strides, padding
):
  found, expected = (
    value_and_gradients(
      in_nhwc(convolution, strides, padding),
      normal(0, (2, *size, 3)),
      normal(1, (kernel, kernel, 3, 4)),
    )
    for convolution in (cpu_conv.conv_general_dilated, lax.conv_general_dilated)
  )
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


# Convolutions that are none of its business


@pytest.mark.parametrize(
  ('lhs', 'rhs', 'options'),
  [
    ((2, 2, 2, 3), (3, 3, 3, 4), {'rhs_dilation': (2, 2)}),
    ((2, 2, 2, 3), (3, 3, 3, 4), {'lhs_dilation': (2, 1)}),
    ((2, 2, 2, 6), (3, 3, 2, 6), {'feature_group_count': 3}),
    ((2, 5, 5, 6), (1, 1, 1, 12), {'feature_group_count': 6}),
    (
      (2, 3, 2, 2),
      (4, 3, 1, 1),
      {'dimension_numbers': ('NCHW', 'OIHW', 'NCHW')},
    ),
    ((2, 3, 2, 2), (4, 3, 1, 1), {'dimension_numbers': None}),
    (
      (2, 4, 3),
      (1, 3, 5),
      {
        'window_strides': (1,),
        'padding': [(0, 0)],
        'dimension_numbers': ('NHC', 'HIO', 'NHC'),
      },
    ),
  ],
  ids=[
    'dilated kernel',
    'dilated map',
    'grouped',
    'two kernels for each channel',
    'NCHW',
    'unnamed',
    '1d',
  ],
)
def test_other_convolutions_go_to_jax_unchanged(lhs, rhs, options):
  settings = {
    'window_strides': (1, 1),
    'padding': [(1, 1), (1, 1)],
    'dimension_numbers': NHWC,
    **options,
  }
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lhs, rhs)]
  ours, theirs = (
    str(jax.make_jaxpr(functools.partial(f, **settings))(*shapes))
    for f in (cpu_conv.conv_general_dilated, lax.conv_general_dilated)
  )
  assert ours == theirs


def test_dilations_of_one_are_no_dilation():
  arguments = normal(0, (2, 2, 2, 3)), normal(1, (3, 3, 3, 4))
  text = lowered_text(
    functools.partial(
      cpu_conv.conv_general_dilated,
      window_strides=(1, 1),
      padding='SAME',
      lhs_dilation=(1, 1),
      rhs_dilation=(1, 1),
      dimension_numbers=NHWC,
    ),
    *arguments,
  )
  assert 'stablehlo.convolution' not in text


# Inside Flax


@pytest.mark.parametrize('size', [1, 2, 6])
@pytest.mark.parametrize(
  ('kernel', 'strides', 'padding'),
  [(1, 1, 'SAME'), (1, 2, 'SAME'), (3, 1, 1), (3, 2, 1), (7, 2, 3)],
)
def test_flax_layers_give_the_same_with_it(size, kernel, strides, padding):
  layers = [
    nn.Conv(5, (kernel, kernel), strides=strides, padding=padding, **extra)
    for extra in ({}, {'conv_general_dilated': cpu_conv.conv_general_dilated})
  ]
  x = normal(0, (2, size, size, 3))
  variables = {
    'params': {
      'kernel': normal(1, (kernel, kernel, 3, 5)),
      'bias': normal(2, (5,)),
    }
  }

  @jax.jit
  def run(variables, x):
    return [layer.apply(variables, x) for layer in layers]

  plain, ours = run(variables, x)
  np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_flax_makes_the_same_parameters_with_it():
  x = jnp.zeros((2, 1, 1, 3))
  plain, ours = (
    nn.Conv(5, (3, 3), **extra).init(jax.random.key(0), x)
    for extra in ({}, {'conv_general_dilated': cpu_conv.conv_general_dilated})
  )
  jax.tree.map(np.testing.assert_array_equal, ours, plain)


# What it lowers to

POINTWISE = ((2, 8, 8, 3), (1, 1, 3, 4))
TINY = ((2, 2, 2, 3), (3, 3, 3, 4))
LARGE = ((2, 8, 8, 3), (3, 3, 3, 4))


def convolve(lhs, rhs, padding='SAME', precision=None):
  return cpu_conv.conv_general_dilated(
    lhs, rhs, (1, 1), padding, dimension_numbers=NHWC, precision=precision
  )


def gradients(lhs, rhs):
  return jax.grad(
    lambda *arguments: jnp.square(convolve(*arguments)).sum(), argnums=(0, 1)
  )(lhs, rhs)


def lowered_text(f, *arguments, platforms=None):
  arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments]
  if platforms is None:
    return jax.jit(f).lower(*arguments).as_text()
  return export.export(jax.jit(f), platforms=platforms)(
    *arguments
  ).mlir_module()


def operations(f, shapes, platforms=None):
  text = lowered_text(
    f,
    *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
    platforms=platforms,
  )
  return {
    name
    for name in ('convolution', 'dot_general')
    if f'stablehlo.{name}' in text
  }


each_function = pytest.mark.parametrize('f', [convolve, gradients])


@each_function
@pytest.mark.parametrize('shapes', [POINTWISE, TINY], ids=['1x1', 'tiny'])
@pytest.mark.parametrize(
  ('platforms', 'expected'),
  [
    (('cpu',), ['dot_general']),
    (('cuda',), ['convolution']),
    (('tpu',), ['convolution']),
    (('cpu', 'cuda'), ['convolution', 'dot_general']),
  ],
  ids=str,
)
def test_each_platform_gets_its_own_form(f, shapes, platforms, expected):
  assert sorted(operations(f, shapes, platforms)) == expected


@each_function
@pytest.mark.parametrize('shapes', [POINTWISE, TINY], ids=['1x1', 'tiny'])
@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='lowers for the CPU in use'
)
def test_on_cpu_nothing_is_left_of_the_convolution(f, shapes):
  assert operations(f, shapes) == {'dot_general'}


@each_function
@pytest.mark.parametrize('platforms', [('cpu',), ('cuda',), ('cpu', 'cuda')])
def test_larger_maps_stay_convolutions_on_every_platform(f, platforms):
  assert operations(f, LARGE, platforms) == {'convolution'}


def test_a_padded_pointwise_convolution_stays_one():
  padded = functools.partial(convolve, padding=[(1, 1), (1, 1)])
  assert operations(padded, POINTWISE, ('cpu',)) == {'convolution'}


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize('shapes', [POINTWISE, TINY], ids=['1x1', 'tiny'])
def test_the_precision_is_passed_on(shapes, platform):
  for precision in (None, 'highest'):
    text = lowered_text(
      functools.partial(convolve, precision=precision),
      *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
      platforms=(platform,),
    )
    assert ('HIGHEST' in text) == (precision == 'highest')


def test_it_can_be_differentiated_twice():
  lhs, rhs = normal(0, (2, 2, 2, 3)), normal(1, (3, 3, 3, 4))

  @functools.partial(jax.jit, static_argnames='convolution')
  def second(lhs, rhs, convolution):
    def loss(lhs, rhs):
      y = convolution(lhs, rhs, (1, 1), 'SAME', dimension_numbers=NHWC)
      return jnp.sin(y).sum()

    return jax.grad(lambda lhs: jnp.square(jax.grad(loss, 1)(lhs, rhs)).sum())(
      lhs
    )

  np.testing.assert_allclose(
    second(lhs, rhs, cpu_conv.conv_general_dilated),
    second(lhs, rhs, lax.conv_general_dilated),
    rtol=1e-4,
    atol=1e-3,
  )


def test_it_can_be_vmapped_over_kernels():
  lhs, rhs = normal(0, (2, 2, 2, 3)), normal(1, (5, 3, 3, 3, 4))
  np.testing.assert_allclose(
    jax.vmap(convolve, (None, 0))(lhs, rhs),
    jnp.stack([convolve(lhs, kernel) for kernel in rhs]),
    rtol=1e-5,
    atol=1e-5,
  )
