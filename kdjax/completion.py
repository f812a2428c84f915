"""Prints a script that completes `kdjax` in bash and zsh.

  kdjax completion > ~/.local/share/bash-completion/completions/kdjax

In zsh: `autoload -U +X bashcompinit && bashcompinit`, then source the file.
Commands, their flags, the configurations that come with kdjax, and the fields
of a configuration are completed.
"""

import concurrent.futures
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Sequence

from kdjax.commands import COMMANDS
from kdjax.system import config_files

_SCRIPT = """\
_kdjax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  # bash splits words at "=".
  if [[ $word == = ]]; then word=; fi
  if [[ ${{COMP_LINE:0:COMP_POINT}} =~ --config=[^[:space:]]*$ ]]; then
    words="{configs}"
  elif ((COMP_CWORD == 1)); then
    words="{commands}"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    if [[ $word != -* ]]; then return; fi
    compopt -o nospace 2>/dev/null
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _kdjax kdjax
"""


def _flags(command: str) -> list[str]:
  """Lists the flags of a command, as absl describes them."""
  described = subprocess.run(
    [sys.executable, '-m', f'kdjax.{COMMANDS[command][0]}', '--helpxml'],
    capture_output=True,
    check=False,
    text=True,
  ).stdout
  flags = xml.etree.ElementTree.fromstring(described).iter('flag')
  return [
    f'--{flag.findtext("name")}='
    for flag in flags
    if flag.findtext('key') == 'yes'
  ]


def _fields() -> list[str]:
  """Lists the fields of a run's configuration, as flags."""
  from kdjax import config

  names = config_files.all_fields(config.default().to_dict())
  return [f'--{name}=' for name in names]


def script(commands: Sequence[str] = tuple(COMMANDS)) -> str:
  """Writes the script.

  Args:
    commands: the commands whose flags it knows.

  Returns:
    Its text.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    flags = dict(zip(commands, pool.map(_flags, commands), strict=True))
  for command in ('train', 'benchmark'):
    if command in flags:
      flags[command] += _fields()
  return _SCRIPT.format(
    commands=' '.join(COMMANDS),
    configs=' '.join(config_files.packaged()),
    cases='\n'.join(
      f'      {command}) words="{" ".join(words)}" ;;'
      for command, words in flags.items()
    ),
  )


if __name__ == '__main__':
  print(script([name for name in COMMANDS if name != 'completion']), end='')
