"""The PyTorch side of streaming.py: a DataLoader over the same images.

  python pytorch_loader.py FOLDER WORKERS SIZE AREA BATCH SECONDS

Decodes and crops with kdjax's own `images.py`, so that only the loaders differ.
Prints a line of JSON as `streaming.measure` gives it.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent


def module(name, path):
  spec = importlib.util.spec_from_file_location(name, path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded


images = module('images', HERE.parents[1] / 'kdjax/data/images.py')
rates = module('rates', HERE / 'rates.py')
KEY = np.zeros(2, np.uint32)


class Folder(torch.utils.data.Dataset):
  def __init__(self, root, size, area):
    root = pathlib.Path(root)
    classes = sorted(path.name for path in root.iterdir())
    self._files = [
      (str(path), label)
      for label, name in enumerate(classes)
      for path in sorted((root / name).iterdir())
    ]
    self._size, self._area = size, area
    self._epoch = 0

  def __len__(self):
    return len(self._files)

  def __getitem__(self, index):
    path, label = self._files[index]
    with Image.open(path) as opened:
      image = images.with_channels(opened, 3)
    draws = images.crop_draws(KEY, self._epoch, index)
    image = images.random_resized_crop(image, self._size, self._area, draws)
    return torch.from_numpy(np.array(image)), label


def batches(loader):
  while True:
    yield from loader


def main(folder, workers, size, area, batch, seconds):
  dataset = Folder(pathlib.Path(folder) / 'train', int(size), float(area))
  loader = torch.utils.data.DataLoader(
    dataset,
    batch_size=int(batch),
    shuffle=True,
    drop_last=True,
    num_workers=int(workers),
    persistent_workers=int(workers) > 0,
  )
  found = rates.measure(batches(loader), int(batch), float(seconds))
  print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
