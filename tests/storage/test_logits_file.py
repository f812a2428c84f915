"""Teachers of which nothing is known but their logits."""

import io
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import tiny
from numpy.lib import format as npy
from processes import losses_of

from kdjax import data
from kdjax.data import augment
from kdjax.evaluation import tables
from kdjax.evaluation.predict import predict_images
from kdjax.storage import logits_file, run_directory
from kdjax.training import final_test, setup, teacher_checks, train
from kdjax.training import teacher as teacher_lib
from kdjax.training.shared import Session
from kdjax.training.state import data_key

IDS = np.array([4, 2, 9])
LOGITS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def save(path, **arrays):
  np.savez(path, **{'ids': IDS, 'logits': LOGITS} | arrays)
  return path


# What is on disk


def test_examples_are_found_by_their_ids(tmp_path):
  found = logits_file.read(
    save(tmp_path / 'a.npz', test_ids=IDS[:1], test_logits=LOGITS[2:])
  )
  np.testing.assert_array_equal(
    found.train.rows(np.array([2, 4, 2])), LOGITS[[1, 0, 1]]
  )
  np.testing.assert_array_equal(found.test.rows(np.array([4])), LOGITS[2:])
  assert logits_file.read(save(tmp_path / 'b.npz')).test is None


def test_the_digest_knows_logits_and_not_their_order(tmp_path):
  digest = logits_file.read(save(tmp_path / 'a.npz')).digest
  turned = save(
    tmp_path / 'b.npz', ids=IDS[::-1].astype('u2'), logits=LOGITS[::-1]
  )
  assert logits_file.read(turned).digest == digest
  for number, changes in enumerate(
    (
      {'ids': IDS + 1},
      {'logits': LOGITS + 1},
      {'test_ids': IDS, 'test_logits': LOGITS},
    )
  ):
    path = save(tmp_path / f'{number}.npz', **changes)
    assert logits_file.read(path).digest != digest


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ids': np.array([4, 2, 4])}, 'ids in .*a.npz has 4 twice'),
    ({'ids': np.array([4.0, 2.0, 9.0])}, r'ids float64\[3\]: expected floats'),
    ({'ids': IDS[:2]}, r'logits in .* is float32\[3, 5\], and ids int64\[2\]'),
    ({'logits': LOGITS[:, 0]}, r'is float32\[3\]'),
    ({'logits': IDS[:, None]}, r'is int64\[3, 1\]'),
    ({'logits': np.where(LOGITS[1, 1] == LOGITS, np.nan, LOGITS)}, 'of id 2$'),
    ({'logits': LOGITS * np.float64(1e300)}, 'not finite'),
    ({'ids': IDS.astype(str)}, 'ids are indices, not names'),
    (
      {'logits': np.array([[1], ['a']], object)},
      'a.npz cannot be read',
    ),
    ({'test_ids': IDS}, 'only one of `test_ids` and `test_logits`'),
    ({'test_ids': IDS, 'test_logits': LOGITS[:, :4]}, 'has 4 classes, and log'),
  ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    logits_file.read(save(tmp_path / 'a.npz', **changes))


def header(text):
  """An array's header, and 100 bytes."""
  return npy.magic(1, 0) + struct.pack('<H', len(text)) + text + bytes(100)


def described(shape, dtype="'<f4'"):
  text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"
  return header(text.encode())


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (described(f'({10**13},)'), r'float32\[10000000000000\] and has \d+ bytes'),
    (described(f'({10**23},)'), r'float32\[10{23}\] and has'),
    (described('(-5, -5)'), ''),
    (described(f'({10**13},)', "'S0'"), r'is of \|S0'),
    (described('(1,)', f"('<f4', ({10**8},))"), 'is of '),
    (header(b'-' * 900), ''),
    (header(b'-' * 9000), 'Header info length'),
    (header(b'['), ''),
    (header(b'\\'), ''),
    (npy.magic(2, 0) + b'\xff' * 4, 'of another version'),
    (b'', 'magic'),
  ],
)
@pytest.mark.filterwarnings('default')
def test_a_hostile_header_is_refused(tmp_path, content, message):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('ids.npy', content)
  with pytest.raises(ValueError, match=rf'a\.npz cannot be read \(.*{message}'):
    logits_file.read(tmp_path / 'a.npz')


def entry_of(content, offset, value):
  """Changes what the archive says of its first array."""
  start = content.index(b'PK\1\2') + offset
  return content[:start] + value + content[start + len(value) :]


@pytest.mark.parametrize(
  ('offset', 'value', 'message'),
  [
    (8, b'\1\0', 'is encrypted'),
    (10, b'\x0e\0', 'compressed otherwise'),
    (10, b'\x63\0', 'compressed otherwise'),
    (16, b'abcd', 'Bad CRC'),
    (20, b'\xf0\xff\xff\x7f' * 2, 'more than the file has'),
    (24, b'\xf0\xff\xff\x7f', r'and has 2147483632 bytes'),
  ],
)
def test_a_hostile_archive_is_refused(tmp_path, offset, value, message):
  path = save(tmp_path / 'a.npz')
  path.write_bytes(entry_of(path.read_bytes(), offset, value))
  with pytest.raises(ValueError, match=rf'a\.npz cannot be read \(.*{message}'):
    logits_file.read(path)


def test_nothing_large_is_read_of_a_hostile_archive(tmp_path):
  """Zeros in an array that is not used, or in one that cannot be so long."""
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, ids=IDS, logits=LOGITS, more=np.zeros(2**25, 'u1'))
  tracemalloc.start()
  logits_file.read(path)
  path = tmp_path / 'b.npz'
  size = 2**32 - 100
  text = described(f'({size},)', "'|i1'")[:-100]
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('ids.npy', text + bytes(1000))
  value = struct.pack('<I', size + len(text))
  path.write_bytes(entry_of(path.read_bytes(), 24, value))
  with pytest.raises(ValueError, match='bytes, more than can be'):
    logits_file.read(path)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 2**22


def test_ids_that_are_no_indices_are_refused(tmp_path):
  ids = np.array([1, 2, 2**63 + 1], np.uint64)
  with pytest.raises(ValueError, match='has 9223372036854775809, which is no'):
    logits_file.read(save(tmp_path / 'a.npz', ids=ids))


def test_compressed_arrays_are_read_as_others(tmp_path):
  logits = np.zeros((100_000, 10), order='F')
  logits[1] = 1
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, ids=np.arange(100_000), logits=logits)
  found = logits_file.read(path).train
  np.testing.assert_array_equal(found.logits, logits)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
def test_probabilities_become_logits(tmp_path, caplog, dtype):
  logits = np.random.default_rng(0).normal(0, 5, (3, 5))
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  probabilities[2] = [0, 1, 0, 0, 0]
  path = save(tmp_path / 'a.npz', logits=probabilities.astype(dtype))
  with caplog.at_level('INFO', 'kdjax'):
    found = logits_file.read(path).train.logits
  assert 'a.npz are probabilities, not logits; their log' in caplog.text
  assert found.dtype == np.float32
  found = np.float64(found[np.searchsorted(np.sort(IDS), IDS)])
  again = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(again, probabilities, rtol=2e-2, atol=1e-6)
  assert np.isfinite(found).all()


@pytest.mark.parametrize('most', [100, 255])
def test_rounded_probabilities_of_any_sum_become_logits(tmp_path, most):
  """As percentages, or as numbers of 8 bits; zero is less than one half."""
  logits = np.random.default_rng(0).normal(0, 5, (3, 5))
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  rounded = np.round(most * probabilities).astype(np.float32)
  found = logits_file.read(
    save(tmp_path / 'a.npz', logits=rounded)
  ).train.logits
  found = np.float64(found[np.searchsorted(np.sort(IDS), IDS)])
  again = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(again, probabilities, atol=2.5 / most)
  assert found.min() == pytest.approx(np.log(0.5))


def test_class_names_say_the_order_of_logits(tmp_path):
  names = np.array([*'abcde'])
  path = save(
    tmp_path / 'a.npz', class_names=names, test_ids=IDS, test_logits=LOGITS
  )
  assumed = {'class_names': [*'EDABC']}
  teacher = teacher_lib.load(path, config(), assumed=assumed)
  plain = logits_file.read(path)
  assert plain.class_names == tuple(names)
  for table, other in zip(teacher.logits[:2], plain[:2], strict=True):
    order = [4, 3, 0, 1, 2]
    np.testing.assert_array_equal(table.logits, other.logits[:, order])
  assert teacher.report['digest'] != plain.digest
  # Case alone makes no other class.
  assumed = {'class_names': [*'ABCDE']}
  same = teacher_lib.load(path, config(), assumed=assumed)
  assert same.report['digest'] == plain.digest
  with pytest.raises(
    ValueError, match=r'class_names in .*U1\[2\]: expected str'
  ):
    logits_file.read(save(path, class_names=names[:2]))


@pytest.mark.parametrize(
  ('ids', 'message'),
  [
    ([1, 2, 3], r'have 3, and .* 3 examples, 0 … 2: .* subtract 1 from each'),
    ([-1, 0, 1], 'have -1, and .* or shifted'),
    ([0, 1, 7], 'have 7, and .* of another data set'),
  ],
)
def test_ids_of_no_example_are_refused(tmp_path, ids, message):
  table = logits_file.read(save(tmp_path / 'a.npz', ids=np.array(ids))).train
  with pytest.raises(ValueError, match=message):
    table.check_ids(3)


def test_other_arrays_are_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', images=LOGITS)
  with pytest.raises(ValueError, match=r'a.npz holds images: expected `ids`'):
    logits_file.read(tmp_path / 'a.npz')


def test_no_damage_goes_unseen(tmp_path):
  """Cut off anywhere, or with any byte changed: right, or an error."""
  content = save(tmp_path / 'a.npz').read_bytes()
  digest = logits_file.read(tmp_path / 'a.npz').digest
  rng = np.random.default_rng(0)
  damaged = [content[:size] for size in range(0, len(content), 29)]
  for place in rng.integers(len(content), size=150):
    changed = bytearray(content)
    changed[place] ^= 1 << rng.integers(8)
    damaged.append(bytes(changed))
  array = io.BytesIO()
  np.save(array, IDS)
  damaged += [b'', b'text', array.getvalue()]
  right = refused = 0
  for bad in damaged:
    (tmp_path / 'b.npz').write_bytes(bad)
    try:
      right += logits_file.read(tmp_path / 'b.npz').digest == digest
    except ValueError as error:
      refused += 'b.npz' in str(error)
  assert right + refused == len(damaged)
  assert refused > len(damaged) / 2


def test_examples_that_are_missing_are_counted_and_named(tmp_path):
  table = logits_file.read(save(tmp_path / 'a.npz')).train
  with pytest.raises(ValueError, match=r'lacks 2 of the 3 .*needs: 0, 3. They'):
    table.rows(np.array([0, 3, 4]))


# In a run


def config(**changes):
  """Without crops and flips, so that a file can have all that is seen."""
  run = tiny.config('response')
  run.student.update(name='small_cnn:SmallCNN', width=4)
  run.teacher.update(name='small_cnn:SmallCNN', width=8)
  run.data.update(train_limit=150, crop_padding=0)
  run.train.epochs = 2
  run.teacher.train.epochs = 3
  run.log.update(tensorboard=False, every_steps=1)
  with run.unlocked():
    run.update_from_flattened_dict(changes)
  return run


@pytest.fixture(scope='module')
def session():
  return Session()


@pytest.fixture(scope='module')
def root(tmp_path_factory, session):
  """A run whose logits were kept, and files of logits of the same teacher.

  `replayed.npz` has the very bits of the run; `all.npz` has every example of
  the source, computed otherwise, and those of the test split.
  """
  root = tmp_path_factory.mktemp('precomputed')
  run = config(**{'teacher.replay': str(root / 'replay')})
  train.train_and_evaluate(run, root / 'live', session)
  dataset = session.dataset(run.data)
  network = teacher_lib.load(root / 'teacher', run).network

  source = data.sources.load('digits', None)
  logits = np.array(predict_images(network, source.train.images, 100))
  np.savez(
    root / 'all.npz',
    ids=np.arange(source.train.size),
    logits=logits,
    test_ids=np.arange(source.test.size),
    test_logits=predict_images(network, source.test.images, 100),
  )
  key = data_key(jax.random.key(run.seed))
  for epoch in range(2):
    order = np.asarray(augment.epoch_order(key, epoch, 150))
    with np.load(root / 'replay' / f'epoch_{epoch:04d}.npz') as kept:
      seen = kept['logits'].reshape(-1, 10)
    logits[dataset.train_ids[order[: len(seen)]]] = seen
  ids = dataset.train_ids[::-1]
  np.savez(root / 'replayed.npz', ids=ids, logits=logits[ids])
  return root


def taught_by(root, name, **changes):
  return config(**{'teacher.path': str(root / name)} | changes)


def test_rows_know_which_examples_of_the_source_they_are(session):
  source = data.sources.load('digits', None)
  dataset = session.dataset(config().data)
  for split, ids, whole in (
    (dataset.train, dataset.train_ids, source.train),
    (dataset.test, dataset.test_ids, source.test),
  ):
    assert len(ids) == split.size
    np.testing.assert_array_equal(whole.images[ids], split.images)
  assert (np.diff(dataset.train_ids) > 0).all()


def test_known_logits_teach_as_the_teacher_itself(root, session):
  result = train.train_and_evaluate(
    taught_by(root, 'replayed.npz'), root / 'same bits', session
  )
  # Two programs, one with the teacher inside: a processor may round otherwise.
  np.testing.assert_allclose(
    losses_of(root / 'same bits'), losses_of(root / 'live'), rtol=1e-5
  )
  live = run_directory.read_result(root / 'live')
  for name, value in live['last']['test'].items():
    if name in result['last']['test']:
      assert result['last']['test'][name] == pytest.approx(value, abs=1e-4)
  teacher = result['teacher']
  assert teacher['model'] == 'logits'
  assert (teacher['parameters'], teacher['wall_time_s']) == (None, None)
  assert teacher['test'] == {}
  assert 'agreement' not in result['last']['test']
  assert 'teacher' not in run_directory.read_predictions(root / 'same bits')
  lines = tables.table(result).splitlines()
  assert lines[2].split()[:2] == ['teacher', 'logits']
  assert set(lines[2].split()[2:]) == {'-'}


def test_those_of_the_test_split_are_compared_with(root, session):
  result = train.train_and_evaluate(
    taught_by(root, 'all.npz'), root / 'with test', session
  )
  live = run_directory.read_result(root / 'live')
  np.testing.assert_allclose(
    losses_of(root / 'with test'), losses_of(root / 'live'), rtol=1e-5
  )
  for row in ('teacher', 'last'):
    for name, value in live[row]['test'].items():
      assert result[row]['test'][name] == pytest.approx(value, abs=1e-4), name
  again, _ = final_test.evaluate(root / 'with test')
  assert again['teacher'] == result['teacher']


def test_a_run_goes_on_with_them_and_a_stream_sees_the_same(
  root, session, monkeypatch
):
  """Streamed, and cut off in the middle of the second epoch."""
  changes = {'data.streaming': True, 'checkpoint.every_steps': 3}
  run = taught_by(root, 'all.npz', **changes)

  step = train.compiled.Program.run

  def cut(self, state, done):
    if done == 6:
      raise InterruptedError
    return step(self, state, done)

  with monkeypatch.context() as patch:
    patch.setattr(train.compiled.Program, 'run', cut)
    with pytest.raises(InterruptedError):
      train.train_and_evaluate(run, root / 'cut', Session())
  result = train.train_and_evaluate(run, root / 'cut', Session())
  whole = run_directory.read_result(root / 'with test')
  assert result['last']['digest'] == whole['last']['digest']


def test_a_teacher_of_whole_images_is_warned_of_where_others_are_seen(
  root, session, caplog
):
  settings = taught_by(root, 'all.npz', **{'data.crop_padding': 1})
  run = setup.resolve(settings, root / 'cropped', session)
  train._find_teacher(run, session)
  assert 'student sees others (config.data.crop_padding=1)' in caplog.text


def test_logits_of_other_examples_are_noticed(root, session, caplog):
  dataset = session.dataset(config().data)
  source = data.sources.load('digits', None).train
  right = np.eye(10)[source.labels] * 5

  def check(ids):
    path = root / 'shifted.npz'
    np.savez(path, ids=ids % source.size, logits=right)
    teacher = teacher_lib.load(path, config())
    teacher_checks.check_accuracy(teacher, dataset, 100)

  ids = np.arange(source.size)
  check(ids)
  assert 'its ids' not in caplog.text
  check(ids[::-1])
  assert 'its ids those of the images?' in caplog.text
  with pytest.raises(ValueError, match=r'shifted.*100\.0 % if 1 is subtracted'):
    check(ids + 1)
  with pytest.raises(ValueError, match=r'shifted.*100\.0 % if 1 is added to'):
    check(ids - 1)


@pytest.mark.parametrize(('wrong', 'warns'), [(0.04, False), (0.48, True)])
def test_what_is_better_than_guessing_depends_on_the_classes(
  session, caplog, wrong, warns
):
  dataset = session.dataset(config().data)
  labels = np.arange(150) % 2
  dataset = dataset._replace(
    class_names=('a', 'b'), train=dataset.train._replace(labels=labels)
  )
  seen = np.where(np.arange(150) < 150 * wrong, 1 - labels, labels)
  table = logits_file.Table('x', dataset.train_ids, np.eye(2)[seen])
  teacher = teacher_lib.Teacher(
    None,
    {'path': 'x', 'data_digest': None},
    logits_file.Logits(table, None, ''),
  )
  teacher_checks.check_accuracy(teacher, dataset, 100)
  assert ('and guessing 50.0 %' in caplog.text) == warns


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'teacher.mean': (0.5,), 'teacher.std': (0.5,)}, 'logits are of no image'),
    ({'data.train_limit': 0}, 'lacks 1143 of the 1293 examples that this run'),
    ({'method.name': 'feature'}, 'the method needs its features stage1, stag'),
    ({'teacher.replay': 'there'}, "teacher.replay is 'there', which cannot be"),
    ({'teacher.head': 'fresh'}, "teacher.head is 'fresh', which cannot be"),
    ({'data.mixup': 1.0}, 'data.mixup is 1.0, which cannot be with a teacher'),
    ({'method.name': 'crld'}, 'crld trains on 2 views of each image'),
    (
      {'data.corrupt': 'skip', 'data.streaming': True},
      "data.corrupt is 'skip', which .* logits .* and data that are streamed",
    ),
    (
      {'teacher.path': '', 'teacher.ensemble': ('a', 'b.npz')},
      'a file of logits cannot be a member',
    ),
    ({'teacher.path': 'no.npz'}, 'No such file'),
  ],
)
def test_a_run_that_they_cannot_teach_is_refused(
  root, session, changes, message
):
  run = taught_by(root, 'replayed.npz', **changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.train_and_evaluate(run, root / 'refused', session)
  assert not (root / 'refused').exists()


def test_logits_of_a_part_of_the_test_split_are_refused(root, session):
  with np.load(root / 'all.npz') as arrays:
    arrays = dict(arrays)
  for name in ('test_ids', 'test_logits'):
    arrays[name] = arrays[name][1:]
  np.savez(root / 'part.npz', **arrays)
  with pytest.raises(ValueError, match=r'test_logits in .*needs: 0\. They'):
    train.train_and_evaluate(
      taught_by(root, 'part.npz'), root / 'refused', session
    )
  assert not (root / 'refused').exists()


def test_logits_of_other_classes_are_refused(root, session):
  np.savez(root / 'five.npz', ids=np.arange(1500), logits=np.zeros((1500, 5)))
  with pytest.raises(ValueError, match=r'five.npz has logits of 5 classes'):
    train.train_and_evaluate(
      taught_by(root, 'five.npz'), root / 'refused', session
    )


def test_test_logits_of_other_images_are_warned_of(caplog):
  labels = np.arange(150) % 5
  teacher = teacher_lib.Teacher(None, {'path': 'x.npz'})
  teacher_checks.check_test_logits(teacher, np.eye(5)[labels], labels)
  assert not caplog.text
  others = np.random.default_rng(0).permutation(labels)
  teacher_checks.check_test_logits(teacher, np.eye(5)[others], labels)
  assert 'test_logits in x.npz classify' in caplog.text
  assert 'guessing 20.0 %: are test_ids' in caplog.text
