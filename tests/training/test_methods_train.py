"""Every method trains: on the digits, with a tiny pair."""

import json

import pytest
import tiny

from kdjax import methods
from kdjax.training import train
from kdjax.training.shared import Session


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """Where all runs lie, beside one teacher."""
  return tmp_path_factory.mktemp('methods'), Session()


@pytest.mark.parametrize('name', methods.names())
def test_the_loss_falls_and_the_student_beats_chance(name, shared):
  root, session = shared
  config = tiny.config(name)
  for key, value in {
    **tiny.SETTINGS.get(name, {}),
    **SETTINGS.get(name, {}),
  }.items():
    config.method[name][key] = value
  config.student.width = 8
  if name == 'simkd':
    # The student learns of its classes through the teacher's map alone.
    config.train.epochs = 30
    config.student.update(name='resnet10_simkd', width=4)
    config.teacher.update(name='resnet10', width=16, sibling='resnet_teacher')
  config.train.ema_decay = 0.9
  config.log.update(every_steps=5, tensorboard=False)
  config.eval.every_epochs = config.train.epochs
  train.train_and_evaluate(config, root / name, session)
  lines = (root / name / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  losses = [record['loss'] for record in records if record['kind'] == 'train']
  assert losses[-1] < losses[0]
  accuracies = [
    record['accuracy'] for record in records if record['kind'] == 'validation'
  ]
  assert max(accuracies) > 0.2


# For the network of these tests.
SETTINGS = {
  'ofd': {'teacher_norms': ('stage1/block1/bn1', 'stage2/block1/bn1')},
  # Its last stage has one position, and no variance over positions.
  'wkd_f': {'student_feature': 'stage2', 'teacher_feature': 'stage2'},
}
