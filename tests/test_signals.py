"""Signals that are held back, and where they are not."""

import os
import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from kdjax import signals
from kdjax.command import INTERRUPTED, command


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_remembered_and_the_second_stops_at_once(number):
  before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

  def hold():
    with signals.held_back() as stopped:
      assert stopped() is None
      os.kill(os.getpid(), number)
      assert stopped() == number.name
      # To end by a second one is what the system does by itself.
      for each in (signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(each) == signal.SIG_DFL

  with pytest.raises(signals.Interrupted, match=f'by {number.name}: start the'):
    hold()
  after = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def test_another_thread_holds_nothing_back():
  before = signal.getsignal(signal.SIGTERM)
  found = []

  def enter():
    with signals.held_back() as stopped:
      found.append((stopped(), signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert found == [(None, before)]


def test_several_processes_agree_on_when_to_stop(monkeypatch):
  asked, agreed, sent = [], [], []

  def reached(step):
    asked.append(step)
    return step in agreed

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', reached)
  monkeypatch.setattr(os, 'kill', lambda *args: sent.append(args))
  before = signal.getsignal(signal.SIGTERM)
  with signals.held_back() as stopped:
    # JAX has a handler of its own for this one.
    assert signal.getsignal(signal.SIGTERM) == before
    assert stopped() is None
  # As JAX does, agree on the number that is next, in whatever run.
  agreed.append(asked[-1] + 1)
  with signals.held_back() as stopped:
    assert stopped() == 'SIGTERM'
    signal.raise_signal(signal.SIGINT)
  assert sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_has_a_status_of_its_own(number, capsys):
  before = signal.getsignal(signal.SIGTERM)
  try:
    with pytest.raises(SystemExit) as error, command(['']):
      signal.raise_signal(number)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert error.value.code == INTERRUPTED == 75
  assert 'stopped by a signal' in capsys.readouterr().err
