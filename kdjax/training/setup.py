"""Resolves a configuration into a run, once."""

import pathlib

import ml_collections

from kdjax import config as config_lib
from kdjax import methods, models
from kdjax.storage import checkpoint, hub, run_directory
from kdjax.system import devices
from kdjax.system.logs import logger
from kdjax.training import initial_weights, optimizer, trackers
from kdjax.training import plan as plan_lib
from kdjax.training.initial_weights import Initial
from kdjax.training.run import Run
from kdjax.training.shared import Session


def resolve(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> Run:
  """Resolves a configuration, but for the teacher.

  A teacher may have to be trained first, for hours: what else can be wrong is
  found here.

  Args:
    config: a run's configuration, complete and valid.
    workdir: the run's directory.
    session: what the run shares with others.

  Returns:
    The run, without its teacher.

  Raises:
    ValueError: the configuration does not fit the data, or the initial weights
      do not fit it.
    FileNotFoundError: data or initial weights are not where it says.
  """
  trackers.check(config.log.trackers)
  with devices.share_errors():
    dataset = session.dataset(config.data)
    initial = load_initial(config, workdir, session)
    if initial:
      initial_weights.check(initial, config, dataset)
  devices.check_agree(
    {
      'data': dataset.digest,
      'initial weights': initial and initial.report['digest'],
    }
  )
  if not dataset.validation.size:
    logger.info(
      'there are no validation images (config.data.validation_fraction): the '
      'last epoch counts as the best'
    )
  method, hyperparameters = config_lib.build_method(config)
  _check_method(config, method)
  optimizer.parse_options(config.train)
  plan = plan_lib.plan(config, dataset)
  model = models.build(
    **config_lib.model_arguments(config, len(dataset.class_names))
  )
  # An error of a name that is wrong, before the teacher is trained.
  models.rematerialize(model, config.device.remat)
  plan_lib.check_batch_norm(config, dataset, model)
  return Run(
    config,
    workdir,
    dataset,
    method,
    hyperparameters,
    model,
    plan,
    initial,
    callbacks=session.callbacks,
  )


def _check_method(
  config: ml_collections.ConfigDict, method: methods.Method
) -> None:
  """Checks that the recipe suits the method.

  Raises:
    ValueError: it does not.
  """
  name, settings = config.method.name, config.train
  if (method.batch_level or method.views > 1) and settings.accumulate > 1:
    reason = (
      'compares the examples of a batch'
      if method.batch_level
      else f'has {method.views} views of each example in a batch'
    )
    raise ValueError(
      f'config.train.accumulate is {settings.accumulate}, and the loss of '
      f'{name} {reason}, which gradient accumulation would divide: set it to 1'
    )
  if method.views > 1 and (
    config.teacher.replay or config_lib.has_logits(config)
  ):
    raise ValueError(
      f'{name} trains on {method.views} views of each image, and '
      'config.teacher.replay and teachers that are a file of logits have the '
      'logits of one: choose another config.method.name or teacher'
    )
  _check_labels(config, method)
  if method.teacher == 'ema' and not settings.ema_decay:
    raise ValueError(
      f'config.train.ema_decay is 0, and the teacher of {name} is the moving '
      'average of the student: set it, to 0.999 for instance'
    )


def _check_labels(
  config: ml_collections.ConfigDict, method: methods.Method
) -> None:
  """Checks that the method takes the labels that the data have."""
  name, data = config.method.name, config.data
  for field in ('mixup', 'cutmix'):
    if data[field] and method.labels == 'class':
      raise ValueError(
        f'config.data.{field} is {data[field]}, which mixes labels, and '
        f'{name} needs one class for each image: set it to 0'
      )
  if data.label_fraction < 1 and method.labels != 'any':
    raise ValueError(
      f'config.data.label_fraction is {data.label_fraction}, and {name} needs '
      'the class of each image: set it to 1, or choose a method such as '
      "'response'"
    )


def complete(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> ml_collections.ConfigDict:
  """Fills in what a configuration leaves to files of weights.

  Names on the hub become the folders in its cache; the student's name, stem and
  width may be those of its initial weights.

  Args:
    config: a run's configuration.
    workdir: the run's directory; once the run has begun, it knows.
    session: what the run shares with others.

  Returns:
    The configuration, with the student's name, stem and width.

  Raises:
    FileNotFoundError: there are no such weights.
    ValueError: they are of a network that is not known here, or a name on the
      hub cannot be fetched.
  """
  config = _fetch_named(config)
  if initial_weights.is_complete(config.student):
    return config
  if run_directory.is_run(workdir):
    student = run_directory.read_config(workdir).student
  else:
    student = session.initial(config.student).student
  return initial_weights.complete(config, student)


def _fetch_named(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Replaces names on the hub by the folders that they are cached in."""
  config = config.copy_and_resolve_references()

  def fetched(path: str) -> str:
    return hub.fetch(path) if hub.is_name(path) else path

  config.student.init_from = fetched(config.student.init_from)
  config.teacher.path = fetched(config.teacher.path)
  config.teacher.ensemble = tuple(map(fetched, config.teacher.ensemble))
  return config


def load_initial(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> Initial | None:
  """Loads a student's initial weights.

  Args:
    config: the configuration of its run.
    workdir: the run's directory.
    session: what the run shares with others.

  Returns:
    The weights; None of random ones, and of a run that has begun where they
    are gone.

  Raises:
    FileNotFoundError: they are gone, and the run has not begun.
  """
  if not config.student.init_from:
    return None
  try:
    return session.initial(config.student)
  except FileNotFoundError:
    if not has_checkpoint(workdir):
      raise
  logger.info(
    '%s is not there, and not needed any more: %s has begun',
    config.student.init_from,
    workdir,
  )
  return None


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether a run directory holds a checkpoint."""
  try:
    checkpoint.find(workdir, 'last')
  except FileNotFoundError:
    return False
  return True
