"""Files of a run that are read back: what is wrong is named."""

import json

import pytest
import synthetic

from kdjax import config as config_lib
from kdjax.storage import metrics_log, run_directory
from kdjax.system import atomic
from kdjax.training.run_log import RunLog
from kdjax.training.tensorboard import is_sound

VALUES = {'epoch': 1.0, 'loss': 0.5, 'accuracy': 0.5}


def change(path, edit, *, sealed=True):
  content = json.loads(path.read_text())
  edit(content)
  if not sealed:
    # As an earlier version wrote it.
    content.pop('version', None)
    content.pop('sha256', None)
  path.write_text(json.dumps(content))


def test_what_was_changed_is_named_unless_it_is_said_to_be(tmp_path):
  run_directory.write_config(tmp_path, config_lib.default())
  path = tmp_path / 'config.json'
  assert json.loads(path.read_text())['version']

  def lower(content):
    content['train']['epochs'] = 1

  change(path, lower)
  with pytest.raises(
    ValueError, match=rf'^{path} was changed after kdjax'
  ) as e:
    run_directory.check_same_run(tmp_path, config_lib.default())
  assert 'write "sha256": null in it' in str(e.value)
  change(path, lambda content: content.update(sha256=None))
  assert run_directory.read_config(tmp_path).train.epochs == 1
  with pytest.raises(ValueError, match=r'train\.epochs: 1 there, 20 now'):
    run_directory.check_same_run(tmp_path, config_lib.default())


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda c: c.pop('data'), r'config\.json lacks data\.name, data\.data_dir'),
    (lambda c: c['train'].pop('momentum'), r'lacks train\.momentum: it is dam'),
    (lambda c: c['train'].update(epochs='x'), "epochs is 'x', expected an int"),
    (lambda c: c['data'].update(flip=1), 'flip is 1, expected true or false'),
    (lambda c: c['data'].update(filp=True), 'has data.filp, which is no field'),
    (
      lambda c: c['teacher'].update(width=[]),
      r'width is \[\], expected an int',
    ),
  ],
)
def test_fields_of_an_earlier_configuration_are_checked(
  edit, message, tmp_path
):
  run_directory.write_config(tmp_path, config_lib.default())
  change(tmp_path / 'config.json', edit, sealed=False)
  with pytest.raises(ValueError, match=message):
    run_directory.read_config(tmp_path)


def test_files_that_are_cut_off_are_named(tmp_path):
  path = tmp_path / 'config.json'
  path.write_text('{"data": {')
  with pytest.raises(ValueError, match=rf'^{path} is damaged or cut off: Exp'):
    run_directory.read_config(tmp_path)
  path.write_text('3')
  with pytest.raises(ValueError, match=f'^{path} .*: it holds no JSON object'):
    run_directory.read_config(tmp_path)


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda r: r['best']['test'].update(loss='x'), r"best\.test\.loss is 'x'"),
    (
      lambda r: r['best']['test'].update(ece=[]),
      r'best\.test\.ece is \[\], ex',
    ),
    (lambda r: r['teacher'].pop('digest'), r'lacks teacher\.digest'),
    (lambda r: r.update(student=3), 'student is 3, expected an object'),
  ],
)
def test_fields_of_an_earlier_result_are_checked(edit, message, tmp_path):
  synthetic.write_run(tmp_path, 'response')
  change(tmp_path / 'result.json', edit, sealed=False)
  with pytest.raises(ValueError, match=message):
    run_directory.read_result(tmp_path)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'step': 1}, 'line 2 lacks kind'),
    ({'kind': 'train', 'step': 1}, 'line 2 lacks loss'),
    ({'kind': 'eval'}, "kind is 'eval', expected train or validation"),
    (
      {'kind': 'train', 'step': 1, 'loss': 'x'},
      "loss is 'x', expected a number or null",
    ),
    ({'kind': 'train', 'step': -1, 'loss': 1}, 'step is -1, expected 0'),
    ([1], 'line 2 is no JSON object'),
  ],
)
def test_lines_of_an_earlier_version_are_checked(line, message, tmp_path):
  path = tmp_path / metrics_log.METRICS
  first = {'kind': 'train', 'step': 1, 'loss': 1.0}
  path.write_text(f'{json.dumps(first)}\n{json.dumps(line)}\n')
  with pytest.raises(ValueError, match=message) as caught:
    metrics_log.read_records(tmp_path)
  assert str(path) in str(caught.value)


def write(workdir, steps, start=0, **options):
  with RunLog(
    workdir, start_step=start, total_steps=9, tensorboard=True, **options
  ) as log:
    for step in steps:
      log.write('train', step, VALUES)
      log.write('validation', step, VALUES)
    return log.lines


def steps_of(workdir):
  return [
    (record['kind'][:5], record['step'])
    for record in metrics_log.read_records(workdir)
  ]


def test_metrics_that_are_damaged_are_kept_aside_and_made_good(
  tmp_path, caplog
):
  assert write(tmp_path, (1, 2, 3)) == 6
  path = tmp_path / metrics_log.METRICS
  lines = path.read_text().splitlines(keepends=True)
  lines[3] = lines[3].replace('0.5', '0.6')
  path.write_text(''.join(lines))
  known = [{'step': step, **VALUES} for step in (2, 3, 4)]
  write(tmp_path, (4,), 3, lines=6, validations=known)
  assert f'{path}, line 4 is damaged: its CRC-32 is not' in caplog.text
  kept = tmp_path / 'damaged' / metrics_log.METRICS
  assert kept.read_text() == ''.join(lines)
  assert str(kept) in caplog.text
  whole = [(kind, step) for step in (1, 2, 3, 4) for kind in ('train', 'valid')]
  assert steps_of(tmp_path) == whole


@pytest.mark.parametrize('left', [4, 0])
def test_metrics_that_are_cut_short_are_missed(left, tmp_path, caplog):
  write(tmp_path, (1, 2, 3))
  path = tmp_path / metrics_log.METRICS
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:left]))
  write(tmp_path, (), 3, lines=6, validations=[{'step': 3, **VALUES}])
  assert f'{path} has {left} lines up to step 3, expected 6' in caplog.text
  assert steps_of(tmp_path)[-1] == ('valid', 3)
  # One that goes on from before is not missed anything of.
  caplog.clear()
  write(tmp_path, (), 1, lines=min(left, 2))
  assert not caplog.text


def test_events_that_are_damaged_are_written_again(tmp_path, caplog):
  write(tmp_path, (1, 2))
  (first,) = (tmp_path / 'tensorboard').iterdir()
  # What a process that was killed leaves is no damage.
  content = first.read_bytes()
  first.write_bytes(content[:-3])
  assert is_sound(first)
  changed = bytearray(content)
  changed[len(content) // 2] ^= 1
  first.write_bytes(bytes(changed))
  write(tmp_path, (), 2)
  assert f'{first} is damaged, and is now {tmp_path / "damaged"}' in caplog.text
  (again,) = (tmp_path / 'tensorboard').iterdir()
  assert again.read_bytes().count(b'train/loss') == 2
  assert is_sound(again)


@pytest.mark.parametrize('name', ['a\nb', 'a\x1b', 'a\udce9'])
def test_a_run_directory_can_be_told_in_a_line(name, tmp_path):
  with pytest.raises(ValueError, match='choose a --workdir') as caught:
    atomic.check_name(tmp_path / name)
  assert '\n' not in str(caught.value)
  atomic.check_name(tmp_path / 'a 100%s ')
