"""A network as a function of images, and the images of files."""

import csv
import json
import os
import pathlib
import shutil
import subprocess

import folder
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from processes import ROOT, command, run

import kdjax
from kdjax import config as config_lib
from kdjax import data, models
from kdjax.evaluation import predict
from kdjax.export import classify_files, labelled_folder, predictor
from kdjax.models import features
from kdjax.models.network import Network
from kdjax.storage import checkpoint, networks, weights


def card_of(image_shape, channels=1, crop=1.0, class_names=('a', 'b', 'c')):
  normalization = {'mean': [0.4] * channels, 'std': [0.3] * channels}
  return {
    'kdjax': kdjax.__version__,
    'model': tiny.MODEL,
    'class_names': class_names and list(class_names),
    'preprocessing': networks.preprocessing(
      image_shape, channels, normalization, crop
    ),
    'metrics': {},
    'provenance': {},
  }


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A network of grey images of 8 × 8 pixels."""
  model = models.build(**tiny.MODEL)
  variables = features.init(model, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  path = tmp_path_factory.mktemp('student') / 'network'
  checkpoint.save_network(path, Network(model, variables), card_of((8, 8, 1)))
  return path


PIXELS = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)


def test_a_student_gives_the_probabilities_of_its_network(path):
  loaded = kdjax.load_student(path)
  network = networks.load(path).network
  expected = jax.nn.softmax(predict.predict_images(network, PIXELS, 100))
  for count in (0, 1, 3, 300):
    found = loaded(PIXELS[:count])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_few_programs_serve_any_number_of_images():
  sizes = []

  def classify(images):
    sizes.append(len(images))
    return np.zeros((len(images), 3), np.float32)

  counted = predictor.Student(classify, card_of((8, 8, 1)))
  for count in range(301):
    assert counted(PIXELS[:count]).shape == (count, 3)
  assert set(sizes) == {1, 2, 4, 8, 16, 32, 64, 128}


@pytest.mark.parametrize(
  'images',
  [
    PIXELS[0],
    PIXELS.astype(np.float32),
    PIXELS[:, :4],
    np.repeat(PIXELS, 3, axis=3),
  ],
  ids=['one image', 'float32', 'another height', 'another depth'],
)
def test_other_images_are_refused(path, images):
  with pytest.raises(ValueError, match=r'uint8 \[size, 8, 8, 1\], found'):
    kdjax.load_student(path)(images)


def test_images_of_any_size_need_none_to_be_known(path):
  network = networks.load(path).network
  free = predictor.of_network(network, card_of(None))
  assert free.image_shape is None
  images = np.zeros((2, 12, 9, 1), np.uint8)
  assert free(images).shape == (2, 3)
  with pytest.raises(ValueError, match=r'\[size, height, width, 1\]'):
    free(np.zeros((2, 12, 9, 3), np.uint8))


def test_weights_alone_say_what_they_lack(path, tmp_path):
  file = tmp_path / 'x.safetensors'
  weights.save(file, networks.load(path).network.variables, {})
  with pytest.raises(ValueError, match=r'kdjax\.convert --mean'):
    kdjax.load_student(file)


# Images from files


def reader(image_shape, crop=1.0):
  return predictor.Student(len, card_of(image_shape, image_shape[-1], crop))


@pytest.mark.parametrize('image_size', [0, 10])
def test_files_are_read_as_those_of_the_evaluation(tmp_path, image_size):
  folder.write(tmp_path, size=None if image_size else 14)
  # One that is upright by its EXIF data only.
  path = tmp_path / 'test/ant/000.jpg'
  exif = Image.Exif()
  exif[0x0112] = 6
  with Image.open(path) as image:
    image.rotate(90, expand=True).save(path, exif=exif)
  config = config_lib.default().data
  config.update(
    name='image_folder', data_dir=str(tmp_path), image_size=image_size
  )
  dataset = data.load(config)
  # As pretrained.load has it of a run.
  crop = 0.875 if image_size else 1.0
  read = reader(dataset.image_shape, crop).read
  files = sorted((tmp_path / 'test').rglob('*.jpg'))
  np.testing.assert_array_equal(
    np.stack(list(map(read, files))), data.in_memory(dataset.test).images
  )


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', 'LA'])
def test_any_mode_becomes_the_channels_of_the_network(tmp_path, mode):
  grey = Image.fromarray(PIXELS[0, ..., 0])
  file = tmp_path / 'image.png'
  grey.convert(mode).save(file)
  read = reader((8, 8, 1)).read
  np.testing.assert_array_equal(read(file), PIXELS[0])
  with file.open('rb') as opened:
    np.testing.assert_array_equal(read(opened), PIXELS[0])


def test_another_size_is_cut_and_resized(tmp_path):
  wide = np.random.default_rng(1).integers(0, 256, (16, 24), np.uint8)
  Image.fromarray(wide).save(tmp_path / 'wide.png')
  found = reader((8, 8, 1)).read(tmp_path / 'wide.png')
  expected = Image.fromarray(wide).resize(
    (8, 8), Image.Resampling.BILINEAR, (4, 0, 20, 16)
  )
  np.testing.assert_array_equal(found[..., 0], expected)


def test_notes_are_said_once_by_each_student(tmp_path, caplog):
  frames = [Image.new('L', (8, 8), value) for value in (0, 255)]
  frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
  for _ in range(2):
    read = reader((8, 8, 1)).read
    for _ in range(2):
      assert read(tmp_path / 'a.gif').max() == 0
  assert len(caplog.records) == 2


# The command


@pytest.fixture
def photos(tmp_path):
  """A folder of images, and of what is none."""
  folder = tmp_path / 'photos'
  (folder / 'more').mkdir(parents=True)
  (folder / '.hidden').mkdir()
  for place, name in enumerate(('b.PNG', 'a.jpg', 'more/c.webp', '.d.png')):
    image = Image.fromarray(PIXELS[place, ..., 0])
    image.convert('RGB').save(folder / name)
  (folder / 'text.png').write_text('no image')
  (folder / 'notes.txt').write_text('no image')
  # What systems leave in folders.
  (folder / 'Thumbs.db').touch()
  (folder / '__MACOSX').mkdir()
  shutil.copy(folder / 'b.PNG', folder / '__MACOSX')
  return folder


def lines(path, paths, batch_size=2, top=2, as_json=True):
  paths = list(map(str, paths))
  student = kdjax.load_student(path)
  files = [file for path in paths for file in classify_files.files_of(path)]
  found = list(classify_files.classify(student, files, batch_size))
  assert sum(some.images for some in found) == classify_files.count(paths)
  texts = [
    classify_files.describe(student, some, top, as_json=as_json)
    for some in found
  ]
  return '\n'.join(filter(None, texts)).splitlines()


def test_the_command_prints_a_table_and_names_what_it_leaves_out(path, photos):
  # Neither ends a line, steers the terminal, or is more than it can show; and
  # Pillow would warn of what is as large.
  Image.new('1', (9500, 9500)).save(photos / 'é\n\x1b[31m.bmp')
  (photos / 'x\r.txt').write_text('')
  done = run(
    f'--model={path}',
    '--top=2',
    str(photos),
    module='kdjax.predict',
    env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
  )
  assert done.returncode == 1
  assert done.stderr.endswith('\nerror: 3 of 7 files were left out\n')
  header, rule, *rows = done.stdout.splitlines()
  assert header.split()[:4] == ['file', 'class', '1', 'probability']
  assert set(rule) == {'-', ' '}
  names = ['a.jpg', 'b.PNG', 'more/c.webp']
  assert rows.pop(2).split()[0] == f'{photos}/\\xe9\\n\\x1b[31m.bmp'
  assert [row.split()[0] for row in rows] == [
    f'{photos}/{name}' for name in names
  ]
  found = kdjax.load_student(path)
  for row, name in zip(rows, names, strict=True):
    probabilities = found(found.read(photos / name)[None])[0]
    best = np.argsort(-probabilities)[:2]
    expected = [('abc'[i], f'{probabilities[i]:.2%}') for i in best]
    assert row.split()[1:] == [cell for pair in expected for cell in pair]
  assert f'left out: {photos}/x\\r.txt does not end with' in done.stderr
  assert 'Warning' not in done.stderr
  assert f'left out: {photos}/notes.txt does not end with' in done.stderr
  assert f'left out: cannot read {photos}/text.png' in done.stderr
  assert '.d.png' not in done.stderr


def test_json_has_a_line_for_each_file(path, photos):
  found = [json.loads(line) for line in lines(path, [photos])]
  records = [record for record in found if 'predictions' in record]
  left_out = [record for record in found if 'error' in record]
  assert [record['file'] for record in records] == [
    f'{photos}/{name}' for name in ('a.jpg', 'b.PNG', 'more/c.webp')
  ]
  assert {record['file']: record['error'][:11] for record in left_out} == {
    f'{photos}/notes.txt': f'{photos}'[:11],
    f'{photos}/text.png': 'cannot read',
  }
  for record in records:
    first, second = record['predictions']
    assert first['class'] in 'abc'
    assert 0 < second['probability'] <= first['probability'] < 1
  at_once = [json.loads(line) for line in lines(path, [photos], 100)]
  assert sorted(map(str, at_once)) == sorted(map(str, found))
  # No more classes than there are.
  (record,) = map(json.loads, lines(path, [photos / 'a.jpg'], top=9))
  total = sum(guess['probability'] for guess in record['predictions'])
  assert total == pytest.approx(1, abs=1e-6)


def test_a_name_in_any_encoding_is_shown(path, tmp_path):
  file = tmp_path / 'caf\udce9.png'
  Image.fromarray(PIXELS[0, ..., 0]).save(file)
  shown = f'{tmp_path}/caf\\udce9.png'
  assert json.loads(lines(path, [file])[0])['file'] == shown
  assert lines(path, [file], as_json=False)[-1].split()[0] == shown


@pytest.mark.parametrize(
  ('names', 'error', 'message'),
  [
    (['photos', 'nowhere'], FileNotFoundError, 'no file or folder .*nowhere'),
    (['empty'], ValueError, 'empty holds no images: expected files that end'),
  ],
)
def test_missing_images_are_an_error(photos, names, error, message):
  (photos.parent / 'empty').mkdir()
  (photos.parent / 'empty' / 'notes.txt').write_text('')
  with pytest.raises(error, match=message):
    classify_files.count([str(photos.parent / name) for name in names])


def test_names_of_classes_are_shown_escaped(path, photos):
  network = networks.load(path).network
  named = predictor.of_network(
    network, card_of((8, 8, 1), class_names=('a\n', 'b\x1b', 'ç'))
  )
  (some,) = classify_files.classify(named, [str(photos / 'a.jpg')], 1)
  text = classify_files.describe(named, some, 3, as_json=False)
  row = text.splitlines()[2].split()
  assert set(row[1::2]) == {'a\\n', 'b\\x1b', 'ç'}


def test_an_image_larger_than_memory_is_left_out(path, photos, caplog):
  def read(file):
    if file.endswith('a.jpg'):
      raise MemoryError
    return PIXELS[0]

  loaded = kdjax.load_student(path)
  loaded.read = read
  files = [str(photos / name) for name in ('a.jpg', 'b.PNG')]
  (some,) = classify_files.classify(loaded, files, 2)
  assert (some.images, some.files) == (2, files[1:])
  assert f'not enough memory for {files[0]}' in caplog.text


def test_nothing_that_can_be_read_is_an_error(path, photos):
  done = run(
    f'--model={path}', str(photos / 'text.png'), module='kdjax.predict'
  )
  assert done.returncode == 1
  assert done.stderr.endswith('error: none of the images can be read\n')


def test_a_platform_that_is_not_there_is_an_error(path, photos):
  done = run(
    f'--model={path}',
    str(photos),
    module='kdjax.predict',
    env={**os.environ, 'JAX_PLATFORMS': 'nowhere'},
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: JAX cannot use nowhere: ')
  assert done.stderr.count('\n') == 1


def test_what_reads_the_output_may_end_first(path, photos):
  reading, writing = os.pipe()
  os.close(reading)
  done = subprocess.run(
    command(f'--model={path}', str(photos / 'a.jpg'), module='kdjax.predict'),
    cwd=ROOT,
    stdout=writing,
    stderr=subprocess.PIPE,
    check=False,
  )
  os.close(writing)
  assert (done.returncode, done.stderr) == (141, b'')


@pytest.fixture
def labelled(tmp_path):
  """Nine images, three of each class that `path` knows, and a damaged one."""
  folder = tmp_path / 'labelled'
  for index, pixels in enumerate(PIXELS[:9, ..., 0]):
    place = folder / 'abc'[index % 3] / f'{index}.png'
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place)
  return folder


def test_a_labelled_folder_is_measured(path, labelled):
  student = kdjax.load_student(path)
  measured = labelled_folder.classify(student, str(labelled), 4)
  assert [file[len(str(labelled)) :] for file in measured.files] == [
    f'/{name}/{index}.png'
    for start, name in enumerate('abc')
    for index in range(start, len(PIXELS[:9]), 3)
  ]
  order = [int(pathlib.Path(file).stem) for file in measured.files]
  np.testing.assert_array_equal(measured.labels, [i % 3 for i in order])
  np.testing.assert_allclose(
    np.exp(measured.logits), student(PIXELS[order]), rtol=1e-5
  )
  right = measured.logits.argmax(axis=-1) == measured.labels
  shown = labelled_folder.table(measured)
  assert f'{right.mean():.2%}' in shown
  matrix = [line.split()[1:] for line in shown.splitlines()[-3:]]
  assert np.trace(np.array(matrix, int)) == right.sum()


def test_the_command_measures_a_folder(path, labelled, tmp_path):
  (labelled / 'a' / 'text.png').write_text('no image')
  output = tmp_path / 'predictions.csv'
  done = run(
    f'--model={path}',
    f'--images={labelled}',
    f'--output={output}',
    module='kdjax.evaluate',
  )
  assert done.returncode == 1
  count = len(PIXELS[:9])
  assert done.stderr.endswith(f'error: 1 of {count + 1} files were left out\n')
  assert 'else taken for' in done.stdout
  with output.open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == count
  assert rows[0]['file'] == f'{labelled}/a/0.png'
  assert {row['label'] for row in rows} == set('abc')


def test_a_folder_of_no_class_is_refused(path, labelled):
  (labelled / 'a').rename(labelled / 'd')
  with pytest.raises(
    ValueError, match=r'has the folders d, .*expected a, b, c'
  ):
    labelled_folder.classify(kdjax.load_student(path), str(labelled), 4)
