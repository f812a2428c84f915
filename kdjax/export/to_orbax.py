"""A directory that Orbax reads, with the card in it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.models.network import Network
from kdjax.storage import checkpoint


def write(
  path: pathlib.Path,
  network: Network,
  card: Mapping[str, Any],
  platforms: Sequence[str],
) -> None:
  """Writes a network's variables as an Orbax PyTree.

  Args:
    path: the directory.
    network: its model and variables.
    card: what is known of it, as JSON.
    platforms: ignored: arrays suit all.
  """
  del platforms
  checkpoint.save_network(path, network, card)
