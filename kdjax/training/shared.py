"""What the runs of one process share: data, teacher and compiled programs."""

import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax import data, methods
from kdjax.evaluation import predict
from kdjax.storage import run_directory
from kdjax.storage.teacher_logits import Replay
from kdjax.training import compiled, teacher_checks
from kdjax.training import initial_weights as initial_lib
from kdjax.training import teacher as teacher_lib

_T = TypeVar('_T')


class Session:
  """Makes what a run needs, or gives what the run before it needed.

  Of each kind the last one is kept, so that runs that share something are best
  done one after the other.
  """

  def __init__(self) -> None:
    self._kept: dict[str, tuple[Hashable, Any]] = {}

  def dataset(self, config: ml_collections.ConfigDict) -> data.Dataset:
    """Loads a data set.

    Args:
      config: the section `data` of a run's configuration.

    Returns:
      As `kdjax.data.load`, which says what it raises.
    """
    return self._keep('data', config.to_json(), lambda: data.load(config))

  def teacher(
    self,
    path: str | os.PathLike[str] | tuple[str, ...],
    config: ml_collections.ConfigDict,
    names: Sequence[str] = (),
    assumed: Mapping[str, Any] | None = None,
  ) -> teacher_lib.Teacher:
    """Loads a teacher.

    Args:
      path: where it is, or where the members of an ensemble are.
      config: configuration of the run that it teaches in.
      names: the features that will be wanted of it.
      assumed: what holds of it if nothing else says so.

    Returns:
      As `kdjax.training.teacher.load`, which says what it raises.
    """
    # An ensemble of one is another network than that one.
    key = (
      tuple(map(os.path.abspath, path))
      if isinstance(path, tuple)
      else os.path.abspath(path),
      config.teacher.average,
      config.teacher.checkpoint,
      config.teacher.dtype or config.student.dtype,
      config.teacher.mean,
      config.teacher.std,
      config.teacher.stem,
      json.dumps(config_lib.model_arguments(config_lib.teacher_run(config), 0)),
      json.dumps(assumed),
      tuple(names),
    )
    return self._keep(
      'teacher', key, lambda: teacher_lib.load(path, config, names, assumed)
    )

  def check_knows(
    self, teacher: teacher_lib.Teacher, dataset: data.Dataset, batch_size: int
  ) -> None:
    """Measures a teacher that comes from elsewhere, once for all runs.

    Args:
      teacher: the teacher.
      dataset: the data set.
      batch_size: how many images to compute at most at once.

    Raises:
      ValueError: as `kdjax.training.teacher_checks.check_knows`.
    """
    self._keep(
      'knows',
      (*_identify(teacher), teacher.assumed, dataset.digest),
      lambda: teacher_checks.check_knows(teacher, dataset, batch_size),
    )

  def initial(self, student: ml_collections.ConfigDict) -> initial_lib.Initial:
    """Loads what a student begins with.

    Args:
      student: the section `student` of a run's configuration.

    Returns:
      As `kdjax.training.initial_weights.load`, which says what it raises.
    """
    key = os.path.abspath(student.init_from), student.head
    return self._keep('initial', key, lambda: initial_lib.load(student))

  def program(
    self,
    config: ml_collections.ConfigDict,
    dataset: data.Dataset,
    method: methods.Method,
    hyperparameters: Mapping[str, float],
    teacher: teacher_lib.Teacher | None,
    replay: Replay | None,
    initial: initial_lib.Initial | None = None,
  ) -> compiled.Program:
    """Makes the program of a run, compiled already if that of the last run is.

    Runs that differ by nothing but the seed and the method's hyperparameters
    share what is compiled.

    Args:
      config: the run's configuration.
      dataset: its data set.
      method: its method.
      hyperparameters: the value of each of the method's hyperparameters.
      teacher: its teacher, if the method needs one.
      replay: where the teacher's logits are kept, if they are.
      initial: what its student begins with, if that is not random.

    Returns:
      The program.
    """
    settings = run_directory.as_json(config)
    options = settings['method'][config.method.name]
    key = json.dumps(
      [
        {
          section: settings[section]
          for section in ('student', 'train', 'eval', 'device')
        },
        config.data.crop_padding,
        config.data.flip,
        config.data.streaming,
        config.data.random_resized_crop,
        config.data.workers,
        dataset.digest,
        config.method.name,
        {
          name: value
          for name, value in options.items()
          if name not in hyperparameters
        },
        teacher and _identify(teacher),
        replay is not None,
        initial and initial.report['digest'],
      ]
    )
    network = teacher and teacher.network
    made = self._keep(
      'program',
      key,
      lambda: compiled.Program(
        config,
        dataset,
        method,
        hyperparameters,
        network,
        replay,
        initial and initial.variables,
        teacher
        and teacher.logits
        and teacher.logits.train.rows(dataset.train_ids),
      ),
    )
    return made.again(config.seed, hyperparameters, replay)

  def test_logits(
    self,
    teacher: teacher_lib.Teacher,
    dataset: data.Dataset,
    batch_size: int,
  ) -> np.ndarray | None:
    """Computes a teacher's logits of the test images, or looks them up.

    Args:
      teacher: the teacher.
      dataset: the data set.
      batch_size: how many images to compute at once.

    Returns:
      Logits, float32 `[size, classes]`; None if there is no network and they
      are not known.
    """
    if teacher.logits:
      test = teacher.logits.test
      return test and test.rows(dataset.test_ids)
    assert teacher.network
    network = teacher.network
    return self._keep(
      'test logits',
      (*_identify(teacher), dataset.digest),
      lambda: jax.device_get(
        predict.predict_split(network, dataset.test, batch_size)[0]
      ),
    )

  def _keep(self, kind: str, key: Hashable, make: Callable[[], _T]) -> _T:
    if kind not in self._kept or self._kept[kind][0] != key:
      # The old one first: there may be no room for both.
      self._kept.pop(kind, None)
      self._kept[kind] = key, make()
    return self._kept[kind][1]


def _identify(teacher: teacher_lib.Teacher) -> tuple[str, str | None]:
  """Tells teachers apart, also two of one digest that compute otherwise."""
  network = teacher.network
  return teacher.report['digest'], network and str(network.model)
