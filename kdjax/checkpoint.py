"""Checkpoints of a run, and their restore. The only file that knows Orbax.

A run directory holds `checkpoints/STEP/state`, the whole `TrainState` as an
Orbax PyTree, and `checkpoints/STEP/metadata`, JSON with the configuration, the
model's name and options and the normalisation of its images. Both can be read
with Orbax alone.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from kdjax import devices, models
from kdjax.step import Network, TrainState

_DIRECTORY = 'checkpoints'
_METRIC = 'validation_accuracy'
_Path = str | os.PathLike[str]


class Checkpoints:
  """Writes and reads the checkpoints of a run: the last ones and the best.

  Saving is asynchronous: training goes on while a checkpoint is written, and a
  checkpoint exists only once it is complete.

  Args:
    workdir: the run directory.
    keep: how many of the last checkpoints are kept, beside the best.
    validated: whether checkpoints come with a validation accuracy. Without it
      the last one counts as the best.
  """

  def __init__(self, workdir: _Path, *, keep: int, validated: bool):
    def metric(metrics: Mapping[str, float]) -> float:
      return metrics[_METRIC]

    policies: list[checkpoint_managers.PreservationPolicy] = [
      checkpoint_managers.LatestN(keep)
    ]
    if validated:
      policies.append(checkpoint_managers.BestN(get_metric_fn=metric, n=1))
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / _DIRECTORY,
      # Named here so that what was saved can be described before it is read.
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'metadata': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        best_fn=metric if validated else None,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.close()

  def latest_step(self) -> int | None:
    """Gives the step of the newest complete checkpoint; None without one."""
    return self._manager.latest_step()

  def save(
    self,
    state: TrainState,
    metadata: Mapping[str, Any],
    validation_accuracy: float | None = None,
  ) -> None:
    """Saves a checkpoint, in the background.

    Args:
      state: the state; its step names the checkpoint.
      metadata: what to keep beside it, as JSON.
      validation_accuracy: from 0 to 1, if checkpoints are validated.
    """
    metrics = {_METRIC: validation_accuracy}
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        metadata=ocp.args.JsonSave(dict(metadata)),
      ),
      metrics=metrics if validation_accuracy is not None else None,
      force=True,
    )

  def restore(
    self, step: int, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """Restores a checkpoint to continue from.

    Args:
      step: its step.
      like: a state, or its shapes and dtypes, of the structure to restore.

    Returns:
      The state and the metadata saved beside it.

    Raises:
      ValueError: the checkpoint holds other arrays, shapes or dtypes.
    """
    # Onto the devices of this run, whatever those were that it was saved from.
    sharding = devices.replicated()
    abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      like,
    )
    saved = self._manager.item_metadata(step)['state']
    _check_same(abstract, saved.tree, f'checkpoint {step}')
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        metadata=ocp.args.JsonRestore(),
      ),
    )
    return restored['state'], restored['metadata']


def restore(path: _Path, checkpoint: str = 'best') -> Network:
  """Restores a run's student, ready for `apply`.

  Args:
    path: a run directory, or one checkpoint in it
      (`runs/fkd/checkpoints/7000`).
    checkpoint: of a run directory, 'best' (by validation accuracy) or 'last'.

  Returns:
    `(model, variables)`. `model.apply(variables, images)` gives the logits of
    images normalised with `variables['normalization']` (see
    `kdjax.normalize`).

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `checkpoint` is neither 'best' nor 'last'.
  """
  directory = find(path, checkpoint)
  metadata = read_metadata(directory)
  tree = _read_state(
    directory,
    lambda saved: {
      'params': {'student': saved['params']['student']},
      'batch_stats': saved['batch_stats'],
    },
  )
  variables = {
    'params': tree['params']['student'],
    'batch_stats': tree['batch_stats'],
    'normalization': {
      name: np.asarray(values, np.float32)
      for name, values in metadata['normalization'].items()
    },
  }
  return Network(models.build(**metadata['model']), jax.device_put(variables))


def restore_method(path: _Path, checkpoint: str = 'best') -> Any:
  """Restores what a run's method trained of its own, such as connectors.

  Args:
    path: a run directory, or one checkpoint in it.
    checkpoint: of a run directory, 'best' or 'last'.

  Returns:
    The method's parameters, as its `init` made them (see `kdjax.methods`).

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `checkpoint` is neither 'best' nor 'last'.
  """
  tree = _read_state(
    find(path, checkpoint),
    lambda saved: {'params': {'method': saved['params']['method']}},
  )
  return jax.device_put(tree['params']['method'])


def read_metadata(path: _Path, checkpoint: str = 'best') -> dict[str, Any]:
  """Reads what a run saved beside its arrays.

  Args:
    path: a run directory, or one checkpoint in it.
    checkpoint: of a run directory, 'best' or 'last'.

  Returns:
    `config`, `model` (arguments of `kdjax.models.build`), `image_shape`,
    `class_names`, `normalization` (`mean` and `std` of pixels scaled to
    0 … 1), `data_digest`, `teacher_digest`, `step`, `epoch`,
    `validation_accuracy`, `validation_loss`, `wall_time_s`.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `checkpoint` is neither 'best' nor 'last'.
  """
  directory = find(path, checkpoint)
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
    return checkpointer.restore(directory / 'metadata')


def find(path: _Path, checkpoint: str = 'best') -> pathlib.Path:
  """Finds the directory of a checkpoint.

  Args:
    path: a run directory, or one checkpoint in it.
    checkpoint: of a run directory, 'best' or 'last'.

  Returns:
    The directory that holds `state` and `metadata`.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `checkpoint` is neither 'best' nor 'last'.
  """
  if checkpoint not in ('best', 'last'):
    raise ValueError(
      f"unknown checkpoint '{checkpoint}': expected 'best' or 'last'"
    )
  path = pathlib.Path(path).absolute()
  if (path / 'state').is_dir():
    return path
  root = path / _DIRECTORY
  steps = ocp.utils.checkpoint_steps(root) if root.is_dir() else []
  # One without them was being deleted when its run was killed.
  steps = [
    step
    for step in steps
    if all((root / str(step) / item).is_dir() for item in ('state', 'metadata'))
  ]
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint in {path}: expected a run directory of kdjax, which '
      f'holds {_DIRECTORY}/STEP, or one such checkpoint'
    )

  def rank(step: int) -> tuple[float, int]:
    # Where two are equally good the later one counts, as in Orbax's policy.
    accuracy = read_metadata(root / str(step))['validation_accuracy']
    return (-math.inf if accuracy is None else accuracy, step)

  step = max(steps, key=rank if checkpoint == 'best' else None)
  return root / str(step)


def _read_state(
  directory: pathlib.Path, select: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
  """Reads what `select` takes of a saved state; the rest is left on disk."""
  saved = (
    ocp.PyTreeCheckpointHandler().metadata(epath.Path(directory / 'state')).tree
  )
  wanted = select(saved)
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
      directory / 'state',
      args=ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
        ),
        partial_restore=True,
      ),
    )


def _check_same(expected: Any, saved: Any, name: str) -> None:
  """Compares shapes and dtypes: Orbax itself casts dtypes silently."""

  def describe(tree: Any) -> dict[str, str]:
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): (
        'key'
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
      )
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  ours, theirs = describe(expected), describe(saved)
  theirs = {
    path: 'key' if ours.get(path) == 'key' else leaf
    for path, leaf in theirs.items()
  }
  differing = [
    f'{path}: saved {theirs.get(path, "nothing")}, '
    f'expected {ours.get(path, "nothing")}'
    for path in sorted(ours.keys() | theirs.keys())
    if ours.get(path) != theirs.get(path)
  ]
  if differing:
    shown = '\n  '.join(differing[:10])
    raise ValueError(
      f'{name} does not fit this run ({len(differing)} arrays differ):\n'
      f'  {shown}\nContinue it with the configuration and version of kdjax '
      'that wrote it, or choose another run directory'
    )
