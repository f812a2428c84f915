"""The examples show what they say."""

import pathlib
import runpy

import numpy as np
import pytest

import kdjax
from kdjax.storage import metrics_log

EXAMPLES = pathlib.Path(__file__).with_name('examples')


@pytest.fixture
def plain_jax(monkeypatch):
  monkeypatch.syspath_prepend(EXAMPLES)
  import plain_jax

  return plain_jax


def test_plain_jax_has_the_numbers_of_a_run(plain_jax, tmp_path):
  lines = (EXAMPLES / 'plain_jax.py').read_text().splitlines()
  assert len(lines) <= 250
  found = plain_jax.main(epochs=2, teacher_width=8)
  result = kdjax.train(
    kdjax.load_config(
      'quickstart',
      {
        'method.name': 'response',
        'method.response.temperature': plain_jax.TEMPERATURE,
        'method.response.alpha': plain_jax.ALPHA,
        'student.name': 'plain_jax:Cnn',
        'student.width': 4,
        'teacher.name': 'plain_jax:Cnn',
        'teacher.width': 8,
        'teacher.sibling': 'teacher',
        'train.epochs': 2,
        'teacher.train.epochs': 2,
        'train.schedule': 'constant',
        'train.warmup_epochs': 0.0,
        'train.weight_decay': 0.0,
        'train.label_smoothing': 0.0,
        'eval.every_epochs': 1,
        'log.every_steps': 1,
      },
    ),
    tmp_path / 'student',
    verbose=False,
  )
  for name, measured in (
    ('teacher', result['teacher']['test']),
    ('student', result['best']['test']),
  ):
    accuracy, losses = found[name]
    records = metrics_log.read_records(tmp_path / name)
    logged = [one['loss'] for one in records if one['kind'] == 'train']
    np.testing.assert_allclose(losses, logged, rtol=2e-4)
    # An image may be on the edge.
    assert abs(accuracy - measured['accuracy']) <= 1 / 360
  assert found['student'][0] > 0.5


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  cells = runpy.run_path(str(EXAMPLES / 'notebook.py'))
  shown = capsys.readouterr().out
  # Of three epochs the second and the last are validated, the teacher's first.
  assert [(run, epoch) for run, epoch, _ in cells['history']] == [
    *(('quickstart_teacher', epoch) for epoch in (2, 3)),
    *(('notebook', epoch) for epoch in (2, 3)),
  ]
  assert shown.count('validation accuracy') == 4
  assert cells['result']['best']['test']['accuracy'] > 0.5
  assert cells['distiller'].result['best']['test']['accuracy'] > 0.5
