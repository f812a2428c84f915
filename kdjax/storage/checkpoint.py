"""Checkpoints of a run, and networks by themselves.

A run directory holds `checkpoints/STEP/state`, the whole `TrainState` as an
Orbax PyTree, and `checkpoints/STEP/metadata`, JSON with the configuration, the
model's name and options and the normalisation of its images. Both can be read
with Orbax alone. So can a network by itself: a directory that is an Orbax
PyTree of its `params` and `batch_stats`, with `model_card.json` in it.
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from kdjax import models
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import card as card_lib
from kdjax.storage import digests, run_directory, schema, trees
from kdjax.storage.trees import DamagedError
from kdjax.system import atomic, devices
from kdjax.version import __version__

logger = logging.getLogger(__package__)

_DIRECTORY = 'checkpoints'
_CARD = 'model_card.json'
# A run's configuration, beside its checkpoints.
_CONFIG = 'config.json'
# What Orbax and `atomic.remove_directory` leave of a checkpoint when they are
# killed.
_LEFTOVER = re.compile(r'\d+\.orbax-checkpoint-tmp.*|\d+\..+\.\d+\.tmp')
# What `save` adds to the metadata.
_VERSION, _ARRAYS = 'version', 'arrays'
# What the metadata of kdjax have, and those of its older versions.
_OWN = {_ARRAYS, digests.SHA256}, {'model', 'normalization'}
_Path = str | os.PathLike[str]
_State = TypeVar('_State')


class Saved(NamedTuple):
  """What decides whether a checkpoint is kept.

  Attributes:
    accuracy: its validation accuracy, from 0 to 1; None if it has none.
    scheduled: whether every run of this configuration saves it, rather than one
      that a signal stopped there.
  """

  accuracy: float | None
  scheduled: bool


def retained(saved: Mapping[int, Saved], keep: int) -> set[int]:
  """Computes which checkpoints are kept.

  What a run keeps of its schedule depends on nothing else: one that was stopped
  or killed, however often, keeps what an undisturbed run does.

  Args:
    saved: the checkpoints by step.
    keep: how many of the last scheduled ones are kept, beside the best.

  Returns:
    The steps of those, and the newest of all, to continue from.
  """
  scheduled = {
    step: one.accuracy for step, one in saved.items() if one.scheduled
  }
  best = {_best(scheduled)} if scheduled else set()
  newest = set(sorted(saved)[-1:])
  return {*sorted(scheduled)[-keep:]} | best | newest


class _Directory:
  """The checkpoints of a run that are on disk, and which of them are kept."""

  def __init__(self, workdir: _Path, keep: int):
    self._workdir = pathlib.Path(workdir).absolute()
    self.root = self._workdir / _DIRECTORY
    self._keep = keep
    self._saved: dict[int, Saved] | None = None

  def scan(self) -> None:
    """Finds what is saved, at the first call; clears away what a kill left."""
    if self._saved is None:
      self._saved = {}
      devices.run_on_first(self._clear)

  def add(self, step: int, saved: Saved) -> None:
    """Adds a checkpoint that is complete; removes what is no longer kept."""
    self.scan()
    assert self._saved is not None
    self._saved[step] = saved
    if devices.is_first():
      self._remove_others()

  def move_damaged(
    self, step: int, error: DamagedError, remark: str = ''
  ) -> None:
    """Moves a damaged checkpoint away; for one process only."""
    target = atomic.move_to_damaged(self.root / str(step), self._workdir)
    logger.warning('%s. It is now in %s%s', error.reason, target, remark)

  def _clear(self) -> None:
    for leftover in self.root.glob('*'):
      if _LEFTOVER.fullmatch(leftover.name):
        shutil.rmtree(leftover, ignore_errors=True)
    sound, damaged = _read_all_metadata(self.root, _steps(self.root))
    for step, error in damaged.items():
      # Nobody can tell what it is worth.
      self.move_damaged(step, error)
    self._saved = {step: _describe_saved(sound[step]) for step in sound}
    self._remove_others()

  def _remove_others(self) -> None:
    assert self._saved is not None
    for step in self._saved.keys() - retained(self._saved, self._keep):
      atomic.remove_directory(self.root / str(step))
      del self._saved[step]


class Checkpoints:
  """Writes and reads the checkpoints of a run: the last ones and the best.

  Saving is asynchronous: training goes on while a checkpoint is written, and a
  checkpoint exists only once it is complete. With it are saved the SHA-256 of
  each of its arrays and of its metadata, and all that reads it compares them.
  Those that are no longer needed (see `retained`) are removed once the next one
  is complete.

  Args:
    workdir: the run directory.
    keep: how many of the last scheduled checkpoints are kept, beside the best
      by validation accuracy. Of checkpoints without one the last counts as the
      best.
  """

  def __init__(self, workdir: _Path, *, keep: int):
    self._directory = _Directory(workdir, keep)
    self._root = self._directory.root
    # What is being written.
    self._saving: tuple[int, Saved] | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # An error that ends the run says more than one that follows from it.
    with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
      self.wait()
    if '_checkpointer' in vars(self):
      self._checkpointer.close()

  @functools.cached_property
  def _checkpointer(self) -> ocp.AsyncCheckpointer:
    devices.run_on_first(lambda: self._root.mkdir(parents=True, exist_ok=True))
    return ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        metadata=ocp.JsonCheckpointHandler(),
      )
    )

  @contextlib.contextmanager
  def _writing(self, step: int) -> Iterator[None]:
    """Explains what Orbax raises when it cannot write, of whatever type."""
    trees.ignore_late_callbacks()
    try:
      yield
    except Exception as error:
      what = f'the checkpoint of step {step} in {self._root}'
      raise atomic.cannot_write(what, trees.shorten(error)) from error

  def save(self, state: Any, metadata: Mapping[str, Any]) -> None:
    """Saves a checkpoint, in the background.

    Args:
      state: the state; its step names the checkpoint.
      metadata: what to keep beside it, as JSON; `validation_accuracy` is from 0
        to 1, or None of a state that was not validated; `scheduled`, true by
        default, as `Saved` has it.

    Raises:
      OSError: this checkpoint, or the one before, cannot be written.
    """
    step = int(state.step)
    arrays = digests.describe(state)
    content = digests.add_digest(
      {**metadata, _VERSION: __version__, _ARRAYS: arrays}
    )
    self.wait()
    self._directory.scan()
    with self._writing(step):
      checkpointer = self._checkpointer
      # Orbax would make it again, without all else that was there.
      if not self._root.is_dir():
        raise FileNotFoundError('the directory has been removed')
      checkpointer.save(
        self._root / str(step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          metadata=ocp.args.JsonSave(content),
        ),
      )
    self._saving = step, _describe_saved(content)

  def wait(self) -> None:
    """Waits until what was saved is complete; removes what is not kept.

    Raises:
      OSError: it cannot be written.
    """
    if self._saving is None:
      return
    (step, saved), self._saving = self._saving, None
    with self._writing(step):
      self._checkpointer.wait_until_finished()
    self._directory.add(step, saved)

  def restore(self, like: _State) -> tuple[_State, dict[str, Any]] | None:
    """Restores the newest sound checkpoint, to continue from.

    Damaged ones that are newer are moved to `damaged/` in the run directory.

    Args:
      like: a state, or its shapes and dtypes, of the structure to restore.

    Returns:
      The state and the metadata saved beside it; None if there is no
      checkpoint, damaged or not.

    Raises:
      ValueError: none is sound; or the newest that is holds other arrays,
        shapes or dtypes, or is of another version of kdjax. Nothing is changed.
      OSError: one cannot be read now.
    """
    damaged: dict[int, DamagedError] = {}
    for step in reversed(_steps(self._root)):
      directory = self._root / str(step)
      try:
        metadata = _read_metadata(directory)
        _check_continues(like, metadata, directory)
        state = _restore_state(directory, like, metadata)
      except DamagedError as error:
        damaged[step] = error
        continue
      going_back = f'; the run goes back to step {step}'
      for newer in damaged.items():
        devices.run_on_first(
          functools.partial(self._directory.move_damaged, *newer, going_back)
        )
      self._directory.scan()
      return state, metadata
    if damaged:
      reasons = '\n  '.join(error.reason for error in damaged.values())
      raise ValueError(
        f'no checkpoint in {self._root} is sound, and nothing was changed:\n  '
        f'{reasons}\nPut a sound copy there, or remove {self._root.parent} to '
        'start again'
      )
    self._directory.scan()
    return None

  def validations(self) -> list[dict[str, Any]]:
    """Lists the validation metrics of each sound checkpoint.

    Returns:
      Of each that was validated `step`, `epoch`, `accuracy` and `loss`.
    """
    sound, _ = _read_all_metadata(self._root, _complete_steps(self._root))
    return [
      {
        'step': step,
        'epoch': metadata['epoch'],
        'accuracy': metadata['validation_accuracy'],
        'loss': metadata.get('validation_loss'),
      }
      for step, metadata in sound.items()
      if metadata['validation_accuracy'] is not None
    ]


def _describe_saved(metadata: Mapping[str, Any]) -> Saved:
  return Saved(metadata['validation_accuracy'], metadata.get('scheduled', True))


def restore(
  path: _Path, checkpoint: str = 'best', ema: bool = False
) -> Network:
  """Restores a run's student, ready for `apply`.

  Args:
    path: a run directory, or one checkpoint in it
      (`runs/fkd/checkpoints/7000`).
    checkpoint: of a run directory, 'best' (by validation accuracy) or 'last'.
    ema: whether to restore the moving averages of its variables instead.

  Returns:
    `(model, variables)`. `model.apply(variables, images)` returns the logits of
    images normalised with `variables['normalization']` (see
    `kdjax.normalize`).

  Raises:
    OSError: as `find`.
    ValueError: as `find`, or moving averages are asked for and the run kept
      none, or its model is unknown.
  """
  directory = find(path, checkpoint)
  metadata = read_metadata(directory)
  card_lib.check_model(metadata.get('model'), directory)

  if ema and not any(
    name.startswith('ema/') for name in metadata.get(_ARRAYS, ())
  ):
    raise ValueError(
      f'{directory} holds no moving averages: its run had '
      'config.train.ema_decay=0'
    )

  def select(saved: Any) -> dict[str, Any]:
    if ema:
      return {'ema': saved['ema']}
    return {
      'params': {'student': saved['params']['student']},
      'batch_stats': saved['batch_stats'],
    }

  tree = trees.read(directory / 'state', metadata.get(_ARRAYS), select)
  student = tree['ema'] if ema else tree | {'params': tree['params']['student']}
  variables = student | {
    'normalization': {
      name: np.asarray(values, np.float32)
      for name, values in metadata['normalization'].items()
    }
  }
  return Network(models.build(**metadata['model']), jax.device_put(variables))


def restore_method(path: _Path, checkpoint: str = 'best') -> Any:
  """Restores what a run's method trained of its own, such as connectors.

  Arguments and errors are those of `find`.

  Returns:
    The method's parameters, as its `init` made them (see `kdjax.methods`).
  """
  directory = find(path, checkpoint)
  tree = trees.read(
    directory / 'state',
    _read_metadata(directory).get(_ARRAYS),
    lambda saved: {'params': {'method': saved['params']['method']}},
  )
  return jax.device_put(tree['params']['method'])


def is_own(path: _Path) -> bool:
  """Whether a path is a run directory of kdjax, or a checkpoint of one.

  Directories of other programs may have the same names in them.
  """
  path = pathlib.Path(path)
  if _is_own_step(path):
    return True
  root = path / _DIRECTORY
  return any(_is_own_step(root / str(step)) for step in _steps(root))


def _is_own_step(step: pathlib.Path) -> bool:
  """Whether kdjax wrote a step, as its metadata say, or where it is."""
  if not (step / 'state').is_dir():
    return False
  try:
    metadata = schema.parse((step / 'metadata' / 'metadata').read_bytes())
  except (*trees.MISSING, ValueError):
    # Nobody else has these names around what cannot be read.
    root = step.absolute().parent
    return root.name == _DIRECTORY and (root.parent / _CONFIG).is_file()
  except OSError:
    return True  # Whoever reads it on says why it cannot be read now.
  return any(metadata.keys() >= keys for keys in _OWN)


def check_empty(workdir: _Path) -> None:
  """Checks that a directory for a run has no checkpoints of other programs.

  Args:
    workdir: a directory that is no run yet; it need not exist.

  Raises:
    ValueError: it has.
  """
  root = pathlib.Path(workdir) / _DIRECTORY
  if foreign := [
    step for step in _steps(root) if not _is_own_step(root / str(step))
  ]:
    raise ValueError(
      f'{root} holds step {max(foreign)}, which another program has saved: '
      'choose another run directory'
    )


def save_network(
  path: _Path, network: Network, card: Mapping[str, Any]
) -> None:
  """Saves a network by itself, as a directory.

  Args:
    path: the directory, which must not exist.
    network: its model and variables.
    card: what is known of it, as JSON (see `kdjax.storage.networks`); that
      with the SHA-256 of each array and of all of it becomes `model_card.json`.

  Raises:
    OSError: it exists, or cannot be written. Nothing is left.
  """
  path = trees.absolute(path)
  tree = {name: network.variables[name] for name in features.TRAINED}
  content = card_lib.to_json(card, **{_ARRAYS: digests.describe(tree)})
  with atomic.new_directory(path) as directory:
    try:
      trees.save(directory, tree)
    except Exception as error:
      raise OSError(
        f'cannot write {path}: {trees.shorten(error)}. Make sure that there is '
        'room and that the directory can be written'
      ) from error
    (directory / _CARD).write_text(content, encoding='utf-8')


def is_network(path: _Path) -> bool:
  """Whether a path is a directory that `save_network` made."""
  return (pathlib.Path(path) / _CARD).is_file()


def read_card(path: _Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the card of what `save_network` saved.

  Returns:
    The card as it was given, and what `trees.read` compares the arrays with.

  Raises:
    OSError: it cannot be read.
    ValueError: it is damaged, or no card.
  """
  file = pathlib.Path(path) / _CARD
  card = card_lib.read(file.read_bytes(), file)
  arrays = card.pop(_ARRAYS, None)
  if not isinstance(arrays, dict):
    raise ValueError(f'{file}: the card does not say what its arrays are')
  return card, arrays


def read_metadata(path: _Path, checkpoint: str = 'best') -> dict[str, Any]:
  """Reads what a run saved beside its arrays.

  Arguments and errors are those of `find`.

  Returns:
    `config`, `model` (arguments of `kdjax.models.build`), `image_shape`,
    `class_names`, `normalization` (`mean` and `std` of pixels scaled to
    0 … 1), `data_digest`, `teacher_digest`, `step`, `epoch`, `scheduled` (as
    `Saved` has it), `validation_accuracy`, `validation_loss`, `wall_time_s`;
    then what a run continues with, `window` (the metrics of each step since the
    last line of `metrics.jsonl`), `skipped_in_a_row` (steps left out just
    before those) and `metrics_lines` (how many lines that file has);
    then `version` (of kdjax), `arrays` (of each array `dtype`, `shape` and
    `sha256`) and `sha256` (of all the rest of this).
  """
  return _read_metadata(find(path, checkpoint))


def find(path: _Path, checkpoint: str = 'best') -> pathlib.Path:
  """Finds the directory of a checkpoint.

  Args:
    path: a run directory, or one checkpoint in it.
    checkpoint: of a run directory, 'best' or 'last'.

  Returns:
    The directory that holds `state` and `metadata`.

  Raises:
    FileNotFoundError: there is no checkpoint.
    OSError: a checkpoint cannot be read now.
    ValueError: `checkpoint` is neither 'best' nor 'last', or what was saved is
      damaged.
  """
  if checkpoint not in ('best', 'last'):
    raise ValueError(
      f"unknown checkpoint '{checkpoint}': expected 'best' or 'last'"
    )
  path = trees.absolute(path)
  if not path.exists():
    raise FileNotFoundError(f'there is no file or directory {path}')
  if _is_own_step(path):
    return path
  root = path / _DIRECTORY
  steps = [
    step for step in _complete_steps(root) if _is_own_step(root / str(step))
  ]
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint of kdjax in {path}: expected a run directory, which '
      f'holds {_DIRECTORY}/STEP, or one such checkpoint'
    )
  found = max(steps) if checkpoint == 'last' else _find_best(root, steps)
  _check_is_measured(path, checkpoint, found)
  return root / str(found)


def _check_is_measured(
  workdir: pathlib.Path, checkpoint: str, found: int
) -> None:
  """Checks that what is found is what a finished run measured."""
  result = run_directory.read_result(workdir)
  if result and (step := result[checkpoint]['step']) != found:
    raise FileNotFoundError(
      f'{checkpoint} checkpoint of the finished run in {workdir}: found that '
      f'of step {found}, expected that of step {step}, which was measured: '
      f'{_DIRECTORY}/{step} is missing, incomplete or damaged. Put a sound '
      'copy back; or remove result.json and start the same command again, '
      'which trains what is missing'
    )


def _find_best(root: pathlib.Path, steps: Sequence[int]) -> int:
  """Finds the step with the best validation accuracy."""
  sound, damaged = _read_all_metadata(root, steps)
  if not sound:
    raise list(damaged.values())[-1]
  for error in damaged.values():
    logger.warning('%s. The best is chosen of the others', error.reason)
  return _best({step: sound[step]['validation_accuracy'] for step in sound})


def _steps(root: pathlib.Path) -> list[int]:
  return sorted(
    int(path.name)
    for path in (root.iterdir() if root.is_dir() else ())
    if path.name.isdecimal()
  )


def _complete_steps(root: pathlib.Path) -> list[int]:
  # One that lacks an item was being deleted when its run was killed.
  return [
    step
    for step in _steps(root)
    if all((root / str(step) / item).is_dir() for item in ('state', 'metadata'))
  ]


def _best(accuracies: Mapping[int, float | None]) -> int:
  """Returns the step of the best; where two are equally good, the later one."""

  def rank(step: int) -> tuple[float, int]:
    accuracy = accuracies[step]
    return (-math.inf if accuracy is None else accuracy, step)

  return max(accuracies, key=rank)


def _read_all_metadata(
  root: pathlib.Path, steps: Sequence[int]
) -> tuple[dict[int, dict[str, Any]], dict[int, DamagedError]]:
  """Reads the metadata of some steps: those that are sound, and the others."""
  sound, damaged = {}, {}
  for step in steps:
    try:
      sound[step] = _read_metadata(root / str(step))
    except DamagedError as error:
      damaged[step] = error
  return sound, damaged


def _read_metadata(directory: pathlib.Path) -> dict[str, Any]:
  """Reads the metadata of a checkpoint and compares their checksum."""
  try:
    text = (directory / 'metadata' / 'metadata').read_bytes()
    metadata = schema.parse(text)
    # Older versions of kdjax added nothing.
    added = metadata.keys() & {_VERSION, _ARRAYS, digests.SHA256}
    sound = not added or digests.digest_matches(metadata)
  except (*trees.MISSING, ValueError, RecursionError) as error:
    raise DamagedError(
      directory, f'its metadata cannot be read ({error})'
    ) from error
  except OSError as error:
    raise trees.cannot_read(directory, error) from error
  if not sound:
    raise DamagedError(
      directory, 'the SHA-256 of its metadata is not the one recorded there'
    )
  if not (directory / 'state').is_dir():
    raise DamagedError(directory, 'its state is missing')
  return metadata


def _restore_state(
  directory: pathlib.Path, like: _State, metadata: Mapping[str, Any]
) -> _State:
  """Reads a whole state, onto the devices."""
  state = trees.restore_state(directory / 'state', like)
  trees.check_unchanged(state, metadata.get(_ARRAYS), directory)
  return state


def _check_continues(
  like: Any, metadata: Mapping[str, Any], directory: pathlib.Path
) -> None:
  """Checks that a run may go on from a sound checkpoint."""
  version = metadata.get(_VERSION, 'an older version')
  if version != __version__:
    raise ValueError(
      f'{directory} was written by kdjax {version}, and this is {__version__}: '
      'continue it with the version that wrote it, or choose another run '
      'directory'
    )
  trees.check_same(
    directory,
    'this run',
    trees.describe(jax.eval_shape(digests.without_keys, like)),
    {
      name: f'{saved["dtype"]}{saved["shape"]}'
      for name, saved in metadata[_ARRAYS].items()
    },
    'Continue it with the configuration and precision that wrote it, or choose '
    'another run directory',
  )
