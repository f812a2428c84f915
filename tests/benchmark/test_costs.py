"""What is counted in a compiled program, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from kdjax.benchmark import costs, hlo

# Two steps of a loop: a cuDNN convolution, a fusion that reads one row of a
# table, a sum over devices, a copy into another layout.
PROGRAM = """\
HloModule jit_run_steps, is_scheduled=true

%fused_row (p.0: f32[100,8], p.1: s32[]) -> f32[1,8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,8}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (arg: (s32[], bf16[2,4,4,3], bf16[3,3,3,5], f32[100,8])) -> (s32[], bf16[2,4,4,3], bf16[3,3,3,5], f32[100,8]) {
  %arg = (s32[], bf16[2,4,4,3]{3,2,1,0}, bf16[3,3,3,5]{3,2,1,0}, f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %images = bf16[2,4,4,3]{3,2,1,0} get-tuple-element(%arg), index=1
  %kernel = bf16[3,3,3,5]{3,2,1,0} get-tuple-element(%arg), index=2
  %table = f32[100,8]{1,0} get-tuple-element(%arg), index=3
  %conv = (bf16[2,4,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(run_steps)/while/body/jvp(student)/ResNet/conv1/conv"}
  %maps = bf16[2,4,4,5]{3,2,1,0} get-tuple-element(%conv), index=0
  %turned = bf16[2,4,4,5]{0,3,2,1} copy(%maps), metadata={op_name="jit(run_steps)/while/body/transpose(jvp(student))/ResNet/conv1/copy"}
  %one = f32[1,8]{1,0} fusion(%table, %i), kind=kLoop, calls=%fused_row, metadata={op_name="jit(run_steps)/while/body/data/gather"}
  %gradient = f32[1,8]{1,0} all-reduce(%one), to_apply=%add, metadata={op_name="jit(run_steps)/while/body/optimizer/add"}
  ROOT %next = (s32[], bf16[2,4,4,3]{3,2,1,0}, bf16[3,3,3,5]{3,2,1,0}, f32[100,8]{1,0}) tuple(%i, %images, %kernel, %table)
}

%condition (arg.1: (s32[], bf16[2,4,4,3], bf16[3,3,3,5], f32[100,8])) -> pred[] {
  %arg.1 = (s32[], bf16[2,4,4,3]{3,2,1,0}, bf16[3,3,3,5]{3,2,1,0}, f32[100,8]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (start: (s32[], bf16[2,4,4,3], bf16[3,3,3,5], f32[100,8])) -> (s32[], bf16[2,4,4,3], bf16[3,3,3,5], f32[100,8]) {
  %start = (s32[], bf16[2,4,4,3]{3,2,1,0}, bf16[3,3,3,5]{3,2,1,0}, f32[100,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[2,4,4,3]{3,2,1,0}, bf16[3,3,3,5]{3,2,1,0}, f32[100,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
}
"""  # noqa: E501


def test_a_program_is_counted_as_by_hand():
  found = costs.summarize(PROGRAM, images=2, flops_per_s=1e6, bytes_per_s=1e3)
  # Of three places a kernel has along four pixels, one less at either end.
  flops = 2 * 2 * 3 * 5 * (4 + 3 + 3) ** 2
  images, kernel, maps, row = 2 * 96, 2 * 135, 2 * 160, 32
  convolution, copy = images + kernel + maps, 2 * maps
  # The fusion reads the index and one row, and the sum reads and writes it.
  moved = convolution + copy + (2 * row + 4) + 2 * row
  assert found['flops_per_image'] == flops / 2
  assert found['bytes_per_image'] == moved / 2
  assert found['operations'] == 4
  assert found['loops'] == 0
  assert found['float32_convolutions'] == 0
  assert found['layout_copies'] == {'count': 1, 'bytes': copy}
  assert found['collectives'] == {'all-reduce f32': {'count': 1, 'bytes': row}}
  assert found['parts'] == {
    'data': (2 * row + 4) / 2,
    'teacher': 0,
    'student forward': convolution / 2,
    'student backward': copy / 2,
    'loss': 0,
    'optimizer': row,
    'other': 0,
  }
  # The convolution is bound by memory, too: 782 bytes take longer.
  assert flops / 1e6 < convolution / 1e3
  assert found['images_per_s'] == pytest.approx(2 / (moved / 1e3))


def test_arithmetic_bounds_where_it_takes_longer():
  found = costs.summarize(PROGRAM, images=2, flops_per_s=1e3, bytes_per_s=1e9)
  assert found['images_per_s'] == pytest.approx(2 / 6.0, rel=1e-3)


@pytest.mark.parametrize(
  ('target', 'operands', 'result'),
  [
    ('BackwardFilter', ('images', 'maps'), 'kernel'),
    ('BackwardInput', ('maps', 'kernel'), 'images'),
  ],
)
def test_gradients_of_a_convolution_cost_what_it_costs(
  target, operands, result
):
  text = PROGRAM.replace('convForward', f'conv{target}').replace(
    'custom-call(%images, %kernel)', 'custom-call(%{}, %{})'.format(*operands)
  )
  shapes = {'images': '2,4,4,3', 'kernel': '3,3,3,5', 'maps': '2,4,4,5'}
  text = text.replace(
    '%conv = (bf16[2,4,4,5]', f'%conv = (bf16[{shapes[result]}]'
  )
  found = costs.summarize(text, images=1, flops_per_s=1.0, bytes_per_s=1.0)
  assert found['flops_per_image'] == 2 * 2 * 3 * 5 * 100


def test_float32_convolutions_are_found():
  text = PROGRAM.replace('bf16[2,4,4,3]', 'f32[2,4,4,3]')
  found = costs.summarize(text, images=1, flops_per_s=1.0, bytes_per_s=1.0)
  assert found['float32_convolutions'] == 1


@pytest.mark.parametrize(
  ('text', 'size'),
  [
    ('f32[3,5]{1,0}', 60),
    # Tiles of 8 × 128, the fastest axis last in the tile.
    ('f32[3,5]{1,0:T(8,128)}', 8 * 128 * 4),
    ('bf16[4,130]{0,1:T(8,128)(2,1)}', 128 * 136 * 2),
    # On the chip.
    ('f32[3,5]{1,0:T(8,128)S(1)}', 0),
    ('s4[10]{0}', 5),
    ('pred[]', 1),
  ],
)
def test_arrays_have_their_padding(text, size):
  (array,) = hlo.arrays(text)
  assert array.size == size


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no entry computation: expected HLO'):
    hlo.parse('module @jit_f {}')


def test_a_real_program_has_the_flops_that_xla_counts():
  @jax.jit
  def f(x, kernel, weights):
    with jax.named_scope('student'):
      x = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    return x.reshape(len(x), -1) @ weights

  x, kernel = jnp.ones((2, 7, 9, 3)), jnp.ones((3, 3, 3, 4))
  lowered = f.lower(x, kernel, jnp.ones((80, 6)))
  compiled = lowered.compile({'xla_backend_optimization_level': 0})
  found = costs.summarize(
    compiled.as_text(), images=2, flops_per_s=1.0, bytes_per_s=1.0
  )
  expected = lowered.cost_analysis()['flops']
  assert 2 * found['flops_per_image'] == expected
  assert found['parts']['student forward'] > 0


@pytest.mark.parametrize(
  ('scope', 'part'),
  [
    ('jit(f)/while/body/jvp(student)/Net/loss/add', 'student forward'),
    ('jit(f)/transpose(jvp(student))/Net/add', 'student backward'),
    ('jit(f)/teacher/Net/add', 'teacher'),
    ('jit(f)/transpose(jvp(loss))/mul', 'loss'),
    ('jit(f)/jvp()/mul', 'other'),
    ('', 'other'),
  ],
)
def test_parts_are_told_by_scope(scope, part):
  assert costs.part_of(scope) == part
