"""The devices that programs are compiled for: this process's, or absent ones.

XLA can compile for devices that are not there, and say what a program would do
on them. Within `compile_for` kdjax plans, divides and lowers for such devices,
and arrays that would be put on them are their shapes. Nothing can run there.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Target(NamedTuple):
  """Devices that are not there.

  Attributes:
    platform: 'cpu', 'cuda' or 'tpu', as `jax.export` names them.
    devices: their descriptions, of a topology. To lower only, any devices.
  """

  platform: str
  devices: tuple[jax.Device, ...]


_absent: Target | None = None


def absent() -> Target | None:
  """Returns the absent devices that are compiled for; None if there are none.

  Without them programs are compiled for the devices of this process.
  """
  return _absent


def platform() -> str:
  """Returns what programs are compiled for: 'cpu', 'tpu' or a kind of GPU."""
  return _absent.platform if _absent else jax.default_backend()


def on_cpu() -> bool:
  """Whether programs are compiled for the CPU."""
  return platform() == 'cpu'


def device_count() -> int:
  """Returns how many devices a program is compiled for, in all processes."""
  return len(_absent.devices) if _absent else jax.device_count()


@contextlib.contextmanager
def compile_for(target: Target) -> Iterator[None]:
  """Compiles for absent devices what is compiled inside.

  Args:
    target: the devices.

  Yields:
    Nothing; the work goes inside.
  """
  global _absent
  before, _absent = _absent, target
  try:
    yield
  finally:
    _absent = before
