"""Programs for accelerators, lowered or compiled where there is none."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import processes
import pytest
import tiny

from kdjax.benchmark import ahead, costs, topology
from kdjax.system import target

PLATFORMS = 'cuda', 'tpu'
MODES = 'scratch', 'response', 'feature'


def config(mode):
  config = tiny.resnet_config(mode)
  config.student.dtype = 'bfloat16'
  config.data.flip = True
  return config


@pytest.fixture(scope='module', params=PLATFORMS)
def platform(request):
  return request.param


@pytest.fixture(scope='module', params=MODES)
def lowered(request, platform):
  """The mode, the leaves of the state, and what XLA is to compile."""
  devices = target.Target(platform, tuple(jax.devices()))
  resolved, program = ahead.resolve(config(request.param), devices)
  with target.compile_for(devices):
    state = program.state_shapes()
    steps = resolved.plan.steps_per_dispatch
    assert steps == 5
    text = program.lower(state, steps).as_text()
  assert target.absent() is None
  return request.param, jax.tree.leaves(state), text


def test_convolutions_are_in_bfloat16(lowered):
  mode, _, text = lowered
  found = re.findall(r'stablehlo\.convolution.*: \((.*)\) -> (.*)', text)
  # Of a ResNet-10: a stem, two a block and a shortcut in three of four stages.
  forward = 1 + 4 * 2 + 3
  # Both gradients of each, but none for the images; a teacher has none.
  assert len(found) >= 3 * forward - 1 + (mode != 'scratch') * forward
  assert all(
    'xbf16' in types and 'xf32' not in types for types in map(str, found)
  )


def test_only_last_layers_are_in_float32(lowered):
  mode, _, text = lowered
  found = re.findall(r'stablehlo\.dot_general.*: \((.*)\) -> (.*)', text)
  wide = [types for types in found if 'xf32' in str(types)]
  # Forward and two gradients of the student's, forward of the teacher's.
  assert len(wide) == 3 + (mode != 'scratch')
  assert all('x10xf32' in str(types) for types in wide)


def test_the_whole_state_is_donated(lowered):
  _, leaves, text = lowered
  (signature,) = re.findall(r'func\.func public @main\((.*)', text)
  assert signature.count('tf.aliasing_output') == len(leaves)


def test_there_is_no_loop_but_that_over_steps(lowered):
  *_, text = lowered
  assert text.count('stablehlo.while') == 1


def test_images_are_not_cut_one_after_the_other_on_a_tpu(lowered, platform):
  *_, text = lowered
  cut = 'slice_sizes = array<i64: 1, 8, 8, 1>'
  assert (cut in text) == (platform == 'cuda')


# What eight devices add explicitly in a step, by dtype of the computation.
EIGHT = r"""
import json, re
import jax
import jax.numpy as jnp
from test_ahead import config
from kdjax.benchmark import ahead
from kdjax.models import cpu_conv
from kdjax.system import devices, target

eight = target.Target('cpu', tuple(jax.devices()))
found = {}
for dtype in 'bfloat16', 'float32':
  changed = config('feature')
  changed.student.dtype = dtype
  _, program = ahead.resolve(changed, eight)
  with target.compile_for(eight):
    state = program.state_shapes()
    text = program.lower(state, 1).as_text()
  pattern = r'"stablehlo.all_reduce".*?}\) : \((.*?)\) ->'
  found[dtype] = re.findall(pattern, text, re.DOTALL)
  found['kernels'] = sum(x.ndim == 4 for x in jax.tree.leaves(state.params))

def gradients(*arrays):
  function = lambda x, kernel: cpu_conv.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=cpu_conv.NHWC
  )
  return jax.vjp(function, *arrays[:2])[1](arrays[2])

def divided(*arrays):
  with devices.dividing():
    return gradients(*arrays)

# Small whole numbers, whose sums are exact in bfloat16.
x, kernel, cotangent = (
  jax.random.randint(jax.random.key(i), shape, -1, 2).astype(jnp.bfloat16)
  for i, shape in enumerate([(16, 4, 4, 3), (3, 3, 3, 5), (16, 4, 4, 5)])
)
found['same'] = [
  (ours == theirs).all().item() and theirs.any().item()
  for ours, theirs in zip(
    jax.jit(divided)(x, kernel, cotangent),
    jax.jit(gradients)(x, kernel, cotangent),
  )
]
print(json.dumps(found))
"""


def test_kernels_have_gradients_that_are_added_in_float32():
  flags = '--xla_force_host_platform_device_count=8'
  done = subprocess.run(
    [sys.executable, '-c', EIGHT],
    env={
      **os.environ,
      'PYTHONPATH': f'{pathlib.Path(__file__).parent}:'
      + os.environ['PYTHONPATH'],
      'XLA_FLAGS': f'{flags} {os.environ.get("XLA_FLAGS", "")}',
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  # Every kernel of the student, and the connectors' beside them.
  assert len(found['bfloat16']) == found['kernels']
  assert all(
    re.fullmatch(r'tensor<.*xf32>', each) for each in found['bfloat16']
  )
  assert found['same'] == [True, True]
  # XLA adds those of a computation in float32.
  assert found['float32'] == []


@pytest.mark.parametrize('name', ['v5', 'h100:2x2', 'v5e:2', 'v4:2x0x1', ''])
def test_unknown_devices_are_refused(name):
  with pytest.raises(ValueError, match=f'--aot names {name}: expected h100, '):
    topology.find(name)


@pytest.mark.parametrize(
  ('name', 'module', 'wheel'),
  [
    ('v5e:1x1', 'libtpu', "pip install 'jax\\[tpu\\]=="),
    ('h100', 'jax_cuda12_plugin', 'pip install --no-deps jax-cuda12-plugin=='),
  ],
)
def test_a_missing_compiler_is_one_line(name, module, wheel, tmp_path):
  if importlib.util.find_spec(module):
    pytest.skip(f'{module} is installed')
  done = processes.run(
    *tiny.FLAGS,
    f'--aot={name}',
    f'--output={tmp_path / "out.json"}',
    module='kdjax.benchmark',
  )
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  # Compilers that are installed may have said something before.
  last = done.stderr.splitlines()[-1]
  assert re.match(f'error: --aot={name} needs .* not installed: {wheel}', last)


@pytest.mark.parametrize(
  ('name', 'module', 'devices'),
  [
    ('v5e:1x1', 'libtpu', 1),
    ('h100', 'jax_cuda12_plugin', 1),
    ('h100:8', 'jax_cuda12_plugin', 8),
  ],
)
def test_a_program_is_compiled_without_a_device(
  name, module, devices, tmp_path
):
  if importlib.util.find_spec(module) is None:
    pytest.skip(f"XLA's compiler is not installed ({module})")
  output = tmp_path / 'out.json'
  done = processes.run(
    *tiny.FLAGS,
    '--config.student.dtype=bfloat16',
    f'--aot={name}',
    '--modes=scratch',
    f'--output={output}',
    '--json',
    module='kdjax.benchmark',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result == json.loads(output.read_text())
  assert result['devices'] == devices
  assert set(result['programs']) == {'scratch', ahead.PREDICTION}
  training = result['programs']['scratch']
  assert training['flops_per_image'] > 0
  assert training['float32_convolutions'] == 0 or name.startswith('v')
  assert bool(training['collectives']) == (devices > 1)


# MB an image and operations a step of the program with the published networks,
# a batch of 512 and the CIFAR stem; 5 % more are allowed.
COSTS = {
  'h100': {'scratch': (21.2, 361), 'feature': (45.3, 479)},
  'v5e:1x1': {'scratch': (14.4, 409), 'feature': (35.3, 506)},
}


@pytest.mark.parametrize(
  ('name', 'module'), [('v5e:1x1', 'libtpu'), ('h100', 'jax_cuda12_plugin')]
)
def test_the_published_programs_move_no_more_than_they_did(name, module):
  """Minutes, with the compiler."""
  if importlib.util.find_spec(module) is None:
    pytest.skip(f"XLA's compiler is not installed ({module})")
  done = processes.run(
    '--config=configs/fkd.py',
    '--config.data.name=synthetic',
    '--config.student.dtype=bfloat16',
    '--config.train.batch_size=512',
    '--modes=scratch,feature',
    f'--aot={name}',
    '--json',
    module='kdjax.benchmark',
    env={**os.environ, 'JAX_EXEC_TIME_OPTIMIZATION_EFFORT': '-1.0'},
  )
  assert done.returncode == 0, done.stderr
  programs = json.loads(done.stdout)['programs']
  for mode, (megabytes, operations) in COSTS[name].items():
    assert programs[mode]['bytes_per_image'] <= 1.05e6 * megabytes
    assert programs[mode]['operations'] <= 1.05 * operations


def program(**changes):
  return {
    'batch_size': 512,
    'dtype': 'bfloat16',
    'compile_s': 1.0,
    'temporary_bytes': 3 * 2**29,
    'flops_per_image': 2.89e9,
    'bytes_per_image': 21.6e6,
    'operations': 364,
    'loops': 1,
    'float32_convolutions': 0,
    'layout_copies': {'count': 3, 'bytes': 10},
    'collectives': {'all-reduce f32': {'count': 2, 'bytes': 44.7e6}},
    'parts': dict.fromkeys(costs.PARTS, 1.0),
    'images_per_s': 132294.0,
    **changes,
  }


def test_the_table_has_what_was_counted_and_fits():
  result = {
    'device': 'TPU v5e',
    'devices': 4,
    'versions': {'jax': '1.2.3'},
    'programs': {
      'ema_teacher': program(),
      ahead.PREDICTION: program(collectives={}, images_per_s=1234567.0),
    },
  }
  text = ahead.table(result)
  assert '4 × TPU v5e, not there; jax 1.2.3' in text
  assert '2.890' in text
  assert '132,294' in text
  assert '1.50' in text
  assert 'ema_teacher: 2 × all-reduce f32, 44.7 MB' in text
  assert text.count('14.3%') == len(costs.PARTS)
  assert max(map(len, text.splitlines())) <= 100
