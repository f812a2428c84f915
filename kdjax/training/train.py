"""One run from its configuration to its result."""

import contextlib
import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections

from kdjax import config as config_lib
from kdjax.evaluation import tables
from kdjax.storage import checkpoint, metrics_log, run_directory
from kdjax.storage.teacher_logits import Replay
from kdjax.system import atomic, devices, lock, logs
from kdjax.training import (
  checks,
  compiled,
  final_test,
  loop,
  setup,
  teacher_checks,
  trackers,
)
from kdjax.training import initial_weights as initial_lib
from kdjax.training.run import Run
from kdjax.training.shared import Session
from kdjax.training.teacher import Teacher
from kdjax.version import __version__

logger = logs.logger


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  session: Session | None = None,
) -> dict[str, Any]:
  """Runs an experiment, or continues it where it was cut off.

  A method that needs a teacher, and is given none by `config.teacher.path`,
  uses the run directory beside this one that `config.teacher.sibling` names,
  and trains a teacher there first if need be. A run that has finished is only
  evaluated again.

  Args:
    config: as `kdjax.config.default` describes it.
    workdir: the run directory. It receives `config.json`, `metrics.jsonl`,
      `checkpoints/`, `tensorboard/` and, at the end, `predictions.npz` and
      `result.json`.
    session: what this run shares with others of this process.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError: the configuration makes no sense, or does not fit the data, the
      teacher, or the run that the directory already holds.
    FileNotFoundError: data or teacher are not where the configuration says.
    FloatingPointError: the loss or its gradient is no longer finite.
    BlockingIOError: another process makes this run, or its teacher.
    OSError: a file cannot be written.
    kdjax.system.signals.Interrupted: SIGTERM or SIGINT came; the run is saved.
  """
  workdir = atomic.local(workdir)
  atomic.check_name(workdir)
  session = session or Session()
  with devices.share_errors():
    config = config_lib.normalize(config)
    config_lib.validate(config)
    config = setup.complete(config, workdir, session)
  devices.check_agree(_facts(config, workdir))
  run_directory.check_same_run(workdir, config)
  _check_same_checkpoint(workdir, config)
  if result := run_directory.read_result(workdir):
    with devices.share_errors():
      initial_lib.check_same_initial(
        workdir,
        config,
        result['student'].get('init_from'),
        setup.load_initial(config, workdir, session),
      )
    result = _evaluate(workdir, config)
    if devices.is_first():
      session.callbacks.on_end(workdir, result)
    return result
  return _run(config, workdir, session)


def _check_same_checkpoint(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks that a run that has lost its configuration goes on with the same."""
  if run_directory.is_run(workdir) or not setup.has_checkpoint(workdir):
    return
  there = checkpoint.read_metadata(workdir, 'last')['config']
  if differing := run_directory.config_differences(there, config):
    shown = '\n  '.join(differing.values())
    raise ValueError(
      f'{workdir} has no config.json, and checkpoints of another configuration:'
      f'\n  {shown}\nChoose another run directory, or remove that one'
    )
  logger.warning(
    '%s has lost its config.json; it is written again as its checkpoints have '
    'it',
    workdir,
  )


def _evaluate(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  logger.info('%s has finished; evaluating its checkpoints', workdir)
  result, _ = final_test.evaluate(workdir, config)
  return result


def _run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  session: Session,
  what: str = 'the run',
) -> dict[str, Any]:
  run = setup.resolve(config, workdir, session)
  if run.method.needs_teacher:
    run = run._replace(teacher=_find_teacher(run, session))
    run = run._replace(replay=_find_replay(run))
  program = session.program(run)
  compiled.check_memory(program.state_shapes())
  with lock.hold(workdir, what, [*run_directory.FILES, metrics_log.METRICS]):
    # Another process may have made it while the teacher was trained.
    run_directory.check_same_run(workdir, config)
    if not run_directory.is_run(workdir):
      checkpoint.check_empty(workdir)
    if run_directory.read_result(workdir):
      return _evaluate(workdir, config)
    devices.write_once(
      lambda: run_directory.write_config(workdir, config),
      lambda: run_directory.is_run(workdir),
    )
    with contextlib.closing(program):
      times = loop.train(run, program)
    return _test(run, session, times)


def _test(
  run: Run, session: Session, times: Mapping[str, float]
) -> dict[str, Any]:
  """Measures a run that is trained, and writes its result."""
  workdir, dataset = run.workdir, run.dataset
  measured, predictions = final_test.measure(
    workdir, dataset, run.teacher, run.config.eval.batch_size, session
  )
  last = checkpoint.read_metadata(workdir, 'last')
  measured['student'] |= {
    'model': run.config.student.name,
    'stem': run.config.student.stem,
    **times,
    'init_from': last.get('init_from'),
  }
  result = {
    'method': run.config.method.name,
    'seed': run.config.seed,
    'hyperparameters': run.hyperparameters,
    'data': {
      'name': dataset.name,
      'digest': dataset.digest,
      'train': dataset.train.size,
      'validation': dataset.validation.size,
      'test': dataset.test.size,
    },
    **_environment(),
    'config': run_directory.as_json(run.config),
    **measured,
  }

  def write() -> None:
    run_directory.write_predictions(workdir, predictions)
    result['files'] = run_directory.digests_of_files(workdir)
    run_directory.write_result(workdir, result)
    trackers.write_result(workdir, run.config, result)

  devices.write_once(write, lambda: run_directory.read_result(workdir))
  result = run_directory.read_result(workdir) or result
  if devices.is_first():
    run.callbacks.on_end(workdir, result)
  return result


def _environment() -> dict[str, Any]:
  """Describes the devices and the versions that a run was made with."""
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'device': jax.devices()[0].device_kind,
    'device_count': jax.device_count(),
    'platform': jax.default_backend(),
    'versions': {'kdjax': __version__, **versions},
  }


def _facts(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Lists the settings that all processes of a run must share."""
  fields = flax.traverse_util.flatten_dict(
    run_directory.as_json(config), sep='.'
  )
  # Each host may have its own copy.
  del fields['data.data_dir']
  return {
    **{f'config.{name}': value for name, value in fields.items()},
    'run directory': str(workdir),
    'finished': run_directory.read_result(workdir) is not None,
  }


def prepare_teacher(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, session: Session
) -> pathlib.Path | tuple[str, ...]:
  """Finds the teacher of a run, and trains it first if there is none.

  Args:
    config: configuration of a run whose method needs a teacher.
    workdir: the run's directory.
    session: what it shares with other runs.

  Returns:
    The teacher's run directory, or what the configuration names: several paths
    for an ensemble.

  Raises:
    ValueError: the teacher there is another than the run asks for, or would not
      fit it, or its initial weights do not fit the data.
    FileNotFoundError: data are not where the configuration says.
    FloatingPointError: the teacher's loss or its gradient is no longer finite.
    BlockingIOError: another process trains it.
  """
  if config.teacher.ensemble:
    return tuple(config.teacher.ensemble)
  if config.teacher.path and config.teacher.head == 'keep':
    return pathlib.Path(config.teacher.path)
  path = workdir.absolute().parent / config.teacher.sibling
  if path == workdir.absolute():
    raise ValueError(
      f'{workdir} is where the teacher of its neighbours belongs '
      f'(config.teacher.sibling={config.teacher.sibling!r}): choose another '
      '--workdir'
    )
  _train_teacher(config, path, session)
  return path


def _find_teacher(run: Run, session: Session) -> Teacher:
  """Loads the teacher, after training it if there is none."""
  config, dataset = run.config, run.dataset
  path = prepare_teacher(config, run.workdir, session)
  assumed = {
    'num_classes': len(dataset.class_names),
    'image_shape': list(dataset.image_shape),
    'mean': dataset.mean.tolist(),
    'std': dataset.std.tolist(),
    'class_names': list(dataset.class_names),
  }
  with devices.share_errors():
    teacher = session.teacher(
      path, config, run.method.teacher_features, assumed
    )
    teacher_checks.check_asked(teacher, config)
    checks.check_compatible(teacher, dataset)
  devices.check_agree({'teacher': teacher.report['digest']})
  augmented = [
    f'config.data.{field}={config.data[field]}'
    for field in (*compiled.AUGMENTATIONS, 'random_resized_crop')
    if config.data[field]
  ]
  if teacher.logits and augmented:
    logger.warning(
      'the logits in %s are those of whole images, and the student sees others '
      '(%s): a teacher does best that sees what its student sees '
      '(https://arxiv.org/abs/2106.05237)',
      teacher.report['path'],
      ', '.join(augmented),
    )
  report = teacher.report
  logger.info('teacher: %s of %s', report['model'], report['path'])
  if report['data_digest'] is None:
    session.check_accuracy(teacher, dataset, config.eval.batch_size)
    return teacher
  if report['step'] is not None:
    logger.info(
      'its step %d, validation accuracy %s',
      report['step'],
      report['validation_accuracy'],
    )
  if report['data_digest'] != dataset.digest:
    logger.warning(
      'the teacher in %s was not trained on the same training and validation '
      'images as this run has; its accuracy on either may mislead',
      report['path'],
    )
  return teacher


def _train_teacher(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  session: Session,
) -> None:
  """Trains a teacher in a directory, unless a finished one is there."""
  teacher_config = setup.complete(config_lib.teacher_run(config), path, session)
  if run_directory.read_result(path):
    initial = setup.load_initial(teacher_config, path, session)
    checks.check_sibling(path, teacher_config, initial)
    return
  config_lib.validate(teacher_config)
  run_directory.check_same_run(path, teacher_config)
  method, _ = config_lib.build_method(config)
  dataset = session.dataset(config.data)
  checks.check_fit(config, teacher_config, dataset, method)
  logger.info('training the teacher first, in %s', path)
  result = _run(teacher_config, path, session, 'the teacher')
  logger.info('the teacher is trained\n%s', tables.table(result))


def _find_replay(run: Run) -> Replay | None:
  """Opens the kept logits of the teacher, if the configuration names any."""
  config = run.config
  if not config.teacher.replay:
    return None
  if jax.process_count() > 1:
    raise ValueError(
      'config.teacher.replay works in one process, and this run has '
      f"{jax.process_count()}: set it to ''"
    )
  if run.method.teacher_features:
    raise ValueError(
      'config.teacher.replay keeps logits only, and the method '
      f"'{config.method.name}' also needs the teacher's "
      f"{', '.join(run.method.teacher_features)}: set it to ''"
    )
  assert run.teacher
  about = {
    'teacher': run.teacher.report['digest'],
    'teacher_dtype': config.teacher.dtype or config.student.dtype,
    'data': run.dataset.digest,
    'seed': config.seed,
    'batch_size': config.train.batch_size,
    # Older caches have the first two fields alone.
    **{
      field: value
      for field in compiled.AUGMENTATIONS
      if (value := config.data[field]) or field in ('crop_padding', 'flip')
    },
  }
  return Replay(config.teacher.replay, about, config.teacher.replay_dtype)
