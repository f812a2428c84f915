"""The file of a run's metrics: `metrics.jsonl`."""

import contextlib
import json
import pathlib
import reprlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.storage import schema
from kdjax.system import atomic, logs

METRICS = 'metrics.jsonl'
"""The file of a run's metrics in its directory."""


# What each line of it has beside the metrics: its number, from 1, and the
# CRC-32 of all the rest of it.
_LINE, _CRC = 'line', 'crc32'


# What each kind of line has; a number, or None where that is not finite.
_METRICS_OF = {'train': ('loss',), 'validation': ('epoch', 'accuracy', 'loss')}


def read_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the metrics of a run.

  Args:
    workdir: the run directory.

  Returns:
    What `RunLog.write` wrote, in its order; empty where it wrote nothing. A
    last line that was cut off is left out.

  Raises:
    ValueError: another line is damaged, or is no line of metrics.
  """
  records, wrong = _read(workdir / METRICS)
  if wrong:
    raise ValueError(
      f'{wrong[0]}. Put a sound copy of that file there, or remove it'
    )
  return records


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
  """Reads the sound lines of a file of metrics, and what is wrong in others."""
  records: list[dict[str, Any]] = []
  wrong: list[str] = []
  if not path.exists():
    return records, wrong
  *whole, last = path.read_bytes().split(b'\n')
  with contextlib.suppress(ValueError):
    schema.parse(last)
    whole.append(last)
  for number, text in enumerate(whole, 1):
    try:
      records.append(_parse(f'{path}, line {number}', text, number))
    except ValueError as error:
      wrong.append(str(error))
  return records, wrong


def _parse(where: str, text: bytes, number: int) -> dict[str, Any]:
  """Reads a line of metrics; a ValueError says what is wrong with it."""
  try:
    record = schema.parse(text)
  except ValueError as error:
    raise ValueError(f'{where} is no JSON object') from error
  # Earlier versions of kdjax wrote neither.
  if _LINE in record or _CRC in record:
    checksum = record.pop(_CRC, None)
    if checksum != _checksum(record):
      raise ValueError(
        f'{where} is damaged: its CRC-32 is not the one recorded there'
      )
    if (found := record.pop(_LINE)) != number:
      raise ValueError(
        f'{where} says that it is line {found}: others are missing'
      )
  _check_record(where, record)
  return record


def _check_record(where: str, record: Mapping[str, Any]) -> None:
  schema.check(where, record, {'kind': schema.TEXT})
  kind = record['kind']
  if kind not in _METRICS_OF:
    raise ValueError(
      f'{where}: kind is {reprlib.repr(kind)}, expected '
      f'{" or ".join(_METRICS_OF)}'
    )
  metrics = {*_METRICS_OF[kind], *record} - {'kind'}
  numbers = dict.fromkeys(metrics, schema.NUMBER + schema.NULL)
  schema.check(where, record, {**numbers, 'step': schema.INTEGER})
  if record['step'] < 0:
    raise ValueError(f'{where}: step is {record["step"]}, expected 0 or more')


def line(record: Mapping[str, Any], number: int) -> str:
  """Formats the line that `_parse` reads."""
  content = {**record, _LINE: number}
  line = {**content, _CRC: _checksum(content)}
  return json.dumps(line, allow_nan=False) + '\n'


def _checksum(content: Mapping[str, Any]) -> str:
  return f'{zlib.crc32(json.dumps(content).encode()):08x}'


def diverged_at(records: Sequence[Mapping[str, Any]]) -> int | None:
  """Says whether a run diverged, from its metrics.

  Args:
    records: as `read_records` returns them.

  Returns:
    The step after which its loss or its gradient was no longer finite; None if
    the run did not diverge. A run that skips such steps, and whose last line
    tells of nothing else, counts as diverged unless it has a result.
  """
  for kind in _METRICS_OF:
    of_kind = [record for record in records if record['kind'] == kind]
    # What is not finite was written as null.
    if of_kind and any(
      of_kind[-1].get(name, 0) is None for name in ('loss', 'gradient_norm')
    ):
      return of_kind[-1]['step']
  return None


def recover(
  path: pathlib.Path,
  step: int,
  count: int | None,
  validations: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Removes the lines after a step, and replaces what is damaged."""
  records, wrong = _read(path)
  kept = [record for record in records if record['step'] <= step]
  if not wrong and count is not None and len(kept) < count:
    wrong = [
      f'{path} has {len(kept)} lines up to step {step}, expected {count}'
    ]
  if wrong:
    there = {
      record['step'] for record in kept if record['kind'] == 'validation'
    }
    kept += [
      {'kind': 'validation', **validation}
      for validation in validations
      if validation['step'] <= step and validation['step'] not in there
    ]
    # Training comes first where a step has both.
    kept.sort(key=lambda record: (record['step'], record['kind']))
    exists = path.exists()
    where = atomic.move_to_damaged(path, path.parent) if exists else 'gone'
    logs.logger.warning(
      '%s. The file is now %s; the run goes on with the %d lines that are '
      'sound or that its checkpoints know',
      wrong[0],
      where,
      len(kept),
    )
  if path.exists() or kept:
    # Being killed here loses nothing.
    with atomic.replacing(path) as file:
      for number, record in enumerate(kept, 1):
        file.write(line(record, number).encode())
  return kept
