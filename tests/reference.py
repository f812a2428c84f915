"""PyTorch's values from third_party/, in kdjax's names and layouts."""

import functools
import importlib.util
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'third_party' / 'pytorch'


@functools.cache
def losses() -> dict[str, np.ndarray]:
  """Returns the arrays of losses.npz; third_party/README.md lists the keys."""
  return _load('losses.npz')


@functools.cache
def resnets() -> dict[str, np.ndarray]:
  """Returns the arrays of resnets.npz; third_party/README.md lists the keys."""
  return _load('resnets.npz')


@functools.cache
def networks() -> dict[str, np.ndarray]:
  """Returns the arrays of networks.npz, as third_party/README.md lists them."""
  return _load('networks.npz')


def resnet_variables(model: str) -> dict[str, Any]:
  """Makes the weights that PyTorch's outputs of a network were computed with.

  Args:
    model: an entry of `resnets()['models']`, such as 'resnet18/cifar'.

  Returns:
    `{'params': …, 'batch_stats': …}` of NumPy arrays, as Flax nests them.
  """
  return flax_variables(resnet_state(model))


def resnet_state(model: str) -> dict[str, np.ndarray]:
  """Makes the same weights as PyTorch's `state_dict` gives them."""
  arrays = resnets()
  state = {}
  checksum = 0
  for name, padded in zip(
    arrays[f'{model}/names'].tolist(), arrays[f'{model}/shapes'], strict=True
  ):
    state[name] = tensor(name, tuple(padded[padded >= 0].tolist()))
    little_endian = state[name].dtype.newbyteorder('<')
    checksum = zlib.crc32(state[name].astype(little_endian).tobytes(), checksum)
  assert checksum == arrays[f'{model}/crc32'], f'{model}: not the same weights'
  return state


def flax_variables(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Renames and transposes the state dict of a PyTorch ResNet.

  Args:
    state: tensors by name, such as 'layer1.0.conv1.weight'.

  Returns:
    `{'params': …, 'batch_stats': …}`; the example becomes
    `['params']['stage1']['block1']['conv1']['kernel']`.
  """
  collections: dict[str, dict[str, Any]] = {'params': {}, 'batch_stats': {}}
  for name, value in state.items():
    *path, kind = name.split('.')
    if kind == 'num_batches_tracked':  # Flax counts no batches.
      continue
    if path[0].startswith('layer'):
      path[0] = path[0].replace('layer', 'stage')
      path[1] = f'block{int(path[1]) + 1}'
    if path[-2:-1] == ['downsample']:
      path[-2:] = [('downsample_conv', 'downsample_bn')[int(path[-1])]]
    leaf, value = _leaf(kind, value)
    collection = 'batch_stats' if leaf in ('mean', 'var') else 'params'
    collections[collection]['/'.join((*path, leaf))] = value
  return {
    collection: flax.traverse_util.unflatten_dict(leaves, sep='/')
    for collection, leaves in collections.items()
  }


def _leaf(kind: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  if kind == 'weight':
    if value.ndim == 4:  # OIHW to HWIO
      return 'kernel', value.transpose(2, 3, 1, 0)
    if value.ndim == 2:  # OI to IO
      return 'kernel', value.T
    return 'scale', value
  return {'bias': 'bias', 'running_mean': 'mean', 'running_var': 'var'}[
    kind
  ], value


def _load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / name) as arrays:
    return dict(arrays)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Makes a tensor of a network, as `resnet_state` does."""
  return module('weights').tensor(name, shape)


@functools.cache
def module(name: str) -> Any:
  """Imports a module from third_party/pytorch."""
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
