"""Runs a sweep: one run after the other, in one process."""

import hashlib
import json
import pathlib
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from kdjax import config as config_lib
from kdjax.evaluation import metrics, tables
from kdjax.storage import metrics_log, run_directory
from kdjax.sweep import plan
from kdjax.sweep.plan import Run, Settings
from kdjax.sweep.progress import SweepLog
from kdjax.system import atomic, devices, lock, logs
from kdjax.training import plan as plan_lib
from kdjax.training import setup, train
from kdjax.training.shared import Session

logger = logs.logger

_SUMMARY = 'sweep.json'
_REPLAY = 'replay'
_FINISHED, _DIVERGED, _FAILED = 'finished', 'diverged', 'failed'


def run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Runs a sweep, or continues it where it was cut off.

  Runs that have finished or diverged are left as they are, others are begun or
  continued. One that fails does not stop the others.

  Args:
    config: as `kdjax.sweep.default` describes it.
    workdir: the sweep's directory. It receives a run directory for each run and
      one for their teacher, `replay/` with the teacher's logits where several
      runs need the same, and `sweep.json`.

  Returns:
    The content of `sweep.json`: `stages`, for each its `name`, its `runs`
    (`name`, `method`, `settings`, `seed`, `state`, then `validation_accuracy`
    and `validation_loss` of the best epoch or the `error`), and `chosen`, by
    method the settings that did best.

  Raises:
    ValueError: the configuration makes no sense or is not that of the runs in
      the directory, or a stage leaves the next nothing to choose from.
    FileNotFoundError: data or teacher are not where the configuration says.
    FloatingPointError: the teacher diverged.
    BlockingIOError: another process runs it, or trains its teacher.
  """
  workdir = atomic.local(workdir)
  if 'stages' not in config:
    raise ValueError(
      'this is the configuration of a run, not of a sweep (configs/sweep.py is '
      'one): give it to kdjax.main'
    )
  if not config.stages:
    raise ValueError('config.stages is empty: a sweep needs at least one stage')
  atomic.check_name(workdir)
  # All that can be known to be wrong, before the first run.
  planned = [plan.runs(config, stage, {}) for stage in config.stages]
  with lock.hold(workdir, 'the sweep', [_SUMMARY]):
    return _run_stages(config, workdir, sum(map(len, planned)))


def _run_stages(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, total: int
) -> dict[str, Any]:
  session = Session()
  records: dict[str, dict[str, Any]] = {}
  chosen: dict[str, Settings] = {}
  stages: list[dict[str, Any]] = []
  with SweepLog(total) as log:
    for stage in config.stages:
      runs = [
        one._replace(
          config=setup.complete(one.config, workdir / one.name, session)
        )
        for one in plan.runs(config, stage, chosen)
      ]
      for one in runs:
        run_directory.check_same_run(workdir / one.name, one.config)
      stages.append({'name': stage['name'], 'runs': [], 'chosen': {}})
      _prepare_teacher(runs, workdir, session)
      _share_logits(runs, workdir, session)
      for one in runs:
        record = records.get(one.name) or _recorded(one, workdir / one.name)
        if record:
          log.skip()
        else:
          with log.run(one.name):
            record = _run(one, workdir / one.name, session)
        records[one.name] = record
        stages[-1]['runs'].append(record)
        _write(workdir, stages)
      best = _choose(stages[-1]['runs'])
      missing = {one.method for one in runs} - best.keys()
      if missing and stage is not config.stages[-1]:
        raise ValueError(
          f"of the stage '{stage['name']}' no setting of {', '.join(missing)} "
          'finished with a validation accuracy: there is nothing to choose for '
          'the next stage'
        )
      stages[-1]['chosen'] = best
      chosen |= best
      _write(workdir, stages)
  return {'stages': stages}


def _write(workdir: pathlib.Path, stages: Sequence[Mapping[str, Any]]) -> None:
  devices.run_on_first(
    lambda: run_directory.write_json(workdir / _SUMMARY, {'stages': stages})
  )


def table(summary: Mapping[str, Any]) -> str:
  """Formats the runs of each stage for a terminal: what became of them.

  Accuracies are those on the validation split: the test split is for the
  report.

  Args:
    summary: as `run` returns it.
  """
  lines = [('stage', 'run', 'validation accuracy', '')]
  for stage in summary['stages']:
    for record in stage['runs']:
      method, settings = record['method'], record['settings']
      accuracy = record.get('validation_accuracy')
      remark = '' if record['state'] == _FINISHED else record['state']
      if stage['chosen'].get(method) == settings and any(
        other['method'] == method and other['settings'] != settings
        for other in stage['runs']
      ):
        remark = 'chosen'
      shown = '-' if accuracy is None else f'{accuracy:.2%}'
      lines.append((stage['name'], record['name'], shown, remark))
  return tables.align(lines, left=2)


def confirming(summary: Mapping[str, Any]) -> list[str]:
  """Lists the runs that confirm what was chosen: with seeds of their own.

  A comparison of settings with the seeds that they were chosen with is
  optimistic.

  Args:
    summary: as `run` returns it.

  Returns:
    Names of the runs of the last stage, if no stage before it has one of its
    seeds; else none.
  """
  *choosing, last = summary['stages']
  used = {record['seed'] for stage in choosing for record in stage['runs']}
  if not used or used & {record['seed'] for record in last['runs']}:
    return []
  return [record['name'] for record in last['runs']]


def _describe(one: Run) -> dict[str, Any]:
  settings = {'method': one.method, 'settings': one.settings}
  return {'name': one.name, **settings, 'seed': one.config.seed}


def _recorded(one: Run, workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record of a run that is done; None of one that is not."""
  record = _describe(one)
  if result := run_directory.read_result(workdir):
    return record | {
      'state': _FINISHED,
      'validation_accuracy': result['best']['validation_accuracy'],
      'validation_loss': result['best'].get('validation_loss'),
    }
  step = metrics_log.diverged_at(metrics_log.read_records(workdir))
  # With 'skip' it may go on where it was stopped.
  if step is not None and one.config.train.nonfinite == 'stop':
    error = f'no finite loss or gradient at step {step}'
    return record | {'state': _DIVERGED, 'error': error}
  return None


def _run(one: Run, workdir: pathlib.Path, session: Session) -> dict[str, Any]:
  """Makes a run; what goes wrong in it is recorded."""
  error: Exception | None = None
  try:
    train.train_and_evaluate(one.config, workdir, session)
  except Exception as caught:
    # Of several processes the others may know nothing of it, and wait. That a
    # run diverged, all know.
    if jax.process_count() > 1 and not isinstance(caught, FloatingPointError):
      raise
    error = caught
  record = _recorded(one, workdir)
  if record is None:
    diverged = isinstance(error, FloatingPointError)
    state = _DIVERGED if diverged else _FAILED
    record = _describe(one) | {'state': state, 'error': repr(error)}
  if error:
    logger.warning('%s %s: %s', one.name, record['state'], error)
    logger.debug('', exc_info=error)
  return record


def _choose(records: Sequence[Mapping[str, Any]]) -> dict[str, Settings]:
  """Returns the settings of each method that do best on validation.

  Settings with a run that did not finish are never chosen.
  """
  candidates: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for record in records:
    key = record['method'], json.dumps(record['settings'], sort_keys=True)
    candidates.setdefault(key, []).append(record)
  best: dict[str, tuple[float, float]] = {}
  chosen = {}
  for (method, _), runs in candidates.items():
    score = metrics.validation_score(runs)
    if score and (method not in best or score > best[method]):
      best[method], chosen[method] = score, runs[0]['settings']
  return chosen


def _prepare_teacher(
  runs: Sequence[Run], workdir: pathlib.Path, session: Session
) -> None:
  """Trains the teacher that the runs share, if it is not there yet."""
  for one in runs:
    method, _ = config_lib.build_method(one.config)
    if method.needs_teacher and not run_directory.read_result(
      workdir / one.name
    ):
      train.prepare_teacher(one.config, workdir / one.name, session)
      return


def _share_logits(
  runs: Sequence[Run], workdir: pathlib.Path, session: Session
) -> None:
  """Shares the teacher's logits between runs that show it the same images.

  Where at least two are to be made, or one is to be continued that shares
  them, and there is room to keep them; in one process only.
  """
  if jax.process_count() > 1:
    return
  sharing: dict[pathlib.Path, list[Run]] = defaultdict(list)
  for one in runs:
    if _can_share(one, workdir):
      sharing[workdir / _REPLAY / _images_shown(one.config)].append(one)
  free = shutil.disk_usage(workdir).free
  planned = 0
  for directory, sharers in sharing.items():
    if len(sharers) < 2 and not directory.exists():
      continue
    size = _size_of_logits(sharers, session)
    if planned + size > free / 2:
      logger.warning(
        'the teacher computes its logits in every run: to keep them would take '
        '%.1f GB, and %.1f are free',
        size / 1e9,
        free / 1e9,
      )
      continue
    logger.info(
      "%d runs share the teacher's logits in %s (%.1f MB)",
      len(sharers),
      directory,
      size / 1e6,
    )
    planned += size
    for one in sharers:
      one.config.teacher.replay = str(directory)


def _can_share(one: Run, workdir: pathlib.Path) -> bool:
  """Whether a run is still to be made and needs only its teacher's logits."""
  method, _ = config_lib.build_method(one.config)
  return bool(
    method.needs_teacher
    and not method.teacher_features
    and not one.config.teacher.replay
    and not config_lib.has_logits(one.config)
    and not run_directory.read_result(workdir / one.name)
  )


def _images_shown(config: ml_collections.ConfigDict) -> str:
  """Names what decides which images a teacher is shown, and which teacher."""
  settings = run_directory.as_json(config)
  decisive = json.dumps(
    [
      settings['data'],
      settings['train']['batch_size'],
      settings['student']['dtype'],
      settings['teacher'],
    ]
  )
  digest = hashlib.sha256(decisive.encode()).hexdigest()
  return f'seed{config.seed}-{digest[:8]}'


def _size_of_logits(runs: Sequence[Run], session: Session) -> int:
  """Returns the bytes of the logits of the longest of some runs, in float32."""
  config = runs[0].config
  dataset = session.dataset(config.data)
  steps = max(plan_lib.plan(one.config, dataset).total_steps for one in runs)
  return 4 * steps * config.train.batch_size * len(dataset.class_names)
