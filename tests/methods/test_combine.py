"""The sum of several methods."""

import jax
import numpy as np
import pytest

from kdjax import losses, methods, testing

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def test_one_cross_entropy_and_the_weighted_terms_of_all():
  method, values = methods.build(
    'combine', {'ce_weight': 0.5, 'kd_weight': 2.0, 'kd_temperature': 3.0}
  )
  assert values == {
    'ce_weight': 0.5,
    'kd_weight': 2.0,
    'kd_temperature': 3.0,
    'at_weight': methods.defaults('at')['weight'],
  }
  variables, batch = testing.make_problem(method)
  batch = batch._replace(hyperparameters=values)
  found = jax.jit(method.loss)(variables, batch)
  student, teacher = batch.student, batch.teacher
  expected = (
    0.5 * losses.cross_entropy(student.logits, batch.labels)
    + 2.0 * losses.kd(student.logits, teacher.logits, 3.0)
    + values['at_weight']
    * losses.at(
      [student.features[stage] for stage in STAGES],
      [teacher.features[stage] for stage in STAGES],
    )
  )
  np.testing.assert_allclose(found.per_example, expected, rtol=1e-5)
  assert {'cross_entropy', 'kd', 'at'} <= found.metrics.keys()


def test_it_asks_for_what_its_methods_ask_for():
  method, values = methods.build(
    'combine', {'methods': ('dkd', 'sp', 'crd'), 'crd_weight': 0.1}
  )
  assert method.labels == 'class'
  assert method.batch_level
  assert method.student_features == ('stage4',)
  assert values['crd_weight'] == 0.1
  assert 'dkd_beta' in values


def test_the_memory_of_a_method_is_kept():
  method, _ = methods.build('combine', {'methods': ('kd', 'crd')})
  variables, batch = testing.make_problem(method)
  result = jax.jit(method.loss)(variables, batch)
  before, after = variables.state['crd'], result.state['crd']
  assert not np.array_equal(before.student, after.student)
  assert result.state.keys() == variables.state.keys()


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (('kd', 'mlkd'), 'mlkd, which has 2 views'),
    (('kd', 'response'), 'response, which has no ce_weight'),
    (('kd', 'ema_teacher'), "of the kinds \\['ema', 'frozen'\\]"),
    (('kd', 'nonsense'), "unknown method 'nonsense'"),
    ((), 'expected one method or more'),
  ],
)
def test_methods_that_cannot_be_added_are_refused(names, message):
  with pytest.raises(ValueError, match=message):
    methods.build('combine', {'methods': names})
