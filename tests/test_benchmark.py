"""The benchmark: its arithmetic by hand, its commands as a user starts them.

No timing is asserted.
"""

import functools
import importlib.util
import json
import os
import sys

import processes
import pytest
import tiny

from kdjax import config as config_lib
from kdjax.benchmark import compare, figures, pytorch, workers

# Arithmetic


def test_statistics_are_those_over_bursts():
  summary = figures.summarize(
    {'step_times_s': [0.5, 0.1, 0.3, 0.2, 0.4], 'start_up_s': 7.0},
    batch_size=6,
    flops_per_image=100.0,
    matmul_flops_per_s=4000.0,
  )
  assert summary['step_s'] == {
    'min': 0.1,
    'lower_quartile': 0.2,
    'median': 0.3,
    'upper_quartile': 0.4,
    'max': 0.5,
  }
  assert summary['images_per_s'] == pytest.approx(20)
  # 20 images/s of 100 FLOPs each, where 4,000 are possible.
  assert summary['flops_utilization'] == pytest.approx(0.5)
  assert summary['start_up_s'] == 7.0


def implementation(*step_times_s, batch_size=8):
  return figures.summarize(
    {
      'compile_s': None,
      'start_up_s': 2.0,
      'warm_start_up_s': None,
      'step_times_s': list(step_times_s),
      'peak_memory_bytes': 3 * 2**29,
    },
    batch_size=batch_size,
    flops_per_image=1e9,
    matmul_flops_per_s=1e12,
  )


def test_ratio_is_to_the_fastest_other_and_round_by_round():
  ratio = figures.ratio(
    {
      'kdjax': implementation(0.1, 0.2, 0.4),
      'torch eager': implementation(0.5, 0.5, 0.5),
      'torch compile': implementation(0.3, 0.3, 0.3),
    }
  )
  assert ratio == {
    'to': 'torch compile',
    'median': pytest.approx(1.5),
    'min': pytest.approx(0.75),
    'max': pytest.approx(3.0),
  }


def test_no_ratio_without_another():
  assert figures.ratio({'kdjax': implementation(0.1, 0.2)}) is None


def test_table_has_what_was_measured_and_fits():
  implementations = {
    'kdjax': implementation(0.1, 0.2, 0.4)
    | {'compile_s': 12.34, 'warm_start_up_s': 1.5},
    'torch compile': implementation(12.1, 12.2, 12.3),
  }
  table = figures.table(
    {
      'device': 'abacus',
      'platform': 'cpu',
      'versions': {'kdjax': '1.2', 'torch': '3.4'},
      'modes': {
        'response': {
          'batch_size': 8,
          'dtype': 'bfloat16',
          'flops_per_image': 1e9,
          'matmul_flops_per_s': 1e12,
          'implementations': implementations,
          'ratio': figures.ratio(implementations),
        }
      },
    }
  )
  lines = table.splitlines()
  assert max(map(len, lines)) <= 100
  assert lines[0] == 'abacus (cpu); kdjax 1.2, torch 3.4'
  ours, theirs = (line for line in lines if line.startswith('response '))
  assert ' '.join(ours.split()) == (
    'response kdjax 40.00 200.0 [100.0 … 400.0] 12.3 2.0 1.5 1.000 4.0% 1.50'
  )
  assert theirs.split()[:4] == ['response', 'torch', 'compile', '0.6557']
  assert '12,200 [12,100 … 12,300]' in theirs
  assert 'response: batch 8, bfloat16, matrix products 1,000 GFLOP/s' in table
  assert 'kdjax / torch compile: 61.00× (rounds 30.75 … 121.00)' in table


# Workers that pretend


PRETENDER = """
import json, sys
print(json.dumps({'ready': True}), flush=True)
for number, line in enumerate(sys.stdin):
  steps = json.loads(line)['steps'] + EXTRA
  # The first answer is as slow as a cold one.
  seconds = 1.0 if number == 0 else STEP * steps
  answer = {'seconds': seconds, 'steps': steps, 'peak_memory_bytes': number}
  print(json.dumps(answer), flush=True)
"""


def pretend(step, extra=0):
  script = f'STEP, EXTRA = {step}, {extra}\n{PRETENDER}'
  return workers.start('pretender', [sys.executable, '-c', script])


def test_bursts_go_round_until_the_time_is_spent():
  with pretend(0.25) as slow, pretend(0.01, extra=3) as fast:
    assert slow.read() == fast.read() == {'ready': True}
    measured = workers.alternate({'slow': slow, 'fast': fast}, seconds=10)
  # Bursts of 1.00 and 1.03 s: nine rounds are 18.27 s of the 20 s to spend.
  assert measured == {
    'slow': {
      'steps_per_burst': 4,
      'step_times_s': [0.25] * 10,
      'peak_memory_bytes': 11,
    },
    'fast': {
      'steps_per_burst': 100,
      'step_times_s': pytest.approx([0.01] * 10),
      'peak_memory_bytes': 11,
    },
  }


def test_there_are_five_rounds_at_least():
  with pretend(3.0) as worker:
    worker.read()
    measured = workers.alternate({'slow': worker}, seconds=0.1)
  assert measured['slow']['steps_per_burst'] == 1
  assert measured['slow']['step_times_s'] == [3.0] * 5


@pytest.mark.parametrize('last_words', ['', 'print("{}", flush=True);'])
def test_a_worker_that_dies_is_quoted(last_words):
  script = (
    f'import sys; {last_words} print("first", *range(100), sep="\\n", '
    'file=sys.stderr); sys.exit("out of oil")'
  )
  with workers.start('engine', [sys.executable, '-c', script]) as worker:
    if last_words:
      worker.read()
      worker.process.wait()
    with pytest.raises(ChildProcessError) as error:
      worker.ask({'steps': 1})
  message = str(error.value)
  assert message.startswith('the worker of engine ended with status 1:\n')
  assert message.endswith('\n99\nout of oil')
  assert 'first' not in message


# What each mode measures


def test_a_mode_is_a_method_or_the_training_of_the_teacher():
  config = tiny.config('feature')
  config.train.batch_size = 20
  config.teacher.train.batch_size = 10
  run = compare.run_config(config, 'response')
  assert (run.method.name, run.student.width) == ('response', 4)
  assert run.train.batch_size == 20
  run = compare.run_config(config, compare.TEACHER)
  assert (run.method.name, run.student.width) == ('scratch', 8)
  assert run.train.batch_size == 10
  assert config.method.name == 'feature'


def test_pytorch_gets_the_same_shapes_and_settings():
  config = config_lib.default()
  config.method.name = 'response'
  config.method.response.temperature = 3.0
  config.student.dtype = 'bfloat16'
  data = {'image_shape': [32, 32, 3], 'num_classes': 7, 'train_size': 99}
  spec = pytorch.spec(config, 'eager', data | {'platform': 'cpu'})
  assert data.items() <= spec.items()
  assert spec['settings'] == {'temperature': 3.0, 'alpha': 0.5}
  assert spec['student']['name'] == 'resnet18'
  assert spec['teacher']['name'] == 'resnet50'
  assert spec['teacher']['dtype'] == spec['student']['dtype'] == 'bfloat16'
  assert spec['train']['batch_size'] == 128
  assert json.loads(json.dumps(spec)) == spec


# The command


benchmark = functools.partial(processes.run, module='kdjax.benchmark')


def assert_all_positive(tree):
  if isinstance(tree, dict):
    tree = list(tree.values())
  if isinstance(tree, list):
    assert tree
    for child in tree:
      assert_all_positive(child)
  elif isinstance(tree, float | int):
    assert tree > 0


def test_one_command_measures_a_method(tmp_path):
  output = tmp_path / 'new' / 'figures.json'
  done = benchmark(
    *tiny.FLAGS,
    '--modes=feature',
    '--seconds=0.01',
    f'--output={output}',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(output.read_text())
  assert_all_positive(result['modes'])
  assert result['platform'] == 'cpu'
  assert result['device']
  assert {'python', 'kdjax', 'jax'} <= result['versions'].keys()
  assert result['config']['student']['width'] == 4
  assert '--seconds=0.01' in result['command']
  assert list(result['modes']) == ['feature']
  measured = result['modes']['feature']
  assert measured['batch_size'] == 32
  assert measured['dtype'] == 'float32'
  assert measured['ratio'] is None
  assert list(measured['implementations']) == ['kdjax']
  ours = measured['implementations']['kdjax']
  assert len(ours['step_times_s']) >= 5
  assert ours['compile_s'] < ours['start_up_s']
  assert ours['warm_start_up_s'] > 0
  assert '\nfeature  kdjax' in done.stdout
  # By hand: without the border's zeros, the teacher has 72,000 multiplications
  # with an addition for an image, done once; the student has a quarter of them,
  # each done three times. What is no convolution comes on top.
  assert 0.25e6 < measured['flops_per_image'] < 0.5e6


def test_several_modes_are_measured_one_after_the_other(monkeypatch):
  measured = []

  def measure(mode, run, *_):
    measured.append((mode, run.method.name, run.student.width))
    ready = {'platform': 'cpu', 'device': 'abacus', 'versions': {}}
    return {'of': mode}, {'kdjax': ready}

  monkeypatch.setattr(compare, '_measure', measure)
  result = compare.run(tiny.config(), ['feature', 'teacher'], seconds=0.01)
  assert measured == [('feature', 'feature', 4), ('teacher', 'scratch', 8)]
  assert result['modes'] == {name: {'of': name} for name in result['modes']}
  assert list(result['modes']) == ['feature', 'teacher']
  assert result['device'] == 'abacus'


def without_pytorch(folder):
  """An interpreter that has nothing but the standard library."""
  python = folder / 'python'
  python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
  python.chmod(0o755)
  return python


@pytest.mark.parametrize(
  ('flags', 'messages'),
  [
    (('--modes=scratch,nonsense',), ['nonsense', 'expected some of abkd']),
    (('--config.train.epochs=0',), ['config.train.epochs is 0']),
    (
      ('--config.data.name=nonsense', '--modes=scratch'),
      ['worker of scratch, kdjax', "unknown data set 'nonsense'"],
    ),
    (
      ('--baseline', '--baseline_python=PYTHON'),
      ['--baseline needs PyTorch', "No module named 'torch'"],
    ),
    (
      ('--baseline', '--baseline_python=/no/python'),
      ['--baseline needs PyTorch', '/no/python'],
    ),
  ],
)
def test_mistakes_are_explained(flags, messages, tmp_path):
  python = str(without_pytorch(tmp_path))
  output = tmp_path / 'figures.json'
  done = benchmark(
    '--config=configs/quickstart.py',
    *(flag.replace('PYTHON', python) for flag in flags),
    f'--output={output}',
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: ')
  assert 'Traceback' not in done.stderr
  for message in messages:
    assert message in done.stderr
  assert not output.exists()


def knowing(folder, *networks):
  """An interpreter that answers as the PyTorch worker without argument."""
  python = folder / 'python'
  answer = json.dumps({'networks': networks})
  python.write_text(f"#!/bin/sh\necho '{answer}'\n")
  python.chmod(0o755)
  return str(python)


def test_a_baseline_that_would_be_another_is_refused(tmp_path):
  config = config_lib.default()
  python = knowing(tmp_path, 'resnet18', 'resnet50')
  runs = {
    mode: compare.run_config(config, mode)
    for mode in ('scratch', 'response', 'feature', 'teacher')
  }
  pytorch.check(python, runs)

  python = knowing(tmp_path, 'resnet18')
  pytorch.check(python, {'scratch': runs['scratch']})
  for mode in ('response', 'teacher'):
    with pytest.raises(ValueError, match=f"'resnet50', which mode {mode}"):
      pytorch.check(python, {mode: runs[mode]})

  python = knowing(tmp_path, 'resnet18', 'resnet50')
  runs['feature'].method.feature.student_features = ('stage4',)
  with pytest.raises(ValueError, match='student_features'):
    pytorch.check(python, runs)
  runs['scratch'].method.name = 'brand_new'
  with pytest.raises(ValueError, match="no method 'brand_new'"):
    pytorch.check(python, runs)


@pytest.mark.slow
def test_baseline_in_pytorch(tmp_path):
  python = os.environ.get('KDJAX_BASELINE_PYTHON')
  if not python and importlib.util.find_spec('torch'):
    python = sys.executable
  if not python:
    pytest.skip('no PyTorch: name an interpreter in KDJAX_BASELINE_PYTHON')
  output = tmp_path / 'figures.json'
  done = benchmark(
    *tiny.FLAGS,
    '--config.student.name=resnet18',
    '--config.teacher.name=resnet50',
    '--modes=feature',
    '--baseline',
    f'--baseline_python={python}',
    '--seconds=0.01',
    f'--output={output}',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(output.read_text())
  measured = result['modes']['feature']
  names = ['kdjax', 'torch eager', 'torch compile']
  assert list(measured['implementations']) == names
  assert measured['implementations']['torch eager'].pop('compile_s') is None
  assert_all_positive(measured)
  assert 'torch' in result['versions']
  assert 'feature: ' in done.stdout
  assert f'kdjax / {measured["ratio"]["to"]}: ' in done.stdout
