"""What Weights & Biases and MLflow are sent, with stand-ins and for real."""

import importlib.machinery
import math
import sys
import types

import pytest
import tiny

from kdjax.training import setup, trackers
from kdjax.training.run_log import RunLog
from kdjax.training.shared import Session

LINE = {'loss': 1.0, 'accuracy': 0.5, 'mse/a->../b\n': math.nan}


class FakeRun:
  """A run of Weights & Biases, which notes all that it is told."""

  def __init__(self, **options):
    self.options, self.lines, self.exit_code = options, [], None

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ('*', 'step')

  def log(self, line):
    self.lines.append(line)

  def finish(self, exit_code):
    self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
  """The runs that a module in the place of wandb was asked for."""
  runs = []
  module = types.ModuleType('wandb')
  module.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
  module.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return runs


def config(*names):
  config = tiny.config('response')
  config.log.trackers = names
  return config


def log(workdir, start, steps, config):
  with RunLog(
    workdir,
    start_step=start,
    total_steps=9,
    tensorboard=False,
    trackers=trackers.start(workdir, config),
  ) as opened:
    for step in steps:
      opened.write('train', step, LINE, images_per_second=2.0)


def test_a_run_that_goes_on_has_the_same_id(wandb, tmp_path):
  workdir = tmp_path / 'sweep' / 'run'
  workdir.mkdir(parents=True)
  log(workdir, 0, (1, 2), config('wandb'))
  log(workdir, 1, (2, 3), config('wandb'))
  first, second = wandb
  assert first.options['id'] == second.options['id']
  assert (workdir / 'wandb_id').read_text() == first.options['id']
  assert first.options['resume'] == 'allow'
  assert first.options['dir'] == workdir
  names = [first.options[key] for key in ('project', 'group', 'name')]
  assert names == ['kdjax', 'sweep', 'run']
  settings = first.options['config']
  assert settings['method.response.temperature'] == 4.0
  assert 'method.feature.ce_weight' not in settings
  assert [line['step'] for line in second.lines] == [2, 3]
  line = first.lines[0]
  assert math.isnan(line.pop('train/mse/a->../b\\n'))
  assert line == {
    'step': 1,
    'train/loss': 1.0,
    'train/accuracy': 0.5,
    'train/images_per_second': 2.0,
  }
  assert first.exit_code == 0


def test_a_tracker_that_comes_later_gets_all_lines(wandb, tmp_path):
  log(tmp_path, 0, (1, 2), config())
  log(tmp_path, 2, (3,), config('wandb'))
  assert [line['step'] for line in wandb[0].lines] == [1, 2, 3]


def test_a_tracker_that_fails_does_not_end_the_run(
  wandb, tmp_path, caplog, monkeypatch
):
  def fail(self, line):
    raise TimeoutError('no answer')

  monkeypatch.setattr(FakeRun, 'log', fail)
  log(tmp_path, 0, (1, 2), config('wandb'))
  (record,) = caplog.records
  assert record.getMessage() == (
    'wandb is given no more metrics, they are in metrics.jsonl: no answer'
  )


def test_an_error_of_the_run_is_told(wandb, tmp_path):
  def stop():
    with RunLog(
      tmp_path,
      start_step=0,
      total_steps=9,
      tensorboard=False,
      trackers=trackers.start(tmp_path, config('wandb')),
    ):
      raise FloatingPointError

  with pytest.raises(FloatingPointError):
    stop()
  assert wandb[0].exit_code == 1


def test_a_tracker_that_cannot_start_says_so(wandb, tmp_path, monkeypatch):
  def refuse(**options):
    raise PermissionError('no API key')

  monkeypatch.setattr(sys.modules['wandb'], 'init', refuse)
  with pytest.raises(RuntimeError, match=r'wandb cannot start .*: no API key'):
    trackers.start(tmp_path, config('wandb'))


def test_a_tracker_that_is_not_installed_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  trackers.check(())
  with pytest.raises(ValueError, match=r"pip install 'kdjax\[mlflow\]'"):
    trackers.check(('mlflow',))
  # Before the teacher is trained, for hours perhaps.
  with pytest.raises(ValueError, match='mlflow, which is not installed'):
    setup.resolve(config('mlflow'), tmp_path, Session())


def test_the_result_is_sent(wandb, tmp_path):
  result = {
    'best': {'step': 2, 'test': {'accuracy': 0.9}},
    'last': {'step': 3, 'test': {'accuracy': 0.8}},
  }
  trackers.write_result(tmp_path, config('wandb'), result)
  assert wandb[0].lines == [
    {'step': 2, 'test/accuracy': 0.9},
    {'step': 3, 'test_last/accuracy': 0.8},
  ]


@pytest.mark.filterwarnings('ignore')
def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow', reason='the extra mlflow')
  pytest.importorskip('sqlalchemy', reason='the store of MLflow')
  monkeypatch.chdir(tmp_path)
  before = mlflow.get_tracking_uri()
  mlflow.set_tracking_uri(f'sqlite:///{tmp_path}/mlflow.db')
  try:
    log(tmp_path, 0, (1, 2), config('mlflow'))
    log(tmp_path, 2, (3,), config('mlflow'))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name('kdjax')
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, 'train/loss')
  finally:
    mlflow.set_tracking_uri(before)
  assert [(metric.step, metric.value) for metric in history] == [
    (1, 1.0),
    (2, 1.0),
    (3, 1.0),
  ]
  assert run.info.status == 'FINISHED'
  assert run.info.run_id == (tmp_path / 'mlflow_id').read_text()
  assert run.data.params['method.response.temperature'] == '4.0'
  assert math.isnan(run.data.metrics['train/mse_a-____b_n'])


@pytest.mark.filterwarnings('ignore')
def test_wandb_keeps_all_of_it_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb', reason='the extra wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  log(tmp_path, 0, (1, 2), config('wandb'))
  log(tmp_path, 2, (3,), config('wandb'))
  run_id = (tmp_path / 'wandb_id').read_text()
  files = sorted((tmp_path / 'wandb').glob(f'offline-run-*/run-{run_id}.wandb'))
  assert len(files) == 2
  assert all(b'train/accuracy' in path.read_bytes() for path in files)
