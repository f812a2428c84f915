"""What all commands do with paths and errors."""

import pytest
from absl import flags

from kdjax.system import command


def test_a_home_directory_in_a_flag_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  command.define_path('a_path_of_a_test', None, 'A path.')
  flag = flags.FLAGS['a_path_of_a_test']
  assert flag.parser.parse('~/a b') == '/home/me/a b'
  assert flag.parser.parse('a/~') == 'a/~'
  delattr(flags.FLAGS, 'a_path_of_a_test')


def test_an_error_does_not_steer_the_terminal(monkeypatch):
  monkeypatch.setattr('kdjax.system.command.logs.setup', lambda: None)
  monkeypatch.setattr('kdjax.system.command.runtime.setup', lambda: None)
  monkeypatch.setattr('kdjax.system.command.signal.signal', lambda *_: None)
  with pytest.raises(SystemExit) as caught, command.command(['evaluate']):
    raise ValueError('no class \x1b[2J\udce9:\n  a')
  assert caught.value.code == 'error: no class \\x1b[2J\\udce9:\n  a'
