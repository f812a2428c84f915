"""One process at a time."""

import os
import socket

import pytest

from kdjax.storage import run_directory
from kdjax.system import lock


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
  assert not run_directory.is_run(directory)
  with lock.hold(directory, 'the run'):
    pass


def test_what_a_process_left_that_is_gone_holds_nothing(tmp_path):
  """Whichever machine it was on, and wherever the directory is now."""
  (tmp_path / '.lock').touch()
  (tmp_path / '.lock_holder').write_text('{"pid": 1, "host": "elsewhere"}')
  for name in ('.lock_holder.elsewhere.1.tmp', 'config.json.elsewhere.1.tmp'):
    (tmp_path / name).touch()
  with lock.hold(tmp_path, 'the run', ['config.json']):
    names = {path.name for path in tmp_path.iterdir()}
  assert names == {'.lock', '.lock_holder'}


def test_a_link_to_a_directory_is_one(tmp_path):
  link = tmp_path / 'link'
  link.symlink_to('real')
  with (
    pytest.raises(FileNotFoundError, match='is a link to real, which is not'),
    lock.hold(link, 'the run'),
  ):
    pass
  (tmp_path / 'real').mkdir()
  with (
    lock.hold(link, 'the run'),
    pytest.raises(BlockingIOError),
    lock.hold(tmp_path / 'real', 'the run'),
  ):
    pass


def test_a_lock_whose_holder_is_unknown(tmp_path):
  with lock.hold(tmp_path, 'the run'):
    (tmp_path / '.lock_holder').write_text('')
    with (
      pytest.raises(BlockingIOError, match='by another process: wait'),
      lock.hold(tmp_path, 'the run'),
    ):
      pass
