"""What a finished run's networks see: test images, and maps of the stages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import data
from kdjax.methods import feature
from kdjax.models import features
from kdjax.report import collect
from kdjax.storage import checkpoint, run_directory
from kdjax.system import xla
from kdjax.training import teacher as teacher_lib


def test_images(
  run: collect.Run,
  data_dir: str | None = None,  # noqa: PT028 (not a test)
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Loads the images that a run was tested on.

  Args:
    run: a finished run.
    data_dir: where the data are, if they have been moved.

  Returns:
    The images of the test split, pixels from 0 to 255, uint8
    `[size, height, width, channels]`, and the name of each class.

  Raises:
    FileNotFoundError: the data are gone.
    ValueError: they are not those of the run.
  """
  config = run_directory.read_config(run.path)
  if data_dir:
    config.data.data_dir = data_dir
  dataset = data.load(config.data)
  run_directory.check_same_digest(
    run.path, 'data', run.result['data']['digest'], dataset.digest
  )
  return data.in_memory(dataset.test).images, dataset.class_names


def stage_maps(
  run: collect.Run, image: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Computes the maps that a run of the method `feature` compares.

  The student is that of the best checkpoint, in evaluation mode.

  Args:
    run: a finished run of the method `feature`.
    image: pixels from 0 to 255, `[height, width, channels]`.

  Returns:
    For each pair of features that the run compared, by the pair's name, the
    student's feature after its connector and the teacher's, each averaged over
    its channels: float32 `[height, width]`.

  Raises:
    FileNotFoundError: the teacher is gone.
    ValueError: the run has another method, or the teacher is another one.
  """
  if run.result['method'] != 'feature':
    raise ValueError(
      f'{run.path} is a run of the method {run.result["method"]}: maps of '
      'stages need one of the method feature, which has connectors'
    )
  config = run_directory.read_config(run.path)
  pairs = feature.pair(
    config.method.feature.student_features,
    config.method.feature.teacher_features,
  )
  sources, targets = zip(*pairs.values(), strict=True)
  student = checkpoint.restore(run.path)
  connectors = checkpoint.restore_method(run.path)
  teacher = teacher_lib.reload(
    run.path, config, run.result['teacher'], targets
  ).network
  assert teacher is not None  # One of logits alone returns no features.

  def compute(
    student_variables: features.Variables,
    connectors: Any,
    teacher_variables: features.Variables,
    images: jax.Array,
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    ours, _ = features.forward(
      student.model, student_variables, images, names=sources, train=False
    )
    theirs, _ = features.forward(
      teacher.model, teacher_variables, images, names=targets, train=False
    )
    connected = feature.connect_all(connectors, pairs, ours)
    return {
      name: (_mean_map(connected[name]), _mean_map(theirs.features[target]))
      for name, (_, target) in pairs.items()
    }

  maps = xla.jit(compute)(
    student.variables, connectors, teacher.variables, image[np.newaxis]
  )
  # JAX sorts the keys of a dict that it returns.
  return {name: jax.device_get(maps[name]) for name in pairs}


def _mean_map(activations: jax.Array) -> jax.Array:
  """Averages one example's activations over channels, in float32."""
  return activations[0].astype(jnp.float32).mean(axis=-1)
