"""Networks by their name on the hub, from a cache laid out as it lays one."""

import json
import pathlib

import numpy as np
import pytest
import tiny

import kdjax
from kdjax import config as config_lib
from kdjax.storage import hub, weights
from kdjax.training import train

constants = pytest.importorskip('huggingface_hub.constants')

COMMIT = 'a' * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, and no network."""
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  return tmp_path / 'hub'


def put(cache, owner, name):
  """Makes the cached folder of a repository, and returns where its files go."""
  folder = cache / f'models--{owner}--{name}'
  (folder / 'refs').mkdir(parents=True)
  (folder / 'refs' / 'main').write_text(COMMIT)
  snapshot = folder / 'snapshots' / COMMIT
  snapshot.mkdir(parents=True)
  return snapshot


def test_a_name_is_found_in_the_cache(cache):
  snapshot = put(cache, 'timm', 'resnet10.mine')
  for name in ('timm:resnet10.mine', 'hf://timm/resnet10.mine'):
    assert hub.is_name(name)
    assert pathlib.Path(hub.fetch(name)) == snapshot
  assert not hub.is_name('runs/teacher')
  assert (
    pathlib.Path(hub.fetch(f'hf://timm/resnet10.mine@{COMMIT}')) == snapshot
  )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('hf://nobody/nothing', 'neither in the cache of the hub nor can it be'),
    ('hf://nothing', 'is no name on the hub: expected hf://OWNER/NAME'),
    ('timm:', 'is no name on the hub'),
  ],
)
def test_what_is_not_there_is_one_sentence(cache, name, message):
  with pytest.raises(ValueError, match=message) as caught:
    hub.fetch(name)
  assert '\n' not in str(caught.value)


def test_a_teacher_by_name_teaches(cache, tmp_path):
  config = tiny.resnet_config('response')
  config.train.epochs = 1
  teacher = train.train_and_evaluate(
    config_lib.teacher_run(config), tmp_path / 'teacher'
  )
  snapshot = put(cache, 'mine', 'resnet10')
  (_, variables) = kdjax.checkpoint.restore(tmp_path / 'teacher')
  weights.save(snapshot / 'model.safetensors', variables, {})
  (snapshot / 'config.json').write_text(
    json.dumps({'id2label': {str(i): str(i) for i in range(10)}})
  )
  config.teacher.path = 'hf://mine/resnet10'
  mean, std = variables['normalization'].values()
  config.teacher.mean = tuple(np.asarray(mean).tolist())
  config.teacher.std = tuple(np.asarray(std).tolist())
  result = train.train_and_evaluate(config, tmp_path / 'student')
  assert result['teacher']['path'].endswith(COMMIT)
  found, expected = result['teacher']['test'], teacher['best']['test']
  assert found['accuracy'] == expected['accuracy']
  assert found['loss'] == pytest.approx(expected['loss'], rel=1e-5)
