"""Folders of images of several sizes, made for tests."""

import pathlib

import numpy as np
from PIL import Image

CLASSES = ('ant', 'bee', 'cow')


def write(
  root: pathlib.Path,
  splits=('train', 'validation', 'test'),
  count: int = 4,
  size: int | None = None,
) -> pathlib.Path:
  """Writes JPEGs of 12 to 40 pixels a side, or of one size."""
  rng = np.random.default_rng(0)
  for split in splits:
    for name in CLASSES:
      folder = root / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        height, width = (size, size) if size else rng.integers(12, 41, 2)
        coarse = rng.integers(0, 256, (3, 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)))
        image.save(folder / f'{index:03d}.jpg')
  return root
