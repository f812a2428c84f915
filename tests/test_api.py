"""Runs from Python, as from a notebook."""

import json
import logging
import sys
import types

import numpy as np
import processes
import pytest
import sklearn.datasets
import tiny

import kdjax
from kdjax.system import logs


def recorded():
  """Callbacks, and a list of what they were called with."""
  calls = []

  def note(kind):
    return lambda workdir, values: calls.append(
      (kind, workdir.name, dict(values))
    )

  kinds = ('on_log', 'on_evaluation', 'on_end')
  return kdjax.Callbacks(*map(note, kinds)), calls


def test_a_run_from_python_calls_back_and_is_that_of_the_command(
  tmp_path, capfd
):
  callbacks, calls = recorded()
  result = kdjax.train(
    tiny.config('response'),
    tmp_path / 'python' / 'student',
    callbacks=callbacks,
    verbose=False,
  )
  assert capfd.readouterr() == ('', '')
  written = (tmp_path / 'python' / 'student' / 'result.json').read_text()
  assert result.items() <= json.loads(written).items()
  # Teacher before student, of eight epochs and three; five steps each, of
  # which every second is logged and the last.
  for kind, teacher, student in (
    ('on_log', 8 * 3, 3 * 3),
    ('on_evaluation', 8, 3),
    ('on_end', 1, 1),
  ):
    names = [name for one, name, _ in calls if one == kind]
    assert names == ['teacher'] * teacher + ['student'] * student, kind
  *_, (kind, _, values) = (call for call in calls if call[0] == 'on_evaluation')
  assert values['step'] == 15
  assert values['epoch'] == 3.0
  assert 0 <= values['accuracy'] <= 1
  assert next(v for k, _, v in calls if k == 'on_log')['images_per_second'] > 0
  assert calls[-1][2] == result

  # A finished run is measured again, and says so.
  del calls[:]
  again = kdjax.train(
    tiny.config('response'),
    tmp_path / 'python' / 'student',
    callbacks=callbacks,
    verbose=False,
  )
  assert processes.outcome(again) == processes.outcome(result)
  assert [(kind, name) for kind, name, _ in calls] == [('on_end', 'student')]


def test_a_callback_that_raises_ends_a_run_which_then_continues(tmp_path):
  config = tiny.config('scratch')
  whole = kdjax.train(config, tmp_path / 'whole', verbose=False)

  def fail(workdir, values):
    if values['step'] == 10:
      raise RuntimeError('enough')

  with pytest.raises(RuntimeError, match='enough'):
    kdjax.train(
      config,
      tmp_path / 'cut',
      callbacks=kdjax.Callbacks(on_evaluation=fail),
      verbose=False,
    )
  callbacks, calls = recorded()
  result = kdjax.train(
    config, tmp_path / 'cut', callbacks=callbacks, verbose=False
  )
  assert calls[0][2]['step'] > 5
  assert processes.outcome(result) == processes.outcome(whole)


def test_progress_is_shown_where_it_is_asked_for(tmp_path, capfd):
  config = tiny.config('scratch')
  config.train.epochs = 1
  kdjax.train(config, tmp_path / 'run')
  shown = capfd.readouterr().err
  assert 'run: compiling the training step' in shown
  assert 'validation accuracy' in shown
  assert 'orbax' not in shown.lower()


def test_a_notebook_has_a_bar_of_text(monkeypatch):
  monkeypatch.setattr(logs.logger, 'level', logging.INFO)
  assert not logs.shows_bar()
  shell = types.SimpleNamespace(kernel=object())
  module = types.SimpleNamespace(get_ipython=lambda: shell)
  monkeypatch.setitem(sys.modules, 'IPython', module)
  assert logs.shows_bar()
  # IPython in a terminal has no kernel.
  del shell.kernel
  assert not logs.shows_bar()


def test_a_configuration_is_loaded_changed_and_printed():
  config = kdjax.load_config('rkd:t4', {'train.epochs': 2, 'student.width': 8})
  assert (config.train.epochs, config.student.width) == (2, 8)
  shown = str(config)
  assert "method:\n  custom:\n  name: 'response'\n  response:\n" in shown
  assert '    temperature: 4.0\n' in shown
  assert 'dkd' not in shown
  assert '!!' not in shown
  assert len(shown.splitlines()) < 120


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'train.lr': 1.0}, 'did you mean config.train.learning_rate'),
    ({'train.epochs': 'two'}, "config.train.epochs is 'two': expected an int"),
  ],
)
def test_a_wrong_change_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    kdjax.load_config('quickstart', changes)


def test_a_name_gives_the_run_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  seen = {}

  def train(config, workdir, session):
    seen.update(name=config.method.name, workdir=str(workdir))

  monkeypatch.setattr('kdjax.api.train_lib.train_and_evaluate', train)
  kdjax.train('rkd:t4', verbose=False)
  assert seen == {'name': 'response', 'workdir': 'runs/rkd-t4'}
  with pytest.raises(ValueError, match='give the run directory'):
    kdjax.train(tiny.config())


def digits():
  found = sklearn.datasets.load_digits()
  return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target


def distiller(**options):
  return kdjax.Distiller(
    **{'teacher': tiny.NETWORK, 'student': tiny.NETWORK, **options},
    changes={
      'train.epochs': 3,
      'train.batch_size': 32,
      'train.learning_rate': 0.01,
      'teacher.train.epochs': 3,
      'teacher.width': 8,
      'student.width': 4,
    },
  )


def test_arrays_go_in_and_a_student_comes_out(tmp_path):
  images, labels = digits()
  made = distiller(class_names=list('0123456789'))
  workdir = tmp_path / 'student'
  student = made.fit(
    images[:600],
    labels[:600],
    workdir,
    test=(images[600:900], labels[600:900]),
    verbose=False,
  )
  accuracy = np.mean(
    student(images[600:900, ..., None]).argmax(-1) == labels[600:900]
  )
  assert made.result['best']['test']['accuracy'] == pytest.approx(accuracy)
  assert accuracy > 0.5
  assert student.class_names == tuple('0123456789')
  # A run like any other.
  assert kdjax.load_student(workdir).class_names == student.class_names
  assert (tmp_path / 'teacher' / 'result.json').exists()


def test_the_same_arrays_make_the_same_run_and_others_are_refused(tmp_path):
  images, labels = digits()
  scratch = distiller(teacher=None, method='scratch')
  fit = scratch.fit
  fit(images[:300], labels[:300], tmp_path / 'run', verbose=False)
  first = scratch.result
  fit(images[:300], labels[:300], tmp_path / 'run', verbose=False)
  assert processes.outcome(scratch.result) == processes.outcome(first)
  with pytest.raises(ValueError, match='data'):
    fit(images[:299], labels[:299], tmp_path / 'run', verbose=False)


def test_a_distiller_without_a_teacher_is_refused():
  with pytest.raises(
    ValueError, match="method 'dkd' needs a teacher, and none"
  ):
    kdjax.Distiller(teacher=None, method='dkd')
  with pytest.raises(ValueError, match='did you mean'):
    kdjax.Distiller(method='dkdd')
