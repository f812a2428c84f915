"""Runs from Python and notebooks: what the commands do, as functions."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from kdjax import config as config_lib
from kdjax.system import atomic, config_files, logs, xla
from kdjax.training import train as train_lib
from kdjax.training.callbacks import NO_CALLBACKS, Callbacks
from kdjax.training.shared import Session


def load_config(
  name: str, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Loads a configuration, to print, change and train with.

  Args:
    name: a file, or the name of one that comes with kdjax; a variant may
      follow: `'quickstart'`, `'rkd:t4'`, `'mine.py'`.
    changes: fields to set, by dotted name, such as `{'train.epochs': 2}`.

  Returns:
    The configuration.

  Raises:
    ValueError: there is no such file or field, or a value has another type.
  """
  config = config_files.load(name)
  config_files.override(config, changes or {})
  return config


def train(
  config: ml_collections.ConfigDict | str,
  workdir: str | pathlib.Path | None = None,
  *,
  callbacks: Callbacks = NO_CALLBACKS,
  verbose: bool = True,
) -> dict[str, Any]:
  """Trains as `python -m kdjax.main` does, or continues a run.

  The teacher is trained first where the method needs one and there is none.
  Interrupted (Ctrl-C, or a notebook's stop button), a run is saved, and the
  same call continues it. Compiled programs are cached as those of the command.

  Args:
    config: a configuration, or what `load_config` takes.
    workdir: the run directory; by default `runs/NAME` for a name.
    callbacks: functions that are called while it goes on.
    verbose: whether to show a progress bar, in a terminal or a notebook, and
      lines of text on standard error; else warnings only.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError: no run directory is given, or as
      `kdjax.training.train.train_and_evaluate`, as all other errors.
  """
  if isinstance(config, str):
    workdir = workdir or config_files.run_directory(config)
    config = load_config(config)
  if workdir is None:
    raise ValueError(
      'a configuration has no name: give the run directory, such as '
      "kdjax.train(config, 'runs/mine')"
    )
  config_lib.check_is_run(config)
  with logs.shown(verbose):
    xla.setup()
    return train_lib.train_and_evaluate(
      config, atomic.local(workdir), Session(callbacks)
    )
