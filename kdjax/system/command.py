"""What all commands have in common."""

import contextlib
import difflib
import errno
import os
import pathlib
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from kdjax.system import devices, escape, logs, signals, xla
from kdjax.system.startup import INTERRUPTED

# So that --help shows them among those of the command.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser[str]):
  """Reads a path, whose home directory (`~`) no shell may have expanded."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


def define_path(
  name: str, default: str | None, description: str, *, required: bool = False
) -> flags.FlagHolder[Any]:
  """Defines a flag whose value is a path, with a home directory expanded."""
  return flags.DEFINE(
    _PathParser(),
    name,
    default,
    description,
    serializer=flags.ArgumentSerializer(),
    required=required,
  )


def define_processes() -> Callable[[], None]:
  """Defines the flags of a command that may run as several processes.

  Returns:
    A function that joins the processes, for `command`.
  """
  coordinator = flags.DEFINE_string(
    'coordinator_address',
    None,
    'Host and port of process 0, of several processes; by default those of the '
    'cluster that JAX detects (Slurm, Open MPI, Kubernetes, Cloud TPU).',
  )
  count = flags.DEFINE_integer(
    'num_processes', None, "Number of processes; by default the cluster's."
  )
  index = flags.DEFINE_integer(
    'process_id', None, "Which of them this is; by default the cluster's."
  )
  distributed = flags.DEFINE_boolean(
    'distributed',
    None,
    'Whether this is one of several processes; by default if a cluster is '
    'detected or an address is given.',
  )
  return lambda: devices.start(
    coordinator.value, count.value, index.value, distributed=distributed.value
  )


# As of a process that SIGPIPE ended.
_UNREAD = 128 + signal.SIGPIPE

_LAST_WORDS_SECONDS = 2

# What the system says where no more can be written.
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@contextlib.contextmanager
def command(
  argv: Sequence[str], join: Callable[[], None] | None = None
) -> Iterator[None]:
  """Prepares the process for a command, and ends it with one line on an error.

  Where a signal stops it (SIGTERM or SIGINT), its exit status is `INTERRUPTED`:
  the same command, started again, goes on.

  Args:
    argv: what absl leaves of the command line once it has read the flags.
    join: joins the processes, if the command may run as several (see
      `define_processes`).

  Yields:
    Nothing; the command's work goes inside.

  Raises:
    app.UsageError: there are arguments left.
  """
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  logs.setup()
  # Where nothing holds signals back, nothing is lost by stopping at once.
  with signals.raised(), _ending():
    if join:
      join()
    xla.setup()
    if join and not devices.is_first():
      logs.quiet()
    yield
    sys.stdout.flush()


@contextlib.contextmanager
def _ending() -> Iterator[None]:
  """Ends the process with one line on an error."""
  try:
    yield
  except KeyboardInterrupt as interrupt:
    _stop(interrupt if interrupt.args else 'stopped by a signal')
  except (
    ValueError,
    OSError,
    FloatingPointError,
    RuntimeError,
    AssertionError,
  ) as error:
    if isinstance(error, BrokenPipeError) and _nobody_reads():
      sys.exit(_UNREAD)
    # Raised within what JAX calls, it comes out as an error of JAX.
    if name := signals.forget():
      _stop(f'stopped by {name}: start the same command again')
    reason: object = error
    if isinstance(error, OSError) and error.errno in _FULL:
      reason = f'{error}. Make room there, then start the same command again'
    missing = None
    unknown = isinstance(error, RuntimeError | AssertionError)
    if unknown and not isinstance(error, xla.CompilerError):
      missing = xla.missing_backend()
      if not missing:
        raise
    logs.logger.debug('', exc_info=True)
    message = escape.lines(f'error: {missing or reason}')
    if jax.distributed.is_initialized():
      _leave(message)
    sys.exit(message)


def _stop(message: object) -> NoReturn:
  print(escape.lines(str(message)), file=sys.stderr)
  sys.exit(INTERRUPTED)


def _nobody_reads() -> bool:
  """Whether what reads standard output has ended, as `head` does."""
  output = sys.stdout.fileno()
  poll = select.poll()
  poll.register(output, 0)
  if not poll.poll(0):
    return False
  # Python flushes it once more when it ends.
  os.dup2(os.open(os.devnull, os.O_WRONLY), output)
  return True


def _leave(message: str) -> NoReturn:
  """Ends one of several processes without waiting for the others.

  They may wait for this one; they end once it is missed.
  """
  print(message, file=sys.stderr, flush=True)
  if devices.is_first():
    # With it go all others, who may be about to say the same.
    time.sleep(_LAST_WORDS_SECONDS)
  os._exit(1)


def start(main: Callable[[list[str]], None]) -> None:
  """Reads the flags, a configuration among them, and runs a command."""
  app.run(main, flags_parser=_read_flags)


def _read_flags(argv: list[str]) -> list[str]:
  """Reads the flags, and names fields of a configuration that do not exist."""
  argv = _find_configuration(argv)
  try:
    return app.parse_flags_with_usage(argv)
  # As ml_collections raises them; a configuration file may raise them, too.
  except (AttributeError, KeyError):
    unknown = _unknown_fields(argv)
    if not unknown:
      raise
    sys.exit(escape.lines('\n'.join(f'error: {line}' for line in unknown)))


def _find_configuration(argv: Sequence[str]) -> list[str]:
  """Replaces the name of a configuration that comes with kdjax by its path."""
  found = list(argv)
  for i, word in enumerate(argv):
    flag, equals, value = word.partition('=')
    if flag in ('--config', '-config'):
      if equals:
        found[i] = f'{flag}={_packaged(value)}'
      elif i + 1 < len(argv):
        found[i + 1] = _packaged(argv[i + 1])
  return found


def _packaged(file: str) -> str:
  """Finds `NAME`, `NAME.py` or `configs/NAME.py` among those of kdjax."""
  path, colon, variant = file.partition(':')
  if os.path.exists(path):
    return file
  package = pathlib.Path(__file__).parents[1]
  # In an installed package, and in a checkout.
  known = {
    config.stem: config
    for folder in (package.parent / 'configs', package / 'configs')
    for config in sorted(folder.glob('*.py'))
  }
  folder, name = os.path.split(path)
  name = name.removesuffix('.py')
  if folder not in ('', 'configs') or name not in known:
    sys.exit(
      escape.lines(
        f'error: --config is {file}: there is no such file; expected a file, '
        f'or one of {", ".join(known)}'
      )
    )
  return f'{known[name]}{colon}{variant}'


def _unknown_fields(argv: Sequence[str]) -> list[str]:
  """Describes the overrides of fields that a configuration does not have."""
  words = ' '.join(argv[1:]).replace('=', ' ').split()
  names = [word.lstrip('-') for word in words if word.startswith('-')]
  file = words[[word.lstrip('-') for word in words].index('config') + 1]
  flag: Any = flags.FLAGS['config']
  config = flag.parser.parse(file).to_dict()
  return [
    message
    for name in names
    if name.startswith('config.')
    and (message := describe_unknown(name.removeprefix('config.'), config))
  ]


def describe_unknown(field: str, config: Mapping[str, Any]) -> str | None:
  """Says that a configuration has no such field, and which one may be meant.

  Returns:
    One line; None if there is a field of that dotted name.
  """
  section, path = config, 'config'
  for part in field.split('.'):
    if not isinstance(section, Mapping) or part not in section:
      break
    section, path = section[part], f'{path}.{part}'
  else:
    return None
  fields = section if isinstance(section, Mapping) else {}
  known = [*(f'{path}.{name}' for name in fields), *_all_fields(config)]
  meant = [
    name
    for name in dict.fromkeys(known)
    if (leaf := name.rpartition('.')[2]) == part
    or part == ''.join(word[0] for word in leaf.split('_'))
    or difflib.get_close_matches(part, [leaf], cutoff=0.75)
  ]
  hint = f'did you mean {" or ".join(meant[:3])}?' if meant else ''
  return f'{path} has no field {part}: ' + (
    hint or f'expected one of {", ".join(fields) or "none"}'
  )


def _all_fields(config: Mapping[str, Any], path: str = 'config') -> list[str]:
  found = []
  for name, value in config.items():
    found.append(f'{path}.{name}')
    if isinstance(value, Mapping):
      found += _all_fields(value, f'{path}.{name}')
  return found


def default_workdir(mode: str | None = None) -> str:
  """Names the run directory of a command that was given none.

  It is `runs/` and the name of the file of `--config`, with its variant and the
  mode where they are given.
  """
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, variant = file.partition(':')
  parts = [pathlib.Path(path).stem, variant, mode]
  return str(pathlib.Path('runs', '-'.join(filter(None, parts))))
