"""Which runs are compared, and which are not."""

import json
import shutil

import pytest
import synthetic
from synthetic import write_run, write_unfinished

from kdjax.report import collect


def labels(comparison):
  return [group.label for group in comparison.groups]


# Groups


def test_runs_that_differ_by_seed_are_one_group(tmp_path):
  for seed in (2, 0, 1):
    write_run(tmp_path / f'run{seed}', 'response', seed=seed)
  (group,) = collect.read([tmp_path]).groups
  assert group.label == 'response'
  assert [run.result['seed'] for run in group.runs] == [0, 1, 2]
  assert group.settings['method.response.temperature'] == 4.0
  assert 'seed' not in group.settings


def test_a_label_has_what_differs_within_its_method(tmp_path):
  write_run(tmp_path / 'd', 'feature')
  write_run(tmp_path / 'c', 'response', method__response__temperature=10.0)
  write_run(
    tmp_path / 'b',
    'response',
    method__response__temperature=2.0,
    method__response__alpha=0.1,
  )
  write_run(tmp_path / 'a', 'scratch')
  assert labels(collect.read([tmp_path])) == [
    'scratch',
    'feature',
    'response (temperature = 2, alpha = 0.1)',
    'response (temperature = 10, alpha = 0.5)',
  ]


def test_runs_that_begin_with_something_else_are_no_copies(tmp_path):
  write_run(tmp_path / 'a', 'scratch')
  write_run(tmp_path / 'b', 'scratch', student__init_from='x.pth')
  assert labels(collect.read([tmp_path])) == [
    'scratch (init_from = )',
    'scratch (init_from = x.pth)',
  ]


def test_fields_that_change_no_result_do_not_part_runs(tmp_path):
  write_run(tmp_path / 'a', 'response')
  write_run(
    tmp_path / 'b',
    'response',
    seed=1,
    log__every_steps=7,
    method__feature__ce_weight=0.9,
    # The teacher is known by its digest, however it was trained.
    teacher__train__epochs=7,
  )
  assert labels(collect.read([tmp_path])) == ['response']


def test_a_field_that_an_older_version_lacked_is_as_by_default(tmp_path):
  write_run(tmp_path / 'new', 'response')
  old = write_run(tmp_path / 'old', 'response', seed=1)
  for name in ('config.json', 'result.json'):
    content = json.loads((old / name).read_text())
    config = content if name == 'config.json' else content['config']
    del config['train']['ema_decay']
    del config['device']
    del content['version'], content['sha256']
    (old / name).write_text(json.dumps(content))
  (group,) = collect.read([tmp_path]).groups
  assert len(group.runs) == 2


def test_the_run_that_trained_the_teacher_is_no_group(tmp_path):
  trained = write_run(tmp_path / 'teacher', student__name='resnet50')
  write_run(tmp_path / 'alone')
  digest = 'teacher best'
  path = write_run(
    tmp_path / 'taught',
    'response',
    taught_by=synthetic.teacher(f'{tmp_path.name}/{digest}'),
  )
  comparison = collect.read([tmp_path])
  assert comparison.teacher_run.path == trained
  assert comparison.teacher['model'] == 'resnet50'
  assert labels(comparison) == ['scratch', 'response']
  # The teacher's numbers need no run of its own; alone it is like any other.
  alone = collect.read([path])
  assert (alone.teacher_run, alone.teacher) == (None, comparison.teacher)
  assert labels(collect.read([trained])) == ['scratch']


def test_a_teacher_may_have_been_taught_itself(tmp_path):
  def taught_by(name):
    return synthetic.teacher(f'{tmp_path.name}/{name} best')

  write_run(tmp_path / 'a')
  write_run(tmp_path / 'b', 'response', taught_by=taught_by('a'))
  write_run(tmp_path / 'b2', 'response', seed=1, taught_by=taught_by('a'))
  write_run(tmp_path / 'c', 'feature', taught_by=taught_by('b'))
  copy = tmp_path / 'd'
  shutil.copytree(tmp_path / 'b', copy)
  with pytest.raises(ValueError, match=r'teacher\.digest'):
    collect.read([tmp_path])
  shutil.rmtree(tmp_path / 'b2')
  comparison = collect.read([tmp_path])
  assert labels(comparison) == ['feature']
  assert comparison.teacher_run.path == tmp_path / 'b'
  assert comparison.left_out == (
    (tmp_path / 'a', "is a teacher of the students' teacher"),
    (copy, f'same as {tmp_path / "b"}'),
  )


# What is left out


def test_unfinished_runs_are_left_out_and_said_why(tmp_path):
  write_run(tmp_path / 'whole')
  write_unfinished(
    tmp_path / 'going', records=[{'kind': 'train', 'step': 6, 'loss': 1.0}]
  )
  cut = write_run(tmp_path / 'cut')
  (cut / 'result.json').write_text('{"best": {"te')
  write_run(tmp_path / 'old', seed=1)
  (tmp_path / 'old' / 'result.json').write_text('{"method": "scratch"}')
  (tmp_path / 'notes').mkdir()
  stray = tmp_path / 'notes' / 'stray.txt'
  stray.touch()
  again = tmp_path / 'notes' / '..' / 'whole'
  comparison = collect.read([tmp_path, stray, again])
  assert [run.path.name for run in comparison.groups[0].runs] == ['whole']
  reasons = {path.name: reason for path, reason in comparison.left_out}
  assert reasons.keys() == {'going', 'cut', 'old', 'stray.txt'}
  assert reasons['going'] == 'has not finished, it is at step 6'
  assert 'cut off' in reasons['cut']
  assert 'result.json lacks device, platform' in reasons['old']
  assert reasons['stray.txt'] == 'is no run directory and holds none'


def test_a_cut_off_last_line_of_metrics_is_dropped(tmp_path):
  path = write_run(tmp_path / 'run')
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"kind": "train", "st')
  (group,) = collect.read([path]).groups
  assert len(group.runs[0].records) == 5


def test_a_run_with_another_broken_line_is_left_out(tmp_path):
  write_run(tmp_path / 'a')
  path = write_run(tmp_path / 'b', seed=1) / 'metrics.jsonl'
  path.write_text('{"kind"\n' + path.read_text())
  ((_, reason),) = collect.read([tmp_path]).left_out
  assert reason.startswith(f'{path}, line 1 is no JSON')


def test_a_copy_counts_once(tmp_path):
  write_run(tmp_path / 'a', accuracy=0.5)
  write_run(tmp_path / 'b', accuracy=0.7)
  comparison = collect.read([tmp_path])
  assert len(comparison.groups[0].runs) == 1
  assert comparison.left_out == ((tmp_path / 'b', f'same as {tmp_path / "a"}'),)


def test_broken_predictions_are_not_used(tmp_path):
  path = write_run(tmp_path / 'run')
  (path / 'predictions.npz').write_bytes(b'PK\x03\x04 cut')
  comparison = collect.read([path])
  assert comparison.groups[0].runs[0].predictions is None
  assert 'cannot be read' in comparison.notes[0]


# Diverged runs


@pytest.mark.parametrize(
  'record',
  [
    {'kind': 'train', 'step': 40, 'loss': None, 'gradient_norm': 1.0},
    {'kind': 'train', 'step': 40, 'loss': 1.0, 'gradient_norm': None},
    {
      'kind': 'validation',
      'step': 40,
      'epoch': 2.0,
      'loss': None,
      'accuracy': 0.1,
    },
  ],
)
def test_a_run_whose_loss_is_not_finite_has_diverged(tmp_path, record):
  write_run(tmp_path / 'a', seed=0)
  before = {'kind': 'train', 'step': 20, 'loss': 1.0, 'gradient_norm': 1.0}
  write_unfinished(tmp_path / 'b', seed=1, records=[before, record])
  (group,) = collect.read([tmp_path]).groups
  assert len(group.runs) == 1
  assert [run.step for run in group.diverged] == [40]


@pytest.mark.parametrize('loss', [None, float('nan'), float('inf')])
def test_a_finished_run_without_finite_numbers_has_diverged(tmp_path, loss):
  write_run(tmp_path / 'a', seed=0)
  write_run(tmp_path / 'b', seed=1, test={'loss': loss})
  (group,) = collect.read([tmp_path]).groups
  assert [run.path.name for run in group.diverged] == ['b']


# What is refused


def test_nothing_finished_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    collect.read([tmp_path / 'nowhere'])
  write_unfinished(tmp_path / 'going')
  write_unfinished(
    tmp_path / 'gone',
    seed=1,
    records=[{'kind': 'train', 'step': 3, 'loss': None}],
  )
  with pytest.raises(
    ValueError, match=r'(?s)going: has not finished\n  .*gone: diverged'
  ):
    collect.read([tmp_path])


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'digest': 'e' * 64}, r"data.digest: 'eeee.*b, 'dddd.*a"),
    ({'train': 100}, r'data.train: 100 in .*b, 1293 in .*a'),
  ],
)
def test_other_data_are_refused(tmp_path, data, message):
  write_run(tmp_path / 'a')
  write_run(tmp_path / 'b', seed=1, data=data)
  with pytest.raises(ValueError, match=message):
    collect.read([tmp_path])


def test_other_data_of_a_diverged_run_are_refused(tmp_path):
  write_run(tmp_path / 'a')
  write_unfinished(
    tmp_path / 'b',
    data__name='cifar10',
    records=[{'kind': 'train', 'step': 3, 'loss': None}],
  )
  with pytest.raises(ValueError, match=r"data.name: 'cifar10' in .*b"):
    collect.read([tmp_path])


def test_another_teacher_is_refused(tmp_path):
  write_run(tmp_path / 'a', 'response')
  write_run(tmp_path / 'alone')
  collect.read([tmp_path])
  write_run(
    tmp_path / 'b', 'feature', taught_by=synthetic.teacher(digest='u' * 64)
  )
  with pytest.raises(ValueError, match=r"teacher.digest: 'uuuu.*b, 'tttt.*a"):
    collect.read([tmp_path])


# What is noted


def test_another_recipe_and_another_machine_are_noted(tmp_path):
  write_run(tmp_path / 'a', train__epochs=20)
  write_run(tmp_path / 'b', 'response', train__epochs=40)
  write_run(
    tmp_path / 'c',
    'response',
    seed=1,
    train__epochs=40,
    result={'device': 'TPU v4'},
  )
  assert collect.read([tmp_path]).notes == (
    'not the same recipe: train.epochs: scratch has 20; response has 40',
    'not the same device: cpu (2 runs), TPU v4 (1 run); speeds and times do '
    'not compare',
  )


def test_equal_sweeps_of_a_recipe_are_not_noted(tmp_path):
  for epochs in (20, 40):
    for method in ('scratch', 'response'):
      write_run(tmp_path / f'{method}{epochs}', method, train__epochs=epochs)
  assert collect.read([tmp_path]).notes == ()


def test_a_teacher_of_other_data_is_noted(tmp_path):
  write_run(
    tmp_path / 'a',
    'response',
    taught_by=synthetic.teacher(data_digest='e' * 64),
  )
  (note,) = collect.read([tmp_path]).notes
  assert 'not trained on the same' in note
