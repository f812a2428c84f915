"""Functions of the user's own that a run calls while it goes on."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_Callback = Callable[[pathlib.Path, Mapping[str, Any]], None]


def _ignore(workdir: pathlib.Path, values: Mapping[str, Any]) -> None:
  """Does nothing."""


class Callbacks(NamedTuple):
  """Functions that runs call, each with the run directory and values by name.

  A run that trains its teacher first calls them for that run too, which the run
  directory tells. An exception in one ends the run; started again, it continues
  from its last checkpoint. With several processes the first calls them.

  Attributes:
    on_log: called after every `config.log.every_steps` steps, with `step`,
      `epoch`, `loss`, `accuracy`, `learning_rate`, `images_per_second`,
      `seconds_left` and the method's own metrics.
    on_evaluation: called after every validation, with `step`, `epoch`, `loss`,
      `accuracy` and what else it measures.
    on_end: called at the end, with the content of `result.json`.
  """

  on_log: _Callback = _ignore
  on_evaluation: _Callback = _ignore
  on_end: _Callback = _ignore


NO_CALLBACKS = Callbacks()
