"""Training speed of every method beside `response`, in one process.

  python tests/benchmarks/methods.py [METHOD …]

ResNet-50 into ResNet-18 with the ImageNet stem on 32×32 images, batches of 128;
bursts of steps in turns with those of `response`, medians of the bursts. Prints
a Markdown table.
"""

import contextlib
import statistics
import sys
import time

import ml_collections

from kdjax import config as config_lib
from kdjax import methods
from kdjax.benchmark import worker

ROUNDS, STEPS = 3, 3
# Settings without which a method does not run on such small maps.
SETTINGS = {
  'dml': {'stem': 'imagenet'},
  'wkd_f': {'student_feature': 'stage3', 'teacher_feature': 'stage3'},
}


def configure(name: str) -> ml_collections.ConfigDict:
  """The configuration of a method's run."""
  config = config_lib.default()
  config.method.name = name
  config.method[name].update(SETTINGS.get(name, {}))
  config.data.name = 'synthetic'
  config.student.stem = 'imagenet'
  if name == 'simkd':
    config.student.name = 'resnet18_simkd'
  if name == 'ema_teacher':
    config.train.ema_decay = 0.999
  return config


def burst(training: worker.Training) -> float:
  """Images per second of a few steps."""
  start = time.perf_counter()
  steps = training.steps(STEPS)
  return 128 * steps / (time.perf_counter() - start)


def main(names: list[str]) -> None:
  """Measures methods, all by default."""
  print('| method | images/s | response beside it | time of response |')
  print('|---|---:|---:|---:|')
  with contextlib.closing(worker.Training(configure('response'))) as reference:
    reference.steps(2)
    for name in names or methods.names():
      with contextlib.closing(worker.Training(configure(name))) as training:
        training.steps(2)
        pairs = [(burst(training), burst(reference)) for _ in range(ROUNDS)]
      speed, beside = map(statistics.median, zip(*pairs, strict=True))
      print(
        f'| `{name}` | {speed:.0f} | {beside:.0f} | {beside / speed:.2f} × |',
        flush=True,
      )


if __name__ == '__main__':
  main(sys.argv[1:])
