"""Exports a network, once what was written has been seen to be that network."""

import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from kdjax import data
from kdjax.evaluation import tables
from kdjax.export import (
  predictor,
  staging,
  to_onnx,
  to_orbax,
  to_safetensors,
  to_stablehlo,
  verify,
)
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import checkpoint as checkpoint_lib
from kdjax.storage import networks, program_files, run_directory
from kdjax.system.logs import logger
from kdjax.training import teacher as teacher_lib

FORMATS: dict[str, Callable[..., None]] = {
  'orbax': to_orbax.write,
  'safetensors': to_safetensors.write,
  'stablehlo': to_stablehlo.write,
  'onnx': to_onnx.write,
}
"""What writes each format."""

_FOLDER, _NAME = 'export', 'student'
# Images that are compared at once, and of noise where there are no others.
_IMAGES, _NOISE_IMAGES = 512, 64

_HEADER = (
  '',
  'MB',
  'parameters',
  'one image (ms)',
  'accuracy',
  'largest difference',
)

_Batches = Iterator[tuple[np.ndarray, np.ndarray | None]]


def export(
  path: pathlib.Path,
  formats: Sequence[str],
  output: pathlib.Path | None = None,
  *,
  checkpoint: str = 'best',
  ema: bool = False,
  platforms: Sequence[str] = to_stablehlo.DEFAULT_PLATFORMS,
  images: int = 0,
  data_dir: str | None = None,
  overwrite: bool = False,
) -> str:
  """Exports a network.

  Each export is read back from where it was written and compared with the
  network on the test images of the run that it comes from, or else on noise,
  before it takes its place. All do so together: where this raises, there is
  what was there before.

  Args:
    path: what `kdjax.storage.networks.load` takes; a run must have finished.
    formats: some of `FORMATS`.
    output: where the export goes, of one format; by default `export/` in the
      run directory.
    checkpoint: of a run directory, 'best' or 'last'.
    ema: of a run, whether to take the moving averages of its variables.
    platforms: what a StableHLO program can run on.
    images: how many test images to compare on, the first ones; 0 for all, and
      for 64 of noise.
    data_dir: where the run's data are, if not where they were in training.
    overwrite: whether to replace what is there.

  Returns:
    A table of the networks and the exports.

  Raises:
    ValueError: an unknown format, a run that has not finished, a network that
      cannot be exported so, or an export that is not the network.
    OSError: something cannot be read or written, or exists.
  """
  path = path.absolute()
  run = _run_of(path)
  targets = _targets(run, formats, output)
  for name, target in targets.items():
    _check_free(name, target, overwrite)
  if run == path and run_directory.read_result(path) is None:
    raise ValueError(
      f'the run in {path} has not finished: start its own command again first, '
      'or name one of its checkpoints'
    )
  network, card, _ = networks.load(path, checkpoint, ema)
  predictor.check_normalized(network)
  shape = predictor.image_shape(card)
  try:
    test = _test_split(run, card, data_dir)
  except (OSError, ValueError) as error:
    if run:
      raise
    logger.warning('what is exported is compared on noise: %s', error)
    test = None
  tolerance = verify.tolerance(card['model'])
  folder = next(iter(targets.values())).parent
  with staging.beside(folder) as staged:
    exports = {}
    for name, target in targets.items():
      logger.info('%s: writing it, and reading it back', name)
      FORMATS[name](staged / target.name, network, card, platforms)
      exports[name] = predictor.load_student(staged / target.name)
    count, accuracy, compared = verify.compare(
      network, exports, _batches(test, shape, images), tolerance
    )
    for name in exports:
      verify.check(name, compared[name], count, tolerance)
    # Measured before they take their places.
    lines = [_HEADER, *_network_lines(run, network, card, accuracy, images)]
    for name, target in targets.items():
      lines.append(
        _line(
          target.name,
          exports[name],
          sum(map(_file_bytes, _files(name, staged / target.name))),
          optax.tree.size(network.variables['params']),
          compared[name].accuracy,
          compared[name].difference,
        )
      )
    _put(staged, targets)
  what = 'test images' if test else 'images of noise'
  return (
    f'{tables.align(lines)}\n\n'
    'accuracy, and largest difference of a probability from the student: on '
    f'{count:,} {what}\none image: median of {verify.CALLS} calls, '
    f'{jax.devices()[0].device_kind}\nwritten to: {folder}'
  )


def _network_lines(
  run: pathlib.Path | None,
  network: Network,
  card: Mapping[str, Any],
  accuracy: float | None,
  images: int,
) -> Iterator[tuple[str, ...]]:
  """Yields the lines of the table about teacher and student."""
  teacher = run and _teacher(run)
  # A file of logits takes no time.
  if teacher and teacher.network:
    yield _line(
      f'teacher {teacher.report["model"]}',
      predictor.of_network(teacher.network, card),
      _variable_bytes(teacher.network),
      teacher.report['parameters'],
      None if images else teacher.report['test']['accuracy'],
    )
  yield _line(
    f'student {card["model"]["name"]}',
    predictor.of_network(network, card),
    _variable_bytes(network),
    optax.tree.size(network.variables['params']),
    accuracy,
  )


def _run_of(path: pathlib.Path) -> pathlib.Path | None:
  """Finds the run that a path is, or is a checkpoint of."""
  if run_directory.is_run(path):
    return path
  above = path.parent.parent
  is_checkpoint = (path / 'state').is_dir() and run_directory.is_run(above)
  return above if is_checkpoint else None


def _targets(
  run: pathlib.Path | None,
  formats: Sequence[str],
  output: pathlib.Path | None,
) -> dict[str, pathlib.Path]:
  """Says where each format goes."""
  if (
    unknown := [name for name in formats if name not in FORMATS] or not formats
  ):
    raise ValueError(
      f'unknown formats {unknown}: expected some of {", ".join(FORMATS)}'
    )
  if output is None:
    if run is None:
      raise ValueError('say with --output where the export goes')
    return {name: run / _FOLDER / f'{_NAME}.{name}' for name in formats}
  if len(formats) > 1:
    raise ValueError(
      f'--output={output} is the place of one format, not of '
      f'{", ".join(formats)}: leave it out, or export one after the other'
    )
  (name,) = formats
  suffix = output.suffix.removeprefix('.')
  # By it files are known again; directories are by what is in them.
  if suffix != name and (name != 'orbax' or suffix in FORMATS):
    raise ValueError(
      f'cannot export {name} to {output}: expected a name that ends in .{name}'
    )
  return {name: output.absolute()}


def _files(name: str, target: pathlib.Path) -> list[pathlib.Path]:
  """Lists what an export consists of: a directory, a file, or two files."""
  if f'.{name}' in program_files.SUFFIXES:
    return [target, program_files.card_of(target)]
  return [target]


def _put(staged: pathlib.Path, targets: Mapping[str, pathlib.Path]) -> None:
  """Moves what was written to its places."""
  places = [file for item in targets.items() for file in _files(*item)]
  new_cards = [
    program_files.new_card_of(target)
    for name, target in targets.items()
    if f'.{name}' in program_files.SUFFIXES
  ]
  for card in new_cards:
    shutil.copyfile(staged / card.stem, staged / card.name)
  staging.put(staged, [*new_cards, *places])
  for card in new_cards:
    card.unlink()


def _check_free(name: str, target: pathlib.Path, overwrite: bool) -> None:
  for file in _files(name, target):
    if not file.exists():
      continue
    if not overwrite:
      raise FileExistsError(
        f'{file} exists: replace it with --overwrite, or choose another place '
        'with --output'
      )
    if file.is_dir() and not checkpoint_lib.is_network(file):
      raise FileExistsError(
        f'{file} is a directory that kdjax.export did not make: remove it, or '
        'choose another place with --output'
      )


def _test_split(
  run: pathlib.Path | None, card: Mapping[str, Any], data_dir: str | None
) -> data.Split | data.Stream:
  """Loads the test images of the run that a network comes from."""
  known = card['provenance']
  if run:
    config = run_directory.read_config(run)
  elif known.get('config'):
    config = run_directory.complete(known['config'])
  else:
    raise ValueError('it is not of a run, so there are no test images')
  if data_dir:
    config.data.data_dir = data_dir
  dataset = data.load(config.data)
  if dataset.digest != known.get('data_digest'):
    raise ValueError(
      f'the network was trained on other data ({config.data.name}): SHA-256 '
      f'{known.get("data_digest")}, now {dataset.digest}. Say with --data_dir '
      'where they are'
    )
  return dataset.test


def _batches(
  test: data.Split | data.Stream | None, shape: Sequence[int], most: int
) -> _Batches:
  """Yields images and labels to compare on, some at once."""
  if test is None:
    rng = np.random.default_rng(0)
    left = most or _NOISE_IMAGES
    while left:
      size = min(left, _IMAGES)
      yield rng.integers(0, 256, (size, *shape), np.uint8), None
      left -= size
    return
  size = min(most or test.size, test.size)
  if isinstance(test, data.Stream):
    for batch in test.batches(np.arange(size)):
      present = batch.labels >= 0
      yield batch.images[present], batch.labels[present]
    return
  for first in range(0, size, _IMAGES):
    rows = slice(first, min(first + _IMAGES, size))
    yield test.images[rows], test.labels[rows]


def _teacher(run: pathlib.Path) -> teacher_lib.Teacher | None:
  """Loads the teacher of a run, if it had one and has it still."""
  result = run_directory.read_result(run)
  if not result or not result['teacher']:
    return None
  trained_with = result['teacher']
  try:
    teacher = teacher_lib.reload(
      run, run_directory.read_config(run), trained_with
    )
  except (OSError, ValueError) as error:
    logger.warning('the teacher is left out: %s', error)
    return None
  return teacher._replace(report=trained_with)


def _line(
  title: str,
  network: predictor.Student,
  size: int,
  parameters: int,
  accuracy: float | None,
  difference: float | None = None,
) -> tuple[str, ...]:
  """A line of the table."""
  return (
    title,
    f'{size / 1e6:.1f}',
    f'{parameters:,}',
    f'{1e3 * verify.latency(network):.2f}',
    '-' if accuracy is None else f'{accuracy:.2%}',
    '-' if difference is None else f'{difference:.1e}',
  )


def _variable_bytes(network: Network) -> int:
  """Counts the bytes of what a network has learnt, as it was saved."""
  return sum(
    leaf.nbytes
    for name in features.TRAINED
    for leaf in jax.tree.leaves(network.variables[name])
  )


def _file_bytes(path: pathlib.Path) -> int:
  """Counts the bytes of a file, or of all files in a directory."""
  if path.is_dir():
    return sum(map(_file_bytes, path.iterdir()))
  return path.stat().st_size
