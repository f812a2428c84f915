"""Measures how fast images are read, decoded and cropped from a folder.

  python tests/benchmarks/streaming.py --workers 0 1 2 4 --baseline_python=PATH

With a folder of one's own (`--folder`, as `image_folder` has it), or with one
made of CIFAR-10's images, as JPEGs of 160 to 500 pixels a side. Training
batches with random-resized crops, before they are put on a device; the baseline
is PyTorch's DataLoader with the same decoding and cropping code. Each in a
process of its own, in turns.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import rates
from PIL import Image

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import stream

HERE = pathlib.Path(__file__).resolve().parent


def make_folder(root, data_dir, count, smallest, largest):
  """Writes JPEGs of random sizes, in the classes of CIFAR-10."""
  fields = config_lib.default().data
  fields.update(data_dir=data_dir, validation_fraction=0.0, train_limit=count)
  dataset = data.load(fields)
  rng = np.random.default_rng(0)
  for split, name in ((dataset.train, 'train'), (dataset.test, 'test')):
    limit = count if name == 'train' else max(count // 5, 10)
    for index in range(min(limit, split.size)):
      label = dataset.class_names[split.labels[index]]
      folder = root / name / label
      folder.mkdir(parents=True, exist_ok=True)
      size = rng.integers(smallest, largest + 1, 2).tolist()
      image = Image.fromarray(split.images[index])
      image = image.resize(size, Image.Resampling.BICUBIC)
      image.save(folder / f'{index:05d}.jpg', quality=90)


def measure(args):
  """Reads with the first number of workers; prints a line of JSON."""
  fields = config_lib.default().data
  fields.update(
    name='image_folder',
    data_dir=args.folder,
    streaming=True,
    image_size=args.image_size,
  )
  dataset = data.load(fields)
  with stream.train_batches(
    dataset.train,
    jax.random.key(0),
    batch_size=args.batch_size,
    steps=range(10**6),
    random_resized_crop=args.area,
    workers=args.workers[0],
  ) as batches:
    found = rates.measure(batches, args.batch_size, args.seconds)
  print(json.dumps(found), flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--folder', help='a folder of images; made if not given')
  parser.add_argument('--data_dir', default=None, help='where CIFAR-10 is')
  parser.add_argument('--images', type=int, default=2000, help='made to train')
  parser.add_argument('--sizes', type=int, nargs=2, default=[160, 500])
  parser.add_argument('--make_only', action='store_true')
  parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 4])
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--area', type=float, default=0.08)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--seconds', type=float, default=20)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--baseline_python', help='Python that has PyTorch')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    measure(args)
    return
  with tempfile.TemporaryDirectory() as temporary:
    if args.make_only or not args.folder:
      args.folder = args.folder or temporary
      make_folder(
        pathlib.Path(args.folder), args.data_dir or '', args.images, *args.sizes
      )
    if not args.make_only:
      compare(args)


def compare(args):
  options = {
    name: str(getattr(args, name))
    for name in ('folder', 'image_size', 'area', 'batch_size', 'seconds')
  }
  print('loader  workers  first batch s  images/s  memory MB')
  for _ in range(args.rounds):
    for workers in args.workers:
      ours = [sys.executable, __file__, '--worker', f'--workers={workers}']
      ours += [f'--{name}={value}' for name, value in options.items()]
      run('kdjax', workers, ours)
      if args.baseline_python:
        theirs = [args.baseline_python, HERE / 'pytorch_loader.py']
        folder, *rest = options.values()
        run('pytorch', workers, [*theirs, folder, str(workers), *rest])


def run(loader, workers, command):
  output = subprocess.run(command, check=True, capture_output=True, text=True)
  found = json.loads(output.stdout.splitlines()[-1])
  memory = ' … '.join(map(str, found['memory']))
  print(
    f'{loader:7} {workers:7} {found["first_s"]:14.1f} {found["rate"]:9.0f}  '
    f'{memory}',
    flush=True,
  )


if __name__ == '__main__':
  main()
