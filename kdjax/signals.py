"""Signals that ask a run to stop, held back until its state is saved."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_ASKED = itertools.count(1)


# Like its base it must not be taken for the failure of one run among others.
class Interrupted(KeyboardInterrupt):
  """A signal stopped a run; the message says how to continue it."""


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
    gives the name of the signal that came, or None.
  """
  came: list[str] = []

  def remember(number: int, _: Any) -> None:
    for stopping in _STOPPING:
      signal.signal(stopping, signal.SIG_DFL)
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
      dict.fromkeys(_STOPPING, remember) if alone else {signal.SIGINT: pass_on}
    )
  previous = {
    number: signal.signal(number, handler)
    for number, handler in handlers.items()
  }
  try:
    yield came_here if alone else came_anywhere
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
  # It came after the code inside last asked.
  if came:
    raise Interrupted(f'stopped by {came[0]}: start the same command again')
