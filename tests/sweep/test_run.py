"""A real sweep on a small problem, in this process."""

import functools
import json
import pathlib
import shutil

import processes
import pytest
import synthetic
import tiny

from kdjax import sweep
from kdjax.storage import run_directory
from kdjax.sweep import plan, progress
from kdjax.sweep import run as sweep_lib
from kdjax.sweep.progress import SweepLog
from kdjax.system import lock, signals
from kdjax.training import initial_weights, train

T, ALPHA = 'method.response.temperature', 'method.response.alpha'


def small():
  """T, then α, then other seeds without a teacher: five runs of one epoch."""
  config = sweep.default()
  config.run = tiny.config()
  config.run.log.tensorboard = False
  config.run.train.epochs = 1
  config.run.teacher.train.epochs = 1
  fixed = {'method.name': 'response'}
  config.stages = (
    sweep.stage('t', grid={T: (1.0, 4.0, 8.0)}, fixed={**fixed, ALPHA: 0.1}),
    sweep.stage('alpha', grid={ALPHA: (0.1, 0.9)}, fixed=fixed),
    sweep.comparison(('scratch',), seeds=(1, 2)),
  )
  return config


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  root = tmp_path_factory.mktemp('sweep')
  # Which runs were computed with what, in their order.
  calls = []
  original = train.train_and_evaluate

  def recording(config, workdir, session=None):
    calls.append((workdir.name, config.teacher.replay))
    return original(config, workdir, session)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'train_and_evaluate', recording)
    summary = sweep_lib.run(small(), root / 'sweep')
  return root / 'sweep', summary, calls


def names(summary):
  return [[run['name'] for run in stage['runs']] for stage in summary['stages']]


def test_every_run_is_a_run_directory_of_its_own(swept):
  root, summary, calls = swept
  for stage in summary['stages']:
    for run in stage['runs']:
      assert run['state'] == 'finished'
      result = run_directory.read_result(root / run['name'])
      assert result['seed'] == run['seed']
      assert result['method'] == run['method']
      assert run['validation_accuracy'] == result['best']['validation_accuracy']
  # What two stages share is done once.
  assert len(calls) == len({name for name, _ in calls}) == 3 + 1 + 2
  assert json.loads((root / 'sweep.json').read_text()) == summary


def test_the_best_on_validation_goes_on(swept):
  _, summary, _ = swept
  temperature, alpha, comparison = summary['stages']
  best = max(
    temperature['runs'],
    key=lambda run: (run['validation_accuracy'], -run['validation_loss']),
  )
  assert temperature['chosen'] == {'response': best['settings']}
  chosen = alpha['chosen']['response']
  assert chosen[T] == best['settings'][T]
  assert all(run['settings'][T] == chosen[T] for run in alpha['runs'])
  # Which is nothing to another method.
  assert [run['settings'] for run in comparison['runs']] == [{}, {}]


def test_runs_that_see_the_same_images_share_the_teachers_logits(swept):
  root, _, calls = swept
  (kept,) = (root / 'replay').iterdir()
  assert kept.name.startswith('seed0-')
  assert calls == [
    (name, str(kept) if name.startswith('response') else '')
    for name, _ in calls
  ]


def test_logits_that_one_run_needs_are_not_kept(tmp_path, monkeypatch):
  found = {}

  def noting(config, workdir, session):
    found[workdir.name] = config.teacher.replay

  monkeypatch.setattr(train, 'train_and_evaluate', noting)
  monkeypatch.setattr(train, 'prepare_teacher', lambda *_: None)
  grid = {T: (1.0, 2.0), 'train.batch_size': (32, 16)}
  fixed = {'method.name': 'response'}
  for stage in (
    sweep.stage('one', grid={T: (1.0,)}, fixed=fixed, seeds=(0, 1)),
    sweep.stage('two', grid=grid, fixed=fixed, seeds=(2,)),
    sweep.comparison(('feature', 'scratch'), seeds=(3, 4)),
  ):
    config = small()
    config.stages = (stage,)
    sweep_lib.run(config, tmp_path)
  replays = {name: pathlib.Path(path).name for name, path in found.items()}
  shared = [name for name, path in replays.items() if path]
  assert len(shared) == 4
  assert all('-seed2' in name for name in shared)
  # Another batch size shows other images in each step.
  assert len({replays[name] for name in shared}) == 2
  for name in shared:
    twin = name.replace('temperature1', 'temperature2')
    assert replays[name] == replays[twin]


def test_a_table_shows_validation_and_what_was_chosen(swept):
  _, summary, _ = swept
  lines = sweep_lib.table(summary).splitlines()
  assert len(lines) == 2 + 3 + 2 + 2
  assert sum(line.endswith('chosen') for line in lines) == 2
  first = summary['stages'][0]['runs'][0]
  assert f'{first["validation_accuracy"]:.2%}' in lines[2]


def test_runs_that_confirm_have_seeds_that_chose_nothing(swept):
  _, summary, _ = swept
  assert sweep_lib.confirming(summary) == ['scratch-seed1', 'scratch-seed2']
  first, second, last = summary['stages']
  assert sweep_lib.confirming({'stages': [first, second]}) == []
  assert sweep_lib.confirming({'stages': [last]}) == []


def test_a_sweep_that_is_started_again_does_nothing(swept, monkeypatch):
  root, summary, _ = swept

  def never(*_, **__):
    raise AssertionError('it trains')

  monkeypatch.setattr(train, 'train_and_evaluate', never)
  assert sweep_lib.run(small(), root) == summary


command = functools.partial(processes.run, module='kdjax.sweep')


def test_the_command_ends_with_tables_and_reports(swept, tmp_path):
  root, summary, _ = swept
  file = tmp_path / 'tiny_sweep.py'
  tests = pathlib.Path(__file__).parent
  file.write_text(
    f'import sys\nsys.path[:0] = {[str(tests), str(tests.parent)]}\n'
    'from test_run import small as get_config\n'
  )
  # All of its runs are finished.
  done = command(f'--config={file}', f'--workdir={root}')
  assert done.returncode == 0, done.stderr
  assert sweep_lib.table(summary) in done.stdout
  for report in (root / 'report', root / 'report' / 'confirmation'):
    assert f'the whole report: {report / "report.html"}' in done.stdout
    assert 'scratch' in (report / 'comparison.md').read_text()
  assert 'temperature' in (root / 'report' / 'comparison.csv').read_text()
  confirmed = (root / 'report' / 'confirmation' / 'runs.csv').read_text()
  assert 'temperature' not in confirmed


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((), 'config'),
    (
      ('--config=configs/quickstart.py',),
      'error: this is the configuration',
    ),
    (('--config=configs/sweep.py:nonsense',), "unknown variant 'nonsense'"),
    (
      ('--config=configs/sweep.py', '--config.run.train.epochs=0'),
      'error: config.train.epochs is 0: expected from 1 to 1,000,000',
    ),
  ],
)
def test_mistakes_are_explained(flags, message, tmp_path):
  done = command(*flags, f'--workdir={tmp_path / "sweep"}')
  assert done.returncode != 0
  assert message in done.stderr
  assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize('after', [0, 2, 4])
def test_a_sweep_cut_off_ends_as_one_that_was_not(
  swept, tmp_path, monkeypatch, after
):
  """Cut off within a run, with some runs done and the others missing."""
  root, summary, calls = swept
  copy = tmp_path / 'sweep'
  shutil.copytree(root, copy)
  cut, *missing = [name for name, _ in calls][after:]
  for name in missing:
    shutil.rmtree(copy / name)
  # Its checkpoint is there, its result is not.
  (copy / cut / 'result.json').unlink()
  (copy / 'sweep.json').unlink()
  again = []

  # To train is what other tests do: here the finished runs are put back.
  def restoring(config, workdir, session):
    again.append(workdir.name)
    assert (
      config.method.name == 'scratch'
      or config.seed
      or (config.teacher.replay.startswith(str(copy / 'replay')))
    )
    shutil.copytree(root / workdir.name, workdir, dirs_exist_ok=True)

  monkeypatch.setattr(train, 'train_and_evaluate', restoring)
  assert sweep_lib.run(small(), copy) == summary
  assert again == [cut, *missing]


def test_a_run_that_fails_or_diverges_does_not_stop_the_others(
  swept, tmp_path, monkeypatch, caplog
):
  root, summary, calls = swept
  diverging, failing = names(summary)[0][:2]
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')

  def troubled(config, workdir, session):
    if workdir.name == diverging:
      workdir.mkdir()
      (workdir / 'metrics.jsonl').write_text(
        '{"kind": "train", "step": 2, "loss": 1.5, "gradient_norm": 9.0}\n'
        '{"kind": "train", "step": 4, "loss": null, "gradient_norm": null}\n'
      )
      raise FloatingPointError('the loss is nan')
    if workdir.name == failing:
      raise RuntimeError('out of memory')
    if (root / workdir.name).exists():
      shutil.copytree(root / workdir.name, workdir)
    else:
      # After another choice: any finished run will do, as if it were this one.
      shutil.copytree(root / calls[0][0], workdir)
      result = run_directory.read_result(workdir)
      result['config'] = run_directory.as_json(config)
      run_directory.write_result(workdir, result)
      run_directory.write_config(workdir, config)

  monkeypatch.setattr(train, 'train_and_evaluate', troubled)
  with caplog.at_level('WARNING', 'kdjax'):
    found = sweep_lib.run(small(), tmp_path)
  first, second, third = found['stages'][0]['runs']
  assert (first['state'], second['state']) == ('diverged', 'failed')
  assert first['error'] == 'no finite loss or gradient at step 4'
  assert second['error'] == "RuntimeError('out of memory')"
  assert f'{failing} failed: out of memory' in caplog.text
  assert found['stages'][0]['chosen'] == {'response': third['settings']}
  assert len(found['stages']) == 3
  table = sweep_lib.table(found)
  assert 'diverged' in table
  assert 'failed' in table

  # Started again, what failed is tried again; what diverged would do so again.
  tried = []

  def recording(config, workdir, session):
    tried.append(workdir.name)
    shutil.copytree(root / workdir.name, workdir)

  monkeypatch.setattr(train, 'train_and_evaluate', recording)
  sweep_lib.run(small(), tmp_path)
  assert tried[0] == failing
  assert diverging not in tried


def test_a_run_that_may_skip_steps_is_tried_again(tmp_path, monkeypatch):
  config = small()
  one = plan.runs(config, config.stages[0], {})[0]
  (tmp_path / 'metrics.jsonl').write_text(
    '{"kind": "train", "step": 4, "loss": null, "gradient_norm": null}\n'
  )
  assert sweep_lib._recorded(one, tmp_path)['state'] == 'diverged'
  one.config.train.nonfinite = 'skip'
  assert sweep_lib._recorded(one, tmp_path) is None

  def diverge(*_):
    raise FloatingPointError('50 steps in a row')

  monkeypatch.setattr(train, 'train_and_evaluate', diverge)
  record = sweep_lib._run(one, tmp_path, None)
  assert record['state'] == 'diverged'
  assert '50 steps in a row' in record['error']


def test_a_signal_stops_the_sweep_and_is_no_failure(
  swept, tmp_path, monkeypatch
):
  root, summary, calls = swept
  shutil.copytree(root / 'teacher', tmp_path / 'teacher')

  def stopped(config, workdir, session):
    if workdir.name == calls[1][0]:
      raise signals.Interrupted('stopped by SIGTERM')
    shutil.copytree(root / workdir.name, workdir)

  monkeypatch.setattr(train, 'train_and_evaluate', stopped)
  with pytest.raises(signals.Interrupted):
    sweep_lib.run(small(), tmp_path)
  (stage,) = json.loads((tmp_path / 'sweep.json').read_text())['stages']
  assert stage['runs'] == summary['stages'][0]['runs'][:1]


def test_a_sweep_that_another_process_runs_is_refused(tmp_path):
  with (
    lock.hold(tmp_path, 'the sweep'),
    pytest.raises(BlockingIOError, match='the sweep in'),
  ):
    sweep_lib.run(small(), tmp_path)


def test_where_nothing_finishes_nothing_is_chosen(tmp_path, monkeypatch):
  def failing(*_):
    raise RuntimeError('no')

  monkeypatch.setattr(train, 'train_and_evaluate', failing)
  monkeypatch.setattr(train, 'prepare_teacher', lambda *_: None)
  with pytest.raises(ValueError, match="stage 't' no setting of response"):
    sweep_lib.run(small(), tmp_path)
  config = small()
  config.stages = config.stages[:1]
  assert sweep_lib.run(config, tmp_path)['stages'][0]['chosen'] == {}


def test_mistakes_are_found_before_anything_runs(swept, tmp_path):
  with pytest.raises(ValueError, match='of a run, not of a sweep'):
    sweep_lib.run(tiny.config(), tmp_path / 'sweep')
  config = small()
  config.stages = ()
  with pytest.raises(ValueError, match=r'config\.stages is empty'):
    sweep_lib.run(config, tmp_path / 'sweep')
  config = small()
  config.stages = (
    *config.stages,
    sweep.stage('late', grid={'train.epochs': (0,)}),
  )
  with pytest.raises(ValueError, match=r'config\.train\.epochs is 0'):
    sweep_lib.run(config, tmp_path / 'sweep')
  assert not (tmp_path / 'sweep').exists()
  # A directory with the runs of another sweep.
  config = small()
  config.run.train.learning_rate = 0.5
  with pytest.raises(ValueError, match=r'learning_rate: 0\.01 there, 0\.5 now'):
    sweep_lib.run(config, swept[0])


def test_a_run_of_another_configuration_is_refused_in_any_stage(
  swept, tmp_path, monkeypatch
):
  root = tmp_path / 'sweep'
  shutil.copytree(swept[0], root)

  def copying(config, workdir, session):
    shutil.copytree(root / 'scratch-seed1', workdir)

  monkeypatch.setattr(train, 'train_and_evaluate', copying)
  config = small()
  config.run.train.learning_rate = 0.5
  # The first stage is new, the second has runs of the first sweep.
  config.stages = (
    sweep.comparison(('scratch',), seeds=(1,)),
    *config.stages[:1],
  )
  config.stages[0]['fixed']['train.learning_rate'] = 0.01
  with pytest.raises(ValueError, match=r'learning_rate: 0\.01 there, 0\.5 now'):
    sweep_lib.run(config, root)


def test_what_students_begin_with_is_loaded_once_and_only_to_begin(
  tmp_path, monkeypatch
):
  loaded, seen = [], []

  def load(student):
    loaded.append(student.init_from)
    return initial_weights.Initial(
      {}, {}, {'name': 'resnet10', 'stem': 'cifar'}
    )

  def finish(config, workdir, session):
    seen.append((config.student.name, config.student.width))
    run_directory.write_config(workdir, config)
    test = {'accuracy': 0.5, 'loss': 1.0}
    run_directory.write_result(
      workdir, synthetic.result_of(config, '', 0.5, test)
    )

  monkeypatch.setattr(initial_weights, 'load', load)
  monkeypatch.setattr(train, 'train_and_evaluate', finish)
  config = small()
  config.run.student.update(name='', init_from='x', width=4)
  config.stages = (sweep.comparison(('scratch',), seeds=(1, 2)),)
  summary = sweep_lib.run(config, tmp_path)
  assert (loaded, seen) == (['x'], [('resnet10', 4)] * 2)
  assert sweep_lib.run(config, tmp_path) == summary
  assert (loaded, len(seen)) == (['x'], 2)


def test_a_teacher_that_fails_stops_the_sweep(tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'train_and_evaluate', None)
  config = small()
  config.run.teacher.path = str(tmp_path / 'nowhere')
  config.stages = (sweep.comparison(('scratch',)),)

  def missing(*_):
    raise FileNotFoundError('no teacher')

  monkeypatch.setattr(train, 'prepare_teacher', missing)
  # Nothing here needs a teacher.
  assert sweep_lib.run(config, tmp_path)['stages'][0]['runs'][0]['state'] == (
    'failed'
  )
  config.stages = (sweep.comparison(('response',)),)
  with pytest.raises(FileNotFoundError, match='no teacher'):
    sweep_lib.run(config, tmp_path)


def test_time_left_is_told_by_the_runs_so_far(monkeypatch, caplog):
  now = iter([0.0, 100.0, 100.0, 110.0, 110.0, 120.0])
  monkeypatch.setattr(progress.time, 'perf_counter', lambda: next(now))
  with caplog.at_level('INFO', 'kdjax'), SweepLog(6) as log:
    log.skip()
    for name in ('a', 'b', 'c'):
      with log.run(name):
        pass
    assert log._left() == ', about 00:20 left'
  assert 'run 2/6: a' in caplog.text
  # The median of 100 and 10 seconds, three times.
  assert 'run 4/6: c, about 02:45 left' in caplog.text
