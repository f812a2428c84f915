"""The command `kdjax`, also `python -m kdjax`: every command by its name.

  kdjax train --config=quickstart
  kdjax report runs/quickstart

`kdjax NAME …` is `python -m kdjax.MODULE …`, with the same flags.
"""

import os
import runpy
import sys

from kdjax.commands import COMMANDS
from kdjax.system.hints import did_you_mean
from kdjax.version import __version__


def main() -> None:
  """Runs the command that the first argument names."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name == '--version':
    print(f'kdjax {__version__}')
  elif name in ('--help', '-h', 'help'):
    print('Usage: kdjax COMMAND [--FLAG=VALUE …]\n')
    for command, (_, purpose) in COMMANDS.items():
      print(f'  {command:12}{purpose}')
    print('\nkdjax COMMAND --help lists the flags of a command.')
  elif name not in COMMANDS:
    sys.exit(
      f"error: there is no command '{name}'{did_you_mean(name, COMMANDS)}; "
      f'expected one of '
      f'{", ".join(COMMANDS)}, --help or --version'
    )
  else:
    # As if the module were started by itself, with `python -m`, which finds
    # the user's own modules where it was started.
    del sys.argv[1]
    if os.getcwd() not in sys.path:
      sys.path.insert(0, os.getcwd())
    module = f'kdjax.{COMMANDS[name][0]}'
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
