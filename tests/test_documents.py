"""What the README files show works: code, commands and links."""

import importlib.util
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
import tiny

from kdjax import methods, models, testing
from kdjax.export import write
from kdjax.models import features
from kdjax.storage import weights
from kdjax.system import config_files
from kdjax.training import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
  path
  for path in ROOT.rglob('*.md')
  if not any(
    part.startswith('.') or part == 'third_party'
    for part in path.relative_to(ROOT).parts
  )
)
# Absent is what needs a package that the tests do without.
BLOCKS = [
  pytest.param(text, id=f'{path.parent.name}-{path.stem}-{number}')
  for path in DOCUMENTS
  for number, text in enumerate(
    re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)
  )
]


def test_the_documents_are_found():
  assert ROOT / 'README.md' in DOCUMENTS
  assert len(DOCUMENTS) >= 10
  assert len(BLOCKS) >= 8


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.parent.name)
def test_a_document_is_short_and_its_links_lead_somewhere(path):
  text = path.read_text()
  assert len(text.splitlines()) <= (160 if path.parent == ROOT else 80)
  for link in re.findall(r'\]\(([^)]*)\)', text):
    if not link.startswith('http'):
      assert (path.parent / link.partition('#')[0]).exists(), link


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Runs, exports and weights under the names that the documents use."""
  root = tmp_path_factory.mktemp('documents')
  config = tiny.config('scratch')
  config.student.name = 'resnet10'
  config.train.epochs = 1
  for name in ('student', 'teacher'):
    train.train_and_evaluate(config, root / 'runs' / name)
  for name in ('stablehlo', 'safetensors'):
    write.export(
      root / 'runs/student',
      [name],
      root / f'student.{name}',
      write.Options(images=4),
    )
  model = models.build('resnet18', num_classes=10, stem='cifar', width=4)
  variables = jax.jit(lambda key: model.init(key, np.zeros((1, 8, 8, 1))))(
    jax.random.key(0)
  )
  weights.save(root / 'resnet18.safetensors', variables, {})
  return root


@pytest.mark.parametrize('block', BLOCKS)
def test_a_block_of_python_runs(block, world, monkeypatch):
  if 'import torch' in block:
    pytest.importorskip('torchvision')
  if 'import equinox' in block:
    pytest.importorskip('equinox', reason='needs the extra `equinox`')
  monkeypatch.chdir(world)
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
  names = {'images': images, 'labels': np.arange(4), '__name__': 'block'}
  exec(compile(block, 'README.md', 'exec'), names)
  if 'probabilities' in names:
    np.testing.assert_allclose(names['probabilities'].sum(1), 1, rtol=1e-5)
  if 'get_config' in names:
    assert names['get_config']().stages
  if 'logit_mse' in names:
    method = names['logit_mse']()
    variables, batch = testing.make_problem(method)
    found = method.loss(variables, batch).per_example
    difference = batch.student.logits - batch.teacher.logits
    np.testing.assert_allclose(found, (difference**2).mean(1), rtol=1e-5)
    testing.check_method(method)
  if 'Cnn' in names:
    module = types.ModuleType('mine')
    module.Cnn = names['Cnn']
    monkeypatch.setitem(sys.modules, 'mine', module)
    model = models.build('mine:Cnn', num_classes=5)
    variables = features.init(model, jax.random.key(0), images)
    outputs, stats = features.forward(
      model, variables, images, names=('stage1',), train=True
    )
    assert outputs.logits.shape == (4, 5)
    assert outputs.features['stage1'].shape[::3] == (4, 16)
    assert jax.tree.leaves(stats)
  if 'class_means' in names:
    testing.check_method(names['class_means']())
  if 'gradients' in names:
    leaves = jax.tree.leaves(names['gradients'])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def commands():
  for path in DOCUMENTS:
    for line in re.findall(r'python -m kdjax[^`#\n]*', path.read_text()):
      yield line.replace('[', '').replace(']', '').split()


@pytest.mark.parametrize(
  'words', {tuple(words): words for words in commands()}.values(), ids=' '.join
)
def test_a_command_names_what_there_is(words):
  module = words[2]
  assert importlib.util.find_spec(module), module
  file = next(
    (word[9:] for word in words if word.startswith('--config=configs/')), None
  )
  if not file:
    return
  path, _, variant = file.partition(':')
  spec = importlib.util.spec_from_file_location('shown', ROOT / path)
  shown = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(shown)
  config = shown.get_config(*([variant] if variant else [])).to_dict()
  for word in words:
    field = re.match(r'--config\.([a-z_.0-9]+)=', word)
    if field:
      assert config_files.describe_unknown(field[1], config) is None


def test_the_table_of_methods_has_every_method_and_what_it_needs():
  text = (ROOT / 'kdjax/methods/README.md').read_text()
  rows = {
    name: [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('| `')
    for name in re.findall(r'`([a-z_0-9]+)`', line.split('|')[1])
  }
  assert sorted(rows) == methods.names()
  for name, row in rows.items():
    needs, labels = row[3], row[4]
    if name == 'combine':
      continue
    method, _ = methods.build(name, tiny.SETTINGS.get(name))
    expected = {
      'B': method.batch_level,
      'V': method.views > 1,
      'F': method.teacher == 'frozen'
      and any(not is_parameter(one) for one in method.teacher_features),
      'H': any(map(is_parameter, method.teacher_features)) and name != 'ofd',
    }
    if name == 'simkd':
      # The model takes the layer over.
      expected['H'] = True
    assert {key: key in needs for key in expected} == expected, name
    assert labels == method.labels or name == 'simkd', name


def is_parameter(name):
  return name.endswith(('/kernel', '/scale', '/bias'))
