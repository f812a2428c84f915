"""The command, from run directories to a page."""

import base64
import html.parser
import re

import pytest
import synthetic
from absl import app, flags
from absl.testing import flagsaver
from synthetic import write_run, write_unfinished

from kdjax.report import __main__ as command

# Elements that have no end tag.
VOID = {'meta', 'img'}


class Page(html.parser.HTMLParser):
  """Checks that elements are nested, and collects what they refer to."""

  def __init__(self, text):
    super().__init__()
    self.open = []
    self.images = []
    self.text = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'img':
      assert attrs['alt']
      self.images.append(attrs['src'])
    else:
      assert not attrs.keys() & {'src', 'href'}

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text.append(data)


def run(*paths, **values):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test'])
  with flagsaver.flagsaver(**values):
    command.main(['report', *map(str, paths)])


@pytest.fixture(autouse=True)
def process(monkeypatch):
  """Leaves the logger and the allocator of the tests' process alone."""
  monkeypatch.setattr('kdjax.system.command.logs.setup', lambda: None)
  monkeypatch.setattr('kdjax.system.command.xla.setup', lambda: None)


@pytest.fixture
def sweep(tmp_path):
  sweep = tmp_path / 'a <b> & "c"'
  predictions = {
    'labels': synthetic.LABELS,
    'best': synthetic.logits(0, 1, 1, 1),
    'last': synthetic.logits(0, 1, 1, 1),
  }
  for seed in (0, 1):
    write_run(sweep / f's{seed}', seed=seed, predictions=predictions)
    for temperature in (1.0, 2.0, 4.0):
      write_run(
        sweep / f'r{temperature}-{seed}',
        'response',
        seed=seed,
        accuracy=0.91 + seed / 100,
        method__response__temperature=temperature,
        predictions={**predictions, 'teacher': synthetic.logits(0, 0, 1, 1)},
      )
  write_unfinished(sweep / 'going', 'feature')
  return sweep


def test_the_command_writes_a_page_tables_and_figures(sweep, tmp_path, capsys):
  output = tmp_path / 'deep' / 'report'
  run(sweep, output=str(output))
  shown = capsys.readouterr().out
  assert '91.50 ± 0.71' in shown
  assert str(output / 'report.html') in shown
  assert {path.name for path in output.iterdir()} == {
    'report.html',
    'comparison.md',
    'comparison.csv',
    'runs.csv',
    'figures',
  }
  text = (output / 'report.html').read_text()
  page = Page(text)
  assert page.open == []
  words = ' '.join(page.text)
  for expected in (
    'Knowledge distillation on digits',
    '1,293 training, 144 validation and 4 test images',
    'resnet50, 23,519,690 parameters',
    'scratch: seeds 0, 1; response: seeds 0, 1 (3 settings)',
    '91.50 ± 0.71',
    # The data are not those of the digest.
    'teacher disagree: ',
    'a <b> & "c"/going: has not finished',
  ):
    assert expected in words
  # Nothing outside the page is referred to.
  outside = re.sub(r'src="data:image/png;base64,[^"]*"', '', text)
  assert not re.search(r'http|url\(|@import|//', outside)
  files = sorted((output / 'figures').iterdir())
  assert {path.stem for path in files} >= {
    'validation_accuracy_over_training',
    'tuning_response_temperature',
    'confusion',
  }
  embedded = [
    base64.b64decode(image.removeprefix('data:image/png;base64,'))
    for image in page.images
  ]
  assert sorted(embedded) == sorted(path.read_bytes() for path in files)
  assert all(image.startswith(b'\x89PNG') for image in embedded)


def test_further_formats_are_those_of_print(sweep, tmp_path):
  output = tmp_path / 'report'
  run(sweep, output=str(output), format=['pdf', 'svg', 'tex'])
  found = {path.suffix for path in (output / 'figures').iterdir()}
  assert found == {'.png', '.pdf', '.svg'}
  name = 'validation_accuracy_over_training'
  pdf = (output / 'figures' / f'{name}.pdf').read_bytes()
  # Fonts of Type 3 are refused by publishers.
  assert b'/Type3' not in pdf
  assert b'/TrueType' in pdf or b'/CIDFontType2' in pdf
  again = tmp_path / 'again'
  run(sweep, output=str(again), format=['pdf', 'svg'])
  for suffix in ('pdf', 'svg'):
    file = f'figures/{name}.{suffix}'
    assert (output / file).read_bytes() == (again / file).read_bytes()
  table = (output / 'comparison.tex').read_text()
  assert r'temperature = 1) & 91.50 $\pm$ 0.71 & ' in table
  assert not (again / 'comparison.tex').exists()
  with pytest.raises(SystemExit, match='--format has eps: expected some of'):
    run(sweep, output=str(again), format=['eps'])


def test_the_page_is_fit_for_each_screen_and_for_paper(sweep, tmp_path):
  run(sweep, output=str(tmp_path / 'report'))
  text = (tmp_path / 'report' / 'report.html').read_text()
  # What it looks like was looked at; this is what it depends on.
  assert '<meta name="viewport" content="width=device-width' in text
  for rule in ('print', 'screen and (prefers-color-scheme: dark)'):
    assert f'@media {rule} {{' in text
  assert text.count('<table>') == 2
  cells = re.findall(r'<td data-column="([^"]*)">', text)
  names = re.findall(r'<th scope="col">([^<]*)</th>', text)
  assert set(cells) == set(names)
  assert len(cells) == len(names) * text.count('<th scope="row">') // 2
  assert '<img class="chart"' in text


def test_runs_without_a_teacher_can_be_compared(tmp_path, capsys):
  for seed in (0, 1):
    write_run(tmp_path / f'{seed}', seed=seed)
  run(tmp_path / '0', tmp_path / '1', output=str(tmp_path / 'report'))
  assert 'note: no figure of accuracy of each class' in capsys.readouterr().out
  page = Page((tmp_path / 'report' / 'report.html').read_text())
  assert 'Teacher none' in ' '.join(page.text)
  assert 'Left out' not in page.text


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(app.UsageError, match='expected run directories'):
    run()
  with pytest.raises(SystemExit, match=r'error: .*nowhere does not exist'):
    run(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(SystemExit, match='is no run directory and holds none'):
    run(tmp_path / 'empty', output=str(tmp_path / 'report'))
  assert not (tmp_path / 'report').exists()
