"""Runs on streams: what memory gives, and what no interruption changes."""

import multiprocessing
import threading

import folder
import jax
import numpy as np
import pytest
import tiny
from processes import cut_off, outcome

from kdjax import data, models
from kdjax.evaluation import predict
from kdjax.models.network import Network
from kdjax.storage import run_directory
from kdjax.training import step, train
from kdjax.training.shared import Session


def config(**changes):
  config = tiny.config('scratch')
  config.train.epochs = 2
  config.data.flip = True
  config.log.tensorboard = False
  config.update_from_flattened_dict(changes)
  return config


CROPS = {
  'data.streaming': True,
  'data.image_size': 8,
  'data.random_resized_crop': 0.3,
  'data.crop_padding': 0,
}


@pytest.fixture(scope='module')
def session():
  return Session()


def run(workdir, session, **changes):
  result = train.train_and_evaluate(config(**changes), workdir, session)
  assert not multiprocessing.active_children()
  assert not reading()
  return result


def reading():
  """Threads that read streams."""
  return [
    thread
    for thread in threading.enumerate()
    if thread.name.startswith('grain-prefetch')
  ]


def test_a_run_on_a_stream_is_that_in_memory(tmp_path, session):
  resident = run(tmp_path / 'resident', session)
  streamed = run(tmp_path / 'streamed', session, **{'data.streaming': True})
  # To the last bit: the digests of the parameters are among it.
  assert outcome(streamed) == outcome(resident)
  first, second = (
    run_directory.read_predictions(tmp_path / name)
    for name in ('resident', 'streamed')
  )
  for name, array in first.items():
    np.testing.assert_array_equal(array, second[name])


def test_a_run_cut_off_goes_on_as_if_it_had_not_been(tmp_path, session):
  whole = run(tmp_path / 'whole', session, **CROPS)
  with cut_off(8):
    run(tmp_path / 'cut', session, **CROPS, **{'data.workers': 1})
  assert not multiprocessing.active_children()
  # With other workers, too: they change no result.
  resumed = run(tmp_path / 'cut', session, **CROPS)
  assert outcome(resumed) == outcome(whole)


def test_every_image_that_can_be_read_is_evaluated_once(tmp_path):
  root = folder.write(tmp_path / 'images', splits=('train', 'test'), count=5)
  (root / 'test/bee/001.jpg').write_bytes(b'broken')
  fields = config().data
  fields.update(
    name='image_folder', data_dir=str(root), image_size=8, corrupt='skip'
  )
  resident = data.load(fields)
  fields.streaming = True
  streamed = data.load(fields)
  model = models.build(**tiny.MODEL)
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)
  variables = step.features.init(model, jax.random.key(0), images)
  variables['normalization'] = {'mean': resident.mean, 'std': resident.std}
  network = Network(model, variables)
  expected, expected_labels = predict.predict_split(network, resident.test, 4)
  logits, labels = predict.predict_split(network, streamed.test, 4)
  assert logits.shape == (14, 3)
  np.testing.assert_array_equal(labels, expected_labels)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  for path in root.glob('test/*/*.jpg'):
    path.write_bytes(b'broken')
  with pytest.raises(ValueError, match='none of 15 images can be read'):
    predict.predict_split(network, data.load(fields).test, 4)
