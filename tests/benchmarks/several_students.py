"""Measures ways to train several students of one teacher.

  python tests/benchmarks/several_students.py --students=4

For the mode response, on random digits or random images of CIFAR's size:

- live: each student's step computes the teacher's logits;
- replay: they are computed once and given to each student's step;
- unrolled: one program computes them once and steps all students, one by one;
- vmap: one program computes them once and steps all students at once.

Prints milliseconds for one step of all students, and the time of compilation.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import optax

from kdjax import methods, models
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.system import xla
from kdjax.training import state as state_lib
from kdjax.training import step


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--students', type=int, default=4)
  parser.add_argument('--size', type=int, default=8, help='pixels on a side')
  parser.add_argument('--stem', default='cifar', choices=['cifar', 'imagenet'])
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument(
    '--ways', nargs='+', default=['live', 'replay', 'unrolled', 'vmap']
  )
  args = parser.parse_args()

  channels = 1 if args.size == 8 else 3
  shape = (args.batch_size, args.size, args.size, channels)
  images = jax.random.randint(jax.random.key(0), shape, 0, 256, jnp.uint8)
  labels = jnp.arange(args.batch_size) % 10
  normalization = {'mean': jnp.full(channels, 0.5), 'std': jnp.ones(channels)}
  student, teacher = (
    models.build(name, num_classes=10, stem=args.stem, width=64)
    for name in ('resnet18', 'resnet50')
  )
  variables = features.init(teacher, jax.random.key(1), images)
  variables['normalization'] = normalization
  teacher, variables = models.fold(teacher, variables, ())
  method, hyperparameters = methods.build('response')
  optimizer = optax.sgd(0.1, 0.9, nesterov=True)
  train_step = step.make_train_step(student, method, optimizer, teacher)
  network = Network(teacher, variables)
  states = [
    state_lib.create_state(
      jax.random.key(seed),
      student,
      method,
      optimizer,
      state_lib.Start(images, network),
    )
    for seed in range(args.students)
  ]
  # Each student has a temperature of its own.
  settings = [
    {name: jnp.float32(value + i) for name, value in hyperparameters.items()}
    for i in range(args.students)
  ]

  def logits(variables):
    return features.forward(teacher, variables, images, train=False)[0]

  def one(state, from_teacher, setting):
    inputs = step.Inputs(images, labels, normalization, from_teacher, setting)
    return train_step(state, inputs)[0]

  def unrolled(states, variables, settings):
    outputs = logits(variables)
    return [one(s, outputs, h) for s, h in zip(states, settings, strict=True)]

  def vmapped(states, variables, settings):
    return jax.vmap(one, in_axes=(0, None, 0))(
      states, logits(variables), settings
    )

  def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  def compiled(function, *arguments):
    start = time.perf_counter()
    jitted = xla.jit(function, donate_argnums=0)
    program = jitted.lower(*arguments).compile()
    return program, time.perf_counter() - start

  def copy(tree):
    return jax.tree.map(jnp.copy, tree)

  for way in args.ways:
    if way == 'live':
      program, seconds = compiled(one, states[0], variables, settings[0])

      def advance(states, program=program):
        return [
          program(s, variables, h)
          for s, h in zip(states, settings, strict=True)
        ]

      state = copy(states)
    elif way == 'replay':
      make, first = compiled(lambda _, v: logits(v), 0, variables)
      outputs = make(0, variables)
      program, second = compiled(one, states[0], outputs, settings[0])
      seconds = first + second

      def advance(states, make=make, program=program):
        outputs = make(0, variables)
        return [
          program(s, outputs, h) for s, h in zip(states, settings, strict=True)
        ]

      state = copy(states)
    elif way == 'unrolled':
      program, seconds = compiled(unrolled, states, variables, settings)

      def advance(states, program=program):
        return program(states, variables, settings)

      state = copy(states)
    else:
      state, hyper = stacked(states), stacked(settings)
      program, seconds = compiled(vmapped, state, variables, hyper)

      def advance(states, program=program, hyper=hyper):
        return program(states, variables, hyper)

    times = []
    for _ in range(args.steps + 1):
      start = time.perf_counter()
      state = jax.block_until_ready(advance(state))
      times.append(time.perf_counter() - start)
    # The first has its memory to find.
    times = sorted(times[1:])
    print(
      f'{way:9} {1000 * times[len(times) // 2]:8.0f} ms, '
      f'compiled in {seconds:.1f} s',
      flush=True,
    )


if __name__ == '__main__':
  xla.setup()
  main()
