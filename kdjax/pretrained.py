"""A network that exists already, wherever it comes from."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax import checkpoint as checkpoint_lib
from kdjax import step
from kdjax.data import images
from kdjax.version import __version__

# What images of another size are cut to before they are resized, where the
# network was trained on images of one size: the largest square.
_WHOLE = 1.0


class Pretrained(NamedTuple):
  """A network and what is known of it.

  Attributes:
    network: its model and variables. They have no `normalization` where its
      source does not say how images are normalised.
    card: what else is known, as JSON: `kdjax` (version), `model` (arguments of
      `kdjax.models.build`), `class_names` or None, `preprocessing` (see
      `preprocessing`), `metrics` of the test split and `provenance`, either of
      which may be empty.
    recognised: what its file was found to be, in lines for a person; empty for
      what kdjax wrote.
  """

  network: step.Network
  card: dict[str, Any]
  recognised: tuple[str, ...] = ()


def load(
  path: str | os.PathLike[str], checkpoint: str = 'best', ema: bool = False
) -> Pretrained:
  """Loads a network.

  Args:
    path: a run directory, or one checkpoint in it.
    checkpoint: of a run directory, 'best' (by validation accuracy) or 'last'.
    ema: of a run, whether to take the moving averages of its variables.

  Returns:
    The network.

  Raises:
    FileNotFoundError: there is none.
    OSError: it cannot be read now.
    ValueError: what is there is damaged, or no network that is known here.
  """
  path = pathlib.Path(path).absolute()
  directory = checkpoint_lib.find(path, checkpoint)
  metadata = checkpoint_lib.read_metadata(directory)
  network = checkpoint_lib.restore(directory, ema=ema)
  return Pretrained(network, _card(metadata, ema))


def preprocessing(
  image_shape: list[int] | None,
  normalization: Mapping[str, Any] | None,
  crop: float = _WHOLE,
) -> dict[str, Any]:
  """Says how a network's images are made, as JSON.

  Args:
    image_shape: height, width and channels; None if any height and width do.
    normalization: `mean` and `std` of pixels scaled to 0 … 1, `[channels]`;
      None if they are unknown.
    crop: share of the shorter side that the square has which is cut out of the
      middle of an image of another size and resized.

  Returns:
    `image_shape`, `mean`, `std` and `crop`.
  """
  return {
    'image_shape': image_shape,
    **{
      name: None
      if normalization is None
      else np.asarray(normalization[name]).tolist()
      for name in ('mean', 'std')
    },
    'crop': crop,
  }


def _card(metadata: Mapping[str, Any], ema: bool) -> dict[str, Any]:
  """Makes the card of a run's student from what its checkpoint says."""
  config = metadata.get('config', {})
  data = config.get('data', {})
  return {
    'kdjax': metadata.get('version', __version__),
    'model': metadata['model'],
    'class_names': metadata['class_names'],
    'preprocessing': preprocessing(
      metadata['image_shape'],
      metadata['normalization'],
      images.CENTRE if data.get('image_size') else _WHOLE,
    ),
    'metrics': {},
    'provenance': {
      'config': config,
      'data': data.get('name'),
      'ema': ema,
      **{
        key: metadata.get(key)
        for key in (
          'data_digest',
          'teacher_digest',
          'step',
          'epoch',
          'validation_accuracy',
          'validation_loss',
          'wall_time_s',
        )
      },
    },
  }
