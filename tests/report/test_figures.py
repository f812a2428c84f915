"""What a figure shows, and that all of it can be read."""

import functools
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from kdjax.report import figures

RNG = np.random.default_rng(0)
CIFAR10 = [
  'airplane',
  'automobile',
  'bird',
  'cat',
  'deer',
  'dog',
  'frog',
  'horse',
  'ship',
  'truck',
]
HUNDRED = [f'sweet_pepper_{index}' for index in range(100)]
LABELS = [
  'scratch',
  'response (temperature = 4, alpha = 0.1)',
  'response (temperature = 20, alpha = 0.95)',
  'feature (mean)',
  'feature (sum)',
  'feature (ce_weight = 0.3, feature_weight = 0.7)',
  'feature (ce_weight = 1, feature_weight = 0.1, reduction = sum)',
  'teacher',
]


def drawn_texts(figure):
  """Every text that is drawn, by its box in pixels."""
  figure.canvas.draw()
  unseen = {
    label
    for axes in figure.axes
    for axis in (axes.xaxis, axes.yaxis)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    if not min(axis.get_view_interval())
    <= tick.get_loc()
    <= max(axis.get_view_interval())
    or not axes.axison
    for label in (tick.label1, tick.label2)
  }
  return {
    text: text.get_window_extent()
    for text in figure.findobj(Text)
    if text.get_visible() and text.get_text().strip() and text not in unseen
  }


def words(figure):
  return [text.get_text() for text in drawn_texts(figure)]


def curves(labels, runs=3, epochs=20):
  return {
    label: (np.arange(1, epochs + 1), RNG.uniform(60, 90, (runs, epochs)))
    for label in labels
  }


def matrices(labels, classes):
  errors = RNG.uniform(size=(len(labels), classes, classes)) * 0.2 / classes
  values = 0.8 * np.eye(classes) + errors
  return dict(zip(labels, values, strict=True))


def pixels(count, size, channels):
  return RNG.integers(0, 256, (count, size, size, channels), np.uint8)


def stages(sizes):
  return {
    f'stage{index}': tuple(RNG.normal(size=(2, size, size)))
    for index, size in enumerate(sizes, start=1)
  }


CROWDED = {
  'twelve curves': lambda: figures.learning_curves(
    curves([*LABELS, 'dkd', 'rkd', 'crd', 'at']),
    ylabel='validation accuracy (%)',
    teacher=92.0,
  ),
  'curves of other numbers of seeds': lambda: figures.learning_curves(
    curves(LABELS[:4]) | curves(LABELS[4:], runs=1), ylabel='loss (nats)'
  ),
  'close values': lambda: figures.tuning_curve(
    [1e-4, 3e-4, 0.001, 0.01, 0.1, 1, 3, 10, 11, 12, 30],
    RNG.uniform(0.9, 0.95, (11, 3)),
    xlabel='learning rate',
    chosen=3,
  ),
  'many cells': lambda: figures.heat_map(
    RNG.uniform(0.9, 0.95, (12, 15)),
    range(12),
    [10.0**-power for power in range(15)],
    ylabel='feature_weight',
    xlabel='learning_rate',
  ),
  'one cell': lambda: figures.heat_map(
    np.array([[0.5]]), [1], [2], ylabel='temperature', xlabel='alpha'
  ),
  'eight points a class': lambda: figures.per_class_accuracy(
    CIFAR10, {label: RNG.uniform(0.9, 1, (3, 10)) for label in LABELS}
  ),
  'points of a hundred classes': lambda: figures.per_class_accuracy(
    HUNDRED, {label: RNG.uniform(0.5, 1, (1, 100)) for label in LABELS}
  ),
  'one matrix': lambda: figures.confusion_matrices(
    CIFAR10, matrices(LABELS[:1], 10)
  ),
  'two matrices': lambda: figures.confusion_matrices(
    CIFAR10, matrices(LABELS[:2], 10)
  ),
  'three matrices': lambda: figures.confusion_matrices(
    CIFAR10, matrices(LABELS[:3], 10)
  ),
  'matrices of twenty classes': lambda: figures.confusion_matrices(
    HUNDRED[:20], matrices(LABELS[:1], 20)
  ),
  'matrices of a hundred classes': lambda: figures.confusion_matrices(
    HUNDRED, matrices(LABELS[5:7], 100)
  ),
  'points of classes with long names': lambda: figures.per_class_accuracy(
    10 * [60 * 'x'], {'a': RNG.uniform(0.9, 1, (1, 10))}
  ),
  'a matrix of classes with long names': lambda: figures.confusion_matrices(
    10 * [60 * 'x'], matrices(['a', 'b'], 10)
  ),
  'two rows of images': lambda: figures.disagreements(
    pixels(8, 32, 3), CIFAR10[:8], CIFAR10[1:9], CIFAR10[:8]
  ),
  'a long class name': lambda: figures.disagreements(
    pixels(2, 8, 1), [100 * 'x', 'y'], ['y', 'y'], ['z', 'z']
  ),
  'four stages': lambda: figures.feature_maps(
    pixels(1, 32, 3)[0], stages([32, 16, 8, 4])
  ),
  'more stages than a row has': lambda: figures.feature_maps(
    pixels(1, 8, 1)[0],
    stages([8, 8, 4, 4, 2])
    | {
      f'stage3/block{index}->stage3/block6/conv1': 2 * (np.ones((1, 1)),)
      for index in (1, 2)
    },
  ),
}


@functools.cache
def crowded(name):
  figure = CROWDED[name]()
  FigureCanvasAgg(figure)
  return figure, drawn_texts(figure)


@pytest.mark.parametrize('name', CROWDED)
def test_no_text_overlaps_or_is_cut_off_or_small(name):
  figure, boxes = crowded(name)
  assert boxes
  for text, box in boxes.items():
    assert text.get_fontsize() >= 8, text
    # A pixel is forgiven: letters rarely fill their box.
    assert figure.bbox.x0 - 1 <= box.x0, text
    assert box.x1 <= figure.bbox.x1 + 1, text
    assert figure.bbox.y0 - 1 <= box.y0, text
    assert box.y1 <= figure.bbox.y1 + 1, text
  for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    assert min(width, height) <= 1, (one, other)


@pytest.mark.parametrize(
  ('name', 'inches'),
  [
    ('three matrices', 1.9),
    ('matrices of a hundred classes', 1.5),
    ('a matrix of classes with long names', 3.0),
    ('two rows of images', 1.1),
    ('four stages', 1.0),
    ('more stages than a row has', 0.8),
  ],
)
def test_images_are_big_enough(name, inches):
  figure, _ = crowded(name)
  shown = [axes.bbox for axes in figure.axes if axes.images]
  assert min(box.width for box in shown) >= inches * figure.dpi
  assert min(box.height for box in shown) >= inches * figure.dpi


def test_matplotlib_stays_as_it_is():
  before = dict(matplotlib.rcParams)
  figure = CROWDED['one cell']()
  assert dict(matplotlib.rcParams) == before
  assert figure.get_figwidth() == 6.3


def data_of(figure):
  axes = figure.axes[0]
  (line,) = (line for line in axes.lines if len(line.get_xdata()))
  return line.get_xdata(), line.get_ydata()


def test_a_curve_is_the_mean_with_a_band_of_one_sample_deviation():
  values = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, np.nan]])
  figure = figures.learning_curves(
    {'a': (np.array([1, 2, 3]), values)}, ylabel='loss (nats)'
  )
  FigureCanvasAgg(figure)
  axes = figure.axes[0]
  assert axes.get_xlabel() == 'epoch'
  assert axes.get_ylabel() == 'loss (nats)'
  epochs, mean = data_of(figure)
  np.testing.assert_array_equal(epochs, [1, 2, 3])
  # The second run was cut short.
  np.testing.assert_array_equal(mean, [2, 4, 3])
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  # Deviations √2 and √8, and none of a single run.
  for epoch, middle, std in ((1, 2, 2**0.5), (2, 4, 8**0.5)):
    height = corners[corners[:, 0] == epoch, 1]
    np.testing.assert_allclose(
      [height.min(), height.max()], [middle - std, middle + std]
    )
  assert corners[:, 0].max() == 2
  assert 'mean ± std of 2 seeds' in words(figure)


@pytest.mark.parametrize('epochs', [1, 3])
def test_a_single_run_has_no_band(epochs):
  figure = figures.learning_curves(
    curves(['a'], runs=1, epochs=epochs), ylabel='loss (nats)'
  )
  FigureCanvasAgg(figure)
  assert '1 seed' in words(figure)
  assert not any(len(band.get_paths()) for band in figure.axes[0].collections)
  ticks = [text for text in words(figure) if text in ('0', '1', '2', '3', '4')]
  assert '1' in ticks


def test_groups_of_other_sizes_say_so_each():
  figure = figures.learning_curves(
    curves(['a'], runs=1) | curves(['b'], runs=3), ylabel='loss (nats)'
  )
  FigureCanvasAgg(figure)
  assert {'a; 1 seed', 'b; mean ± std of 3 seeds'} <= set(words(figure))


def late_curves(teacher):
  """Twelve curves from 90.0 to 91.1 % in the second half of the epochs."""
  epochs = np.arange(1, 21)
  late = np.where(epochs > 4, 90.0, 10.0)
  figure = figures.learning_curves(
    {str(index): (epochs, late[None] + index / 10) for index in range(12)},
    ylabel='validation accuracy (%)',
    teacher=teacher,
  )
  return figure.axes[0]


def test_curves_show_their_differences_and_the_teacher():
  axes = late_curves(92.0)
  *lines, teacher = axes.lines
  styles = {(line.get_color(), line.get_linestyle()) for line in lines}
  assert len(styles) == 12
  assert (teacher.get_label(), teacher.get_linestyle()) == ('teacher: 92', '--')
  assert set(teacher.get_ydata()) == {92.0}
  low, high = axes.get_ylim()
  assert 89.5 < low < 90
  assert 92 < high < 92.5
  # Of so many curves bands would hide one another.
  assert not axes.collections


@pytest.mark.parametrize(
  ('teacher', 'words'), [(95.0, '↑ teacher: 95'), (80, '↓ teacher: 80')]
)
def test_a_teacher_far_away_leaves_the_axis_to_the_curves(teacher, words):
  axes = late_curves(teacher)
  assert len(axes.lines) == 12
  assert [text.get_text() for text in axes.texts] == [words]
  low, high = axes.get_ylim()
  assert high - low < 1.4


def test_bands_widen_the_axis_by_half_of_what_curves_take():
  values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 9.0]])
  figure = figures.learning_curves(
    {'a': (np.array([1, 2, 3]), values)}, ylabel='loss (nats)'
  )
  # Means 2 and 6 in the second half, the last one ± √18, and a margin of 6 %.
  low, high = 6 - 18**0.5, 6 + (6 - 2) / 2
  margin = 0.06 * (high - low)
  np.testing.assert_allclose(
    figure.axes[0].get_ylim(), [low - margin, high + margin]
  )


def test_a_tuning_curve_is_in_per_cent():
  figure = figures.tuning_curve(
    [1, 2, 4],
    [np.array([0.2, 0.4]), np.array([0.3, 0.3]), np.array([0.5, 0.7])],
    xlabel='temperature',
    chosen=4,
  )
  FigureCanvasAgg(figure)
  axes = figure.axes[0]
  assert axes.get_ylabel() == 'validation accuracy (%)'
  (points,) = axes.containers
  np.testing.assert_allclose(
    points.lines[0].get_xydata(), [(1, 30), (2, 30), (4, 60)]
  )
  bars = points.lines[2][0].get_segments()
  # √200 = 14.1 around 30 and around 60.
  np.testing.assert_allclose(bars[0], [(1, 15.858), (1, 44.142)], atol=1e-3)
  np.testing.assert_allclose(bars[-1], [(4, 45.858), (4, 74.142)], atol=1e-3)
  marks = {line.get_label(): line.get_xydata() for line in axes.lines}
  np.testing.assert_allclose(marks['chosen: 4'], [(4, 60)])
  assert axes.get_xscale() == 'linear'
  assert 'mean ± std of 2 seeds' in words(figure)


def test_values_over_magnitudes_have_a_logarithmic_axis():
  for values, scale in (
    ([0.01, 0.1], 'log'),
    ([0.0, 0.1], 'linear'),
    ([1.0, 9.0], 'linear'),
    ([0.1, 1.0, 10.0], 'log'),
    ([float(value) for value in range(1, 11)], 'linear'),
  ):
    figure = figures.tuning_curve(
      values, [np.array([0.5])] * len(values), xlabel='weight', chosen=values[0]
    )
    assert figure.axes[0].get_xscale() == scale


def test_a_heat_map_frames_the_best_and_hatches_what_is_missing():
  accuracies = np.array([[0.501, np.nan], [0.9, 0.7], [0.6, 0.9]])
  figure = figures.heat_map(
    accuracies, [1, 2, 4], [0.1, 0.5], ylabel='temperature', xlabel='alpha'
  )
  FigureCanvasAgg(figure)
  axes = figure.axes[0]
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('alpha', 'temperature')
  numbers = {text.get_text(): text for text in axes.texts}
  assert sorted(numbers) == ['50.1', '60.0', '70.0', '90.0']
  # Equally good ones both: in the second row and in the third.
  assert sorted(patch.get_xy() for patch in axes.patches) == [
    (-0.5, 0.5),
    (0.5, 1.5),
  ]
  assert numbers['50.1'].get_color() == 'white'
  assert numbers['90.0'].get_color() == 'black'
  assert axes.patch.get_hatch()
  assert {'best', 'no result', '0.5', '4'} <= set(words(figure))


def test_bars_of_a_class_end_where_accuracies_do():
  figure = figures.per_class_accuracy(
    ['cat', 'dog'], {'a': np.array([[1.0, 0.0], [1.0, 0.0], [0.7, 0.3]])}
  )
  (axes,) = figure.axes
  (bars,) = axes.containers[0].lines[2]
  # Means of 90 and 10, standard deviations of 17.3.
  np.testing.assert_allclose(
    [segment[:, 1] for segment in bars.get_segments()],
    [(90 - 10 * 3**0.5, 100), (0, 10 + 10 * 3**0.5)],
  )


def test_points_per_class_are_means_in_per_cent():
  figure = figures.per_class_accuracy(
    ['cat', 'dog'],
    {
      'a': np.array([[0.9, 0.5], [0.7, 0.5]]),
      'b': np.array([[0.8, np.nan], [0.6, np.nan]]),
    },
  )
  FigureCanvasAgg(figure)
  (axes,) = figure.axes
  a, b = (points.lines[0].get_xydata() for points in axes.containers)
  np.testing.assert_allclose(a, [(-0.2, 80), (0.8, 50)])
  np.testing.assert_allclose(b, [(0.2, 70), (1.2, np.nan)])
  assert {'cat', 'dog', 'a', 'b', 'accuracy (%)'} <= set(words(figure))


def test_a_confusion_matrix_has_percentages_where_there_is_something():
  matrix = np.array([[0.996, 0.004, 0], [np.nan] * 3, [0.25, 0, 0.75]])
  figure = figures.confusion_matrices(['a', 'b', 'c'], {'student': matrix})
  FigureCanvasAgg(figure)
  axes = figure.axes[0]
  assert axes.get_xlabel() == 'predicted class'
  assert axes.get_ylabel() == 'true class'
  cells = {text.get_position(): text.get_text() for text in axes.texts}
  # By column and row.
  assert cells == {(0, 0): '100', (1, 0): '<1', (0, 2): '25', (2, 2): '75'}
  assert axes.patch.get_hatch()
  assert 'share of the true class (%)' in words(figure)


@pytest.mark.parametrize(('count', 'columns'), [(1, 1), (2, 2), (3, 2)])
def test_the_lowest_matrix_of_each_column_has_class_names(count, columns):
  figure = figures.confusion_matrices(['a', 'b'], matrices(LABELS[:count], 2))
  FigureCanvasAgg(figure)
  rows = -(-count // columns)
  assert words(figure).count('a') == columns + rows
  assert words(figure).count('predicted class') == columns
  assert words(figure).count('true class') == rows


def test_matrices_share_one_scale():
  figure = figures.confusion_matrices(HUNDRED, matrices(['a', 'b'], 100))
  *panels, _ = figure.axes
  assert [axes.images[0].get_clim() for axes in panels] == 2 * [(0, 100)]
  assert not any(axes.texts for axes in panels)


def test_what_is_right_has_a_tick():
  figure = figures.disagreements(
    pixels(2, 8, 1), ['cat', 'dog'], ['dog', 'dog'], ['cat', 'cat']
  )
  assert [axes.get_xlabel() for axes in figure.axes] == [
    'true: cat\nstudent: dog\nteacher: cat ✓',
    'true: dog\nstudent: dog ✓\nteacher: cat',
  ]


def test_images_are_shown_as_they_are():
  for channels in (1, 3):
    images = pixels(1, 8, channels)
    figure = figures.disagreements(images, ['a'], ['b'], ['c'])
    (shown,) = figure.axes[0].images
    np.testing.assert_array_equal(shown.get_array(), images[0].squeeze())
    if channels == 1:
      assert shown.get_clim() == (0, 255)


def test_both_maps_of_a_stage_have_one_scale():
  student, teacher = np.array([[[-1.0, 0]], [[3.0, 0]]])
  figure = figures.feature_maps(
    pixels(1, 8, 1)[0],
    {'stage1': (student, teacher), 'a->b': (np.eye(2), 2 * np.eye(2))},
  )
  FigureCanvasAgg(figure)
  _, *maps = figure.axes
  assert [axes.images[0].get_clim() for axes in maps] == [
    (-1, 3),
    (-1, 3),
    (0, 2),
    (0, 2),
  ]
  assert maps[1].get_xlabel() == '−1 to 3'
  assert {'input, 8×8', 'stage 1, 1×2', 'a->b, 2×2', 'student', 'teacher'} <= (
    set(words(figure))
  )


def test_maps_of_one_pixel_are_bars_from_zero():
  student, teacher = np.array([[[-1.0]], [[3.0]]])
  figure = figures.feature_maps(
    pixels(1, 8, 1)[0], {'stage4': (student, teacher)}
  )
  FigureCanvasAgg(figure)
  _, *maps = figure.axes
  assert [axes.patches[0].get_height() for axes in maps] == [-1, 3]
  assert not any(axes.images for axes in maps)
  (limits,) = {axes.get_ylim() for axes in maps}
  np.testing.assert_allclose(limits, [-1.4, 3.4])
  assert '−1 and 3' in words(figure)


def test_images_of_two_channels_are_refused():
  with pytest.raises(ValueError, match='has 2 channels: expected 1 or 3'):
    figures.disagreements(pixels(1, 8, 2), 'a', 'b', 'c')
