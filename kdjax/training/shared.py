"""What the runs of one process share: data, teacher and compiled programs."""

import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np

from kdjax import data
from kdjax.evaluation import predict
from kdjax.training import initial_weights as initial_lib
from kdjax.training import teacher as teacher_lib
from kdjax.training import teacher_checks
from kdjax.training.callbacks import NO_CALLBACKS, Callbacks
from kdjax.training.compiled import Program
from kdjax.training.run import Run, settings_of

_T = TypeVar('_T')


class Session:
  """Makes what a run needs, or reuses what the run before it needed.

  Of each kind the last one is kept, so that runs that share something are best
  done one after the other.

  Args:
    callbacks: functions of the user's that the runs call.

  Attributes:
    callbacks: the same.
  """

  def __init__(self, callbacks: Callbacks = NO_CALLBACKS) -> None:
    self.callbacks = callbacks
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
    settings = {
      name: value
      for name, value in settings_of(config).items()
      if name.startswith(('teacher.', 'student.'))
    }
    key = (
      tuple(map(os.path.abspath, path))
      if isinstance(path, tuple)
      else os.path.abspath(path),
      json.dumps([settings, assumed]),
      tuple(names),
    )
    return self._keep(
      'teacher', key, lambda: teacher_lib.load(path, config, names, assumed)
    )

  def check_accuracy(
    self, teacher: teacher_lib.Teacher, dataset: data.Dataset, batch_size: int
  ) -> None:
    """Measures a pretrained teacher from another source, once for all runs.

    Args:
      teacher: the teacher.
      dataset: the data set.
      batch_size: how many images to compute at most at once.

    Raises:
      ValueError: as `kdjax.training.teacher_checks.check_accuracy`.
    """
    self._keep(
      'knows',
      (*teacher.identity(), teacher.assumed, dataset.digest),
      lambda: teacher_checks.check_accuracy(teacher, dataset, batch_size),
    )

  def initial(self, student: ml_collections.ConfigDict) -> initial_lib.Initial:
    """Loads the initial weights of a student.

    Args:
      student: the section `student` of a run's configuration.

    Returns:
      As `kdjax.training.initial_weights.load`, which says what it raises.
    """
    key = os.path.abspath(student.init_from), student.head
    return self._keep('initial', key, lambda: initial_lib.load(student))

  def program(self, run: Run) -> Program:
    """Makes the program of a run, compiled already if that of the last run is.

    Runs that differ by nothing but the seed and the method's hyperparameters
    share what is compiled.

    Args:
      run: the run.

    Returns:
      The program.
    """
    made = self._keep('program', run.program_key(), lambda: Program(run))
    return made.share(run)

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
      (*teacher.identity(), dataset.digest),
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
