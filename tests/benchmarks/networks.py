"""Training speed of the networks of published pairs, beside PyTorch's.

  python tests/benchmarks/networks.py --baseline_python=PATH [NETWORK …]

Steps of SGD on random images of 32×32 pixels, batches of 64, 100 classes, for
kdjax and for the same network in eager PyTorch, which the interpreter PATH has;
one after the other, each in a process of its own; the fastest of five steps, of
PyTorch with one thread or all, since its threads wait for one another on a busy
machine, and with channels first or last. Prints a Markdown table.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys
import time

import numpy as np

PYTORCH = (
  pathlib.Path(__file__).resolve().parents[2] / 'third_party' / 'pytorch'
)
NETWORKS = (
  *('resnet20', 'resnet32', 'resnet56', 'resnet110', 'resnet8x4'),
  *('resnet32x4', 'resnet50', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2', 'vgg8'),
  *('vgg13', 'mobilenetv2', 'shufflenetv1', 'shufflenetv2'),
  'vit_tiny_patch4',
)
BATCH, CLASSES, STEPS = 64, 100, 5


def images_and_labels():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
  return images, np.arange(BATCH) % CLASSES


def fastest(step):
  """Images per second of the fastest of a few steps, after one more."""
  times = []
  for _ in range(STEPS + 1):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
  return BATCH / min(times[1:])


def measure_jax(name):
  import jax
  import optax

  from kdjax import models
  from kdjax.models import features
  from kdjax.system import xla

  xla.setup()
  model = models.build(name, num_classes=CLASSES)
  images, labels = jax.tree.map(jax.numpy.asarray, images_and_labels())
  variables = features.init(model, jax.random.key(0), images)

  def update(variables):
    def loss(params):
      outputs, stats = features.forward(
        model, {**variables, 'params': params}, images, train=True
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs.logits, labels
      )
      return losses.mean(), stats

    gradients, stats = jax.grad(loss, has_aux=True)(variables['params'])
    params = optax.apply_updates(
      variables['params'], jax.tree.map(lambda g: -0.01 * g, gradients)
    )
    return {'params': params, 'batch_stats': stats}

  compiled = xla.jit(update)
  return fastest(lambda: jax.block_until_ready(compiled(variables)))


def measure_pytorch(name):
  sys.path.insert(0, str(PYTORCH))
  import networks
  import resnet
  import torch

  build = getattr(resnet, name, None)
  model = (
    build(num_classes=CLASSES, stem='cifar')
    if build
    else networks.build(name, CLASSES)
  )
  images, labels = map(torch.tensor, images_and_labels())
  images = images.permute(0, 3, 1, 2).contiguous()
  optimizer = torch.optim.SGD(model.parameters(), 0.01)

  def step():
    optimizer.zero_grad()
    logits, _ = model(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()

  speeds = []
  for threads, layout in itertools.product(
    {1, torch.get_num_threads()},
    (torch.contiguous_format, torch.channels_last),
  ):
    torch.set_num_threads(threads)
    model.to(memory_format=layout)
    images = images.to(memory_format=layout)
    speeds.append(fastest(step))
  return max(speeds)


def measure(python, side, name):
  command = [python, __file__, f'--side={side}', name]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return float(done.stdout.split()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--baseline_python', help='an interpreter with PyTorch')
  parser.add_argument('--side', choices=['jax', 'pytorch'], help='alone')
  parser.add_argument('names', nargs='*', default=NETWORKS)
  args = parser.parse_args()
  if args.side:
    side = measure_jax if args.side == 'jax' else measure_pytorch
    print(side(args.names[0]))
    return
  print('| network | kdjax images/s | PyTorch images/s | ratio |')
  print('|---|---:|---:|---:|')
  for name in args.names:
    ours = measure(sys.executable, 'jax', name)
    row = f'| `{name}` | {ours:.0f} | '
    if args.baseline_python:
      theirs = measure(args.baseline_python, 'pytorch', name)
      row += f'{theirs:.0f} | {ours / theirs:.2f} |'
    else:
      row += '| |'
    print(row, flush=True)


if __name__ == '__main__':
  main()
