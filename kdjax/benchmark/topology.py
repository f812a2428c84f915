"""Accelerators that programs can be compiled for without having one.

XLA's compilers for TPU and CUDA come as wheels, and compile for devices that
they are only told of.
"""

import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from kdjax.system.target import Target

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Chip(NamedTuple):
  """What a kind of device can do at most, by its data sheet.

  Attributes:
    title: its name.
    platform: 'cuda' or 'tpu'.
    bfloat16_flops_per_s: dense matrix products of bfloat16.
    float32_flops_per_s: those of float32, in the precision that JAX has by
      default (TF32 on GPU, bfloat16 on TPU).
    bytes_per_s: bandwidth of its memory.
    axes: number of axes of a topology.
  """

  title: str
  platform: str
  bfloat16_flops_per_s: float
  float32_flops_per_s: float
  bytes_per_s: float
  axes: int


CHIPS = {
  'h100': Chip('NVIDIA H100 SXM', 'cuda', 989e12, 494e12, 3.35e12, 1),
  'v4': Chip('TPU v4', 'tpu', 275e12, 275e12, 1.228e12, 3),
  'v5e': Chip('TPU v5e', 'tpu', 197e12, 197e12, 0.819e12, 2),
}
"""The devices that are known, by name."""

EXPECTED = 'h100, h100:8, v5e:1x1, v5e:2x2, v4:2x2x1 or the like'
"""What names them, and how many."""

# Otherwise libtpu looks for a TPU, on this machine and in the cloud.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}
# Nothing can be timed: the kernels are those that XLA takes by default.
_NO_TIMING: dict[str, str | bool] = {'xla_gpu_autotune_level': '0'}


class Topology(NamedTuple):
  """Devices to compile for.

  Attributes:
    chip: their kind.
    target: the devices.
    options: compiler options.
  """

  chip: Chip
  target: Target
  options: dict[str, str | bool]


def find(name: str) -> Topology:
  """Finds devices by their name; needs the wheel of their compiler.

  Args:
    name: kind and number, such as `h100:8` or `v5e:2x2`; by default one.

  Returns:
    The devices.

  Raises:
    ValueError: there are no such devices.
    FileNotFoundError: their compiler is not installed.
  """
  kind, _, shape = name.partition(':')
  chip = CHIPS.get(kind)
  if chip is None:
    raise ValueError(f'--aot names {name}: expected {EXPECTED}')
  shape = shape or 'x'.join('1' * chip.axes)
  if not re.fullmatch(rf'[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}', shape):
    raise ValueError(f'--aot names {name}: expected {EXPECTED}')
  _check_compiler(name, chip)
  if chip.platform == 'cuda':
    devices = _cuda(shape)
    return Topology(chip, Target('cuda', devices), _NO_TIMING)
  return Topology(chip, Target('tpu', _tpu(kind, shape)), {})


def _check_compiler(name: str, chip: Chip) -> None:
  """Checks that the wheel of the compiler is installed."""
  version = jax.__version__
  if chip.platform == 'tpu':
    missing = importlib.util.find_spec('libtpu') is None
    wheels = f"'jax[tpu]=={version}'"
  else:
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    missing = not any(name.startswith('xla_cuda') for name in plugins.names)
    wheels = (
      f'--no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}'
    )
  if missing:
    raise FileNotFoundError(
      f"--aot={name} needs XLA's compiler for {chip.platform.upper()}, which "
      f'is not installed: pip install {wheels} (best in an environment of its '
      'own: with it JAX looks for a device at every start)'
    )


def _cuda(count: str) -> tuple[jax.Device, ...]:
  described: Any = topologies.get_topology_desc(
    platform='cuda',
    topology_name='',
    target_config=_H100,
    # Groups of processes, processes, devices.
    topology=f'1x1x{count}',
  )
  return tuple(described.devices)


def _tpu(kind: str, shape: str) -> tuple[jax.Device, ...]:
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  options: dict[str, Any] = {}
  sizes = [int(size) for size in shape.split('x')]
  if math.prod(sizes) < 4:
    # Fewer than a host has.
    options['chips_per_host_bounds'] = [*sizes, 1, 1][:3]
  if kind == 'v4':
    # Both cores of a chip as one device, as they are by default.
    options['chip_config_name'] = 'megacore'
  described: Any = topologies.get_topology_desc(
    platform='tpu', topology_name=f'{kind}:{shape}', **options
  )
  return tuple(described.devices)
