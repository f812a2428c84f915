"""What all commands do with paths and errors."""

import pathlib

import pytest
from absl import flags

from kdjax.system import command, config_files

CONFIGS = pathlib.Path(command.__file__).parents[2] / 'configs'


def test_a_home_directory_in_a_flag_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  command.define_path('a_path_of_a_test', None, 'A path.')
  flag = flags.FLAGS['a_path_of_a_test']
  assert flag.parser.parse('~/a b') == '/home/me/a b'
  assert flag.parser.parse('a/~') == 'a/~'
  delattr(flags.FLAGS, 'a_path_of_a_test')


def test_an_error_does_not_steer_the_terminal(monkeypatch):
  monkeypatch.setattr('kdjax.system.command.logs.setup', lambda: None)
  monkeypatch.setattr('kdjax.system.command.xla.setup', lambda: None)
  monkeypatch.setattr('kdjax.system.command.signal.signal', lambda *_: None)
  with pytest.raises(SystemExit) as caught, command.command(['evaluate']):
    raise ValueError('no class \x1b[2J\udce9:\n  a')
  assert caught.value.code == 'error: no class \\x1b[2J\\udce9:\n  a'


@pytest.mark.parametrize(
  ('field', 'expected'),
  [
    (
      'train.lr',
      'config.train has no field lr: did you mean config.train.learning_rate?',
    ),
    (
      'train.epoch',
      'config.train has no field epoch: did you mean config.train.epochs?',
    ),
    ('epochs', 'config has no field epochs: did you mean config.train.epochs?'),
    (
      'data.x',
      'config.data has no field x: expected one of name, flip',
    ),
    ('data.name.x', 'config.data.name has no field x: expected one of none'),
    ('data.flip', None),
    ('data', None),
  ],
)
def test_a_field_that_does_not_exist_is_named_with_what_is_meant(
  field, expected
):
  config = {
    'data': {'name': 'digits', 'flip': False},
    'train': {'learning_rate': 1.0, 'epochs': 2},
  }
  assert config_files.describe_unknown(field, config) == expected


@pytest.mark.parametrize(
  'value', ['quickstart', 'quickstart.py', 'configs/quickstart.py']
)
@pytest.mark.parametrize('variant', ['', ':tuning'])
def test_a_configuration_of_kdjax_is_found_by_its_name(
  value, variant, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  file = f'{CONFIGS / "quickstart.py"}{variant}'
  value += variant
  find = command._find_configuration
  assert find(['main', f'--config={value}']) == ['main', f'--config={file}']
  assert find(['main', '--config', value]) == ['main', '--config', file]
  # Not what has another meaning.
  others = ['main', f'--workdir={value}', value, '--config.seed=1', '--config']
  assert find(others) == others


def test_a_file_goes_before_a_configuration_of_kdjax(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'quickstart.py').touch()
  argv = ['main', '--config=quickstart.py:tuning']
  assert command._find_configuration(argv) == argv


@pytest.mark.parametrize('value', ['quikstart:x', 'elsewhere/quickstart.py'])
def test_a_configuration_that_does_not_exist_is_refused(
  value, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='there is no configuration') as caught:
    config_files.find(value)
  message = str(caught.value)
  assert 'fkd' in message
  assert 'quickstart_sweep' in message
