"""Damaged files of a run: each is named in a line, or changes nothing shown."""

import collections
import io
import json
import logging
import random
import shutil

import numpy as np
import pytest
import synthetic
import tiny
from PIL import Image

from kdjax import load_student
from kdjax.evaluation import tables as tables_lib
from kdjax.export import classify_files as predict
from kdjax.report import collect, significance, tables
from kdjax.storage import checkpoint, digests, metrics_log, run_directory
from kdjax.system import logs
from kdjax.training import final_test, train
from kdjax.training.run_log import RunLog

# What a value of JSON may have become.
VALUES = (None, True, -1, 0.5, 10**20, 'text', '', [], {}, [[1]], {'a': 1})


def damage(content, generator):
  """Damages a file's content once."""
  how = generator.choice(['flipped', 'cut off', 'zeroed', 'replaced'])
  if how == 'replaced':
    try:
      return how, replace_value(content, generator)
    except ValueError:
      how = 'flipped'
  content = bytearray(content)
  place = generator.randrange(len(content))
  if how == 'flipped':
    content[place] ^= 1 << generator.randrange(8)
  elif how == 'cut off':
    del content[place:]
  else:
    end = place + generator.randrange(1, 64)
    content[place:end] = bytes(len(content[place:end]))
  return how, bytes(content)


def replace_value(content, generator):
  """Replaces a value of JSON, or of one of the lines of it."""
  lines = content.splitlines(keepends=True)
  one_document = content.startswith(b'{\n')
  number = 0 if one_document else generator.randrange(len(lines))
  document = json.loads(content if one_document else lines[number])
  inside, places = [document], []
  while inside:
    node = inside.pop()
    for key, value in list(
      node.items() if isinstance(node, dict) else enumerate(node)
    ):
      places.append((node, key))
      if isinstance(value, dict | list):
        inside.append(value)
  node, key = generator.choice(places)
  if isinstance(node, dict) and generator.random() < 0.2:
    del node[key]
  else:
    node[key] = generator.choice(VALUES)
  text = json.dumps(document, indent=2 if one_document else None).encode()
  if one_document:
    return text
  lines[number] = text + b'\n'
  return b''.join(lines)


def try_damages(root, run, files, readers, count):
  """Damages files one by one; says how often what came of it.

  Args:
    root: an empty directory.
    run: a run directory.
    files: those to damage, within it.
    readers: functions of a run directory, which give what is shown of it.
    count: how many damages.
  """

  def show(name, path):
    return str(readers[name](path)).replace(str(path), 'RUN')

  generator = random.Random(0)
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  logs.logger.addHandler(handler)
  expected = {name: show(name, run) for name in readers}
  outcomes, wrong = collections.Counter(), []
  copy = root / run.name
  for _ in range(count):
    shutil.copytree(run, copy)
    file = copy / generator.choice(files)
    how, content = damage(file.read_bytes(), generator)
    file.write_bytes(content)
    for name in readers:
      detail = ''
      said.truncate(0)
      try:
        shown = show(name, copy)
        if shown == expected[name]:
          outcome = 'nothing changed'
        elif file.name in shown or str(copy) in said.getvalue():
          outcome = 'told'
        else:
          outcome = 'CHANGED IN SILENCE'
      except (ValueError, OSError) as error:
        detail = str(error)
        outcome = 'refused' if str(copy) in detail else 'NO FILE NAMED'
      except Exception as error:
        outcome, detail = 'TRACEBACK', repr(error)
      outcomes[outcome] += 1
      if outcome.isupper():
        where = file.relative_to(copy)
        wrong.append(f'{where} {how}, {name}: {outcome} {detail}')
    shutil.rmtree(copy)
  logs.logger.removeHandler(handler)
  print(outcomes)
  return wrong


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """All that a run leaves, without its arrays."""
  path = tmp_path_factory.mktemp('sound') / 'run'
  synthetic.write_run(path)
  (path / metrics_log.METRICS).unlink()
  with RunLog(path, start_step=0, total_steps=9, tensorboard=False) as log:
    for step in range(1, 9):
      values = {'epoch': step / 4, 'loss': 1 / step, 'accuracy': 0.5}
      log.write('train', step, values, images_per_second=9.0, seconds_left=1.0)
      if step % 4 == 0:
        log.write('validation', step, values)
  run_directory.write_predictions(
    path,
    {'labels': synthetic.LABELS, 'best': synthetic.logits(0, 1, 1, 1)},
  )
  result = run_directory.read_result(path)
  for which in ('best', 'last'):
    result[which]['step'] = 8
  run_directory.write_result(
    path, result | {'files': run_directory.digests_of_files(path)}
  )
  directory = path / 'checkpoints' / '8'
  (directory / 'state').mkdir(parents=True)
  (directory / 'metadata').mkdir()
  metadata = {
    'config': result['config'],
    'step': 8,
    'validation_accuracy': 0.5,
    'class_names': ['a', 'b'],
    'version': '0.2.0',
    'arrays': {},
  }
  (directory / 'metadata' / 'metadata').write_text(
    json.dumps(digests.add_digest(metadata))
  )
  return path


FILES = (
  'config.json',
  'result.json',
  'metrics.jsonl',
  'predictions.npz',
  'checkpoints/8/metadata/metadata',
)


def report(path):
  comparison = collect.read([path])
  rows = significance.rows(comparison)
  return tables.terminal(rows), comparison.notes, tables.runs_csv(comparison)


def test_each_damage_is_told_or_changes_nothing(run, tmp_path, request):
  readers = {
    'config': lambda path: run_directory.read_config(path).to_json(),
    'result': run_directory.read_result,
    'metadata': checkpoint.read_metadata,
    'report': report,
  }
  count = request.config.getoption('--damages')
  assert try_damages(tmp_path, run, FILES, readers, count) == []


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  config = tiny.config('scratch')
  config.train.epochs = 2
  config.log.tensorboard = False
  path = tmp_path_factory.mktemp('trained') / 'run'
  train.train_and_evaluate(config, path)
  return path, config


@pytest.mark.slow
def test_each_command_tells_of_a_damage(trained, tmp_path, request):
  path, config = trained
  (tmp_path / 'images').mkdir()
  image = tmp_path / 'images' / 'image.png'
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)

  def classify(path):
    student = load_student(path)
    return list(
      predict.classify(student, [str(image)], top=3, as_json=True, batch_size=1)
    )

  def evaluate(path):
    return tables_lib.table(final_test.evaluate(path)[0])

  readers = {
    'main': lambda path: tables_lib.table(
      train.train_and_evaluate(config, path)
    ),
    'evaluate': evaluate,
    'report': report,
    'predict': classify,
  }
  files = [
    str(file.relative_to(path))
    for pattern in ('*.json*', '*.npz', 'checkpoints/*/metadata/metadata')
    for file in path.glob(pattern)
  ]
  count = request.config.getoption('--damages')
  assert try_damages(tmp_path, path, files, readers, count) == []
