"""`kdjax COMMAND`, the one command for all."""

import importlib.util
import subprocess
import sys

import processes
import pytest

import kdjax
from kdjax.__main__ import main
from kdjax.commands import COMMANDS


def run(monkeypatch, *words):
  monkeypatch.setattr(sys, 'argv', ['kdjax', *words])
  main()


def test_every_command_is_a_module_that_can_be_run():
  for module, purpose in COMMANDS.values():
    spec = importlib.util.find_spec(f'kdjax.{module}')
    assert spec
    assert purpose
    if spec.submodule_search_locations:
      assert importlib.util.find_spec(f'kdjax.{module}.__main__')


@pytest.mark.parametrize('word', ['--help', '-h', 'help', None])
def test_help_lists_the_commands(word, monkeypatch, capsys):
  run(monkeypatch, *filter(None, [word]))
  shown = capsys.readouterr().out
  for name in COMMANDS:
    assert f'  {name} ' in shown


def test_the_version_is_told(monkeypatch, capsys):
  run(monkeypatch, '--version')
  assert capsys.readouterr().out == f'kdjax {kdjax.__version__}\n'


@pytest.mark.parametrize(
  ('word', 'hint'),
  [('trian', 'did you mean train?'), ('xyz', "no command 'xyz'; expected")],
)
def test_an_unknown_command_is_one_line(word, hint, monkeypatch):
  with pytest.raises(SystemExit) as caught:
    run(monkeypatch, word)
  message = str(caught.value)
  assert hint in message
  assert '\n' not in message


def test_a_command_takes_the_flags_of_its_module(tmp_path):
  found = processes.run(
    *('train', '--config=quickstart', '--config.train.epochs=0'),
    module='kdjax',
    cwd=tmp_path,
    env={'PYTHONPATH': str(processes.ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  assert found.returncode == 1
  assert found.stderr == (
    'error: config.train.epochs is 0: expected from 1 to 1,000,000\n'
  )


def test_it_finds_modules_where_it_was_started(tmp_path):
  (tmp_path / 'mine.py').write_text('def method():\n  return 1\n')
  # As the installed command is started, without the folder on its path.
  found = subprocess.run(
    [
      *(sys.executable, '-P'),
      *('-c', 'from kdjax.__main__ import main; main()'),
      *('train', '--config=quickstart', '--mode=mine:method'),
    ],
    cwd=tmp_path,
    env={'PYTHONPATH': str(processes.ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.stderr == (
    "error: 'mine:method' returns int: expected a kdjax.methods.Method\n"
  )
