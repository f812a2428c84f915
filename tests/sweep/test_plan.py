"""Which runs a sweep consists of."""

import re

import ml_collections
import pytest

from kdjax import sweep
from kdjax.sweep import plan

T, ALPHA = 'method.response.temperature', 'method.response.alpha'


def small(*stages, **changes):
  config = sweep.default()
  config.stages = stages
  config.update(changes)
  return config


def runs(stage, chosen=None, **changes):
  return plan.runs(small(stage, **changes), stage, chosen or {})


def test_a_comparison_is_methods_times_seeds():
  found = runs(sweep.comparison(), seeds=(0, 5))
  assert [run.name for run in found] == [
    'scratch-seed0',
    'scratch-seed5',
    'response-seed0',
    'response-seed5',
    'feature-seed0',
    'feature-seed5',
  ]
  assert [run.config.seed for run in found] == [0, 5, 0, 5, 0, 5]
  assert found[2].config.method.name == found[2].method == 'response'
  assert found[0].settings == {}


def test_the_published_tuning_is_temperatures_then_alphas():
  stages = sweep.tuning()
  config = small(*stages)
  first = plan.runs(config, stages[0], {})
  assert [run.settings for run in first] == [
    {T: float(t), ALPHA: 0.1} for t in range(1, 11)
  ]
  assert first[3].config.method.response.temperature == 4.0
  assert first[3].config.method.response.alpha == 0.1
  assert first[3].name == 'response-alpha0.1-temperature4-seed0'
  chosen = {'response': first[3].settings}
  second = plan.runs(config, stages[1], chosen)
  assert [run.settings for run in second] == [
    {T: 4.0, ALPHA: alpha / 10} for alpha in range(1, 11)
  ]
  # What both stages have is one run.
  assert second[0].name == first[3].name
  assert second[0].config.to_json() == first[3].config.to_json()


def test_a_grid_is_all_combinations_and_does_not_depend_on_other_methods():
  stage = sweep.stage(
    'grid',
    grid={
      'method.name': ('scratch', 'response'),
      T: (1.0, 2.0),
      'train.learning_rate': (0.1, 0.2),
    },
  )
  found = runs(stage)
  # Scratch has no temperature, so that it has half of the runs.
  assert [run.name for run in found] == [
    'scratch-learning_rate0.1-seed0',
    'scratch-learning_rate0.2-seed0',
    'response-temperature1-learning_rate0.1-seed0',
    'response-temperature1-learning_rate0.2-seed0',
    'response-temperature2-learning_rate0.1-seed0',
    'response-temperature2-learning_rate0.2-seed0',
  ]
  assert found[-1].config.train.learning_rate == 0.2


def test_a_random_search_draws_the_same_every_time():
  stage = sweep.stage(
    'random',
    random={
      'train.learning_rate': (1e-4, 1.0, 'log'),
      'train.momentum': (0.2, 0.4),
      'train.batch_size': (3, 5),
    },
    samples=200,
  )
  found = runs(stage)
  assert [run.settings for run in found] == [
    run.settings for run in runs(stage)
  ]
  rates = [run.config.train.learning_rate for run in found]
  momenta = [run.config.train.momentum for run in found]
  sizes = [run.config.train.batch_size for run in found]
  assert min(rates) >= 1e-4
  assert max(rates) <= 1
  # Half of the logarithms lie below the middle one, 0.01.
  assert sum(rate < 0.01 for rate in rates) == pytest.approx(100, abs=25)
  assert min(momenta) >= 0.2
  assert max(momenta) <= 0.4
  assert set(sizes) == {3, 4, 5}
  # Another field changes no draw of this one.
  alone = sweep.stage(
    'random', random={'train.momentum': (0.2, 0.4)}, samples=10
  )
  assert [run.config.train.momentum for run in runs(alone)] == momenta[:10]


def test_what_was_chosen_holds_for_its_method_only():
  stages = (
    *sweep.tuning(),
    sweep.stage('length', grid={'train.epochs': (7, 8)}),
    sweep.comparison(),
  )
  chosen = {'response': {ALPHA: 0.9}, 'scratch': {'train.epochs': 7}}
  found = {
    run.method: run for run in plan.runs(small(*stages), stages[-1], chosen)
  }
  assert found['response'].config.method.response.alpha == 0.9
  assert found['response'].config.train.epochs == 20
  assert found['scratch'].config.train.epochs == 7
  assert found['feature'].settings == {}


def test_a_stage_may_have_seeds_of_its_own():
  found = runs(sweep.comparison(('scratch',), seeds=(8, 9)), seeds=(0,))
  assert [run.config.seed for run in found] == [8, 9]


def test_names_stay_apart():
  stage = sweep.stage(
    'names',
    grid={
      'train.epochs': (1, 2),
      'teacher.train.epochs': (3,),
      'train.learning_rate': (0.1234567, 0.1234568),
      'method.feature.student_features': (('stage1', 'stage2'),),
      'method.name': ('feature',),
    },
    fixed={'method.feature.teacher_features': ('stage1', 'stage2')},
  )
  names = [run.name for run in runs(stage)]
  assert len(set(names)) == 4
  assert names[0] == (
    'feature-student_featuresstage1+stage2-teacher_featuresstage1+stage2-'
    'teacher.train.epochs3-train.epochs1-learning_rate0.1234567-seed0'
  )


@pytest.mark.parametrize(
  ('field', 'values', 'message'),
  [
    ('train.lerning_rate', (0.1,), 'sets config.train.lerning_rate to 0.1'),
    ('method.response.temperature', ('hot',), "temperature to 'hot'"),
    ('method.response.temperature', (-1.0,), 'response.temperature is -1.0'),
    ('train.epochs', (0,), 'config.train.epochs is 0'),
    ('method.name', ('nonsense',), "unknown method 'nonsense'"),
  ],
)
def test_fields_and_values_that_are_none_are_refused(field, values, message):
  stage = sweep.stage(
    'wrong', grid={field: values}, fixed={'method.name': 'response'}
  )
  with pytest.raises(ValueError, match=message):
    runs(stage)


@pytest.mark.parametrize(
  'bounds',
  [
    (2.0, 1.0),
    (0.0, 1.0, 'log'),
    (0.1, 1.0, 'cubic'),
    (0.0, float('inf')),
    ('a', 'b'),
  ],
)
def test_bounds_that_make_no_sense_are_refused(bounds):
  stage = sweep.stage('wrong', random={'train.momentum': bounds}, samples=1)
  with pytest.raises(ValueError, match=r'train\.momentum is drawn'):
    runs(stage)


def test_a_sweep_is_configured_like_a_run():
  config = small(*sweep.tuning())
  with pytest.raises(AttributeError):
    config.sedes = (1,)
  config.run.train.epochs = 3
  assert isinstance(config.run, ml_collections.ConfigDict)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'random': {'train.momentum': (0.1, 0.2)}}, 'draws 0 samples of 1 fields'),
    ({'samples': 3}, 'draws 3 samples of 0 fields'),
    (
      {'random': {'train.momentum': (0.1, 0.2)}, 'samples': 10**12},
      'draws 1,000,000,000,000 samples: expected at most 100,000',
    ),
    ({'grid': {'train.epochs': ()}}, 'has no values for train.epochs'),
    ({'grid': {'seed': (1, 2)}}, 'sets seed: give it as `seeds`'),
  ],
)
def test_stages_that_make_no_sense_are_refused(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    sweep.stage('wrong', **arguments)


@pytest.mark.parametrize('field', [ALPHA, 'method.respnse.alpha'])
def test_settings_of_no_method_that_is_trained_are_refused(field):
  stage = sweep.stage('wrong', grid={field: (0.1, 0.5)})
  with pytest.raises(ValueError, match=f'sets {field}, and trains scratch'):
    runs(stage)
