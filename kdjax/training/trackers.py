"""Where a run's metrics are sent too: Weights & Biases, MLflow.

The id of the tracker's run is kept in the run directory, as `wandb_id` or
`mlflow_id`, so that a run that was cut off goes on in the same one.
"""

import importlib.util
import math
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_collections

from kdjax.storage import run_directory
from kdjax.system import atomic, escape, logs

# MLflow takes so many parameters at once, with values of so many characters.
_PARAMETERS, _CHARACTERS = 100, 500


class Tracker(Protocol):
  """Something that is given each line of a run's metrics.

  Attributes:
    lacks_earlier: whether it must be given those before the run goes on.
  """

  lacks_earlier: bool

  def write(self, record: Mapping[str, Any]) -> None:
    """Takes a line: `kind`, `step`, and numbers or None by name."""

  def close(self, failed: bool = False) -> None:
    """Ends; `failed` says that an error ended the run."""


class _WandB:
  """Writes to a run of Weights & Biases, online or as `WANDB_MODE` says."""

  def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict):
    import wandb

    run_id = _read_id(workdir, 'wandb')
    self.lacks_earlier = run_id is None
    if run_id is None:
      run_id = uuid.uuid4().hex[:12]
      _write_id(workdir, 'wandb', run_id)
    self._run = wandb.init(
      id=run_id,
      resume='allow',
      # Not the one that the process may have for something else.
      reinit='create_new',
      project=config.log.project,
      group=escape.printable(workdir.absolute().parent.name),
      name=escape.printable(workdir.absolute().name),
      config=_settings(config),
      dir=workdir,
    )
    # Its own counter never goes back, as a run that was cut off does.
    self._run.define_metric('*', step_metric='step')

  def write(self, record: Mapping[str, Any]) -> None:
    self._run.log({'step': record['step'], **_numbers(record)})

  def close(self, failed: bool = False) -> None:
    self._run.finish(exit_code=int(failed))


class _MLflow:
  """Writes to a run of MLflow, where `MLFLOW_TRACKING_URI` says."""

  def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict):
    import mlflow

    self._entities = mlflow.entities
    self._client = mlflow.MlflowClient()
    run_id = _read_id(workdir, 'mlflow')
    self.lacks_earlier = run_id is None
    if run_id:
      self._client.update_run(run_id, status='RUNNING')
      self._id = run_id
      return
    self._id = self._client.create_run(
      mlflow.set_experiment(config.log.project).experiment_id,
      run_name=escape.printable(workdir.absolute().name),
      tags={'group': escape.printable(workdir.absolute().parent.name)},
    ).info.run_id
    _write_id(workdir, 'mlflow', self._id)
    settings = [
      mlflow.entities.Param(name, escape.printable(str(value))[:_CHARACTERS])
      for name, value in _settings(config).items()
    ]
    for start in range(0, len(settings), _PARAMETERS):
      part = settings[start : start + _PARAMETERS]
      self._client.log_batch(self._id, params=part)

  def write(self, record: Mapping[str, Any]) -> None:
    now, step = int(1000 * time.time()), record['step']
    metrics = []
    for name, value in _numbers(record).items():
      kind, rest = name.split('/', 1)
      # It takes few other characters in a name, and no path as `a/../b`.
      rest = re.sub(r'[^\w :-]', '_', rest, flags=re.ASCII)
      metric = self._entities.Metric(f'{kind}/{rest}', value, now, step)
      metrics.append(metric)
    self._client.log_batch(self._id, metrics=metrics)

  def close(self, failed: bool = False) -> None:
    self._client.set_terminated(self._id, 'FAILED' if failed else 'FINISHED')


_TRACKERS: dict[
  str, Callable[[pathlib.Path, ml_collections.ConfigDict], Tracker]
] = {'wandb': _WandB, 'mlflow': _MLflow}


def check(names: Sequence[str]) -> None:
  """Checks that trackers are installed, before anything takes long.

  Args:
    names: of trackers, as in `config.log.trackers`.

  Raises:
    ValueError: one is not; the message says how to install it.
  """
  for name in names:
    if importlib.util.find_spec(name) is None:
      raise ValueError(
        f'config.log.trackers has {name}, which is not installed: pip install '
        f"'kdjax[{name}]', or leave it out"
      )


def start(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> list[Tracker]:
  """Starts a run of each tracker, or goes on with the one that there is.

  Args:
    workdir: the run directory.
    config: the run's configuration.

  Returns:
    The trackers of `config.log.trackers`. One that fails later on says so once,
    and is given no more: it must not end the run.

  Raises:
    RuntimeError: one cannot be started; the message says what it says.
  """
  found: list[Tracker] = []
  for name in config.log.trackers:
    try:
      tracker = _TRACKERS[name](workdir, config)
    # Theirs are of many kinds.
    except Exception as error:
      said = str(error).rstrip('.')
      raise RuntimeError(
        f'{name} cannot start or continue the run of {workdir}: {said}. Check '
        f'its settings, take {name} out of config.log.trackers, or remove '
        f'{_path(workdir, name)} for a new run'
      ) from error
    found.append(_Forgiving(name, tracker))
  return found


def write_result(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  result: Mapping[str, Any],
) -> None:
  """Sends the measurements on the test split.

  Args:
    workdir: the run directory.
    config: the run's configuration.
    result: its result; of the best checkpoint they are called `test/…`, of the
      last one `test_last/…`.
  """
  try:
    opened = start(workdir, config)
  except RuntimeError as error:
    logs.logger.warning('%s', error)
    return
  for tracker in opened:
    for which, kind in (('best', 'test'), ('last', 'test_last')):
      measured = result[which]
      tracker.write(
        {'kind': kind, 'step': measured['step'], **measured['test']}
      )
    tracker.close()


class _Forgiving:
  """A tracker that stops, with a warning, where the wrapped one fails."""

  def __init__(self, name: str, tracker: Tracker):
    self._name = name
    self._tracker: Tracker | None = tracker
    self.lacks_earlier = tracker.lacks_earlier

  def write(self, record: Mapping[str, Any]) -> None:
    self._try('write', record)

  def close(self, failed: bool = False) -> None:
    self._try('close', failed)

  def _try(self, action: str, argument: Any) -> None:
    try:
      if self._tracker:
        getattr(self._tracker, action)(argument)
    except Exception as error:
      self._tracker = None
      logs.logger.warning(
        '%s is given no more metrics, they are in metrics.jsonl: %s',
        self._name,
        error,
      )


def _path(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / f'{name}_id'


def _read_id(workdir: pathlib.Path, name: str) -> str | None:
  path = _path(workdir, name)
  return path.read_text().strip() if path.exists() else None


def _write_id(workdir: pathlib.Path, name: str, run_id: str) -> None:
  atomic.write(_path(workdir, name), run_id.encode())


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that change what a run computes, by dotted name."""
  return run_directory.relevant(run_directory.as_json(config))


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
  """The metrics of a line, by `kind/name`."""
  return {
    escape.printable(f'{record["kind"]}/{name}'): math.nan
    if value is None
    else value
    for name, value in record.items()
    if name not in ('kind', 'step')
  }
