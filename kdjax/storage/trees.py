"""PyTrees of arrays on disk, as Orbax saves them, and what they hold."""

import contextlib
import functools
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, cast

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kdjax.storage import digests
from kdjax.system import devices
from kdjax.system.escape import listed

_Path = str | os.PathLike[str]
# What is missing is damage; other errors of the system may pass.
MISSING = FileNotFoundError, NotADirectoryError
_State = TypeVar('_State')


class DamagedError(ValueError):
  """A checkpoint is not what was saved.

  Args:
    directory: its directory.
    how: what is wrong with it.

  Attributes:
    reason: which it is, and how; the message adds what to do.
  """

  def __init__(self, directory: pathlib.Path, how: str):
    self.reason = f'{directory} is damaged: {how}'
    super().__init__(f'{self.reason}. Remove it, or put a sound copy there')


def is_tree(path: _Path) -> bool:
  """Whether a path is a directory with a PyTree that Orbax has saved."""
  return (pathlib.Path(path) / '_METADATA').is_file()


def absolute(path: _Path) -> pathlib.Path:
  """Makes a path absolute; a ValueError says where Orbax cannot open it."""
  found = pathlib.Path(path).absolute()
  try:
    str(found).encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{str(found)!a} is not UTF-8 text (or the locale is not), and Orbax '
      'opens no other paths: rename it, or copy it to another place'
    ) from error
  return found


def describe(tree: Any) -> dict[str, str]:
  """Describes the arrays of a PyTree.

  Args:
    tree: arrays, or whatever else has a `dtype` and a `shape`.

  Returns:
    By the path of each its dtype and shape, as `float32[3, 3]`; of what has
    none its type.
  """
  return {
    name: (
      f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
      if hasattr(leaf, 'dtype')
      else type(leaf).__name__
    )
    for name, leaf in digests.leaves_by_path(tree).items()
  }


def check_same(
  path: _Path,
  model: str,
  expected: Mapping[str, str],
  found: Mapping[str, str],
  advice: str,
) -> None:
  """Checks that arrays are those of a model.

  Args:
    path: where they are.
    model: what the model is called.
    expected: what `describe` says of its arrays.
    found: the same of what is there.
    advice: what to do if they are not.

  Raises:
    ValueError: they are not; the message names those that differ.
  """
  differing = {
    'missing': sorted(expected.keys() - found.keys()),
    'unknown': sorted(found.keys() - expected.keys()),
    'of another shape or dtype': [
      f'{name} ({found[name]}, expected {expected[name]})'
      for name in sorted(expected.keys() & found.keys())
      if expected[name] != found[name]
    ],
  }
  if any(differing.values()):
    shown = ''.join(
      f'\n  {what}: {listed(names)}'
      for what, names in differing.items()
      if names
    )
    raise ValueError(
      f'the arrays in {path} are not those of {model}:{shown}\n{advice}'
    )


def check_unchanged(
  tree: Any, arrays: Mapping[str, Any] | None, directory: pathlib.Path
) -> None:
  """Raises a DamagedError if arrays are not as `digests.describe` had them.

  Args:
    tree: the arrays that were read.
    arrays: what was saved; None of what an older version of kdjax saved.
    directory: where they were read.
  """
  if arrays is None:
    return
  for name, found in digests.describe(tree).items():
    if found != (saved := arrays.get(name)):
      raise DamagedError(
        directory, f'its array {name} was saved as {saved}, and is now {found}'
      )


def describe_saved(path: _Path, *, own: bool = False) -> dict[str, str]:
  """Describes the arrays of a PyTree that Orbax has saved, reading none.

  Args:
    path: its directory, as `StandardCheckpointer` or `PyTreeCheckpointer` has
      written it.
    own: whether kdjax has saved it, so that it is damaged if it is unreadable.

  Raises:
    OSError: it cannot be read now.
    ValueError: it is damaged.
  """
  path, options = absolute(path), _alone()
  with _reading(path, own=own):
    return describe(_structure(path, options))


def read(
  path: _Path,
  arrays: Mapping[str, Any] | None = None,
  select: Callable[[Any], Any] = lambda saved: saved,
  *,
  own: bool = True,
) -> dict[str, Any]:
  """Reads a PyTree that Orbax has saved, or a part of it.

  Args:
    path: its directory.
    arrays: what `digests.describe` said of it when it was saved; None if that
      is unknown.
    select: returns the part to read, of the whole structure; the rest is left
      on disk.
    own: as `describe_saved` has it.

  Returns:
    Its arrays, of NumPy.

  Raises:
    OSError: it cannot be read now.
    ValueError: it is damaged.
  """
  path, options = absolute(path), _alone()
  with (
    _reading(path, own=own),
    ocp.Checkpointer(
      ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
      multiprocessing_options=options,
    ) as checkpointer,
  ):
    wanted = select(_structure(path, options))
    tree = checkpointer.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
        ),
        partial_restore=True,
      ),
    )
  check_unchanged(tree, arrays, _named(path))
  return tree


def read_arrays(path: _Path, names: Collection[str]) -> dict[str, np.ndarray]:
  """Reads arrays of a PyTree that another program has saved, by their paths.

  Raises:
    OSError: it cannot be read now.
    ValueError: it is incomplete or damaged.
  """

  def select(saved: Any) -> dict[str, Any]:
    leaves = digests.leaves_by_path(saved)
    return flax.traverse_util.unflatten_dict(
      {name: leaves[name] for name in names}, sep='/'
    )

  tree = read(path, None, select, own=False)
  return flax.traverse_util.flatten_dict(tree, sep='/')


def restore_state(path: pathlib.Path, like: _State) -> _State:
  """Reads a whole training state, onto the devices; in all processes.

  Args:
    path: the directory of its PyTree.
    like: a state, or its shapes and dtypes.

  Returns:
    The state. A field without arrays is that of `like` where it is missing, as
    in an older checkpoint.

  Raises:
    OSError: it cannot be read now.
    ValueError: it is damaged.
  """
  # Those of this run, whatever those were that it was saved from.
  sharding = devices.replicated()
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    like,
  )
  options = _alone()
  with _reading(path), ocp.StandardCheckpointer() as checkpointer:
    saved = _structure(path, options)
    fields = {
      name: getattr(abstract, name) for name in saved if hasattr(abstract, name)
    }
    if len(fields) < len(saved):
      return checkpointer.restore(path, abstract)
    return cast(Any, like).replace(**checkpointer.restore(path, fields))


def save(path: pathlib.Path, tree: Any) -> None:
  """Saves a PyTree into an empty directory.

  Raises:
    Exception: of whatever type, it cannot be written.
  """
  ignore_late_callbacks()
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree, force=True)


def cannot_read(path: pathlib.Path, cause: OSError) -> OSError:
  """Makes the error that something cannot be read now, and what to do."""
  return OSError(
    f'{path} cannot be read now, which does not say that it is damaged: '
    f'{cause}\nMake sure that the directory can be read, then start the same '
    'command again'
  )


def shorten(error: Exception) -> str:
  """Shortens an error to its ends; TensorStore's go on for pages."""
  text = ' '.join(str(error).split())
  return text if len(text) < 400 else f'{text[:200]} … {text[-200:]}'


@functools.cache
def ignore_late_callbacks() -> None:
  """Says nothing of reads and writes that end, or never will, after one failed.

  Orbax closes the event loop that they belong to.
  """
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    late = str(unraisable.exc_value) == 'Event loop is closed'
    late |= inspect.iscoroutine(unraisable.object)
    # A signal is not among them.
    if not late or isinstance(unraisable.exc_value, KeyboardInterrupt):
      previous(unraisable)

  sys.unraisablehook = hook


def _named(path: pathlib.Path) -> pathlib.Path:
  """Returns what errors name: of the state of a checkpoint, the checkpoint."""
  return path.parent if path.name == 'state' else path


@contextlib.contextmanager
def _reading(path: pathlib.Path, *, own: bool = True) -> Iterator[None]:
  """Explains what Orbax raises when it cannot read, of whatever type."""
  ignore_late_callbacks()
  path = _named(path)
  # Here, so that a device that is not there is no damage of the file.
  jax.process_index()
  try:
    yield
  except Exception as error:
    if isinstance(error, OSError) and not isinstance(error, MISSING):
      raise cannot_read(path, error) from error
    if not own:
      raise ValueError(
        f'{path} cannot be read as a PyTree of Orbax: it may not be complete, '
        'or a version of Orbax that is not known here has written it '
        f'({shorten(error)})'
      ) from error
    raise DamagedError(
      path, f'its state cannot be read ({shorten(error)})'
    ) from error


def _structure(
  path: pathlib.Path, options: ocp.options.MultiprocessingOptions
) -> Any:
  """Reads the structure, shapes and dtypes of a PyTree."""
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  return handler.metadata(epath.Path(path)).tree


def _alone() -> ocp.options.MultiprocessingOptions:
  """Options by which each process reads by itself: not all may want to.

  To be called where no error counts as damage: it asks JAX for a device.
  """
  process = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=process,
    active_processes={process},
    barrier_sync_key_prefix=f'process{process}',
  )
