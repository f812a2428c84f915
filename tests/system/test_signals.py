"""Signals that are held back, and where they are not."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax.experimental import multihost_utils
from processes import ROOT

from kdjax.system import signals
from kdjax.system.command import INTERRUPTED, command


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
  before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(SystemExit) as error, command(['']):
    signal.raise_signal(number)
  assert error.value.code == INTERRUPTED == 75
  said = f'stopped by {number.name}: start the same command again\n'
  assert capsys.readouterr().err == said
  after = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def interrupt_in_garbage_collection():
  """Has a signal come where Python ignores what is raised, as XLA has one."""

  def callback(phase, _):
    if phase == 'start':
      gc.callbacks.remove(callback)
      signal.raise_signal(signal.SIGINT)

  gc.callbacks.append(callback)
  gc.collect()


def test_a_signal_in_a_callback_comes_a_moment_later(capfd):
  def work():
    with signals.raised():
      interrupt_in_garbage_collection()
      assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
      time.sleep(5)

  with pytest.raises(signals.Interrupted, match='by SIGINT'):
    work()
  assert capfd.readouterr().err == ''


def test_a_signal_that_was_ignored_is_held_back(monkeypatch):
  monkeypatch.setattr(signals, '_AGAIN_SECONDS', 10)

  def hold():
    with signals.raised():
      interrupt_in_garbage_collection()
      with signals.held_back() as stopped:
        assert stopped() == 'SIGINT'

  with pytest.raises(signals.Interrupted, match='by SIGINT'):
    hold()
  # It comes no other time.
  assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_jax_makes_an_error_of_is_a_signal_still(capsys):
  def work():
    with command(['']):
      try:
        signal.raise_signal(signal.SIGTERM)
      except KeyboardInterrupt as caught:
        raise RuntimeError('XLA: a callback failed') from caught

  with pytest.raises(SystemExit) as error:
    work()
  assert error.value.code == INTERRUPTED
  assert 'stopped by SIGTERM: start the same' in capsys.readouterr().err


def test_a_command_that_still_starts_ends_at_once():
  """With neither a traceback nor a status that says nothing."""
  with subprocess.Popen(
    [sys.executable, '-X', 'importtime', '-m', 'kdjax.main'],
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  ) as process:
    for line in process.stderr:
      # It is under way.
      if line.endswith('kdjax.system.startup\n'):
        process.send_signal(signal.SIGINT)
        break
    assert 'Traceback' not in (said := process.stderr.read())
    assert process.wait() == INTERRUPTED
  assert said.splitlines()[-1] == 'stopped by SIGINT'
