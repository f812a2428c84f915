"""What all commands have in common."""

import ast
import contextlib
import errno
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from kdjax.system import config_files, devices, escape, logs, signals, xla
from kdjax.system.hints import did_you_mean
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

  def checked(argv: list[str]) -> None:
    try:
      main(argv)
    except app.UsageError as error:
      sys.exit(escape.lines(f'error: {error}'))

  app.run(checked, flags_parser=_read_flags)


def _read_flags(argv: list[str]) -> list[str]:
  """Reads the flags; what is wrong with one ends the process with one line."""
  config: dict[str, Any] = {}
  try:
    argv, custom = _split_off_custom(_find_configuration(argv))
    # ml_collections looks for overrides there.
    sys.argv = argv
    if file := _configuration(argv):
      # By itself first, because absl reports its errors with a traceback.
      config = config_files.load(file).to_dict()
    rest = flags.FLAGS(argv)
    if custom:
      _set_custom(custom)
    return rest
  except ValueError as error:
    message = f'{error}'
  except flags.Error as error:
    message = _describe_flag_error(error, config)
  # As ml_collections raises them for fields that are unknown.
  except (AttributeError, KeyError):
    unknown = _unknown_fields(argv, config)
    if not unknown:
      raise
    message = '; '.join(unknown)
  except SystemExit as leave:
    # absl's status of --help is 1.
    if any(word.lstrip('-').startswith('help') for word in argv):
      leave.code = 0
    raise
  sys.exit(escape.lines(f'error: {message}'))


_CUSTOM = re.compile(r'--?config\.(?:run\.)?method\.custom\.(\w+)=(.*)')


def _split_off_custom(
  argv: Sequence[str],
) -> tuple[list[str], dict[str, Any]]:
  """Splits off the settings of a method of the user's own.

  A configuration does not know them: the method itself checks names and values.

  Returns:
    The other words, and the settings by name.
  """
  custom = {}
  rest = []
  for word in argv:
    if match := _CUSTOM.fullmatch(word):
      try:
        custom[match[1]] = ast.literal_eval(match[2])
      except (ValueError, SyntaxError):
        custom[match[1]] = match[2]
    else:
      rest.append(word)
  return rest, custom


def _set_custom(custom: Mapping[str, Any]) -> None:
  """Sets the settings of a method of the user's own in `--config`."""
  config: Any = flags.FLAGS['config'].value
  section = config.get('run', config).method.custom
  with section.unlocked():
    section.update(custom)


_ILLEGAL = re.compile(r'flag --([^=]+)=(.*?): (.*)', re.DOTALL)


def _describe_flag_error(error: flags.Error, config: Mapping[str, Any]) -> str:
  """Says in one line what is wrong with the flags, and what may be meant."""
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    fields = config_files.all_fields(config)
    meant = [field for field in fields if field.endswith(f'.{name}')]
    meant = sorted(meant, key=len) or [name]
    known = [f'--{flag}' for flag in (*fields, *flags.FLAGS)]
    hint = did_you_mean(f'--{meant[0]}', known)
    return f'there is no flag --{name}{hint}; --help lists those there are'
  if not (illegal := _ILLEGAL.fullmatch(str(error))):
    words = ' '.join(str(error).split())
    return f'{words[0].lower()}{words[1:]}; --help describes it'
  name, value, reason = illegal.groups()
  if value == 'None':
    return f'--{name} is missing, and is needed; --help describes it'
  if name.startswith('config.'):
    usual: Any = config
    for part in name.split('.')[1:]:
      usual = usual.get(part) if isinstance(usual, Mapping) else None
    reason = f'expected {config_files.describe_type(usual)}'
  return f'--{name}={value}: {" ".join(reason.split())}'


def _configuration(argv: Sequence[str]) -> str | None:
  """Returns the value of `--config`; None where there is no such flag."""
  for word, after in zip(argv, [*argv[1:], ''], strict=True):
    flag, equals, value = word.partition('=')
    if flag in ('--config', '-config') and 'config' in flags.FLAGS:
      return (value if equals else after) or None
  return None


def _find_configuration(argv: Sequence[str]) -> list[str]:
  """Replaces the name of a configuration that comes with kdjax by its path."""
  found = list(argv)
  for i, word in enumerate(argv):
    flag, equals, value = word.partition('=')
    if flag in ('--config', '-config'):
      if equals:
        found[i] = f'{flag}={config_files.find(value)}'
      elif i + 1 < len(argv):
        found[i + 1] = config_files.find(argv[i + 1])
  return found


def _unknown_fields(
  argv: Sequence[str], config: Mapping[str, Any]
) -> list[str]:
  """Describes the overrides of fields that a configuration does not have."""
  names = [word.lstrip('-').partition('=')[0] for word in argv[1:]]
  return [
    message
    for name in names
    if name.startswith('config.')
    and (
      message := config_files.describe_unknown(
        name.removeprefix('config.'), config
      )
    )
  ]


def default_workdir(mode: str | None = None) -> str:
  """Names the run directory of a command that was given none."""
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  return str(config_files.run_directory(file, mode))
