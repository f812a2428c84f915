"""The process that `kdjax.benchmark` measures kdjax in.

python -m kdjax.benchmark.worker JSON

What it trains is the program of a run, with its data set, as `kdjax.main` does;
only the teacher is not trained but random, which is as fast. Its argument and
the lines that it reads and writes are described in `workers`.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from kdjax import config as config_lib
from kdjax import models
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import xla
from kdjax.training import compiled, setup
from kdjax.training.run import Run
from kdjax.training.shared import Session
from kdjax.training.teacher import Teacher
from kdjax.version import __version__

_PRODUCTS = 4


def main() -> None:
  """Trains as the argument and the lines of the input say."""
  xla.setup()
  try:
    training = Training(ml_collections.ConfigDict(json.loads(sys.argv[1])))
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  with contextlib.closing(training):
    _answer(training)


def _answer(training: 'Training') -> None:
  """Makes the first step, then does what each line of the input asks for."""
  training.steps(1)
  _say(training.description())
  for line in sys.stdin:
    request = json.loads(line)
    if request.get('flops'):
      _say(training.flops())
      continue
    start = time.perf_counter()
    steps = training.steps(request['steps'])
    _say(
      {
        'seconds': time.perf_counter() - start,
        'steps': steps,
        'peak_memory_bytes': _peak_memory(),
      }
    )


class Training:
  """A run from its configuration on, without checkpoints and log."""

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    run = setup.resolve(config, pathlib.Path(), Session())
    self._dataset = run.dataset
    if run.method.needs_teacher:
      run = run._replace(teacher=random_teacher(run))
    self._program = compiled.Program(run)
    self._state = self._program.create_state()
    self._program.compile(self._state)
    self._done = 0

  def steps(self, least: int) -> int:
    """Trains at least so many steps, and waits for the device.

    Returns:
      The number of steps: the device is given several at once.
    """
    plan = self._program.plan
    count = 0
    while count < least:
      # After the last step of a run comes the first again, with the same state.
      if self._done == plan.total_steps:
        self._done = 0
      steps = plan.next_dispatch(self._done)
      self._state, _ = self._program.run(self._state, self._done)
      self._done += steps
      count += steps
    jax.block_until_ready(self._state)
    return count

  def close(self) -> None:
    """Stops what reads the data, if anything does."""
    self._program.close()

  def description(self) -> dict[str, Any]:
    """Describes the run after its first step, for JSON."""
    device = jax.devices()[0]
    return {
      'versions': {
        'kdjax': __version__,
        **{name: importlib.metadata.version(name) for name in ('jax', 'flax')},
      },
      'platform': device.platform,
      'device': device.device_kind,
      'compile_s': self._program.compile_time_s,
      'image_shape': list(self._dataset.image_shape),
      'num_classes': len(self._dataset.class_names),
      'train_size': self._dataset.train.size,
    }

  def flops(self) -> dict[str, float]:
    """Counts the FLOPs of an image, and measures those that are possible."""
    return {
      'flops_per_image': self._program.flops_per_step(self._state)
      / self._config.train.batch_size,
      'matmul_flops_per_s': _matmul_flops_per_s(self._config.student.dtype),
    }


def random_teacher(run: Run) -> Teacher:
  """Makes a teacher that was never trained, as `training.teacher` loads it."""
  dataset = run.dataset
  model = models.build(
    **config_lib.model_arguments(
      config_lib.teacher_run(run.config), len(dataset.class_names)
    )
  )
  images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  variables = features.init(model, jax.random.key(0), images)
  # Scales that start at zero would leave whole convolutions at zero, which some
  # devices compute faster; those of one would let activations grow.
  variables['params'] = jax.tree_util.tree_map_with_path(
    lambda path, value: (
      jnp.full_like(value, 0.2)
      if path[-1].key == 'scale' and not value.any()
      else value
    ),
    variables['params'],
  )
  variables['normalization'] = {
    'mean': jnp.asarray(dataset.mean),
    'std': jnp.asarray(dataset.std),
  }
  folded = models.fold(model, variables, run.method.teacher_features)
  return Teacher(Network(*folded), {})


def _matmul_flops_per_s(dtype: str) -> float:
  """Measures products of large matrices; returns the speed of the fastest."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  # Random numbers: of constants some devices are faster.
  a, b = (
    jax.random.normal(jax.random.key(seed), (size, size), dtype)
    for seed in range(2)
  )
  product = xla.jit(jnp.matmul)
  product(a, b).block_until_ready()
  times = []
  for _ in range(_PRODUCTS):
    start = time.perf_counter()
    for _ in range(_PRODUCTS):
      c = product(a, b)
    c.block_until_ready()
    times.append((time.perf_counter() - start) / _PRODUCTS)
  return 2 * size**3 / min(times)


def _peak_memory() -> int:
  """Returns the peak memory in bytes: of the device, or of the process."""
  statistics = jax.devices()[0].memory_stats()
  if statistics:
    return statistics['peak_bytes_in_use']
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def _say(answer: Mapping[str, Any]) -> None:
  print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
