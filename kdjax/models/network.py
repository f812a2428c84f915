"""A network: a model and its variables."""

from typing import NamedTuple

import flax.linen as nn

from kdjax.models import features


class Network(NamedTuple):
  """A model and its variables.

  Attributes:
    model: a Flax module called as `model(images, train=…)`.
    variables: its collections: `params`, `batch_stats` and `normalization`
      (see `kdjax.models.features`).
  """

  model: nn.Module
  variables: features.Variables
