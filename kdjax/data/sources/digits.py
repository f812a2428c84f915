"""Handwritten digits: 1,797 real 8×8 scans that come with scikit-learn.

The data set to try kdjax on: no download, and minutes on two CPU cores. The
test set of the UCI "Optical Recognition of Handwritten Digits" data,
https://doi.org/10.24432/C50P49.
"""

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from kdjax.data.sources import Source, Split

# Fixed for ever, whatever a run's seed is: a test split belongs to the data.
_SPLIT_SEED = 0
_TEST_FRACTION = 0.2
_MAX_INK = 16


def load(data_dir: str | None) -> Source:
  """Reads the digits.

  Args:
    data_dir: ignored, the scans come with scikit-learn.

  Returns:
    1,437 images to train on and 360 to test on, each class in proportion, as
    uint8 `[N, 8, 8, 1]` from 0 to 255. No validation split.
  """
  del data_dir
  digits = sklearn.datasets.load_digits()
  # The scans count the dark pixels of each 4×4 block, from 0 to 16.
  images = np.rint(digits.images * (255 / _MAX_INK)).astype(np.uint8)
  labels = digits.target.astype(np.int32)
  train, test = sklearn.model_selection.train_test_split(
    np.arange(len(labels)),
    test_size=_TEST_FRACTION,
    stratify=labels,
    random_state=_SPLIT_SEED,
  )
  return Source(
    train=Split(images[train, ..., None], labels[train]),
    validation=None,
    test=Split(images[test, ..., None], labels[test]),
    class_names=tuple(str(name) for name in digits.target_names),
  )
