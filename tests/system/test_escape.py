"""Text of strangers in each medium that shows it."""

import csv
import html.parser
import io
import logging
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import synthetic

from kdjax.evaluation import example_files
from kdjax.report import figures, gallery, write
from kdjax.storage import metrics_log
from kdjax.system import escape, logs
from kdjax.training.run_log import RunLog

# Mathematics that is none, a formula, a terminal's sequence, no Unicode, an end
# of a line, and markup.
HOSTILE = (
  '$\\frac{',
  '$x^_$',
  '=cmd|"/c calc"!A1',
  '\x1b[31mred',
  'caf\udce9',
  'a\nb',
  '<b>|*_`',
)
FORMULAS = ('=1', '+1+1', '-1+1', '@SUM(1)', "'=1", "''@x", '\uff1d1')


def test_text_is_one_line_that_any_encoding_holds():
  for text in HOSTILE:
    shown = escape.printable(text)
    assert shown.isprintable()
    shown.encode()
  assert escape.printable('père 猫') == 'père 猫'
  assert escape.lines('a\x1b\nb\r') == 'a\\x1b\nb\\r'
  assert escape.unicode('a\n\udce9') == 'a\n\\udce9'
  assert escape.html('<a>"\n\x1b') == '&lt;a&gt;&quot;\n\\x1b'
  assert escape.markdown('a_b _c_ |*<') == r'a_b \_c\_ \|\*\<'
  assert escape.figure('$a\x07') == r'\$a\x07'


def test_latex_is_plain_text():
  assert escape.latex('a_1 & 5 % ± −2') == r'a\_1 \& 5 \% $\pm$ $-$2'
  assert escape.latex('\\input{x}') == r'\textbackslash{}input\{x\}'
  assert escape.latex('$^~<#>|') == (
    r'\$\textasciicircum{}\textasciitilde{}$<$\#$>$$|$'
  )
  assert escape.latex('é ð 猫\n') == (
    r'é \textbackslash{}xf0 \textbackslash{}u732b\textbackslash{}n'
  )
  # Neither a dash nor a quotation mark.
  assert escape.latex("--- ''") == "-{}-{}- '{}'"


@pytest.mark.parametrize('text', [*FORMULAS, 'a', "'a", '', '1', '\u2019'])
def test_a_cell_is_no_formula_and_can_be_read_back(text):
  cell = escape.csv_cell(text)
  assert (cell != text) == (text in FORMULAS)
  assert re.sub("^'(?='*[=+\\-@\uff1d])", '', cell) == text
  assert escape.csv_cell(-1.5) == -1.5


def test_predictions_name_any_class(tmp_path):
  labels = np.arange(len(HOSTILE), dtype=np.int32)
  logits = np.eye(len(HOSTILE), dtype=np.float32)
  path = tmp_path / 'out.csv'
  example_files.write(path, HOSTILE, {'labels': labels, 'best': logits})
  with path.open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['label'] for row in rows] == list(map(escape.csv_cell, HOSTILE))
  assert rows[2]['label'].startswith("'=cmd")
  # Numbers are numbers, whatever their sign.
  assert float(rows[0]['loss']) > 0


def test_a_log_does_not_steer_the_terminal(capsys):
  record = logging.LogRecord('kdjax', 20, '', 0, '%s', ('\x1b[2J\nx\r',), None)
  logs._Handler().emit(record)
  assert capsys.readouterr().err == '\\x1b[2J\nx\\r\n'


def test_tags_hold_any_name(tmp_path):
  with RunLog(tmp_path, start_step=0, total_steps=1, tensorboard=True) as log:
    log.write('train', 1, {'loss': 1.0, 'accuracy': 0.0, 'mse/\udce9\n': 1.0})
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'train/mse/\\udce9\\n' in events.read_bytes()
  assert metrics_log.read_records(tmp_path)[0]['mse/\udce9\n'] == 1


class _Text(html.parser.HTMLParser):
  def __init__(self, page):
    super().__init__()
    self.tags, self.text = set(), ''
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)

  def handle_data(self, data):
    self.text += data


def test_a_report_shows_any_name(tmp_path):
  names = HOSTILE[:2]
  path = synthetic.write_run(
    tmp_path / 'runs' / 'a',
    'response',
    taught_by=synthetic.teacher(class_names=list(names), model=HOSTILE[6]),
    data={'name': '<i>\x1b[31m'},
    predictions={
      'labels': synthetic.LABELS,
      'best': synthetic.logits(0, 1, 0, 0),
      'teacher': synthetic.logits(0, 1, 1, 0),
    },
  )
  stray = tmp_path / 'runs' / 'caf\udce9\x1b[31m'
  synthetic.write_unfinished(stray)
  output = tmp_path / 'report'
  said = write.write([path, stray], output, formats=['tex', 'svg'])
  assert '\x1b' not in said
  assert 'left out' in said
  page = _Text((output / 'report.html').read_text(encoding='utf-8'))
  assert not page.tags & {'b', 'i'}
  assert '<i>\\x1b[31m' in page.text
  assert '| teacher \\<b\\>\\|\\*\\_\\` |' in (
    output / 'comparison.md'
  ).read_text(encoding='utf-8')
  assert r'teacher $<$b$>$$|${*}\_` & ' in (
    output / 'comparison.tex'
  ).read_text(encoding='utf-8')
  for path in (output / 'figures').glob('*.svg'):
    xml.etree.ElementTree.parse(path)
  text = (output / 'comparison.csv').read_text(encoding='utf-8')
  assert next(csv.DictReader(io.StringIO(text)))['label'] == 'teacher <b>|*_`'


def test_letters_that_the_font_lacks_are_told_apart():
  names = ('\U0001f9ff', '\U0001f9fe', 'père')
  figure = figures.confusion_matrices(names, {'a': np.eye(3)})
  assert gallery.draw(figure)
  labels = figure.axes[0].get_yticklabels()
  assert [label.get_text() for label in labels] == [
    '\\U0001f9ff',
    '\\U0001f9fe',
    'père',
  ]


def test_figures_show_any_name():
  share = np.eye(len(HOSTILE))
  figure = figures.confusion_matrices(HOSTILE, {HOSTILE[1]: share})
  assert gallery.draw(figure)
  axes = figure.axes[0]
  assert axes.get_title() == r'\$x^_\$'
  assert len(axes.texts) == len(HOSTILE)
  many = figures.disagreements(
    np.zeros((len(HOSTILE), 2, 2, 1), np.uint8), HOSTILE, HOSTILE, HOSTILE
  )
  assert gallery.draw(many)
