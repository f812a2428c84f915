"""Streams against the same data in memory, and what goes wrong in them."""

import errno
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
import weakref

import folder
import jax
import numpy as np
import pytest
import taken
from PIL import Image

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import augment, images, stream

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = jax.random.fold_in(jax.random.key(5), 2)
BATCH = 8


def load(**fields):
  config = config_lib.default().data
  config.update(fields)
  return data.load(config)


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
  return folder.write(tmp_path / 'images', splits=('train', 'test'), count=8)


def fields_of(kind, root):
  if kind == 'digits':
    return {'name': 'digits', 'train_limit': 30}
  if kind == 'resized digits':
    return {'name': 'digits', 'train_limit': 30, 'image_size': 6}
  return {'name': 'image_folder', 'data_dir': str(root), 'image_size': 16}


def resident_batch(split, step):
  """What the training step takes from data in memory."""
  order = augment.epoch_order(KEY, step // (split.size // BATCH), split.size)
  batch = taken.batch(KEY, np.int32(step), order, *jax.device_put(split), BATCH)
  return batch.images, batch.labels


@pytest.mark.parametrize('kind', ['digits', 'resized digits', 'folder'])
def test_a_stream_gives_what_memory_gives(kind, root):
  fields = fields_of(kind, root)
  streamed, resident = load(streaming=True, **fields), load(**fields)
  assert streamed.digest == resident.digest
  np.testing.assert_array_equal(streamed.mean, resident.mean)
  np.testing.assert_array_equal(streamed.std, resident.std)
  assert streamed.image_shape == resident.image_shape
  per_epoch = streamed.train.size // BATCH
  for first in (0, per_epoch + 1):
    # Across the end of an epoch.
    steps = range(first, first + per_epoch + 1)
    with stream.train_batches(
      streamed.train, KEY, batch_size=BATCH, steps=steps
    ) as loader:
      found = list(loader)
    assert len(found) == len(steps)
    for step, batch in zip(steps, found, strict=True):
      pixels, labels = resident_batch(resident.train, step)
      np.testing.assert_array_equal(batch.images, pixels)
      np.testing.assert_array_equal(batch.labels, labels)
      assert batch.images.dtype == np.uint8
  for name in ('validation', 'test'):
    whole, split = getattr(streamed, name), getattr(resident, name)
    assert whole.size == split.size
    with stream.eval_batches(whole, batch_size=7) as loader:
      found = list(loader)
    assert all(len(batch.labels) == 7 for batch in found)
    labels = np.concatenate([batch.labels for batch in found])
    pixels = np.concatenate([batch.images for batch in found])
    assert (labels[split.size :] == -1).all()
    np.testing.assert_array_equal(labels[: split.size], split.labels)
    np.testing.assert_array_equal(pixels[: split.size], split.images)


def test_workers_change_nothing(root):
  dataset = load(
    streaming=True, random_resized_crop=0.2, **fields_of('folder', root)
  )

  def run(workers, steps):
    with stream.train_batches(
      dataset.train,
      KEY,
      batch_size=BATCH,
      steps=steps,
      random_resized_crop=0.2,
      workers=workers,
    ) as loader:
      # Closed long before it ends, as when a run is cut off.
      found = [next(loader) for _ in range(5)]
      processes = multiprocessing.active_children()
      assert len(processes) == workers
      if processes:
        for process in processes:
          process.kill()
        with pytest.raises(OSError, match=r'exit code -9.*data\.workers'):
          list(loader)
    assert not multiprocessing.active_children()
    return found

  alone, shared, later = (
    run(workers, range(first, 1000))
    for workers, first in ((0, 1), (2, 1), (0, 3))
  )
  for ours, theirs in [
    *zip(alone, shared, strict=True),
    *zip(alone[2:], later, strict=False),
  ]:
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_a_process_reads_only_its_rows(root, monkeypatch):
  dataset = load(streaming=True, **fields_of('folder', root))
  read = []
  files = dataset.train.files
  monkeypatch.setattr(
    type(files),
    'read',
    lambda self, indices: (
      read.extend(indices) or [(self.name(i), 0) for i in indices]
    ),
  )

  def take(rows):
    read.clear()
    with stream.train_batches(
      dataset.train,
      KEY,
      batch_size=BATCH,
      steps=range(2),
      rows=rows,
      random_resized_crop=0.3,
    ) as loader:
      return list(loader)

  whole = take(None)
  for rows in (np.arange(4), np.array([7, 2])):
    part = take(rows)
    assert len(read) == 2 * len(rows)
    for ours, theirs in zip(part, whole, strict=True):
      np.testing.assert_array_equal(ours.images, theirs.images[rows])


def test_random_crops_are_those_of_epoch_and_position(root):
  dataset = load(streaming=True, **fields_of('folder', root))
  size = dataset.train.size
  per_epoch = size // BATCH
  with stream.train_batches(
    dataset.train,
    KEY,
    batch_size=BATCH,
    steps=range(per_epoch + 1, per_epoch + 2),
    random_resized_crop=0.3,
  ) as loader:
    batch = next(loader)
  order = np.asarray(augment.epoch_order(KEY, 1, size))
  key = np.asarray(jax.random.key_data(KEY))
  for row in range(BATCH):
    position = BATCH + row
    path = dataset.train.files.name(dataset.train.indices[order[position]])
    with Image.open(path) as image:
      expected = images.random_resized_crop(
        image, 16, 0.3, images.crop_draws(key, 1, position)
      )
    np.testing.assert_array_equal(batch.images[row], expected)


@pytest.mark.parametrize('whole', [False, True])
def test_few_examples_are_read_ahead_of_a_slow_caller(whole, monkeypatch):
  split = load(name='digits', streaming=True).train
  monkeypatch.setattr(stream, '_CHUNK', 10)
  parts = -(-split.size // 10)
  read = []
  one = stream.Stream.batch
  monkeypatch.setattr(
    stream.Stream,
    'batch',
    lambda self, rows: read.append(rows[0]) or one(self, rows),
  )
  found = split.batches()
  for count in range(1, parts + 1 if whole else 5):
    next(found)
    time.sleep(0.001 if whole else 0.05)
    assert count <= len(read) <= count + split.threads + 1
  found.close()
  assert len(read) == parts if whole else len(read) < 10


# What is known of files without reading them


def test_the_digest_is_that_of_the_files_wherever_they_are(root):
  fields = fields_of('folder', root)
  first = load(**fields)
  moved = root.rename(root.with_name('elsewhere'))
  os.utime(moved / 'train/ant/000.jpg', ns=(1, 1))
  assert load(**fields | {'data_dir': str(moved)}).digest == first.digest
  assert load(**fields | {'data_dir': str(moved), 'image_size': 8}).digest != (
    first.digest
  )
  path = moved / 'test/cow/001.jpg'
  path.write_bytes(path.read_bytes() + b'0')
  assert load(**fields | {'data_dir': str(moved)}).digest != first.digest


@pytest.mark.parametrize('streaming', [False, True])
def test_what_was_decoded_is_kept_until_a_file_changes(
  streaming, root, monkeypatch
):
  fields = fields_of('folder', root) | {'streaming': streaming}
  first = load(**fields)
  opened = []
  read = stream.Image.open
  monkeypatch.setattr(
    stream.Image, 'open', lambda file: opened.append(file) or read(file)
  )
  again = load(**fields)
  assert not opened
  np.testing.assert_array_equal(again.mean, first.mean)
  os.utime(root / 'train/ant/000.jpg', ns=(1, 1))
  load(**fields)
  assert opened
  # Nor is a copy used that was decoded in another way.
  opened.clear()
  monkeypatch.setattr(images, 'READING', -1)
  load(**fields)
  assert opened


def test_images_of_one_size_need_no_image_size(tmp_path):
  root = folder.write(tmp_path / 'same', splits=('train', 'test'), size=9)
  fields = {'name': 'image_folder', 'data_dir': str(root)}
  resident, streamed = load(**fields), load(streaming=True, **fields)
  assert resident.image_shape == streamed.image_shape == (9, 9, 3)
  assert resident.digest == streamed.digest
  np.testing.assert_array_equal(resident.mean, streamed.mean)


def test_images_of_several_sizes_need_one(root):
  with pytest.raises(ValueError, match=r'Set config\.data\.image_size'):
    load(name='image_folder', data_dir=str(root))


# Images that cannot be read


def break_images(root, *names):
  for name in names:
    path = root / name
    # A JPEG that ends too early, and a file that is none.
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if '0' in path.stem else b'x')


@pytest.mark.parametrize('streaming', [False, True])
def test_an_unreadable_image_is_an_error(streaming, root):
  break_images(root, 'train/bee/003.jpg')
  fields = fields_of('folder', root) | {'streaming': streaming}
  with pytest.raises(ValueError, match=r'bee/003\.jpg.*corrupt=.skip'):
    load(validation_fraction=0.0, **fields)


def named(caplog):
  messages = [record.getMessage() for record in caplog.records]
  # Which a class of which no image can be read leads to.
  return [message for message in messages if 'very unequal' not in message]


def test_unreadable_images_are_skipped_and_named_once(root, caplog):
  break_images(root, *(f'train/ant/00{index}.jpg' for index in range(8)))
  break_images(root, 'test/cow/002.jpg')
  fields = fields_of('folder', root) | {
    'corrupt': 'skip',
    'validation_fraction': 0.0,
  }
  resident = load(**fields)
  assert len(named(caplog)) == 9
  assert all('cannot read' in message for message in named(caplog))
  assert any('test/cow/002.jpg' in message for message in named(caplog))
  assert '8 of 24' in max(named(caplog))
  # The next that can be read stands in, with its class.
  assert resident.train.size == 24
  np.testing.assert_array_equal(resident.train.labels[:8], 1)
  np.testing.assert_array_equal(
    resident.train.images[:8], resident.train.images[[8] * 8]
  )
  assert resident.test.size == 23
  ids = np.arange(24)
  np.testing.assert_array_equal(resident.train_ids, np.maximum(ids, 8))
  np.testing.assert_array_equal(resident.test_ids, np.delete(ids, 18))

  caplog.clear()
  streamed = load(streaming=True, **fields)
  assert streamed.digest == resident.digest
  np.testing.assert_array_equal(streamed.mean, resident.mean)
  with stream.train_batches(
    streamed.train, KEY, batch_size=BATCH, steps=range(4)
  ) as loader:
    for step, batch in enumerate(loader):
      pixels, labels = resident_batch(resident.train, step)
      np.testing.assert_array_equal(batch.images, pixels)
      np.testing.assert_array_equal(batch.labels, labels)
  assert len(named(caplog)) == 8
  for _ in range(2):
    with stream.eval_batches(streamed.test, batch_size=24) as loader:
      (batch,) = loader
    assert np.flatnonzero(batch.labels < 0).tolist() == [18]
  assert len(named(caplog)) == 9
  # A run that finds its decoded copy says so all the same.
  caplog.clear()
  load(**fields)
  assert len(named(caplog)) == 9


def test_files_that_are_not_there_are_unreadable_images(root, caplog):
  (root / 'train/ant/000.jpg').unlink()
  (root / 'train/ant/000.jpg').symlink_to('nowhere')
  (root / 'train/bee/x.png').mkdir()
  (root / 'test/cow/007.jpg').write_bytes(b'')
  fields = fields_of('folder', root) | {'validation_fraction': 0.0}
  with pytest.raises(ValueError, match=r'ant/000\.jpg: No such file.*skip'):
    load(**fields)
  with pytest.raises(ValueError, match=r'ant/000\.jpg: No such file.*skip'):
    load(**fields | {'image_size': 0})
  dataset = load(corrupt='skip', **fields)
  assert len(named(caplog)) == 3
  assert dataset.train.size == 25
  assert dataset.test.size == 23


def test_the_first_size_is_that_of_the_upright_image(tmp_path):
  root = folder.write(tmp_path / 'same', splits=('train', 'test'), size=9)
  exif = Image.Exif()
  exif[0x0112] = 6
  for path in root.rglob('*.jpg'):
    Image.new('RGB', (7, 4)).save(path, exif=exif)
  fields = {'name': 'image_folder', 'data_dir': str(root)}
  assert load(**fields).image_shape == (7, 4, 3)


@pytest.mark.parametrize('streaming', [False, True])
def test_notes_of_images_are_said_once_and_by_every_run(
  streaming, root, caplog
):
  frames = [Image.new('RGB', (9, 9), colour) for colour in ('red', 'blue')]
  for name in ('a', 'b'):
    frames[0].save(
      root / f'train/ant/{name}.gif', save_all=True, append_images=frames[1:]
    )
  fields = fields_of('folder', root) | {
    'streaming': streaming,
    'validation_fraction': 0.0,
  }
  for _ in range(2):
    caplog.clear()
    dataset = load(**fields)
    if streaming:
      with stream.train_batches(
        dataset.train, KEY, batch_size=13, steps=range(2)
      ) as loader:
        list(loader)
    assert ['several frames' in message for message in named(caplog)] == [True]


def test_one_must_be_readable(root):
  for path in root.glob('train/*/*.jpg'):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='no image of the 24 can be read'):
    load(corrupt='skip', validation_fraction=0.0, **fields_of('folder', root))


@pytest.mark.parametrize(
  'error', [MemoryError(), OSError(errno.EMFILE, 'too many'), OSError('bad')]
)
def test_what_is_wrong_with_the_machine_is_no_unreadable_image(
  error, root, monkeypatch
):
  fields = fields_of('folder', root) | {'corrupt': 'skip', 'streaming': True}
  split = load(**fields).train

  def fail(file):
    raise error

  monkeypatch.setattr(stream.Image, 'open', fail)
  kind = ValueError if error.args == ('bad',) else type(error)
  with pytest.raises(kind):
    split.batch(np.arange(2))
  with pytest.raises(kind):
    load(**fields | {'image_size': 0})


# Processes


def test_a_script_that_a_worker_runs_again_is_told_of_its_main_guard(
  monkeypatch,
):
  dataset = load(name='digits', streaming=True)
  loader = stream.eval_batches(dataset.test, batch_size=8)

  def fail(batches):
    raise RuntimeError(
      'Worker process was terminated unexpectedly with exit code 1. Search'
    )

  monkeypatch.setattr(stream, 'next', fail, raising=False)
  with pytest.raises(OSError, match=r'if __name__ == "__main__"$'):
    next(loader)
  loader.close()
  process = multiprocessing.current_process()
  monkeypatch.setattr(process, '_inheriting', True, raising=False)
  with pytest.raises(RuntimeError, match=r'if __name__ == "__main__"$'):
    load(name='digits')


def test_nothing_is_left_of_a_stream_that_is_closed():
  """At the end of the interpreter, clean-up of grain's would fail."""
  fields = config_lib.default().data
  fields.update(name='digits', streaming=True)
  train = data.load(fields).train
  loader = stream.train_batches(
    train, jax.random.key(0), batch_size=8, steps=range(9)
  )
  next(loader)
  left = weakref.ref(loader._batches[0])
  loader.close()
  loader.close()
  gc.collect()
  assert left() is None
  assert list(loader) == []


def test_a_worker_that_is_done_ends_at_once(monkeypatch):
  codes = []
  monkeypatch.setattr(os, '_exit', codes.append)
  stream._end_at_once()
  assert codes == [0]
  # Of one that failed the parent must see that it did.
  try:
    raise RuntimeError
  except RuntimeError:
    stream._end_at_once()
  assert codes == [0]


_ORPHANS = """
import sys, jax, os
from kdjax import config, data
from kdjax.data import stream
if __name__ == '__main__':
  fields = config.default().data
  fields.update(name='digits', streaming=True)
  dataset = data.load(fields)
  loader = stream.train_batches(
    dataset.train, jax.random.key(0), batch_size=8, steps=range(10**6),
    workers=2,
  )
  next(loader), next(loader)
  import multiprocessing
  print(*(child.pid for child in multiprocessing.active_children()), flush=True)
  sys.stdin.readline()
  for _ in range(20):
    next(loader)
  print('went on', flush=True)
  sys.stdin.readline()
"""


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(_ORPHANS)
  with subprocess.Popen(
    [sys.executable, '-W', 'error', str(script)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  ) as parent:
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    # As Ctrl-C or a scheduler signals all processes: the parent decides.
    for worker in workers:
      os.kill(worker, signal.SIGINT)
      os.kill(worker, signal.SIGTERM)
    parent.stdin.write('\n')
    parent.stdin.flush()
    assert parent.stdout.readline() == 'went on\n'
    assert all(map(alive, workers))
    parent.kill()
  deadline = time.monotonic() + 10
  while any(map(alive, workers)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, workers))


def alive(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'
