"""The script that completes commands and flags."""

import shutil
import subprocess

import pytest

from kdjax import completion


@pytest.fixture(scope='module')
def script(tmp_path_factory):
  path = tmp_path_factory.mktemp('completion') / 'kdjax'
  path.write_text(completion.script(['train', 'predict']))
  return path


def complete(script, *words):
  """What bash offers for the last of these words."""
  line = ' '.join(words)
  split = line.replace('=', ' = ').split() + [''] * line.endswith(('=', ' '))
  quoted = ' '.join(f"'{word}'" for word in split)
  done = subprocess.run(
    [
      'bash',
      '-c',
      f'''
source {script}
COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
_kdjax
printf '%s\\n' "${{COMPREPLY[@]}}"''',
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.split()


@pytest.mark.skipif(not shutil.which('bash'), reason='there is no bash')
@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (('kdjax', 'pr'), ['predict']),
    (('kdjax', 'train', '--work'), ['--workdir=']),
    (('kdjax', 'train', '--config=quick'), ['quickstart', 'quickstart_sweep']),
    (
      ('kdjax', 'train', '--config=quickstart', '--config.train.ep'),
      ['--config.train.epochs='],
    ),
    (('kdjax', 'predict', '--t'), ['--top=']),
    (('kdjax', 'predict', 'photos/'), []),
  ],
)
def test_words_are_completed(script, words, expected):
  assert complete(script, *words) == expected


def test_every_command_is_completed(script):
  assert {'train', 'report', 'completion'} <= set(complete(script, 'kdjax', ''))
