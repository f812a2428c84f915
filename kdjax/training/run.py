"""A run, resolved: what its configuration, its files and its data come to."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax import data, methods
from kdjax.storage import run_directory
from kdjax.storage.teacher_logits import Replay
from kdjax.training.callbacks import NO_CALLBACKS, Callbacks
from kdjax.training.initial_weights import Initial
from kdjax.training.plan import Plan
from kdjax.training.teacher import Teacher


class Run(NamedTuple):
  """One run.

  Attributes:
    config: its configuration, complete and valid.
    workdir: its directory.
    dataset: its data set.
    method: its method.
    hyperparameters: the value of each of the method's hyperparameters.
    model: the student's model.
    plan: how long it is.
    initial: the student's initial weights, if they are not random; None as well
      of a run that has begun where these are gone.
    teacher: its teacher, if its method needs one.
    replay: the cache of the teacher's logits; None if they are computed in
      each step.
    callbacks: functions of the user's that it calls.
  """

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  dataset: data.Dataset
  method: methods.Method
  hyperparameters: Mapping[str, float]
  model: nn.Module
  plan: Plan
  initial: Initial | None = None
  teacher: Teacher | None = None
  replay: Replay | None = None
  callbacks: Callbacks = NO_CALLBACKS

  def precomputed_logits(self) -> np.ndarray | None:
    """Looks up the logits of each training image, `[size, classes]`.

    Returns:
      None where there is a teacher's network, or none is needed.
    """
    if not self.teacher or not self.teacher.logits:
      return None
    return self.teacher.logits.train.rows(self.dataset.train_ids)

  def program_key(self) -> str:
    """Describes all that decides what is compiled for this run.

    Returns:
      The whole configuration but for the seed and the hyperparameters, which
      are arguments of the programs, and for paths, in whose place the digest
      of what lies there stands.
    """
    name = config_lib.method_section(self.config.method.name)
    settings = settings_of(self.config)
    del settings['seed']
    for scalar in self.hyperparameters:
      settings.pop(f'method.{name}.{scalar}', None)
    return json.dumps(
      {
        'config': settings,
        'data': self.dataset.digest,
        'initial': self.initial and self.initial.report['digest'],
        'teacher': self.teacher and self.teacher.identity(),
        'replay': self.replay is not None,
      }
    )


def settings_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Lists the fields of a configuration that are not paths.

  Args:
    config: a run's configuration.

  Returns:
    The value of each field but those that say where something lies, by its
    dotted name.
  """
  fields = flax.traverse_util.flatten_dict(
    run_directory.as_json(config), sep='.'
  )
  for field in (*config_lib.PATHS, 'teacher.sibling'):
    del fields[field]
  return fields
