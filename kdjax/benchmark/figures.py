"""What follows from measured step times, and the table of it."""

import statistics
from collections.abc import Mapping
from typing import Any

from kdjax.evaluation import tables

KDJAX = 'kdjax'
"""Name of kdjax's own implementation."""


def summarize(
  measured: Mapping[str, Any],
  *,
  batch_size: int,
  flops_per_image: float,
  matmul_flops_per_s: float,
) -> dict[str, Any]:
  """Adds to the measurements of an implementation what follows from them.

  Args:
    measured: `step_times_s`, the time of a step in each burst, at least two;
      the rest is kept.
    batch_size: images of a step.
    flops_per_image: FLOPs of a training step by image.
    matmul_flops_per_s: those that the device can do, the ceiling.

  Returns:
    The same with `step_s`, the quartiles over the bursts; `images_per_s`, at
    the median; and `flops_utilization`, from 0 to 1.
  """
  times = measured['step_times_s']
  quartiles = statistics.quantiles(times, method='inclusive')
  names = ('min', 'lower_quartile', 'median', 'upper_quartile', 'max')
  step_s = dict(zip(names, (min(times), *quartiles, max(times)), strict=True))
  images_per_s = batch_size / step_s['median']
  return {
    **measured,
    'images_per_s': images_per_s,
    'step_s': step_s,
    'flops_utilization': images_per_s * flops_per_image / matmul_flops_per_s,
  }


def ratio(
  implementations: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
  """Compares kdjax with the fastest of the other implementations of a mode.

  They were measured in turns, so that burst i of one stands beside burst i of
  another.

  Returns:
    `to`, the name of the other, and kdjax's speed by the other's: `median`, of
    the medians, and `min` and `max` of the single rounds. None if there is no
    other.
  """
  others = [name for name in implementations if name != KDJAX]
  if not others:
    return None
  fastest = max(others, key=lambda name: implementations[name]['images_per_s'])
  ours, other = implementations[KDJAX], implementations[fastest]
  by_round = [
    theirs / our
    for our, theirs in zip(
      ours['step_times_s'], other['step_times_s'], strict=True
    )
  ]
  return {
    'to': fastest,
    'median': ours['images_per_s'] / other['images_per_s'],
    'min': min(by_round),
    'max': max(by_round),
  }


# fmt: off
_HEADER = (
  ('mode', 'program', 'images', 'step', 'compile', 'start', 'again', 'GFLOP',
   '', 'peak'),
  ('', '', '/s', 'ms [min … max]', 's', 's', 's', '/image', 'MFU', 'GiB'),
)
# fmt: on


def table(result: Mapping[str, Any]) -> str:
  """Formats the result of `compare.run` for a terminal.

  Returns:
    A line on the machine, a table with a row for each implementation of each
    mode, and a line for each mode with its ceiling and ratio.
  """
  rows, notes = list(_HEADER), []
  for mode, measured in result['modes'].items():
    flops = digits(measured['flops_per_image'] / 1e9)
    rows += [
      (mode, name, *_cells(implementation, flops))
      for name, implementation in measured['implementations'].items()
    ]
    note = (
      f'{mode}: batch {measured["batch_size"]}, {measured["dtype"]}, matrix '
      f'products {digits(measured["matmul_flops_per_s"] / 1e9)} GFLOP/s'
    )
    if compared := measured['ratio']:
      note += (
        f'\n  kdjax / {compared["to"]}: {compared["median"]:.2f}× '
        f'(rounds {compared["min"]:.2f} … {compared["max"]:.2f})'
      )
    notes.append(note)
  versions = ', '.join(
    f'{package} {version}' for package, version in result['versions'].items()
  )
  return '\n'.join(
    [
      f'{result["device"]} ({result["platform"]}); {versions}',
      '',
      tables.align(rows, header=len(_HEADER), left=2),
      '',
      *notes,
    ]
  )


def _cells(implementation: Mapping[str, Any], flops: str) -> tuple[str, ...]:
  """Returns the cells of an implementation's row after its name."""
  step = {
    key: digits(value * 1e3) for key, value in implementation['step_s'].items()
  }
  compile_s, start_s, again_s = (
    '-' if implementation[key] is None else f'{implementation[key]:.1f}'
    for key in ('compile_s', 'start_up_s', 'warm_start_up_s')
  )
  return (
    digits(implementation['images_per_s']),
    f'{step["median"]} [{step["min"]} … {step["max"]}]',
    compile_s,
    start_s,
    again_s,
    flops,
    f'{implementation["flops_utilization"]:.1%}',
    f'{implementation["peak_memory_bytes"] / 2**30:.2f}',
  )


def digits(value: float) -> str:
  """A number with four digits, or all before the point."""
  return f'{value:,.0f}' if value >= 1000 else f'{value:#.4g}'
