"""Hostile and damaged files of weights do no harm and are named."""

import json
import os
import pathlib
import re
import subprocess
import sys

import hostile
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
# What a file says beside its weights need not be true.
HARMLESS = ('zip: a name that is a path', 'zip: paths')


@pytest.fixture(scope='module')
def outcomes(request, tmp_path_factory):
  """What came of each file, in a process that is watched."""
  folder = tmp_path_factory.mktemp('hostile')
  number = request.config.getoption('--fuzz')
  done = subprocess.run(
    [sys.executable, hostile.__file__, str(folder), str(number)],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert not (folder / 'executed').exists()
  outcomes = json.loads(done.stdout)
  print(outcomes['by chance'], outcomes['slowest'], outcomes['megabytes'])
  return outcomes


def test_nothing_is_executed_and_nothing_takes_much(outcomes):
  assert outcomes['events'] == []
  # The longest pickle that is read takes 150 MB.
  assert outcomes['megabytes'] < 256
  assert outcomes['slowest'][0] < 30


def test_damaged_files_give_sound_weights_or_a_named_error(outcomes):
  assert outcomes['wrong'] == []
  for kind in ('zip', 'pickle', 'legacy', 'safetensors', 'header'):
    assert outcomes['by chance'][f'{kind}: ValueError'] > 10
  for kind in ('zip', 'legacy', 'safetensors'):
    assert outcomes['by chance'][f'{kind}: loaded'] > 0


def test_every_hostile_file_is_refused(outcomes):
  by_hand = outcomes['by hand']
  loaded = [name for name, what in by_hand.items() if 'ValueError' not in what]
  assert loaded == list(HARMLESS)
  assert all(by_hand[name] == 'loaded' for name in HARMLESS)


@pytest.mark.parametrize('call', hostile.CALLS)
def test_what_would_be_called_is_named(outcomes, call):
  name = call.removeprefix('calls ').partition('\n')[0]
  for kind in ('pickle', 'legacy'):
    message = outcomes['by hand'][f'{kind}: {call}']
    assert f'it holds {name}' in message
    assert 'nothing was executed' in message
    assert 'model.state_dict()' in message


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('pickle: calls torch._utils._rebuild_qtensor', 'is a quantised tensor'),
    ('pickle: calls torch._utils._rebuild_sparse_tensor', 'is a sparse tensor'),
    (
      'pickle: complex numbers',
      'ComplexFloatStorage, which is a type of numbers',
    ),
    ('pickle: an instance', r"operation b'i', which PyTorch does not write"),
    ('pickle: no end', 'the file is truncated'),
    ('pickle: a number of gigabytes', 'its pickle ends too soon'),
    ('pickle: keys that collide', 'integers as keys that are not small'),
    ('pickle: a list without end', 'more than 2000000 operations'),
    ('pickle: pairs again and again', 'more than 2000000 operations'),
    ('pickle: arguments again and again', 'more than 2000000 operations'),
    ('pickle: long keys again and again', 'more than 2000000 operations'),
    ('pickle: many entries', 'more than 100000 entries'),
    ('pickle: a long name', 'names of more than 500 characters'),
    ('pickle: a name of names', 'names of more than 500 characters'),
    ('pickle: a tensor with a negative stride', 'impossible shape or stride'),
    ('pickle: a tensor before its storage', 'impossible shape or stride'),
    ('pickle: a tensor set anew', 'a tensor as PyTorch before 0.4 saved them'),
    ('pickle: a call of a tensor', 'calls what is no function'),
    ('pickle: code of a package', 'objects and no weights, of mine.code.run'),
    ('pickle: many classes', 'm.0, m.1, m.2 and 199997 more: nothing was exec'),
    ('msgpack: a list of billions', 'more than 100000 entries'),
    ('msgpack: a string of gigabytes', 'the file is truncated'),
    ('msgpack: a shape of exabytes', 'which is not its shape'),
    ('msgpack: lists in lists', 'more than 64 dictionaries in one another'),
    ('msgpack: more behind the end', 'ends at byte 9 of 10'),
    ('legacy: a storage twice', 'its list of storages is damaged'),
    ('legacy: a storage too many', 'its list of storages is damaged'),
    ('pickle: a tensor of terabytes', 'x: it is larger than the file'),
    ('pickle: a tensor behind its storage', 'x: it reaches beyond its storage'),
    ('zip: a wrong checksum', 'archive/data/0 does not have the checksum'),
    ('zip: a pickle that is compressed', 'is compressed or encrypted'),
    ('zip: a member twice', 'two members of one name'),
    ('zip: another pickle', r'one data\.pkl in it, found 2'),
    ('zip: tensors in the same place', r'would take \d+ bytes, more than'),
    ('legacy: a storage of exabytes', 'the file is truncated'),
    ('safetensors: a type that is not supported', r'a \(F8_E4M3\)'),
    (
      'safetensors: a header of gigabytes',
      '4294967296 bytes: expected at most',
    ),
  ],
)
def test_a_refusal_says_why(outcomes, name, message):
  assert re.search(message, outcomes['by hand'][name])
