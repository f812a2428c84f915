"""Trains with every mode on whatever devices this process has.

  python tests/topology.py WORKDIR OTHER [ADDRESS COUNT INDEX]

The runs go to WORKDIR, taught by the finished run `one/scratch` beside it, and
one by the logits in `one/logits.npz`. WORKDIR/losses.npz receives the losses of
the methods that compare the examples of a batch. Then
a copy of OTHER's run in the mode feature is continued from half its length. Of
several processes one is then told to stop in the middle of another run.
WORKDIR/errorsINDEX.json receives what was refused, and WORKDIR/exchanged.json
what the devices exchange in a step of the mode feature.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import tiny

from kdjax import methods, testing
from kdjax.storage import metrics_log
from kdjax.system import devices, signals, xla
from kdjax.training import train
from kdjax.training.shared import Session

METHODS = ('scratch', 'response', 'feature')
CONTINUED = 'feature'
STEPS = 10


def config(method, workdir):
  config = tiny.config(method)
  # Adam would make a whole step of a gradient that is nothing but rounding.
  config.train.update(optimizer='sgd', learning_rate=0.05, epochs=2)
  # Checkpoints take time: one at the end is enough where none is continued.
  config.eval.every_epochs = 1 if method == CONTINUED else 2
  config.log.update(every_steps=1, tensorboard=False)
  if method != 'scratch':
    config.teacher.path = str(workdir.parent / 'one' / 'scratch')
  return config


def taught_by_logits(workdir):
  known = config('response', workdir)
  known.student.name = 'small_cnn:SmallCNN'
  known.train.epochs = 1
  known.teacher.path = str(workdir.parent / 'one' / 'logits.npz')
  return known


def run_all(workdir, session):
  if workdir.name != 'eight':
    train.train_and_evaluate(
      taught_by_logits(workdir), workdir / 'known', session
    )
  for method in METHODS:
    train.train_and_evaluate(config(method, workdir), workdir / method, session)


def losses_of_methods(workdir):
  """Computes what each method of whole batches loses, divided over devices."""
  found = {}
  for name in methods.names():
    method, _ = methods.build(name, tiny.SETTINGS.get(name))
    if not (method.batch_level or method.views > 1):
      continue
    variables, batch = testing.make_problem(method, size=8)

    # Compiling takes longer than computing.
    @functools.partial(
      xla.jit, compiler_options={'xla_backend_optimization_level': 0}
    )
    def compute(variables, batch, method=method):
      def mean(student):
        # As the step has them: rows on devices, all else everywhere.
        result = method.loss(
          variables,
          batch._replace(
            student=divide(student),
            teacher=divide(batch.teacher),
            **{
              field: devices.divide(getattr(batch, field))
              for field in ('labels', 'images', 'ids')
            },
          ),
        )
        return result.per_example.mean(), (result.per_example, result.state)

      gradient, rest = jax.grad(mean, has_aux=True)(batch.student)
      return rest, gradient

    for index, leaf in enumerate(jax.tree.leaves(compute(variables, batch))):
      found[f'{name}/{index}'] = np.asarray(leaf)
  np.savez(workdir / 'losses.npz', **found)


def divide(outputs):
  """Divides outputs over the devices; parameters have no rows."""
  if outputs is None:
    return None
  maps = {
    name: value if name.endswith('kernel') else devices.divide(value)
    for name, value in outputs.features.items()
  }
  return outputs._replace(logits=devices.divide(outputs.logits), features=maps)


def continue_run(other, workdir, session):
  """Continues a copy of a finished run from half its length.

  Several processes do so on a stream: each reads its own rows.
  """
  copy = workdir / 'continued'

  def prepare():
    shutil.copytree(other / CONTINUED, copy)
    (copy / 'result.json').unlink()
    shutil.rmtree(copy / 'checkpoints' / str(STEPS))

  devices.run_on_first(prepare)
  train.train_and_evaluate(continued(workdir), copy, session)


def continued(workdir):
  again = config(CONTINUED, workdir)
  again.data.streaming = jax.process_count() > 1
  return again


def exchanged(session):
  """Returns the collective operations in the step of the last run."""
  _, program = session._kept['program']
  pattern = r' (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?[(]'
  return sorted(set(re.findall(pattern, program._compiled[1].as_text())))


def interrupt(workdir, session):
  """Sends SIGTERM to the second process soon after a run has begun."""
  run = workdir / 'interrupted'

  def send():
    while not metrics_log.read_records(run):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  if not devices.is_first():
    threading.Thread(target=send, daemon=True).start()
  try:
    train.train_and_evaluate(continued(workdir), run, session)
  except signals.Interrupted as error:
    return str(error)
  return None


def refused(config, workdir):
  try:
    train.train_and_evaluate(config, workdir / 'refused')
  except ValueError as error:
    return str(error)
  return None


def main(workdir, other, address=None, count=1, index=0):
  if address:
    devices.start(address, int(count), int(index))
  workdir = pathlib.Path(workdir)
  session = Session()
  run_all(workdir, session)
  if not address:
    losses_of_methods(workdir)
    found = json.dumps(exchanged(session))
    (workdir / 'exchanged.json').write_text(found)
  continue_run(pathlib.Path(other), workdir, session)

  uneven = config('scratch', workdir)
  uneven.train.batch_size += 1
  errors = {'uneven': refused(uneven, workdir)}
  if address:
    other = config('scratch', workdir)
    other.train.learning_rate += jax.process_index()
    errors['differing'] = refused(other, workdir)
    wrong = config('scratch', workdir)
    wrong.train.epochs *= not jax.process_index()
    errors['one is wrong'] = refused(wrong, workdir)
    kept = config('response', workdir)
    kept.teacher.replay = str(workdir / 'replay')
    errors['replay'] = refused(kept, workdir)
    errors['interrupted'] = interrupt(workdir, session)
  (workdir / f'errors{index}.json').write_text(json.dumps(errors))


if __name__ == '__main__':
  main(*sys.argv[1:])
