"""Files that are there as a whole, and paths that are none."""

import errno
import resource

import pytest
import tiny

from kdjax.sweep import run
from kdjax.system import atomic
from kdjax.system.command import command
from kdjax.training import train


def test_only_what_a_run_wrote_itself_is_removed(tmp_path):
  ours = ['.lock_holder.host.example.7.tmp', 'config.json.host.7.tmp']
  others = [
    'config.json',
    'mine.tmp',
    'notes.txt.host.7.tmp',
    'config.json.tmp',
  ]
  for name in (*ours, *others):
    (tmp_path / name).touch()
  atomic.remove_leftovers(tmp_path, ['.lock_holder', 'config.json'])
  assert {path.name for path in tmp_path.iterdir()} == set(others)


@pytest.mark.parametrize(
  'path',
  [
    'gs:',
    'gs://bucket/run',
    'gs:/bucket/run',
    'S3:bucket/run',
    'http://host/run',
    'mine+x://run',
  ],
)
def test_a_url_is_no_path(path):
  with pytest.raises(ValueError, match=r'is a URL, expected a path of a local'):
    atomic.local(path)


def test_no_run_and_no_sweep_is_at_a_url():
  for start in (train.train_and_evaluate, run.run):
    with pytest.raises(ValueError, match='gs://bucket/run is a URL'):
      start(tiny.config('scratch'), 'gs://bucket/run')


def test_what_orbax_takes_for_a_url_is_no_path():
  with pytest.raises(ValueError, match=r'/gs:/run has a directory .* colon'):
    atomic.local('./gs:/run')
  assert str(atomic.local('run:2/a')) == 'run:2/a'


def test_a_full_disk_leaves_what_was_there(tmp_path):
  path = tmp_path / 'result.json'
  atomic.write(path, b'old')
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    with pytest.raises(OSError, match='File too large') as error:
      atomic.write(path, bytes(2000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert error.value.filename == str(path)
  with pytest.raises(FileNotFoundError) as error:
    atomic.write(tmp_path / 'nowhere' / 'file', b'')
  assert error.value.filename == str(tmp_path / 'nowhere' / 'file')
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_command_says_what_to_do_about_a_full_disk(tmp_path):
  with pytest.raises(SystemExit) as error, command(['']):
    raise OSError(errno.ENOSPC, 'No space left on device', tmp_path / 'x.csv')
  said = str(error.value)
  assert 'No space left on device' in said
  assert str(tmp_path / 'x.csv') in said
  assert said.endswith('. Make room there, then start the same command again')
  assert '\n' not in said


def test_a_link_stays_one(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path / 'file')
  atomic.write(tmp_path / 'link', b'new')
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'file').read_bytes() == b'new'


def test_a_run_directory_is_no_file_and_in_none(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  for path in (file, file / 'below'):
    with pytest.raises(NotADirectoryError, match=r'file is a file: choose ano'):
      atomic.check_name(path)
  atomic.check_name(tmp_path / 'new' / 'run')
