"""Which figures a comparison has, and the arrays that they are drawn from."""

import inspect as python_inspect
import itertools

import numpy as np
import pytest
import synthetic
from synthetic import write_run, write_unfinished

from kdjax.report import collect, gallery

IMAGES = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2, 1)


@pytest.fixture
def drawn(monkeypatch):
  """What each function of `figures` was called with, by argument name."""
  calls = {}

  def record(name, function):
    signature = python_inspect.signature(function)

    def draw(*args, **kwargs):
      arguments = signature.bind(*args, **kwargs).arguments
      calls.setdefault(name, []).append(arguments)

    monkeypatch.setattr(gallery.figures, name, draw)

  for name, function in vars(gallery.figures).copy().items():
    if python_inspect.isfunction(function) and not name.startswith('_'):
      record(name, function)
  monkeypatch.setattr(
    gallery.feature_maps,
    'test_images',
    lambda run, data_dir: (IMAGES, ('zero', 'one')),
  )
  monkeypatch.setattr(
    gallery.feature_maps,
    'stage_maps',
    lambda run, image: {'stage1': (image, image)},
  )
  return calls


def exhibit(*paths):
  made, notes = gallery.exhibits(collect.read(list(paths)))
  return [each.name for each in made], notes


def predictions(best, teacher=None):
  arrays = {
    'labels': synthetic.LABELS,
    'best': synthetic.logits(*best),
    'last': synthetic.logits(0, 0, 0, 0),
  }
  if teacher is not None:
    arrays['teacher'] = synthetic.logits(*teacher)
  return arrays


def tune(directory, method='response', **values):
  """Runs at all combinations; validation accuracies 0.50, 0.51, …."""
  for index, chosen in enumerate(itertools.product(*values.values())):
    write_run(
      directory / f'{method}{index}',
      method,
      validation=0.5 + index / 100,
      **dict(zip(values, chosen, strict=True)),
    )


# Learning curves


def test_curves_have_a_line_of_each_seed(tmp_path, drawn):
  write_run(tmp_path / 'a', validation=0.9)
  short = write_run(tmp_path / 'b', seed=1, validation=0.7)
  lines = (short / 'metrics.jsonl').read_text().splitlines()
  (short / 'metrics.jsonl').write_text('\n'.join(lines[:-1]))
  names, _ = exhibit(tmp_path)
  assert names == [
    'validation_accuracy_over_training',
    'validation_nll_over_training',
    'training_nll_over_training',
  ]
  accuracy, loss, trained = drawn['learning_curves']
  epochs, values = accuracy['curves']['scratch']
  np.testing.assert_array_equal(epochs, [1, 2])
  np.testing.assert_allclose(values, [[80, 90], [60, np.nan]])
  assert accuracy['ylabel'] == 'validation accuracy (%)'
  assert (accuracy['teacher'], loss['teacher']) == (None, None)
  np.testing.assert_allclose(loss['curves']['scratch'][1][0], [0.5, 0.25])
  epochs, values = trained['curves']['scratch']
  np.testing.assert_array_equal(epochs, [1, 1.5, 2])
  np.testing.assert_allclose(values[0], [0.75, 0.625, 0.5])


def test_curves_have_the_teachers_line_where_its_run_is_known(tmp_path, drawn):
  write_run(tmp_path / 'trained')
  digest = f'{tmp_path.name}/trained best'
  taught_by = synthetic.teacher(digest, step=20, validation_accuracy=0.8)
  write_run(tmp_path / 'run', 'response', taught_by=taught_by)
  exhibit(tmp_path)
  accuracy, loss, trained = drawn['learning_curves']
  assert trained['teacher'] is None
  # The loss after one of two epochs.
  assert (accuracy['teacher'], loss['teacher']) == (80.0, 0.5)


def test_of_many_settings_the_best_have_curves(tmp_path, drawn):
  tune(tmp_path, method__response__temperature=[float(t) for t in range(1, 13)])
  exhibit(tmp_path)
  assert len(drawn['learning_curves'][0]['curves']) == 12
  write_run(tmp_path / 'scratch')
  exhibit(tmp_path)
  assert list(drawn['learning_curves'][3]['curves']) == [
    'scratch',
    'response (temperature = 12)',
  ]


def test_without_validation_nothing_is_tuned(tmp_path, drawn):
  for temperature in (1.0, 2.0, 3.0):
    path = write_run(
      tmp_path / f'{temperature}',
      'response',
      validation=None,
      data={'validation': 0},
      method__response__temperature=temperature,
    )
    (path / 'metrics.jsonl').write_text('')
  names, notes = exhibit(tmp_path)
  assert names == []
  assert drawn == {}
  text = '\n'.join(notes)
  assert 'validation accuracy over training: no run has logged' in text
  assert 'tuning of response: there are no validation images' in text
  assert 'best setting of response: not all of its settings have' in text


# Tuning


def test_three_values_make_a_curve(tmp_path, drawn):
  tune(tmp_path, method__response__temperature=[1.0, 2.0])
  exhibit(tmp_path)
  assert 'tuning_curve' not in drawn
  write_run(
    tmp_path / 'more',
    'response',
    validation=0.4,
    method__response__temperature=0.5,
  )
  write_run(
    tmp_path / 'seed',
    'response',
    seed=1,
    validation=0.6,
    method__response__temperature=1.0,
  )
  names, _ = exhibit(tmp_path)
  assert 'tuning_response_temperature' in names
  (curve,) = drawn['tuning_curve']
  assert curve['values'] == [0.5, 1.0, 2.0]
  # Seed 1, which one value alone has, tells nothing of the others.
  assert [list(each) for each in curve['accuracies']] == [[0.4], [0.5], [0.51]]
  assert (curve['xlabel'], curve['chosen']) == ('temperature', 2.0)


def test_a_full_grid_makes_a_heat_map(tmp_path, drawn):
  tune(
    tmp_path,
    method__response__temperature=[1.0, 4.0],
    method__response__alpha=[0.1, 0.5, 0.9],
  )
  hidden = tmp_path / 'response2'
  write_unfinished(
    tmp_path / 'again',
    'response',
    method__response__temperature=1.0,
    method__response__alpha=0.9,
    records=[{'kind': 'train', 'step': 3, 'loss': None}],
  )
  (hidden / 'config.json').unlink()
  (hidden / 'result.json').unlink()
  made, _ = gallery.exhibits(collect.read([tmp_path]))
  (caption,) = (e.caption for e in made if e.name == 'tuning_response')
  assert caption.endswith(
    'as they diverged: response (temperature = 1, alpha = 0.9), seed 0.'
  )
  assert 'tuning_curve' not in drawn
  (grid,) = drawn['heat_map']
  np.testing.assert_allclose(
    grid['accuracies'], [[0.50, 0.51, np.nan], [0.53, 0.54, 0.55]]
  )
  assert (grid['rows'], grid['columns']) == ([1.0, 4.0], [0.1, 0.5, 0.9])
  assert (grid['ylabel'], grid['xlabel']) == ('temperature', 'alpha')


def test_a_grid_where_all_runs_diverged_is_noted(tmp_path, drawn):
  write_run(tmp_path / 'scratch')
  for index, (t, alpha) in enumerate(itertools.product((1.0, 4.0), (0.1, 0.5))):
    write_unfinished(
      tmp_path / f'{index}',
      'response',
      method__response__temperature=t,
      method__response__alpha=alpha,
      records=[{'kind': 'train', 'step': 3, 'loss': None}],
    )
  _, notes = exhibit(tmp_path)
  assert any('no figure of the tuning of response' in note for note in notes)
  assert 'heat_map' not in drawn


def test_no_full_grid_makes_a_curve_of_each_slice(tmp_path, drawn):
  tune(
    tmp_path,
    method__response__temperature=[1.0, 2.0, 4.0],
    method__response__alpha=[0.1, 0.5],
  )
  write_run(
    tmp_path / 'more', 'response', method__response__alpha=0.7, validation=0.1
  )
  made, _ = gallery.exhibits(collect.read([tmp_path]))
  titles = {each.name: each.title for each in made}
  of_temperature = 'validation accuracy of response by temperature'
  assert titles['tuning_response_temperature_1'] == (
    f'{of_temperature} (alpha = 0.1)'
  )
  assert titles['tuning_response_temperature_2'] == (
    f'{of_temperature} (alpha = 0.5)'
  )
  # At T = 4, the default, there is a third α.
  assert titles['tuning_response_alpha'].endswith('(temperature = 4)')
  assert 'heat_map' not in drawn


# Classes


def test_classes_are_of_the_best_setting_and_the_teacher(tmp_path, drawn):
  # True classes 0, 1, 1, 0.
  teacher = (0, 1, 1, 1)
  write_run(tmp_path / 'a', predictions=predictions((0, 1, 1, 0)))
  write_run(tmp_path / 'b', seed=1, predictions=predictions((0, 0, 1, 1)))
  write_run(
    tmp_path / 'c', 'response', predictions=predictions((0, 0, 0, 0), teacher)
  )
  write_run(
    tmp_path / 'd',
    'response',
    validation=0.1,
    method__response__alpha=0.7,
    predictions=predictions((1, 1, 1, 1), teacher),
  )
  exhibit(tmp_path)
  (classes,) = drawn['per_class_accuracy']
  assert classes['class_names'] == ('zero', 'one')
  assert {
    label: values.tolist() for label, values in classes['accuracies'].items()
  } == {
    'teacher': [[0.5, 1.0]],
    'scratch': [[1.0, 1.0], [0.5, 0.5]],
    'response (alpha = 0.5)': [[1.0, 0.0]],
  }
  (confusion,) = drawn['confusion_matrices']
  assert confusion['matrices']['scratch'].tolist() == [
    [0.75, 0.25],
    [0.25, 0.75],
  ]


def test_what_cannot_be_shown_is_noted(tmp_path, drawn, monkeypatch):
  def gone(run, data_dir):
    raise FileNotFoundError('the data are gone')

  write_run(tmp_path / 'a')
  write_run(
    tmp_path / 'b',
    'feature',
    predictions=predictions((0, 1, 1, 0), (0, 0, 0, 0)),
  )
  monkeypatch.setattr(gallery.feature_maps, 'test_images', gone)
  names, notes = exhibit(tmp_path)
  text = '\n'.join(notes)
  assert 'class of scratch: a run of it has left no predictions' in text
  assert 'teacher disagree: the data are gone' in text
  assert 'and its teacher: the data are gone' in text
  # The teacher's class names do without the images.
  (classes,) = drawn['per_class_accuracy']
  assert list(classes['class_names']) == ['zero', 'one']
  assert 'confusion' in names


# Single images


def test_disagreements_are_of_the_best_distilled_run(tmp_path, drawn):
  for method, validation, best in (
    ('response', 0.5, (0, 1, 1, 0)),
    ('feature', 0.6, (1, 0, 1, 0)),
  ):
    write_run(
      tmp_path / method,
      method,
      validation=validation,
      predictions=predictions(best, (0, 1, 1, 1)),
    )
  write_run(tmp_path / 'scratch', validation=0.9)
  exhibit(tmp_path)
  (shown,) = drawn['disagreements']
  accuracy, loss, _ = drawn['learning_curves']
  assert (accuracy['teacher'], loss['teacher']) == (99.0, None)
  # Of images 0, 1 and 3 the teacher has the last one wrong.
  np.testing.assert_array_equal(shown['images'], IMAGES[[0, 1, 3]])
  assert shown['labels'] == ['zero', 'one', 'zero']
  assert shown['student'] == ['one', 'zero', 'zero']
  assert shown['teacher'] == ['zero', 'one', 'one']
  # Image 2 is the first that both have right.
  (maps,) = drawn['feature_maps']
  np.testing.assert_array_equal(maps['image'], IMAGES[2])


def test_disagreements_are_spread_over_classes():
  labels = np.array([3, 3, 3, 1, 1, 2, 0])
  teacher = np.array([3, 3, 3, 1, 1, 0, 0])
  student = np.array([0, 0, 0, 0, 0, 1, 0])
  # Those of classes 1 and 3 in turns, then the one that both have wrong.
  assert gallery.choose_disagreements(labels, student, teacher).tolist() == [
    3,
    0,
    4,
    1,
    2,
    5,
  ]
  chosen = gallery.choose_disagreements(labels, student, teacher, most=3)
  assert chosen.tolist() == [3, 0, 4]


def test_a_run_that_agrees_with_its_teacher_has_no_disagreements(
  tmp_path, drawn
):
  same = (1, 0, 0, 1)
  write_run(tmp_path / 'a', 'feature', predictions=predictions(same, same))
  _, notes = exhibit(tmp_path)
  assert 'teacher disagree: they agree on all' in notes[0]
  assert 'they classify no test image right together' in notes[1]
  assert 'disagreements' not in drawn


def test_without_the_teachers_logits_no_images_are_chosen(tmp_path, drawn):
  write_run(tmp_path / 'a', 'feature', predictions=predictions((0, 1, 1, 0)))
  _, notes = exhibit(tmp_path)
  assert len(notes) == 2
  assert all("the teacher's logits of them are not known" in n for n in notes)
