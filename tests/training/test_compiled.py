"""Many steps per dispatch give what single steps give."""

import pathlib
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

from kdjax import config as config_lib
from kdjax import data, models
from kdjax.models import features
from kdjax.storage import checkpoint, metrics_log
from kdjax.system import target
from kdjax.training import compiled, setup, shared, train
from kdjax.training import plan as plan_lib


def small(**changes):
  config = tiny.config()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def program_of(config):
  run = setup.resolve(config, pathlib.Path('run'), shared.Session())
  return compiled.Program(run)


def train_records(workdir):
  timings = ('images_per_second', 'seconds_left')
  return [
    {name: value for name, value in record.items() if name not in timings}
    for record in metrics_log.read_records(workdir)
  ]


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  root = tmp_path_factory.mktemp('single')
  config = small(**{'log.every_steps': 2})
  train.train_and_evaluate(config, root / 'feature')
  return root


@pytest.mark.parametrize('steps', [3, 5])
def test_many_steps_per_dispatch_change_no_result(single, tmp_path, steps):
  config = small(
    **{
      'log.every_steps': 2,
      'device.steps_per_dispatch': steps,
      'teacher.path': str(single / 'teacher'),
    }
  )
  train.train_and_evaluate(config, tmp_path)
  found, expected = (
    train_records(path) for path in (tmp_path, single / 'feature')
  )
  assert len(found) == len(expected)
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      if isinstance(value, float):
        assert ours[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
      else:
        assert ours[name] == value
  ours, theirs = (
    checkpoint.restore(path, 'last').variables
    for path in (tmp_path, single / 'feature')
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-3 * np.abs(b).max())


def test_work_beside_the_device_changes_no_result(
  single, tmp_path, monkeypatch
):
  plan = plan_lib.plan
  monkeypatch.setattr(
    plan_lib, 'plan', lambda *args: plan(*args)._replace(overlap=True)
  )
  config = small(
    **{'log.every_steps': 2, 'teacher.path': str(single / 'teacher')}
  )
  train.train_and_evaluate(config, tmp_path)
  assert train_records(tmp_path) == train_records(single / 'feature')
  for which in ('best', 'last'):
    ours, theirs = (
      checkpoint.restore(path, which).variables
      for path in (tmp_path, single / 'feature')
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
  ('size', 'batch', 'epochs', 'max_steps', 'dispatch', 'expected'),
  [
    # 12 steps per epoch: 6 is the largest divisor.
    (120, 10, 2, 0, 8, [6, 6, 6, 6]),
    # 13 steps: no divisor that is worth it.
    (130, 10, 1, 0, 8, [8, 5]),
    (120, 10, 2, 16, 8, [6, 6, 4]),
    (120, 10, 1, 0, 1, [1] * 12),
    (120, 10, 1, 0, 100, [12]),
  ],
)
def test_a_dispatch_stays_within_an_epoch_and_the_run(
  size, batch, epochs, max_steps, dispatch, expected
):
  config = small(
    **{
      'data.train_limit': size,
      'train.batch_size': batch,
      'train.epochs': epochs,
      'train.max_steps': max_steps,
      'device.steps_per_dispatch': dispatch,
    }
  )
  plan = plan_lib.plan(config, data.load(config.data))
  found, done = [], 0
  while done < plan.total_steps:
    found.append(plan.next_dispatch(done))
    done += found[-1]
  assert found == expected


def test_parts_that_do_not_divide_a_batch_are_refused():
  config = small(**{'train.accumulate': 5})
  with pytest.raises(ValueError, match=r'is 32, .* 5 equal parts .*accumulate'):
    plan_lib.plan(config, data.load(config.data))


@pytest.mark.parametrize(
  ('platform', 'batch', 'chips', 'accumulate', 'warning'),
  [
    ('tpu', 128, 1, 1, None),
    (
      'tpu',
      126,
      1,
      1,
      'is 126, of which a TPU chip has 126 .* multiple of 128',
    ),
    ('tpu', 128, 2, 1, 'is 128, of which a TPU chip has 64 .* multiple of 256'),
    ('tpu', 128, 1, 2, 'is 128, of which a TPU chip has 64 .* multiple of 256'),
    ('cuda', 32, 2, 1, None),
  ],
)
def test_small_batches_on_a_tpu_are_a_warning(
  caplog, platform, batch, chips, accumulate, warning
):
  config = small(**{'train.batch_size': batch, 'train.accumulate': accumulate})
  dataset = data.load(config.data)
  with target.compile_for(target.Target(platform, (jax.devices()[0],) * chips)):
    plan_lib.plan(config, dataset)
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == (warning is not None)
  if warning:
    assert re.search(warning, messages[0])


def check_batch_norm(**changes):
  config = small(**changes)
  dataset = data.load(config.data)
  model = models.build(**config_lib.model_arguments(config, 10))
  plan_lib.check_batch_norm(config, dataset, model)


def test_batch_norm_of_one_value_is_refused(caplog):
  with pytest.raises(ValueError, match='sees 1 value per channel') as error:
    check_batch_norm(**{'train.batch_size': 1, 'student.stem': 'imagenet'})
  assert 'BatchNorm stage' in str(error.value)
  assert "config.student.stem='cifar'" in str(error.value)
  with pytest.raises(ValueError, match=r'32 images, in 32 parts of 1') as error:
    check_batch_norm(**{'train.accumulate': 32})
  assert 'stem' not in str(error.value)
  assert not caplog.records
  check_batch_norm(**{'train.accumulate': 16})
  assert 'sees 2 values per channel' in caplog.text


class Norms(nn.Module):
  """BatchNorm of vectors, of maps, and one that does not look at the batch."""

  @nn.compact
  def __call__(self, images, train):
    x = nn.BatchNorm(name='maps')(images, use_running_average=not train)
    x = nn.Dropout(0.5)(x, deterministic=not train).mean((1, 2))
    norm = nn.BatchNorm(use_running_average=not train, name='vectors')
    frozen = nn.BatchNorm(use_running_average=True, name='frozen')
    return frozen(norm(x) + norm(nn.LayerNorm()(x)))


def test_values_of_any_batch_norm_are_counted():
  images = jax.ShapeDtypeStruct((3, 4, 5, 2), np.float32)
  assert features.batch_norm_values(Norms(), images) == {
    'maps': 60,
    'vectors': 3,
  }


def test_batch_norm_of_a_teacher_is_checked_before_it_is_trained(tmp_path):
  config = small(**{'teacher.train.batch_size': 1})
  with pytest.raises(ValueError, match=r'BatchNorm .* 1 value .*config\.teach'):
    train.train_and_evaluate(config, tmp_path / 'feature')
  assert not (tmp_path / 'feature').exists()


def test_on_cpu_a_dispatch_is_one_step():
  config = small()
  plan = plan_lib.plan(config, data.load(config.data))
  if jax.default_backend() == 'cpu':
    assert (plan.steps_per_dispatch, plan.overlap) == (1, False)
  else:
    assert plan.steps_per_dispatch > 1
    assert plan.overlap


def test_operations_of_a_step_are_counted_once_for_any_dispatch():
  counted = []
  for steps in (1, 5):
    config = small(
      **{'device.steps_per_dispatch': steps, 'method.name': 'scratch'}
    )
    run = program_of(config)
    state = run.create_state()
    run.compile(state)
    counted.append(run.flops_per_step(state))
  assert counted[0] > 1e6
  assert counted[1] == pytest.approx(counted[0], rel=0.5)


def test_operations_of_every_part_of_a_batch_are_counted():
  counted = []
  for parts in (1, 4):
    config = small(**{'train.accumulate': parts, 'method.name': 'scratch'})
    run = program_of(config)
    counted.append(run.flops_per_step(run.state_shapes()))
  assert counted[1] == pytest.approx(counted[0], rel=0.1)


def test_only_equal_settings_share_a_program(tmp_path):
  """A field that nobody thought of decides as well."""
  session = shared.Session()

  def shares(**changes):
    program = session.program(
      setup.resolve(
        small(**{'method.name': 'scratch', 'train.new': 1} | changes),
        tmp_path,
        session,
      )
    )
    return program._compiled

  first = shares()
  assert shares() is first
  # Arguments of the program, and paths.
  assert shares(seed=1) is first
  assert shares(**{'teacher.path': 'elsewhere', 'data.data_dir': 'x'}) is first
  assert shares(**{'train.new': 2}) is not first


def test_hyperparameters_share_a_program_and_options_do_not(tmp_path):
  session = shared.Session()

  def key(**changes):
    return setup.resolve(small(**changes), tmp_path, session).program_key()

  method = {'method.name': 'response'}
  assert key(**method) == key(**method, **{'method.response.temperature': 2.0})
  method = {'method.name': 'feature'}
  assert key(**method) != key(**method, **{'method.feature.reduction': 'sum'})
