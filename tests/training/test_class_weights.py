"""Classes with unequal numbers of images."""

import numpy as np
import pytest
import tiny

from kdjax import data
from kdjax.storage import metrics_log
from kdjax.training import train


@pytest.fixture
def unequal(monkeypatch):
  """Digits of which three classes have few training images."""
  load = data.load

  def load_unequal(config):
    dataset = load(config)
    labels = dataset.train.labels
    few = np.concatenate([np.flatnonzero(labels == i)[1:] for i in range(3)])
    rows = np.setdiff1d(np.arange(len(labels)), few)
    return dataset._replace(
      train=dataset.train.take(rows),
      train_ids=dataset.train_ids[rows],
      digest=f'few {dataset.digest}',
    )

  monkeypatch.setattr(data, 'load', load_unequal)


def config(**fields):
  made = tiny.config('scratch')
  made.data.train_limit = 0
  made.train.update(max_steps=4, **fields)
  made.log.every_steps = 1
  return made


def test_balanced_weights_change_the_loss_of_a_run(unequal, tmp_path):
  losses = {}
  for weights in ('none', 'balanced'):
    workdir = tmp_path / weights
    result = train.train_and_evaluate(config(class_weights=weights), workdir)
    records = metrics_log.read_records(workdir)
    losses[weights] = [
      record['loss'] for record in records if record['kind'] == 'train'
    ]
    assert 0 <= result['best']['test']['balanced_accuracy'] <= 1
  # The same examples, and none of the three classes that are rare.
  assert losses['none'][0] != losses['balanced'][0]
