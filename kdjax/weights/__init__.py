"""Weights of ResNets in others' files, read safely and written.

Architecture, stem, width and number of classes are told from the tensors'
names and shapes. What has no weights cannot be seen in a file and is taken to
be as in `kdjax.models.resnet`, which is as in torchvision: strides, also
whether a bottleneck's stride is in its 3×3 convolution (as in torchvision, timm
and, by default, Hugging Face transformers: `downsample_in_bottleneck=False`) or
in its first (as in the paper); paddings; pooling, also whether a max-pool
follows a first convolution of 3×3; dilations; the activation function
(transformers' `hidden_act`); BatchNorm's epsilon (1e-5); blurring or attention
without parameters. Nor can it be seen which images the network wants.
"""

import dataclasses
import functools
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from kdjax import files
from kdjax.weights import names, safetensors_file, stored, torch_file
from kdjax.weights.stored import Stored, Tensor

__all__ = [
  'Imported',
  'Stored',
  'Tensor',
  'load',
  'read',
  'save',
  'to_torchvision',
]


class Imported(NamedTuple):
  """A ResNet from a file.

  Attributes:
    model: `name` ('resnet18', …), `num_classes` (None if the file has no
      classifier), `stem` and `width`, as `kdjax.models.build` takes them.
    channels: of the images that it takes.
    variables: `{'params': …, 'batch_stats': …}` as kdjax's ResNet has them,
      float32 NumPy arrays.
    metadata: the header of a safetensors file, else empty.
    recognised: what a person may want to know, a line each: the format, whose
      names, a prefix taken off, what was ignored, dtypes converted.
  """

  model: dict[str, Any]
  channels: int
  variables: dict[str, Any]
  metadata: dict[str, str]
  recognised: tuple[str, ...]


def load(path: str | os.PathLike[str]) -> Imported:
  """Loads a ResNet from a file of weights, and runs nothing that is in it.

  The file may be safetensors, or of PyTorch's `torch.save` (of any version;
  PyTorch is not needed). Its names may be those of torchvision, timm, Hugging
  Face transformers or common implementations for CIFAR, in dictionaries and
  with prefixes of any kind (`state_dict`, `module.`, …). Of a student and its
  teacher the student is taken, of weights and their moving average the weights.

  Args:
    path: the file.

  Returns:
    The network.

  Raises:
    ValueError: the file is damaged, holds what is not data, or holds no ResNet
      that kdjax has, or values that cannot be; what differs is named.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  file = read(path)
  try:
    found = names.find(file)
    used = sum(tensor.nbytes for tensor in found.tensors.values())
    if used > path.stat().st_size:
      raise ValueError(f'its tensors would take {used} bytes, more than it has')
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return Imported(
    model=found.network.model,
    channels=found.network.channels,
    variables=names.to_flax(_read_all(path, found)),
    metadata=dict(file.metadata),
    recognised=found.recognised,
  )


def _read_all(path: pathlib.Path, found: names.Found) -> dict[str, np.ndarray]:
  """Reads the tensors of a network as float32, and looks at their values."""
  arrays: dict[str, np.ndarray] = {}
  not_finite, negative = [], []
  for name, tensor in found.tensors.items():
    # What float32 cannot hold becomes infinite.
    with np.errstate(all='ignore'):
      array = np.asarray(tensor.read()).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
      not_finite.append(found.original[name])
    elif name.endswith('running_var') and (array < 0).any():
      negative.append(found.original[name])
    arrays[name] = array
  if not_finite:
    raise ValueError(
      f'{path}: NaN or infinite values in {stored.listed(not_finite)}: the '
      'network diverged, or the file is damaged'
    )
  if negative:
    raise ValueError(
      f'{path}: negative variances in {stored.listed(negative)}: the file is '
      'damaged'
    )
  return arrays


def read(path: str | os.PathLike[str]) -> Stored:
  """Reads what is in a file of weights, but not yet the weights.

  Args:
    path: a file of safetensors or PyTorch; which it is its content tells.

  Returns:
    Its tensors, which can be read one by one; anything of the file's own is
    checked, so that they fit into it.

  Raises:
    ValueError: the file is damaged, or holds what is not data.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  if path.exists() and not stat.S_ISREG(path.stat().st_mode):
    raise IsADirectoryError(f'{path}: expected a file of weights')
  with path.open('rb') as raw:
    start = raw.read(512)
  try:
    file = _reader(start)(path)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return file._replace(
    tensors={
      name: dataclasses.replace(
        tensor, read=functools.partial(_read_one, path, name, tensor)
      )
      for name, tensor in file.tensors.items()
    }
  )


def _read_one(path: pathlib.Path, name: str, tensor: Tensor) -> np.ndarray:
  try:
    return tensor.read()
  except ValueError as error:
    raise ValueError(f'{path}: {stored.listed([name])}: {error}') from error


def _reader(start: bytes) -> Any:
  """Tells by its beginning what a file is."""
  # The length of a header, which comes before it, may look like anything.
  if start[8:9] == b'{':
    return safetensors_file.read
  if start.startswith(b'PK'):
    return torch_file.read_zip
  if start.startswith(b'\x80'):
    return torch_file.read_legacy
  if not start:
    raise ValueError('the file is empty')
  if start.startswith(b'version https://git-lfs'):
    raise ValueError(
      'a pointer of Git LFS in place of the weights: get them with `git lfs '
      'pull`'
    )
  if start.lstrip().startswith(b'<'):
    raise ValueError(
      'a web page in place of the weights: download the file itself'
    )
  raise ValueError(
    f'neither safetensors nor a file of PyTorch: it starts with {start[:16]!r}'
  )


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Gives a ResNet's weights torchvision's names and PyTorch's layouts.

  Args:
    variables: `{'params': …, 'batch_stats': …}` of one of kdjax's ResNets,
      not folded; other collections are ignored.

  Returns:
    Arrays by name, with `num_batches_tracked` (zero: kdjax does not count), so
    that `load_state_dict` takes them strictly.

  Raises:
    ValueError: it is no ResNet; what differs is named.
  """
  return names.with_counters(names.from_flax(variables))


def save(
  path: str | os.PathLike[str],
  variables: Mapping[str, Any],
  metadata: Mapping[str, str],
) -> None:
  """Writes a ResNet's weights as safetensors, as torchvision names them.

  Args:
    path: the file, which is there as a whole or not at all.
    variables: as `to_torchvision` takes them.
    metadata: the header; `format` is 'pt' unless it says something else.

  Raises:
    ValueError: it is no ResNet.
    OSError: it cannot be written; what was there still is.
  """
  content = safetensors.numpy.save(
    to_torchvision(variables), {'format': 'pt', **metadata}
  )
  with files.replacing(pathlib.Path(path)) as file:
    file.write(content)
