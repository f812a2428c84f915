"""The baseline: the same training in PyTorch, by tests/benchmarks."""

import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import ml_collections

from kdjax import config as config_lib
from kdjax import methods
from kdjax.benchmark import workers

VARIANTS = ('eager', 'compile')

WORKER = (
  pathlib.Path(__file__).resolve().parents[2]
  / 'tests/benchmarks/pytorch_worker.py'
)
_METHODS = ('scratch', 'response', 'feature')


def check(python: str, runs: Mapping[str, ml_collections.ConfigDict]) -> None:
  """Checks that PyTorch can run the same, before anything slow starts.

  Args:
    python: the interpreter that should have PyTorch.
    runs: configuration of each mode's run.

  Raises:
    OSError: the worker or PyTorch is not there.
    ValueError: the worker does not know a network or a method.
  """
  networks = _networks(python)
  for mode, run in runs.items():
    _check_run(mode, run, networks)


def _networks(python: str) -> list[str]:
  """Asks the worker which networks it knows."""
  if not WORKER.exists():
    raise FileNotFoundError(
      f'--baseline needs a checkout of kdjax: there is no {WORKER}'
    )
  try:
    # Without an argument it only says what it knows.
    done = subprocess.run(
      [python, WORKER], capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    reason = str(error)
    if isinstance(error, subprocess.CalledProcessError):
      reason = workers.last_lines(error.stderr, 1)
    raise FileNotFoundError(
      f'--baseline needs PyTorch, and {python} cannot run it ({reason}). Name '
      'an interpreter that can with --baseline_python=PATH'
    ) from error
  return json.loads(done.stdout)['networks']


def _check_run(
  mode: str, run: ml_collections.ConfigDict, known: list[str]
) -> None:
  method = run.method.name
  if method not in _METHODS:
    raise ValueError(
      f'--baseline knows no method {method!r}: leave it out of --modes'
    )
  names = [run.student.name]
  if method != 'scratch':
    names.append(config_lib.teacher_run(run).student.name)
  for name in names:
    if name not in known:
      raise ValueError(
        f'--baseline knows no network {name!r}, which mode {mode} has: '
        f'expected one of {", ".join(known)}'
      )
  if method == 'feature':
    settings, default = run.method.feature, methods.defaults(method)
    for field in ('student_features', 'teacher_features'):
      if tuple(settings[field]) != default[field]:
        raise ValueError(
          f'--baseline pairs {", ".join(default[field])} only, and '
          f'config.method.feature.{field} is {tuple(settings[field])}'
        )


def spec(
  config: ml_collections.ConfigDict, variant: str, ready: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the argument of the worker.

  Args:
    config: configuration of a mode's run.
    variant: one of `VARIANTS`.
    ready: the first line of kdjax's worker, which describes the data.
  """
  method = config.method.name
  teacher = config_lib.teacher_run(config).student.to_dict()
  return {
    'variant': variant,
    'method': method,
    'settings': config.method[method].to_dict(),
    'student': config.student.to_dict(),
    'teacher': teacher if method != 'scratch' else None,
    'train': json.loads(config.train.to_json()),
    'crop_padding': config.data.crop_padding,
    'flip': config.data.flip,
    **{key: ready[key] for key in ('image_shape', 'num_classes', 'train_size')},
  }
