"""Exports a network, once what was written has been seen to be that network."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from kdjax import data
from kdjax.export import formats, predictor, staging, summary, verify
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import checkpoint as checkpoint_lib
from kdjax.storage import networks, program_files, run_directory
from kdjax.system.logs import logger
from kdjax.training import teacher as teacher_lib

_FOLDER, _NAME = 'export', 'student'
# Images that are compared at once, and of noise where there are no others.
_IMAGES, _NOISE_IMAGES = 512, 64


class Options(NamedTuple):
  """What is exported, and how.

  Attributes:
    checkpoint: of a run directory, 'best' or 'last'.
    ema: of a run, whether to take the moving averages of its variables.
    platforms: what a StableHLO program can run on.
    images: how many test images to compare on, the first ones; 0 for all, and
      for 64 of noise.
    data_dir: where the run's data are, if not where they were in training.
    overwrite: whether to replace what is there.
  """

  checkpoint: str = 'best'
  ema: bool = False
  platforms: Sequence[str] = formats.DEFAULT_PLATFORMS
  images: int = 0
  data_dir: str | None = None
  overwrite: bool = False


_DEFAULT = Options()


def export(
  path: pathlib.Path,
  names: Sequence[str],
  output: pathlib.Path | None = None,
  options: Options = _DEFAULT,
) -> str:
  """Exports a network.

  Before any export takes its place, each is read back and compared with the
  network on the test images of the run that it comes from, or else on noise.
  Where this raises, there is what was there before.

  Args:
    path: what `kdjax.storage.networks.load` takes; a run must have finished.
    names: formats, some of `formats.WRITERS`.
    output: where the export goes, of one format; by default `export/` in the
      run directory.
    options: see `Options`.

  Returns:
    A table of the networks and the exports.

  Raises:
    ValueError: an unknown format, a run that has not finished, a network that
      cannot be exported so, or an export that is not the network.
    OSError: something cannot be read or written, or exists.
  """
  path = path.absolute()
  run = _run_of(path)
  targets = _targets(run, names, output)
  for name, target in targets.items():
    _check_free(name, target, options.overwrite)
  network, card = _load(path, run, options)
  test = _test_split(run, card, options.data_dir)
  batches = _batches(test, predictor.image_shape(card), options.images)
  folder = next(iter(targets.values())).parent
  with staging.beside(folder) as staged:
    written = {name: staged / target.name for name, target in targets.items()}
    exports = {}
    for name, place in written.items():
      logger.info('%s: writing it, and reading it back', name)
      formats.WRITERS[name](place, network, card, options.platforms)
      exports[name] = predictor.load_student(place)
    count, accuracy, compared = verify.compare_and_check(
      network, exports, batches, card['model']
    )
    rows = _network_rows(
      network, card, accuracy, run, all_images=not options.images
    )
    rows += _export_rows(written, exports, compared, rows[-1].parameters)
    # The latencies are measured before anything takes its place.
    table = summary.table(rows)
    _move_into_place(staged, targets)
  return (
    f'{table}\n\n'
    'accuracy, and largest difference of a probability from the student: on '
    f'{count:,} {"test images" if test else "images of noise"}\n'
    f'one image: median of {summary.CALLS} calls, '
    f'{jax.devices()[0].device_kind}\nwritten to: {folder}'
  )


def _load(
  path: pathlib.Path, run: pathlib.Path | None, options: Options
) -> tuple[Network, dict[str, Any]]:
  """Loads the network to be exported, and its card."""
  if run == path and run_directory.read_result(path) is None:
    raise ValueError(
      f'the run in {path} has not finished: start its own command again first, '
      'or name one of its checkpoints'
    )
  network, card, _ = networks.load(path, options.checkpoint, options.ema)
  predictor.check_normalized(network)
  return network, card


def _run_of(path: pathlib.Path) -> pathlib.Path | None:
  """Finds the run that a path is, or is a checkpoint of."""
  if run_directory.is_run(path):
    return path
  above = path.parent.parent
  is_checkpoint = (path / 'state').is_dir() and run_directory.is_run(above)
  return above if is_checkpoint else None


def _targets(
  run: pathlib.Path | None, names: Sequence[str], output: pathlib.Path | None
) -> dict[str, pathlib.Path]:
  """Says where each format goes."""
  if (
    unknown := [name for name in names if name not in formats.WRITERS]
    or not names
  ):
    raise ValueError(
      f'unknown formats {unknown}: expected some of '
      f'{", ".join(formats.WRITERS)}'
    )
  if output is None:
    if run is None:
      raise ValueError('say with --output where the export goes')
    return {name: run / _FOLDER / f'{_NAME}.{name}' for name in names}
  if len(names) > 1:
    raise ValueError(
      f'--output={output} is the place of one format, not of '
      f'{", ".join(names)}: leave it out, or export one after the other'
    )
  (name,) = names
  suffix = output.suffix.removeprefix('.')
  # By it files are known again; directories are by what is in them.
  if suffix != name and (name != 'orbax' or suffix in formats.WRITERS):
    raise ValueError(
      f'cannot export {name} to {output}: expected a name that ends in .{name}'
    )
  return {name: output.absolute()}


def _files(name: str, target: pathlib.Path) -> list[pathlib.Path]:
  """Lists what an export consists of: a directory, a file, or two files."""
  if f'.{name}' in program_files.SUFFIXES:
    return [target, program_files.card_of(target)]
  return [target]


def _export_rows(
  written: Mapping[str, pathlib.Path],
  exports: Mapping[str, predictor.Student],
  compared: Mapping[str, verify.Compared],
  parameters: int,
) -> list[summary.Row]:
  """Returns the rows of the exports, by the format of each."""
  return [
    summary.Row(
      path.name,
      exports[name],
      sum(map(_file_bytes, _files(name, path))),
      parameters,
      compared[name].accuracy,
      compared[name].difference,
    )
    for name, path in written.items()
  ]


def _move_into_place(
  staged: pathlib.Path, targets: Mapping[str, pathlib.Path]
) -> None:
  """Moves what was written to its places."""
  places = [file for item in targets.items() for file in _files(*item)]
  new_cards = [
    program_files.new_card_of(target)
    for name, target in targets.items()
    if f'.{name}' in program_files.SUFFIXES
  ]
  for card in new_cards:
    shutil.copyfile(staged / card.stem, staged / card.name)
  staging.move_into_place(staged, [*new_cards, *places])
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
) -> data.Split | data.Stream | None:
  """Loads the test images of the run that a network comes from.

  None, with a warning, where they are missing and no run was named.
  """
  known = card['provenance']
  try:
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
        f'{known.get("data_digest")}, now {dataset.digest}. Say with '
        '--data_dir where they are'
      )
  except (OSError, ValueError) as error:
    if run:
      raise
    logger.warning('what is exported is compared on noise: %s', error)
    return None
  return dataset.test


def _batches(
  test: data.Split | data.Stream | None, shape: Sequence[int], most: int
) -> verify.Batches:
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


def _network_rows(
  network: Network,
  card: Mapping[str, Any],
  accuracy: float | None,
  run: pathlib.Path | None,
  *,
  all_images: bool,
) -> list[summary.Row]:
  """Returns the rows of the student and, before it, of its teacher."""
  rows = []
  teacher = run and _teacher(run)
  # A teacher of which only logits are stored takes no time.
  if teacher and teacher.network:
    rows.append(
      summary.Row(
        f'teacher {teacher.report["model"]}',
        predictor.of_network(teacher.network, card),
        _variable_bytes(teacher.network),
        teacher.report['parameters'],
        teacher.report['test']['accuracy'] if all_images else None,
      )
    )
  student = summary.Row(
    f'student {card["model"]["name"]}',
    predictor.of_network(network, card),
    _variable_bytes(network),
    optax.tree.size(network.variables['params']),
    accuracy,
  )
  return [*rows, student]


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
