"""Signals that ask a process to stop: raised, or held back until it is safe."""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from kdjax.system.startup import STOPPING

_ASKED = itertools.count(1)
# After so long an exception that was ignored is raised once more.
_AGAIN_SECONDS = 0.02
# Names of the signals that were raised, and may have been ignored.
_raised: list[str] = []


# Like its base it must not be taken for the failure of one run among others.
class Interrupted(KeyboardInterrupt):
  """A signal stopped a run; the message says how to continue it."""


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """Raises `Interrupted` at SIGTERM and SIGINT; for commands.

  A second one ends the process at once. None is lost: where Python ignores
  exceptions, as in callbacks of its garbage collection, that one is raised once
  more a moment later, and `held_back` knows of it. With several processes the
  handler of SIGTERM is JAX's, once they have joined.

  Yields:
    Nothing; the code that may be interrupted goes inside.
  """

  def interrupt(number: int, _: Any) -> None:
    if not jax.distributed.is_initialized():
      _end_at_the_next()
    _raised.append(signal.Signals(number).name)
    raise _interrupted(_raised[0])

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _raise_again_what_is_ignored()
  previous = {number: signal.signal(number, interrupt) for number in STOPPING}
  try:
    yield
  finally:
    forget()
    if not jax.distributed.is_initialized():
      for number, handler in previous.items():
        signal.signal(number, handler)


def forget() -> str | None:
  """Forgets a signal that was raised and perhaps ignored; returns its name."""
  if not _raised:
    return None
  signal.setitimer(signal.ITIMER_REAL, 0)
  name = _raised[0]
  _raised.clear()
  return name


def _interrupted(name: str) -> Interrupted:
  return Interrupted(f'stopped by {name}: start the same command again')


def _end_at_the_next() -> None:
  for number in STOPPING:
    signal.signal(number, signal.SIG_DFL)


@functools.cache
def _raise_again_what_is_ignored() -> None:
  """Raises later an `Interrupted` that Python would print and ignore."""
  previous = sys.unraisablehook

  def raise_ignored(*_: Any) -> None:
    if _raised:
      raise _interrupted(_raised[0])

  def hook(unraisable: Any) -> None:
    if isinstance(unraisable.exc_value, Interrupted):
      signal.signal(signal.SIGALRM, raise_ignored)
      signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    else:
      previous(unraisable)

  sys.unraisablehook = hook


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], str | None]]:
  """Holds back SIGTERM and SIGINT, for code that asks whether one came.

  The first is remembered; a second ends the process at once. With several
  processes JAX hears of SIGTERM, in any of them, and all agree on when to stop;
  it holds back all that follow, and those that come outside of this as well.
  Outside the main thread, where Python allows no handlers, none is held back.

  Raises:
    Interrupted: a signal came, and the code inside ended without an error.

  Yields:
    A function, to be called after each dispatch, as often in every process. It
    returns the name of the signal that came, or None.
  """
  came: list[str] = []

  def remember(number: int, _: Any) -> None:
    _end_at_the_next()
    came.append(signal.Signals(number).name)

  def pass_on(*_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)

  def came_here() -> str | None:
    return came[0] if came else None

  def came_anywhere() -> str | None:
    # The processes agree on a number that is yet to be asked for, in any run.
    reached = multihost_utils.reached_preemption_sync_point(next(_ASKED))
    return signal.SIGTERM.name if reached else None

  alone = jax.process_count() == 1
  handlers: dict[int, Any] = {}
  if threading.current_thread() is threading.main_thread():
    handlers = (
      dict.fromkeys(STOPPING, remember) if alone else {signal.SIGINT: pass_on}
    )
  previous = {
    number: signal.signal(number, handler)
    for number, handler in handlers.items()
  }
  if handlers and (ignored := forget()):
    came.append(ignored)
  try:
    yield came_here if alone else came_anywhere
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
  # It came after the code inside last asked.
  if came:
    raise _interrupted(came[0])
