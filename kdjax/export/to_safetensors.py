"""A file of weights with torchvision's names, for PyTorch."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import digests, networks, weights


def write(
  path: pathlib.Path,
  network: Network,
  card: Mapping[str, Any],
  platforms: Sequence[str],
) -> None:
  """Writes a ResNet's weights; the header has the card.

  Args:
    path: the file.
    network: its model and variables.
    card: what is known of it, as JSON.
    platforms: ignored: arrays suit all.

  Raises:
    ValueError: the network is no ResNet of kdjax.
  """
  del platforms
  arrays = {name: network.variables[name] for name in features.TRAINED}
  text = card_lib.seal(card, **{networks.DIGEST: digests.digest(arrays)})
  try:
    if ':' in card['model']['name']:
      raise ValueError('it need not compute what they do')
    weights.save(path, arrays, {networks.CARD: text})
  except ValueError as error:
    raise ValueError(
      f'{card["model"]["name"]} cannot be written with the names of '
      f"torchvision's ResNets: {error}. Choose another format"
    ) from error
