"""Weights of ResNets and ViTs in others' files, read safely and written.

Architecture, stem, width and number of classes are told from the tensors'
names and shapes. What has no weights cannot be seen in a file and is taken to
be as in `kdjax.models.resnet`, which is as in torchvision: strides, also
whether a bottleneck's stride is in its 3×3 convolution (as in torchvision, timm
and, by default, Hugging Face transformers: `downsample_in_bottleneck=False`) or
in its first (as in the paper); paddings; pooling, also whether a max-pool
follows a first convolution of 3×3; dilations; the activation function
(transformers' `hidden_act`); BatchNorm's epsilon (1e-5); blurring or attention
without parameters. Nor can it be seen which images the network expects.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from kdjax.storage.weights import (
  directory,
  msgpack_file,
  pytorch,
  resnet_names,
  safetensors_file,
  vit_names,
)
from kdjax.storage.weights.stored_tensors import Stored, Tensor
from kdjax.system import atomic, escape

# Endings that browsers and other programs give a file while it arrives.
_UNFINISHED = ('.part', '.partial', '.crdownload', '.download', '.incomplete')
# How files begin that are something else.
_OTHERS = {
  b'\x1f\x8b': 'compressed by gzip: unpack it first',
  b'7z\xbc\xaf': 'a 7z archive: unpack it first',
  b'\x89HDF': 'an HDF5 file, as of Keras: expected safetensors, or a file of '
  'PyTorch or Flax',
}


class Imported(NamedTuple):
  """A ResNet or a ViT from a file.

  Attributes:
    model: `name` ('resnet18', …), `num_classes` (None if the file has no
      classifier) and, of a ResNet, `stem` and `width`, as
      `kdjax.models.build` takes them.
    channels: of the images that it takes.
    variables: `{'params': …, 'batch_stats': …}` as kdjax's network has them,
      float32 NumPy arrays.
    metadata: the header of a safetensors file, else empty.
    recognised: what a person may want to know, a line each: the format, whose
      names, a prefix taken off, what was ignored, dtypes converted.
    normalization: `mean` and `std` of each channel, of pixels scaled to 0 … 1,
      where a layer in the file normalises its images; else None.
    image_size: height and width of the images in pixels, of a ViT; else None.
  """

  model: dict[str, Any]
  channels: int
  variables: dict[str, Any]
  metadata: dict[str, str]
  recognised: tuple[str, ...]
  normalization: dict[str, list[float]] | None = None
  image_size: tuple[int, int] | None = None


def load(path: str | os.PathLike[str], *, headless: bool = False) -> Imported:
  """Loads a network from a file of weights, and runs nothing that is in it.

  The file may be safetensors, or of PyTorch's `torch.save` (of any version;
  PyTorch is not needed). Its names may be those of torchvision, timm, Hugging
  Face transformers or common implementations for CIFAR, in dictionaries and
  with prefixes of any kind (`state_dict`, `module.`, …). Of a student and its
  teacher the student is taken, of weights and their moving average the weights.
  A ViT is one of `kdjax.models.vit`, with timm's names.

  Args:
    path: the file.
    headless: whether a head that is not one linear layer is left out, as if the
      file had none.

  Returns:
    The network.

  Raises:
    ValueError: the file is damaged, holds what is not data, or holds no network
      that kdjax has, or values that cannot be; what differs is named.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path)
  file = read(path)
  try:
    names: Any = vit_names if vit_names.is_in(file) else resnet_names
    found = names.find(file, headless=headless)
    used = sum(tensor.nbytes for tensor in found.tensors.values())
    if used > file.size:
      raise ValueError(f'its tensors would take {used} bytes, more than it has')
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  arrays = _read_all(path, found)
  images, notes = None, tuple[str, ...]()
  if found.normalization:
    images, notes = _read_normalization(path, file, found)
  return Imported(
    model=found.network.model,
    channels=found.network.channels,
    variables=names.to_flax(arrays),
    metadata=dict(file.metadata),
    recognised=found.recognised + notes,
    normalization=images,
    image_size=getattr(found.network, 'image_size', None),
  )


def _read_normalization(
  path: pathlib.Path, file: Stored, found: resnet_names.Found
) -> tuple[dict[str, list[float]], tuple[str, ...]]:
  """Reads how a layer of the file normalises images; a line says so."""
  values = {
    kind: np.asarray(file.tensors[name].read(), np.float64).ravel()
    for kind, name in found.normalization.items()
  }
  where = escape.listed(sorted(found.normalization.values()))
  mean, std = values['mean'], values['std']
  scale = 1
  # Pixels of 0 … 255 are known by the size of the numbers.
  if not (np.abs(mean) <= 1).all() or not (std <= 1).all():
    scale = 255
  if (
    not (np.abs(mean) <= scale).all()
    or not ((std > 0) & (std <= scale)).all()
    or (scale == 255 and max(mean.max(), std.max()) < 10)
  ):
    raise ValueError(
      f'{path}: {where} are mean {mean.tolist()} and standard deviation '
      f'{std.tolist()}: expected those of pixels of 0 … 1 or of 0 … 255'
    )
  images = {
    kind: np.resize(each / scale, found.network.channels).tolist()
    for kind, each in values.items()
  }
  shown = {
    kind: ', '.join(f'{x:.4g}' for x in each) for kind, each in values.items()
  }
  return images, (
    f'it normalises its images by its own {where}: mean {shown["mean"]}, '
    f'standard deviation {shown["std"]}, of pixels of 0 … {scale}',
  )


def _read_all(
  path: pathlib.Path, found: resnet_names.Found
) -> dict[str, np.ndarray]:
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
      f'{path}: NaN or infinite values in {escape.listed(not_finite)}: the '
      'network diverged, or the file is damaged'
    )
  if negative:
    raise ValueError(
      f'{path}: negative variances in {escape.listed(negative)}: the file is '
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
  if not path.exists():
    raise FileNotFoundError(f'there is no file {path}')
  if path.is_dir() and directory.is_one(path):
    return directory.join([read(each) for each in directory.weights_of(path)])
  if not path.is_file():
    raise IsADirectoryError(f'{path}: expected a file of weights')
  with path.open('rb') as raw:
    start = raw.read(512)
  try:
    file = _reader(start)(path)
  except ValueError as error:
    if path.suffix in _UNFINISHED:
      raise ValueError(
        f'{path}: by its name a download that has not finished: download the '
        'file again'
      ) from error
    raise ValueError(f'{path}: {error}') from error
  return file._replace(
    size=path.stat().st_size,
    tensors={
      name: dataclasses.replace(
        tensor, read=functools.partial(_read_one, path, name, tensor)
      )
      for name, tensor in file.tensors.items()
    },
  )


def _read_one(path: pathlib.Path, name: str, tensor: Tensor) -> np.ndarray:
  try:
    return tensor.read()
  except ValueError as error:
    raise ValueError(f'{path}: {escape.listed([name])}: {error}') from error


def _reader(start: bytes) -> Any:
  """Tells by its beginning what a file is."""
  # The length of a header, which comes before it, may look like anything.
  if start[8:9] == b'{':
    return safetensors_file.read
  if start.startswith(b'PK'):
    return pytorch.read_zip
  if start.startswith(b'\x80'):
    return pytorch.read_legacy
  if msgpack_file.begins(start):
    return msgpack_file.read
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
  for beginning, what in _OTHERS.items():
    if start.startswith(beginning):
      raise ValueError(f'{what}')
  text = start.decode('latin-1').strip()
  if text.isprintable() and text.isascii():
    raise ValueError(
      f'a text in place of the weights, {text[:80]!r}: download the file again'
    )
  raise ValueError(
    'neither safetensors nor a file of PyTorch or Flax: it starts with '
    f'{start[:16]!r}'
  )


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Renames weights as torchvision does, or timm a ViT's; PyTorch's layouts.

  Args:
    variables: `{'params': …, 'batch_stats': …}` of one of kdjax's ResNets,
      not folded, or ViTs; other collections are ignored.

  Returns:
    Arrays by name, with `num_batches_tracked` (zero: kdjax does not count), so
    that `load_state_dict` takes them strictly.

  Raises:
    ValueError: it is none of them; what differs is named.
  """
  if vit_names.are_of(variables):
    return vit_names.from_flax(variables)
  return resnet_names.with_counters(resnet_names.from_flax(variables))


def save(
  path: str | os.PathLike[str],
  variables: Mapping[str, Any],
  metadata: Mapping[str, str],
) -> None:
  """Writes weights as safetensors, named as by `to_torchvision`.

  Args:
    path: the file, which is there as a whole or not at all.
    variables: as `to_torchvision` takes them.
    metadata: the header; `format` is 'pt' unless it says something else.

  Raises:
    ValueError: it is neither a ResNet nor a ViT of kdjax's.
    OSError: it cannot be written; what was there still is.
  """
  save_arrays(path, to_torchvision(variables), {'format': 'pt', **metadata})


def save_arrays(
  path: str | os.PathLike[str],
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes arrays as safetensors.

  Args:
    path: the file, which is there as a whole or not at all.
    arrays: arrays by name.
    metadata: the header.

  Raises:
    OSError: it cannot be written; what was there still is.
  """
  content = safetensors.numpy.save(dict(arrays), dict(metadata))
  with atomic.replacing(pathlib.Path(path)) as file:
    file.write(content)
