"""Random images of CIFAR-10's shapes.

For benchmarks and smoke tests without a download. There is nothing in them to
learn: pixels and labels are independent and uniform.
"""

import numpy as np

from kdjax.data.sources import Source, Split

_SEED = 0
_SHAPE = (32, 32, 3)
_CLASSES = 10
_TRAIN, _TEST = 50_000, 10_000


def load(data_dir: str | None) -> Source:
  """Makes the images, the same every time.

  Args:
    data_dir: ignored, nothing is read.

  Returns:
    50,000 images to train on and 10,000 to test on, uint8 `[N, 32, 32, 3]` of
    ten classes. No validation split.
  """
  del data_dir
  rng = np.random.default_rng(_SEED)

  def split(size: int) -> Split:
    return Split(
      rng.integers(0, 256, (size, *_SHAPE), np.uint8),
      rng.integers(0, _CLASSES, size, np.int32),
    )

  return Source(
    train=split(_TRAIN),
    validation=None,
    test=split(_TEST),
    class_names=tuple(f'class {index}' for index in range(_CLASSES)),
  )
