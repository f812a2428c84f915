"""A whole run with networks of another library, from training to exports."""

import jax
import numpy as np
import processes
import pytest
import tiny

import kdjax
from kdjax.export import write
from kdjax.storage import checkpoint, networks
from kdjax.training import final_test, train
from kdjax.training.shared import Session

FORMATS = 'orbax', 'safetensors', 'stablehlo'


def config(student, teacher, method='feature'):
  """Distils a network from features of another one, on the digits."""
  run = tiny.config(method)
  run.student.name, run.teacher.name = student, teacher
  names = 'blocks/0', 'blocks/1'
  run.method.feature.update(student_features=names, teacher_features=names)
  run.train.update(epochs=2, weight_decay=0.1, ema_decay=0.5)
  run.teacher.train.epochs = 1
  run.log.tensorboard = False
  run.log.every_steps = 1
  return run


def check(root, run):
  """Trains, cuts off, resumes, evaluates and exports a run.

  Returns:
    Its result.
  """
  session = Session()
  result = train.train_and_evaluate(run, root / 'whole', session)
  # A step of the student in the middle of its first epoch.
  with processes.cut_off(7):
    train.train_and_evaluate(run, root / 'cut', session)
  train.train_and_evaluate(run, root / 'cut', session)
  processes.assert_same_run(root / 'cut', root / 'whole')
  again, _ = final_test.evaluate(root / 'whole')
  for which in ('teacher', 'best', 'last'):
    assert again[which] == result[which]
  _check_exports(root)
  return result


def check_refused(root, run, changes, message):
  """Whether a run with changes is refused before its teacher is trained."""
  run.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(run, root / 'run')
  assert not (root / 'teacher').exists()


def _check_exports(root):
  """Whether each export predicts what the run does."""
  write.export(root / 'whole', FORMATS, options=write.Options(images=4))
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  expected = kdjax.load_student(root / 'whole')(images)
  assert np.ptp(expected) > 0.01
  for name in FORMATS:
    path = root / 'whole' / 'export' / f'student.{name}'
    found = kdjax.load_student(path)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def trained_names(root):
  """The names of all arrays of a run's student."""
  variables = checkpoint.restore(root / 'whole').variables
  paths = jax.tree_util.tree_leaves_with_path(
    {name: variables[name] for name in ('params', 'batch_stats')}
  )
  exported = networks.load(root / 'whole' / 'export' / 'student.safetensors')
  digest = kdjax.storage.digests.digest
  for name in ('params', 'batch_stats'):
    assert digest(exported.network.variables[name]) == digest(variables[name])
  return sorted(
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in paths
  )
