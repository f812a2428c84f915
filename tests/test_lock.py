"""One process at a time."""

import os
import socket

import pytest

from kdjax import lock, results


def test_who_comes_second_is_told_by_whom(tmp_path):
  directory = tmp_path / 'runs' / 'run'
  with lock.hold(directory, 'the run'):
    message = (
      rf'the run in .*/run is being made by process {os.getpid()} on '
      rf'{socket.gethostname()}: wait'
    )
    with (
      pytest.raises(BlockingIOError, match=message),
      lock.hold(directory, 'the run'),
    ):
      pass
    # Another directory is another matter.
    with lock.hold(directory.parent, 'the sweep'):
      pass
  assert not results.is_run(directory)
  with lock.hold(directory, 'the run'):
    pass


def test_a_lock_whose_holder_is_unknown(tmp_path):
  with lock.hold(tmp_path, 'the run'):
    (tmp_path / '.lock_holder').write_text('')
    with (
      pytest.raises(BlockingIOError, match='by another process: wait'),
      lock.hold(tmp_path, 'the run'),
    ):
      pass
