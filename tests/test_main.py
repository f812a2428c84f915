"""The commands, as a user starts them: in processes of their own."""

import csv
import json
import os
import pty
import re
import subprocess
import termios

import numpy as np
import pytest
import tiny
from processes import ROOT, command, run

SHARED = ROOT.parent / 'shared' / 'tensorflow_datasets'


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """One command from nothing to a distilled student."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  networks = (
    '--config.student.name=resnet10',
    '--config.teacher.name=resnet10',
  )
  return workdir, run(*tiny.FLAGS, *networks, f'--workdir={workdir}')


def test_one_command_gives_a_distilled_student_and_a_table(undisturbed):
  workdir, done = undisturbed
  assert done.returncode == 0, done.stderr
  assert (workdir.parent / 'quickstart_teacher' / 'result.json').exists()
  result = json.loads((workdir / 'result.json').read_text())
  table = done.stdout
  assert 'teacher resnet10' in table
  assert 'resnet10 (feature), best epoch' in table
  assert f'{result["best"]["test"]["accuracy"]:.2%}' in table
  assert f'{result["student"]["parameters"]:,}' in table
  # Plain lines where there is no terminal, and nothing of the libraries'.
  assert 'step 15/15: loss ' in done.stderr
  assert ' images/s, 00:00 left' in done.stderr
  assert '\r' not in done.stderr
  assert 'orbax' not in done.stderr.lower()


def test_evaluate_prints_the_same_table_and_writes_predictions(
  undisturbed, tmp_path
):
  workdir, done = undisturbed
  output = tmp_path / 'new' / 'predictions.csv'
  again = run(
    f'--workdir={workdir}',
    '--checkpoint=last',
    f'--output={output}',
    module='kdjax.evaluate',
  )
  assert again.returncode == 0, again.stderr
  table, _, rest = again.stdout.partition('\n\n')
  assert table in done.stdout
  assert rest == f'predictions: {output}\n'
  with output.open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  result = json.loads((workdir / 'result.json').read_text())
  for column, test in (
    ('prediction', result['last']['test']),
    ('teacher_prediction', result['teacher']['test']),
  ):
    accuracy = np.mean([row['label'] == row[column] for row in rows])
    assert accuracy == pytest.approx(test['accuracy'], rel=1e-12)
    assert f'{accuracy:.2%}' in table
  loss = np.mean([float(row['loss']) for row in rows])
  assert loss == pytest.approx(result['last']['test']['loss'], rel=1e-6)


def test_evaluate_refuses_a_file_that_it_cannot_write(tmp_path):
  done = run(
    f'--workdir={tmp_path / "nowhere"}',
    '--output=predictions.txt',
    module='kdjax.evaluate',
  )
  assert done.returncode != 0
  # Before it looks for the run.
  assert 'error: cannot write predictions to predictions.txt' in done.stderr


def test_mode_and_variant_choose_the_method_and_the_directory(tmp_path):
  done = run(
    f'--config={ROOT / "configs" / "rkd.py"}:t4',
    '--mode=scratch',
    '--config.data.name=digits',
    *(flag for flag in tiny.FLAGS[1:] if 'train.epochs' not in flag),
    '--config.train.epochs=1',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  result = tmp_path / 'runs' / 'rkd-t4-scratch' / 'result.json'
  result = json.loads(result.read_text())
  assert result['method'] == 'scratch'
  assert result['config']['method']['response']['temperature'] == 4.0
  assert result['config']['train']['learning_rate'] == 0.001


def test_a_terminal_shows_a_progress_bar(tmp_path):
  primary, secondary = pty.openpty()
  termios.tcsetwinsize(secondary, (24, 200))
  with subprocess.Popen(
    command(
      *tiny.FLAGS,
      '--mode=scratch',
      f'--workdir={tmp_path / "run"}',
    ),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=secondary,
  ) as process:
    os.close(secondary)
    shown = b''
    # Linux ends a closed pseudo-terminal with an error rather than a zero.
    try:
      while chunk := os.read(primary, 4096):
        shown += chunk
    except OSError:
      pass
    assert process.wait() == 0
  os.close(primary)
  assert b'15/15' in shown
  # The loss from the first step on, before there is a line of metrics.
  assert re.search(rb'run: .* 1/15 \[.*loss [0-9.]+\]', shown)
  assert b'loss ' in shown
  assert b', acc ' in shown
  assert b' images/s, val ' in shown


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f'no data set in {SHARED}')
def test_real_cifar10_beats_chance(tmp_path):
  done = run(
    '--config=configs/fkd.py',
    f'--config.data.data_dir={SHARED}',
    '--config.student.stem=imagenet',
    '--config.train.max_steps=300',
    f'--workdir={tmp_path / "run"}',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['data']['train'] == 45_000
  assert result['data']['test'] == 10_000
  assert result['teacher']['test']['accuracy'] > 0.3
  assert result['last']['test']['accuracy'] > 0.3
