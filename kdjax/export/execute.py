"""Exports a network, once what was written has been seen to be that network."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from kdjax import checkpoint as checkpoint_lib
from kdjax import data, pretrained, programs, results, student
from kdjax import teacher as teacher_lib
from kdjax.export import onnx, orbax, safetensors, stablehlo, verify
from kdjax.logs import logger
from kdjax.step import Network

FORMATS: dict[str, Callable[..., None]] = {
  'orbax': orbax.write,
  'safetensors': safetensors.write,
  'stablehlo': stablehlo.write,
  'onnx': onnx.write,
}
"""What writes each format."""

_FOLDER, _NAME = 'export', 'student'
# Images that are compared at once, and of noise where there are no others.
_IMAGES, _NOISE_IMAGES = 512, 64

_Batches = Iterator[tuple[np.ndarray, np.ndarray | None]]


def export(
  path: pathlib.Path,
  formats: Sequence[str],
  output: pathlib.Path | None = None,
  *,
  checkpoint: str = 'best',
  ema: bool = False,
  platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
  images: int = 0,
  data_dir: str | None = None,
  overwrite: bool = False,
) -> str:
  """Exports a network.

  Each export is read back from where it was written and compared with the
  network on the test images of its run, or else on noise, before it takes its
  place.

  Args:
    path: what `kdjax.pretrained.load` takes; a run must have finished.
    formats: some of `FORMATS`.
    output: where the export goes, of one format; by default `export/` in the
      run directory.
    checkpoint: of a run directory, 'best' or 'last'.
    ema: of a run, whether to take the moving averages of its variables.
    platforms: what a StableHLO program can run on.
    images: how many test images to compare on, the first ones; 0 for all.
    data_dir: where the run's data are, if not where they were in training.
    overwrite: whether to replace what is there.

  Returns:
    A table of the networks and the exports.

  Raises:
    ValueError: an unknown format, a run that has not finished, a network that
      cannot be exported so, or an export that is not the network. Nothing is
      left of any.
    OSError: something cannot be read or written, or exists.
  """
  path = path.absolute()
  run = _run_of(path)
  targets = _targets(run, formats, output)
  for target in targets.values():
    _check_free(target, overwrite)
  if run == path and results.read_result(path) is None:
    raise ValueError(
      f'the run in {path} has not finished: start its own command again first, '
      'or name one of its checkpoints'
    )
  network, card, _ = pretrained.load(path, checkpoint, ema)
  student.check_normalized(network)
  shape = student.image_shape(card)
  test = _test_split(run, card, data_dir) if run else None
  if test is None:
    logger.warning(
      '%s is not of a run, so there are no test images: what is exported is '
      'compared on noise',
      path,
    )
  tolerance = verify.tolerance(card['model'])
  folder = next(iter(targets.values())).parent
  with _staging(folder) as staging:
    exports = {}
    for name, target in targets.items():
      logger.info('%s: writing it, and reading it back', name)
      FORMATS[name](staging / target.name, network, card, platforms)
      exports[name] = student.load_student(staging / target.name)
    count, accuracy, compared = verify.compare(
      network, exports, _batches(test, shape, images), tolerance
    )
    for name in exports:
      verify.check(name, compared[name], count, tolerance)
    for target in targets.values():
      _put(staging, target)
  header = (
    '',
    'MB',
    'parameters',
    'one image (ms)',
    'accuracy',
    'largest difference',
  )
  lines: list[tuple[str, ...]] = [header]
  teacher = run and _teacher(run)
  # One of which only logits are known takes no time.
  if teacher and teacher.network:
    lines.append(
      _line(
        f'teacher {teacher.report["model"]}',
        student.of_network(teacher.network, card),
        _variable_bytes(teacher.network),
        teacher.report['parameters'],
        None if images else teacher.report['test']['accuracy'],
      )
    )
  parameters = optax.tree.size(network.variables['params'])
  lines.append(
    _line(
      f'student {card["model"]["name"]}',
      student.of_network(network, card),
      _variable_bytes(network),
      parameters,
      accuracy,
    )
  )
  for name, target in targets.items():
    lines.append(
      _line(
        target.name,
        exports[name],
        sum(map(_file_bytes, _files(target))),
        parameters,
        compared[name].accuracy,
        compared[name].difference,
      )
    )
  what = 'test images' if test else 'images of noise'
  return (
    f'{results.align(lines)}\n\n'
    'accuracy, and largest difference of a probability from the student: on '
    f'{count:,} {what}\none image: median of {verify.CALLS} calls, '
    f'{jax.devices()[0].device_kind}\nwritten to: {folder}'
  )


def _run_of(path: pathlib.Path) -> pathlib.Path | None:
  """Finds the run that a path is, or is a checkpoint of."""
  if results.is_run(path):
    return path
  above = path.parent.parent
  is_checkpoint = (path / 'state').is_dir() and results.is_run(above)
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
  # By it files are known again; directories are by what is in them.
  if name != 'orbax' and output.suffix != f'.{name}':
    raise ValueError(
      f'cannot export {name} to {output}: expected a file name that ends in '
      f'.{name}'
    )
  return {name: output.absolute()}


def _files(target: pathlib.Path) -> list[pathlib.Path]:
  """Lists what an export consists of: a directory, a file, or two files."""
  if target.suffix in programs.SUFFIXES:
    return [target, programs.card_of(target)]
  return [target]


def _check_free(target: pathlib.Path, overwrite: bool) -> None:
  for file in _files(target):
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
  run: pathlib.Path, card: Mapping[str, Any], data_dir: str | None
) -> data.Split | data.Stream:
  config = results.read_config(run)
  if data_dir:
    config.data.data_dir = data_dir
  dataset = data.load(config.data)
  results.check_same_digest(
    run, 'data', card['provenance']['data_digest'], dataset.digest
  )
  return dataset.test


def _batches(
  test: data.Split | data.Stream | None, shape: Sequence[int], most: int
) -> _Batches:
  """Yields images and labels to compare on, some at once."""
  if test is None:
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (_NOISE_IMAGES, *shape), np.uint8), None
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


@contextlib.contextmanager
def _staging(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a directory in a folder; without the export neither is left."""
  existed = folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with tempfile.TemporaryDirectory(prefix='.export-', dir=folder) as name:
      yield pathlib.Path(name)
  except BaseException:
    if not existed:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise


def _put(staging: pathlib.Path, target: pathlib.Path) -> None:
  """Moves an export to its place; what was there goes with the directory."""
  for file in _files(target):
    if file.is_dir():
      file.rename(staging / f'{file.name}.old')
    (staging / file.name).replace(file)


def _teacher(run: pathlib.Path) -> teacher_lib.Teacher | None:
  """Loads the teacher of a run, if it had one and has it still."""
  result = results.read_result(run)
  if not result or not result['teacher']:
    return None
  trained_with = result['teacher']
  try:
    teacher = teacher_lib.load_again(
      run, results.read_config(run), trained_with
    )
  except (OSError, ValueError) as error:
    logger.warning('the teacher is left out: %s', error)
    return None
  return teacher._replace(report=trained_with)


def _line(
  title: str,
  network: student.Student,
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
    for name in ('params', 'batch_stats')
    for leaf in jax.tree.leaves(network.variables[name])
  )


def _file_bytes(path: pathlib.Path) -> int:
  """Counts the bytes of a file, or of all files in a directory."""
  if path.is_dir():
    return sum(map(_file_bytes, path.iterdir()))
  return path.stat().st_size
