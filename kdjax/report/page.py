"""The comparison as one HTML page that needs no other file."""

import base64
import collections
from collections.abc import Iterable, Mapping, Sequence

from kdjax.report import collect, tables
from kdjax.report.collect import Comparison
from kdjax.report.gallery import Exhibit
from kdjax.report.significance import Row
from kdjax.system import escape

_STYLE = """
:root { color-scheme: light dark; --text: #111; --page: #fff; --line: #888; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page);
  font: 16px/1.5 Georgia, 'Times New Roman', serif; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-size: 0.8rem;
  border-top: 2px solid var(--text); border-bottom: 2px solid var(--text); }
th, td { padding: 0.25rem 0.5rem; text-align: right;
  font-variant-numeric: tabular-nums; }
thead th { border-bottom: 1px solid var(--text); vertical-align: bottom; }
tbody th, tr > :first-child { text-align: left; }
tbody th { font-weight: normal; overflow-wrap: anywhere; min-width: 8rem; }
td span { white-space: nowrap; }
dt { font-weight: bold; }
dd { margin: 0 0 0.5rem 1rem; overflow-wrap: anywhere; }
.small { font-size: 0.85rem; overflow-wrap: anywhere; }
figure { margin: 2rem 0; max-width: 60rem; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #ddd; --page: #171717; --line: #777; }
  img.chart { filter: invert(0.91) hue-rotate(180deg); }
  img.photo { background: #fff; border-radius: 4px; }
}
@media screen and (max-width: 45rem) {
  table, tbody, tr, tbody th, td { display: block; }
  thead { display: none; }
  tbody tr { padding: 0.5rem 0; border-top: 1px solid var(--line); }
  tbody th { font-weight: bold; }
  td { display: flex; justify-content: space-between; gap: 1rem; }
  td::before { content: attr(data-column); text-align: left; }
  table { font-size: 0.9rem; }
  figure > div { overflow-x: auto; }
  figure img { max-width: none; width: 40rem; }
}
@media print {
  @page { size: A4 landscape; margin: 1cm; }
  body { max-width: none; margin: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  tr { break-inside: avoid; }
  th, td { padding: 0.1rem 0.3rem; }
  figure { margin: 0.5rem 0; }
  figure img { max-height: 16cm; }
}
""".strip()


def html(
  comparison: Comparison,
  rows: Sequence[Row],
  pictures: Iterable[tuple[Exhibit, bytes]],
  notes: Sequence[str],
) -> str:
  """Returns the page: HTML that refers to nothing outside itself.

  Args:
    comparison: the runs.
    rows: what `kdjax.report.significance.rows` returns.
    pictures: the figures, each with its PNG file.
    notes: further notes beside the comparison's own.
  """
  title = f'Knowledge distillation on {comparison.data["name"]}'
  notes = [*comparison.notes, *notes]
  left_out = [f'{path}: {reason}' for path, reason in comparison.left_out]
  parts = [
    f'<h1>{escape.html(title)}</h1>',
    _section('What was compared', _definitions(_facts(comparison))),
    _section(
      'Results',
      *map(_table, tables.parts(rows)),
      _list(tables.footnotes(comparison, rows)),
    ),
    _section('Figures', *(_figure(*picture) for picture in pictures)),
    _section('Notes', _list(notes)) if notes else '',
    _section('Left out', _list(left_out)) if left_out else '',
  ]
  body = '\n'.join(part for part in parts if part)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape.html(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _facts(comparison: Comparison) -> dict[str, str]:
  """What all of the compared runs have in common, or have among them."""
  data, teacher = comparison.data, comparison.teacher
  runs = [run for group in comparison.groups for run in group.runs]

  def among(values: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(values))

  facts = {
    'Data': (
      f'{data["name"]}: {data["train"]:,} training, {data["validation"]:,} '
      f'validation and {data["test"]:,} test images (SHA-256 '
      f'{data["digest"][:12]}…)'
    ),
    'Teacher': 'none',
    'Student': among(
      f'{run.result["student"]["model"]}, '
      f'{run.result["student"]["parameters"]:,} parameters'
      for run in runs
    ),
    'Runs': '; '.join(
      f'{method}: {seeds}' + (f' ({count} settings)' if count > 1 else '')
      for (method, seeds), count in collections.Counter(
        (group.method, _seeds(group)) for group in comparison.groups
      ).items()
    ),
    'Device': among(
      f'{run.result["device"]} (platform {run.result["platform"]})'
      for run in runs
    ),
    'Versions': among(
      ', '.join(
        f'{package} {version}'
        for package, version in run.result['versions'].items()
      )
      for run in runs
    ),
  }
  if teacher:
    known = [teacher['model']]
    if teacher['parameters'] is not None:
      known.append(f'{teacher["parameters"]:,} parameters')
    if teacher['step'] is not None:
      known.append(f'step {teacher["step"]:,}')
    facts['Teacher'] = f'{", ".join(known)} (SHA-256 {teacher["digest"][:12]}…)'
  return facts


def _seeds(group: collect.Group) -> str:
  def listed(runs: Sequence[collect.Run | collect.Diverged]) -> str:
    seeds = [collect.config_of(run)['seed'] for run in runs]
    noun = 'seed' if len(seeds) == 1 else 'seeds'
    return f'{noun} {", ".join(map(str, seeds))}'

  shown = [listed(group.runs)] if group.runs else []
  if group.diverged:
    shown.append(f'{listed(group.diverged)} diverged')
  return ', '.join(shown)


def _section(title: str, *content: str) -> str:
  inner = '\n'.join(content)
  return f'<section>\n<h2>{escape.html(title)}</h2>\n{inner}\n</section>'


def _definitions(facts: Mapping[str, str]) -> str:
  lines = [
    f'<dt>{escape.html(name)}</dt><dd>{escape.html(fact)}</dd>'
    for name, fact in facts.items()
  ]
  return '\n'.join(['<dl>', *lines, '</dl>'])


def _table(cells: Sequence[Sequence[str]]) -> str:
  header, *lines = cells
  names = [escape.html(name) for name in header[1:]]
  columns = ''.join(f'<th scope="col">{name}</th>' for name in names)
  body = '\n'.join(
    f'<tr><th scope="row">{escape.html(label)}</th>'
    + ''.join(
      # On a narrow screen each cell is a line, which needs its column's name.
      f'<td data-column="{name}"><span>{escape.html(cell)}</span></td>'
      for name, cell in zip(names, values, strict=True)
    )
    + '</tr>'
    for label, *values in lines
  )
  return (
    '<div class="wide">\n<table>\n'
    f'<thead>\n<tr><td></td>{columns}</tr>\n</thead>\n'
    f'<tbody>\n{body}\n</tbody>\n</table>\n</div>'
  )


def _list(items: Iterable[str]) -> str:
  lines = [f'<li>{escape.html(item)}</li>' for item in items]
  return '\n'.join(['<ul class="small">', *lines, '</ul>'])


def _figure(exhibit: Exhibit, png: bytes) -> str:
  title = exhibit.title[0].upper() + exhibit.title[1:]
  data = base64.b64encode(png).decode('ascii')
  kind = 'photo' if exhibit.is_photo else 'chart'
  return (
    '<figure>\n<div>'
    f'<img class="{kind}" alt="{escape.html(title)}" '
    f'src="data:image/png;base64,{data}">'
    '</div>\n'
    f'<figcaption><strong>{escape.html(title)}.</strong> '
    f'{escape.html(exhibit.caption)}</figcaption>\n</figure>'
  )
