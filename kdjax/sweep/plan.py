"""Which runs a sweep consists of.

A sweep is a sequence of stages. Each trains a set of settings, once per seed,
and what does best on the validation split goes into the stages after it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import ml_collections
import numpy as np

from kdjax import config as config_lib
from kdjax.system import float32

Settings = dict[str, Any]

_METHOD = 'method.name'
_SEED = 'seed'
# Far more than anyone can wait for, and few enough to list.
_MOST_SAMPLES = 100_000


class Run(NamedTuple):
  """One run of a sweep."""

  name: str  # Of its directory; runs of one name are one run.
  method: str
  settings: Settings  # What the sweep sets in it, but for method and seed.
  config: ml_collections.ConfigDict


def default() -> ml_collections.ConfigDict:
  """Returns a new configuration that sweeps start from.

  `run` is that of the runs as in `kdjax.config.default`, with one checkpoint
  kept beside the best; `seeds`, what every setting is trained with; and
  `stages`, each made by `stage`.
  """
  run = config_lib.default()
  # There are many of them, and each checkpoint is about 80 MB.
  run.checkpoint.keep = 1
  return ml_collections.ConfigDict(
    {'run': run, 'seeds': (0,), 'stages': ()}
  ).lock()


class Trials(TypedDict, total=False):
  """What a stage tries. Fields are those of a run's configuration.

  Attributes:
    grid: values by field, such as `{'method.response.alpha': (0.1, 0.5)}`; all
      combinations are tried.
    random: by field, `(low, high)` to draw from uniformly, whole numbers if
      both are, or `(low, high, 'log')` to draw the logarithm uniformly.
    samples: number of settings to draw, each tried with the whole grid.
    fixed: values by field that all runs of the stage have.
    seeds: what every setting is trained with, if not with those of the sweep.
  """

  grid: Mapping[str, Sequence[Any]] | None
  random: Mapping[str, tuple[Any, ...]] | None
  samples: int
  fixed: Mapping[str, Any] | None
  seeds: Sequence[int] | None


def stage(name: str, **trials: Unpack[Trials]) -> dict[str, Any]:
  """Describes a stage of a sweep.

  Args:
    name: what the sweep calls it.
    **trials: what it tries, see `Trials`.

  Returns:
    A description for `config.stages`.

  Raises:
    TypeError: a keyword is none of `Trials`.
    ValueError: a field has no values, there are bounds and no samples or the
      reverse, or `seed` is among the fields.
  """
  if unknown := trials.keys() - Trials.__annotations__.keys():
    raise TypeError(
      f"the stage '{name}' has {', '.join(sorted(unknown))}: expected "
      f'{", ".join(Trials.__annotations__)}'
    )
  grid, random = trials.get('grid') or {}, trials.get('random') or {}
  fixed = trials.get('fixed') or {}
  samples, seeds = trials.get('samples', 0), trials.get('seeds')
  for field, values in {**grid, **random}.items():
    if not len(values):
      raise ValueError(f"the stage '{name}' has no values for {field}")
  if samples > _MOST_SAMPLES:
    raise ValueError(
      f"the stage '{name}' draws {samples:,} samples: expected at most "
      f'{_MOST_SAMPLES:,}'
    )
  if bool(random) != (samples > 0):
    raise ValueError(
      f"the stage '{name}' draws {samples} samples of {len(random)} "
      'fields: give both `random` and `samples`, or neither'
    )
  if _SEED in {**grid, **random, **fixed}:
    raise ValueError(f"the stage '{name}' sets seed: give it as `seeds`")
  return {
    'name': name,
    'grid': {field: tuple(values) for field, values in grid.items()},
    'random': {field: tuple(bounds) for field, bounds in random.items()},
    'samples': samples,
    'fixed': dict(fixed),
    'seeds': None if seeds is None else tuple(seeds),
  }


def comparison(
  methods: Sequence[str] = ('scratch', 'response', 'feature'),
  seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Describes the stage that compares methods, with the recipe of `run`.

  Args:
    methods: their names.
    seeds: what each is trained with, if not with those of the sweep.
  """
  return stage('comparison', grid={_METHOD: methods}, seeds=seeds)


def tuning(
  temperatures: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
  alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
) -> tuple[dict[str, Any], ...]:
  """Describes the published tuning of T and α of the method `response`.

  Args:
    temperatures: values of T, tried at the first α.
    alphas: values of α, tried at the best T.

  Returns:
    Two stages; with the published values, T from 1 to 10 at α = 0.1, then α
    from 0.1 to 1 at the best T.
  """
  fixed = {_METHOD: 'response'}
  temperature = 'method.response.temperature'
  alpha = 'method.response.alpha'
  return (
    stage(
      'temperature',
      grid={temperature: [float(value) for value in temperatures]},
      fixed={**fixed, alpha: float(alphas[0])},
    ),
    stage('alpha', grid={alpha: list(map(float, alphas))}, fixed=fixed),
  )


def runs(
  config: ml_collections.ConfigDict,
  stage: Mapping[str, Any],
  chosen: Mapping[str, Settings],
) -> list[Run]:
  """Lists the runs of a stage.

  Args:
    config: configuration of the sweep.
    stage: one of its stages.
    chosen: for each method, the settings that the stages before have chosen.

  Returns:
    The runs, each once. Those of one setting follow each other.

  Raises:
    ValueError: a field is unknown or no method of the stage has it, or a value
      is none for it or out of range; the message names it.
  """
  found: dict[str, Run] = {}
  seeds = config.seeds if stage['seeds'] is None else stage['seeds']
  for drawn in _settings(stage):
    own = {**stage['fixed'], **drawn}
    method = own.pop(_METHOD, config.run.method.name)
    # What other methods are set to makes no other run of this one.
    settings = {
      field: value
      for field, value in (chosen.get(method, {}) | own).items()
      if _method_of(field) in (None, method)
    }
    for seed in seeds:
      run = _make(config, method, settings, seed)
      found.setdefault(run.name, run)
  methods = {run.method for run in found.values()}
  for field in _fields(stage):
    if _method_of(field) not in (None, *methods):
      raise ValueError(
        f"the stage '{stage['name']}' sets {field}, and trains "
        f'{", ".join(sorted(methods))} only: set {_METHOD} too'
      )
  return list(found.values())


def _fields(stage: Mapping[str, Any]) -> list[str]:
  """Lists the fields that a stage sets."""
  return [*stage['grid'], *stage['random'], *stage['fixed']]


def _method_of(field: str) -> str | None:
  """Returns the method that a field is a setting of; None if of none."""
  section, _, setting = field.partition('.')
  if section != 'method' or field == _METHOD:
    return None
  return setting.partition('.')[0]


def _settings(stage: Mapping[str, Any]) -> Iterator[Settings]:
  """Yields the settings of a stage, but for what is fixed."""
  draws: list[Settings] = [{}]
  if stage['random']:
    # A stream of its own for each field: another field changes no draw of it.
    streams = {
      field: np.random.default_rng(list(field.encode()))
      for field in stage['random']
    }
    draws = [
      {
        field: _draw(streams[field], field, *bounds)
        for field, bounds in stage['random'].items()
      }
      for _ in range(stage['samples'])
    ]
  for values in itertools.product(*stage['grid'].values()):
    for drawn in draws:
      yield dict(zip(stage['grid'], values, strict=True)) | drawn


def _draw(
  generator: np.random.Generator,
  field: str,
  low: float,
  high: float,
  scale: str = 'linear',
) -> float:
  if (
    scale not in ('linear', 'log')
    or not (float32.holds(low) and float32.holds(high))
    or low > high
    or (scale == 'log' and low <= 0)
  ):
    raise ValueError(
      f'{field} is drawn from ({low!r}, {high!r}, {scale!r}): expected '
      "(low, high), finite numbers, or (low, high, 'log') with low above 0"
    )
  if scale == 'log':
    value = math.exp(generator.uniform(math.log(low), math.log(high)))
  elif isinstance(low, int) and isinstance(high, int):
    return int(generator.integers(low, high, endpoint=True))
  else:
    value = generator.uniform(low, high)
  # As many digits as the name of a run shows.
  return min(max(float(f'{value:.4g}'), low), high)


def _make(
  config: ml_collections.ConfigDict, method: str, settings: Settings, seed: int
) -> Run:
  run = config.run.copy_and_resolve_references()
  for field, value in {_METHOD: method, _SEED: seed, **settings}.items():
    try:
      run.update_from_flattened_dict({field: value})
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(
        f'a stage sets config.{field} to {value!r}: {error}'
      ) from error
  run = config_lib.normalize(run)
  config_lib.validate(run)
  fields = {field for stage in config.stages for field in _fields(stage)}
  shown = config_lib.short_names(sorted(fields))
  parts = [
    method,
    *(f'{shown[field]}{_show(settings[field])}' for field in sorted(settings)),
    f'seed{seed}',
  ]
  return Run('-'.join(parts), method, settings, run)


def _show(value: Any) -> str:
  if isinstance(value, float):
    short = f'{value:g}'
    return short if float(short) == value else repr(value)
  if isinstance(value, tuple | list):
    return '+'.join(map(_show, value))
  return str(value).replace('/', '_')
