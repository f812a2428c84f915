"""The figures of a report: functions from arrays to Matplotlib figures.

All are as wide as a column of text, set in 8 points, and can be read in print
without colour: series differ in marker and line too, colour maps get steadily
lighter or darker. Arrays of one figure have to fit each other.
"""

import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, font_manager, patches, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from kdjax.system import escape

_WIDTH = 6.3  # inches
_TEXT = 8.0  # points
_MOST_BANDS = 6  # of more curves the bands hide one another
_LINE = 0.17  # inches from one line of text to the next
_LETTER = 0.067  # inches, the mean width of a letter

# Okabe and Ito's colours, less black and yellow. With four kinds of lines and
# eight markers, twelve series differ in colour and line, twenty-four in all.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_MARKERS = 'os^Dv*PX'
_LINES = ('-', '--', '-.', ':')
_MAP = 'cividis'
# What lies behind a map, and is seen where it has no value.
_NONE: dict[str, Any] = {
  'facecolor': 'white',
  'edgecolor': '0.4',
  'hatch': '////',
}
_FRAME: dict[str, Any] = {
  'facecolor': 'none',
  'edgecolor': 'black',
  'linewidth': 2,
}

_style = matplotlib.rc_context(
  {
    'font.size': _TEXT,
    'text.usetex': False,
    'axes.titlesize': _TEXT,
    'axes.labelsize': _TEXT,
    'xtick.labelsize': _TEXT,
    'ytick.labelsize': _TEXT,
    'legend.fontsize': _TEXT,
    'figure.labelsize': _TEXT,
    'lines.linewidth': 1.2,
    'lines.markersize': 4.0,
    'hatch.linewidth': 0.5,
  }
)


@_style
def learning_curves(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  ylabel: str,
  teacher: float | None = None,
) -> Figure:
  """Draws how a quantity develops over epochs, for several groups of runs.

  Where some runs of a group were cut short, mean and band are those of the
  runs that got so far.

  Args:
    curves: for each label the epochs `[epochs]` and the values of each run
      `[runs, epochs]`, NaN where a run has none.
    ylabel: what the values are, with their unit.
    teacher: the teacher's value, if it is known: a dashed line.

  Returns:
    A line for the mean over runs, and, of few curves, a band of ± one sample
    standard deviation where there are at least two. The axis has the range of
    the means in the second half of the epochs, so that small differences are
    seen, and the teacher's line unless that is far beyond them.
  """
  has_bands = len(curves) <= _MOST_BANDS
  title, labels = _with_seeds(
    {label: values for label, (_, values) in curves.items()}, has_bands
  )
  figure = _figure(3.3 if has_bands else 4.3)
  axes = figure.add_subplot(xlabel='epoch', ylabel=ylabel)
  _plain(axes)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
  late, edges = [], []
  for index, (epochs, values) in enumerate(curves.values()):
    mean, std = _mean_and_std(values)
    style = _series(index)
    # Some ten markers on each line, no two lines' on the same epochs.
    every = math.ceil(len(epochs) / 10)
    axes.plot(
      epochs,
      mean,
      label=labels[index],
      linestyle=_LINES[index % len(_LINES)],
      markevery=(index * every // len(curves), every),
      **style,
    )
    band = mean - std, mean + std
    if has_bands:
      axes.fill_between(
        epochs, *band, color=style['color'], alpha=0.15, linewidth=0
      )
      edges.append(np.array(band)[:, len(mean) // 2 :])
    late.append(mean[len(mean) // 2 :])
  _zoom(axes, np.concatenate(late), edges, teacher)
  _legend(figure, axes, title)
  return figure


def _zoom(
  axes: Axes,
  means: np.ndarray,
  edges: Sequence[np.ndarray],
  teacher: float | None,
) -> None:
  """Limits an axis to what tells curves apart, and draws the teacher's line.

  Args:
    axes: where the curves are.
    means: what has to be seen of them, `[values]`.
    edges: of their bands, which are seen as far as they leave the means half of
      the axis.
    teacher: the teacher's value; words, where it is too far away for a line.
  """
  low, high = means.min(), means.max()
  room = (high - low) / 2
  shown = [means]
  if edges and room:
    inner = np.concatenate([each.ravel() for each in edges])
    inner = inner[np.isfinite(inner)]
    shown.append(np.clip(inner, low - room, high + room))
  is_far = False
  if teacher is not None:
    label = f'teacher: {teacher:.4g}'
    is_far = bool(room) and not low - 2 * room <= teacher <= high + 2 * room
    if is_far:
      side, place = ('↑', 0.98) if teacher > high else ('↓', 0.02)
      axes.text(
        0.99,
        place,
        f'{side} {label}',
        transform=axes.transAxes,
        ha='right',
        va='top' if teacher > high else 'bottom',
      )
    else:
      axes.axhline(teacher, color='black', linestyle='--', label=label)
      shown.append(np.array([teacher]))
  seen = np.concatenate(shown)
  margin = (0.12 if is_far else 0.06) * np.ptp(seen)
  if margin:
    axes.set_ylim(seen.min() - margin, seen.max() + margin)


@_style
def tuning_curve(
  values: Sequence[float],
  accuracies: Sequence[np.ndarray],
  *,
  xlabel: str,
  chosen: float,
) -> Figure:
  """Draws the validation accuracy over a hyperparameter.

  The axis is logarithmic where the values span a factor of ten and their
  logarithms are spaced more evenly than they are.

  Args:
    values: the hyperparameter's values, sorted.
    accuracies: at each value, the validation accuracies of its seeds, from 0 to
      1, `[seeds]`.
    xlabel: the hyperparameter, with its unit if it has one.
    chosen: the value that was chosen, which is marked.

  Returns:
    A point for the mean at each value, with a bar of ± one sample standard
    deviation where there are several seeds.
  """
  x = np.asarray(values, float)
  mean, std = 100 * np.transpose(
    [np.ravel(_mean_and_std(each[:, np.newaxis])) for each in accuracies]
  )
  figure = _figure(2.6)
  axes = figure.add_subplot(xlabel=xlabel, ylabel='validation accuracy (%)')
  _plain(axes)
  if _is_logarithmic(x):
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.xaxis.set_major_formatter('{x:g}')
  axes.errorbar(
    x,
    mean,
    std if np.isfinite(std).any() else None,
    label=_seeds(list(map(len, accuracies))),
    color='0.3',
    marker='o',
    capsize=3,
  )
  axes.plot(
    chosen,
    mean[x == chosen],
    label=f'chosen: {chosen:g}',
    color='black',
    marker='o',
    markersize=10,
    markerfacecolor='none',
    linestyle='',
  )
  _legend(figure, axes)
  return figure


@_style
def heat_map(
  accuracies: np.ndarray,
  rows: Sequence[Any],
  columns: Sequence[Any],
  *,
  ylabel: str,
  xlabel: str,
) -> Figure:
  """Draws the validation accuracy over two hyperparameters.

  Args:
    accuracies: from 0 to 1, `[rows, columns]`; NaN where there is none.
    rows: the values that `ylabel` has.
    columns: the values that `xlabel` has.
    ylabel: the hyperparameter of the rows.
    xlabel: the hyperparameter of the columns.

  Returns:
    A map with each accuracy in per cent in its cell. The best cell is framed,
    or all that are equally good; a cell without an accuracy is hatched.
  """
  percent = 100 * accuracies
  figure = _figure(max(2.3, 1.3 + 0.32 * len(rows)))
  axes = figure.add_subplot()
  image = axes.imshow(percent, cmap=_MAP, aspect='auto', interpolation='none')
  axes.set(xlabel=xlabel, ylabel=ylabel)
  room = 0.75 * _WIDTH / len(columns)
  _name_ticks(axes.xaxis, [_shorten(str(value)) for value in columns], room)
  _name_ticks(axes.yaxis, [_shorten(str(value)) for value in rows], 0.3)
  axes.tick_params(length=0)
  axes.patch.set(**_NONE)
  best = np.nanmax(percent)
  for (row, column), value in np.ndenumerate(percent):
    if np.isnan(value):
      continue
    weight = 'bold' if value == best else 'normal'
    _write(axes, image, (row, column), f'{value:.1f}', weight=weight)
    if value == best:
      axes.add_patch(
        patches.Rectangle(
          (column - 0.5, row - 0.5), 1, 1, zorder=3, clip_on=False, **_FRAME
        )
      )
  figure.colorbar(image, ax=axes, label='validation accuracy (%)')
  handles = {'best': patches.Patch(**_FRAME)}
  if np.isnan(percent).any():
    handles['no result'] = patches.Patch(**_NONE)
  figure.legend(
    handles.values(), handles, loc='outside upper right', ncols=2, frameon=False
  )
  return figure


@_style
def per_class_accuracy(
  class_names: Sequence[str], accuracies: Mapping[str, np.ndarray]
) -> Figure:
  """Draws the accuracy on each class, for several groups of runs.

  Points rather than bars: the axis need not start at zero, where accuracies
  that are all high could not be told apart.

  Args:
    class_names: name of each class.
    accuracies: for each label the accuracies of its runs on each class, from 0
      to 1, `[runs, classes]`; NaN for a class without examples.

  Returns:
    A point for the mean over runs, with a bar of ± one sample standard
    deviation, cut at 0 and 100 %, where there are several. Many classes are
    spread over several panels.
  """
  title, labels = _with_seeds(accuracies)
  panels = math.ceil(len(class_names) / 34)
  per_panel = math.ceil(len(class_names) / panels)
  class_names = [_shorten(name) for name in class_names]
  longest = max(map(_text_width, class_names))
  figure = _figure(panels * ((1.4 if panels > 1 else 2.4) + longest))
  grid = figure.subplots(panels, sharey=True, squeeze=False)[:, 0]
  for panel, axes in enumerate(grid):
    shown = slice(panel * per_panel, (panel + 1) * per_panel)
    names = class_names[shown]
    _plain(axes)
    axes.set_ylabel('accuracy (%)')
    axes.set_xlim(-0.5, per_panel - 0.5)
    _name_ticks(axes.xaxis, names, 0.85 * _WIDTH / per_panel)
    axes.tick_params(axis='x', length=0)
    for place in range(0, len(names), 2):
      axes.axvspan(place - 0.5, place + 0.5, color='0.95', zorder=0)
    for index, values in enumerate(accuracies.values()):
      mean, std = 100 * np.stack(_mean_and_std(values[:, shown]))
      # No accuracy lies beyond 0 and 100 %; NaN is no bar.
      bars = np.minimum(std, np.maximum([mean, 100 - mean], 0))
      offset = 0.8 * ((index + 0.5) / len(accuracies) - 0.5)
      axes.errorbar(
        np.arange(len(names)) + offset,
        mean,
        bars if np.isfinite(std).any() else None,
        label=labels[index],
        linestyle='',
        elinewidth=0.8,
        **_series(index),
      )
  grid[-1].set_xlabel('class')
  _legend(figure, grid[0], title)
  return figure


@_style
def confusion_matrices(
  class_names: Sequence[str], matrices: Mapping[str, np.ndarray]
) -> Figure:
  """Draws confusion matrices on one scale.

  Args:
    class_names: their names.
    matrices: for each label the share of each true class (rows) that was taken
      for each class (columns), from 0 to 1, `[classes, classes]`; NaN for a
      class without examples.

  Returns:
    A panel for each matrix. Shades follow the square root of the share, so that
    rare errors are seen. With at most twenty classes each cell has its share in
    per cent, none where it is zero. A class without examples is hatched.
  """
  classes = len(class_names)
  class_names = [_shorten(name) for name in class_names]
  longest = max(map(_text_width, class_names))
  numbered = classes <= 20

  def side_of(columns: int) -> float:
    return min((0.8 * _WIDTH - longest) / columns - 0.1, 4.0)

  # Two beside each other, unless a number would be wider than its cell.
  columns = 1 if numbered and side_of(2) < 0.2 * classes else 2
  columns = min(columns, len(matrices))
  rows = math.ceil(len(matrices) / columns)
  side = side_of(columns)
  # Class names are below the lowest matrix of each column.
  named = 2 if len(matrices) % columns else 1
  titles = [_fill(label, side) for label in matrices]
  lines = 1 + max(title.count('\n') for title in titles)
  figure = _figure(
    rows * (side + _LINE * lines + 0.2) + named * (longest + 0.4)
  )
  grid = figure.subplots(
    rows, columns, sharex=True, sharey=True, squeeze=False
  ).ravel()
  for axes in grid[len(matrices) :]:
    axes.set_axis_off()
  for index, matrix in enumerate(matrices.values()):
    axes = grid[index]
    if index % columns == 0:
      axes.set_ylabel('true class')
    if index + columns >= len(matrices):
      axes.set_xlabel('predicted class')
      axes.tick_params(labelbottom=True)
    axes.patch.set(**_NONE)
    percent = 100 * np.asarray(matrix, float)
    image = axes.imshow(
      percent,
      cmap='Greys',
      norm=colors.PowerNorm(0.5, vmin=0, vmax=100),
      interpolation='none',
    )
    axes.set_title(titles[index])
    for axis in (axes.xaxis, axes.yaxis):
      _name_ticks(axis, class_names, side / classes)
    axes.tick_params(length=2)
    if numbered:
      for (row, column), value in np.ndenumerate(percent):
        if value > 0:
          text = f'{value:.0f}' if value >= 0.5 else '<1'
          _write(axes, image, (row, column), text)
  figure.colorbar(
    image,
    ax=grid.tolist(),
    label='share of the true class (%)',
    ticks=[0, 1, 5, 10, 25, 50, 75, 100],
    aspect=25 * rows,
  )
  return figure


@_style
def disagreements(
  images: np.ndarray,
  labels: Sequence[str],
  student: Sequence[str],
  teacher: Sequence[str],
) -> Figure:
  """Shows images with their class and what two networks take them for.

  Args:
    images: pixels from 0 to 255, uint8 `[count, height, width, 1 or 3]`.
    labels: name of the class of each.
    student: name of the class that the student predicts.
    teacher: name of the class that the teacher predicts.

  Returns:
    The images in rows, with the three names under each and a tick at those that
    are right.
  """
  captions = [
    f'true: {_shorten(truth)}\n'
    f'student: {_shorten(ours)}{" ✓" * (ours == truth)}\n'
    f'teacher: {_shorten(theirs)}{" ✓" * (theirs == truth)}'
    for truth, ours, theirs in zip(labels, student, teacher, strict=True)
  ]
  widest = max(
    _text_width(line) for text in captions for line in text.splitlines()
  )
  fitting = max(1, int(_WIDTH / max(widest + 0.15, 0.9)))
  rows = math.ceil(len(images) / fitting)
  columns = math.ceil(len(images) / rows)
  side = min(_WIDTH / columns - 0.15, 1.2)
  figure = _figure(rows * (side + 3.3 * _LINE))
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[len(images) :]:
    axes.set_axis_off()
  for axes, image, caption in zip(grid, images, captions, strict=False):
    _show_image(axes, image)
    axes.set_xlabel(caption)
  return figure


@_style
def feature_maps(
  image: np.ndarray, stages: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Figure:
  """Shows an image and what student and teacher make of it, stage by stage.

  Args:
    image: pixels from 0 to 255, uint8 `[height, width, 1 or 3]`.
    stages: for each stage the student's map, through its connector, and the
      teacher's, each `[height, width]`, of the same shape.

  Returns:
    A row for the student and one for the teacher. Both maps of a stage have one
    scale from black to white, whose ends are written under them; maps of one
    pixel are bars from zero.
  """
  columns = 4 if len(stages) <= 4 else 5
  rows = math.ceil(len(stages) / columns)
  side = 0.95 * _WIDTH / (columns + 1) - 0.1
  figure = _figure(rows * (2 * side + 5 * _LINE) + _LINE)
  grid = figure.add_gridspec(2 * rows, columns + 1)
  axes = figure.add_subplot(grid[:2, 0])
  _show_image(axes, image)
  axes.set_title(_fill(f'input, {_size(image)}', side))
  for index, (name, maps) in enumerate(stages.items()):
    row, column = divmod(index, columns)
    low, high = np.min(maps), np.max(maps)
    is_bar = np.size(maps[0]) == 1
    title = re.sub(r'^stage(\d+)$', r'stage \1', name)
    for which, values in enumerate(maps):
      axes = figure.add_subplot(grid[2 * row + which, column + 1])
      if is_bar:
        axes.bar([0], [np.mean(values)], 0.5, color='0.4')
        axes.axhline(0, color='black', linewidth=0.8)
        axes.set(xlim=(-1, 1), ylim=_from_zero(low, high), box_aspect=1)
      else:
        axes.imshow(
          values, cmap='gray', vmin=low, vmax=high, interpolation='nearest'
        )
      axes.set(xticks=[], yticks=[])
      if column == 0:
        axes.set_ylabel(('student', 'teacher')[which])
      if which == 0:
        axes.set_title(_fill(f'{title}, {_size(values)}', side))
    ends = maps if is_bar else (low, high)
    between = ' and ' if is_bar else ' to '
    shown = between.join(f'{np.mean(end):.3g}' for end in ends)
    axes.set_xlabel(_fill(shown.replace('-', '−'), side))
  figure.supxlabel(
    'under each stage: values of black and white, or of both bars'
  )
  return figure


def _from_zero(low: float, high: float) -> tuple[float, float]:
  """Returns the limits of an axis of bars, of which one may be negative."""
  low, high = min(low, 0), max(high, 0)
  margin = 0.1 * (high - low) or 1.0
  return low - margin, high + margin


# Layout


def _figure(height: float) -> Figure:
  """Makes an empty figure, so many inches high."""
  return Figure(figsize=(_WIDTH, height), layout='constrained')


def _plain(axes: Axes) -> None:
  """Draws a light grid, and no frame at the top and the right."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='0.88', linewidth=0.6)
  axes.set_axisbelow(True)
  # Ticks that are made when the figure is drawn do not know this style.
  axes.tick_params(labelsize=_TEXT)


def _legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
  """Puts the legend below the axes, which stay as high as they are."""
  handles, labels = axes.get_legend_handles_labels()
  labels = [_fill(label, 0.8 * _WIDTH) for label in labels]
  longest = max(
    _text_width(line) for label in labels for line in label.splitlines()
  )
  # Beside each label there is its line, and space.
  columns = min(len(labels), max(1, int(_WIDTH / (longest + 0.66))))
  lines = sum(len(label.splitlines()) for label in labels[::columns])
  figure.set_figheight(
    figure.get_figheight() + _LINE * (lines + (title is not None)) + 0.1
  )
  figure.legend(
    handles,
    labels,
    title=title,
    title_fontsize=_TEXT,
    ncols=columns,
    loc='outside lower center',
    frameon=False,
    handlelength=3,  # long enough for each kind of line
  )


def _series(index: int) -> dict[str, Any]:
  """Returns marker and colour of one of several series."""
  return {
    'color': _COLOURS[index % len(_COLOURS)],
    'marker': _MARKERS[index % len(_MARKERS)],
  }


def _name_ticks(axis: Axis, names: Sequence[str], room: float) -> None:
  """Names the places 0, 1, … of an axis, each so many inches wide."""
  flat = isinstance(axis, XAxis) and max(map(_text_width, names)) < room - 0.05
  upright = isinstance(axis, XAxis) and not flat
  # Where lines of text would be too close, only some are named.
  every = 1 if flat else math.ceil(0.8 * _LINE / room)
  axis.set_ticks(
    range(0, len(names), every),
    names[::every],
    fontsize=_TEXT,
    rotation=90 if upright else 0,
  )


def _write(
  axes: Axes,
  image: AxesImage,
  cell: tuple[int, ...],
  text: str,
  weight: str = 'normal',
) -> None:
  """Writes into a cell of a map, in a colour that can be read on its shade."""
  row, column = cell
  red, green, blue, _ = image.to_rgba(np.asarray(image.get_array())[cell])
  dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
  axes.text(
    column,
    row,
    text,
    color='white' if dark else 'black',
    weight=weight,
    ha='center',
    va='center',
  )


def _show_image(axes: Axes, image: np.ndarray) -> None:
  """Shows pixels from 0 to 255, `[height, width, 1 or 3]`, without ticks."""
  if image.shape[-1] not in (1, 3):
    raise ValueError(
      f'an image has {image.shape[-1]} channels: expected 1 or 3'
    )
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  axes.imshow(pixels, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
  axes.set(xticks=[], yticks=[])


# Text


def _text_width(text: str) -> float:
  """Estimates the width of a line of text, in inches."""
  return _LETTER * len(text)


def _drawable(text: str) -> str:
  """Escapes what is not printable, and letters that the font lacks.

  They would all be the same box, and so would names.
  """
  fonts = [
    font_manager.get_font(
      font_manager.findfont(font_manager.FontProperties(family=[family]))
    )
    for family in matplotlib.rcParams['font.family']
  ]
  return ''.join(
    character
    if any(font.get_char_index(ord(character)) for font in fonts)
    else character.encode('unicode_escape').decode()
    for character in escape.printable(text)
  )


def _fill(text: str, width: float) -> str:
  """Breaks a text into lines of so many inches."""
  filled = textwrap.fill(_drawable(text), max(8, int(width / _LETTER)))
  return escape.figure(filled)


def _shorten(name: str, most: int = 24) -> str:
  name = _drawable(name)
  return escape.figure(name if len(name) <= most else f'{name[: most - 1]}…')


def _size(image: np.ndarray) -> str:
  return f'{image.shape[0]}×{image.shape[1]}'


def _seeds(counts: Collection[int], spread: bool = True) -> str:
  """Says of how many seeds something is."""
  low, high = min(counts), max(counts)
  if high == 1:
    return '1 seed'
  mean = 'mean ± std' if spread else 'mean'
  return f'{mean} of {high if low == high else f"{low} to {high}"} seeds'


def _with_seeds(
  series: Mapping[str, Sequence[Any] | np.ndarray], spread: bool = True
) -> tuple[str | None, list[str]]:
  """Returns a legend's title and labels that say how many seeds each has."""
  counts = [len(runs) for runs in series.values()]
  if len(set(counts)) == 1:
    return _seeds(counts, spread), list(series)
  return None, [
    f'{label}; {_seeds([count], spread)}'
    for label, count in zip(series, counts, strict=True)
  ]


# Numbers


def _mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means and sample standard deviations over rows, of what is not NaN."""
  masked = np.ma.masked_invalid(np.asarray(values, float))
  mean = masked.mean(axis=0)
  # A masked value counts as none: that of a single run is masked.
  std = masked.std(axis=0, ddof=1)
  return np.ma.filled(mean, np.nan), np.ma.filled(std, np.nan)


def _is_logarithmic(x: np.ndarray) -> bool:
  """Whether sorted values are better shown on a logarithmic axis."""

  def unevenness(x: np.ndarray) -> float:
    gaps = np.diff(x)
    return gaps.max() / gaps.min()

  if x[0] <= 0 or x[-1] < 10 * x[0]:
    return False
  return unevenness(np.log(x)) <= unevenness(x)
