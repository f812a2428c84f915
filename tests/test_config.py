"""Configurations: the files in configs/, inheritance and checks."""

import importlib.util
import math
import pathlib

import pytest

from kdjax import config as config_lib
from kdjax import methods
from kdjax.storage import run_directory
from kdjax.sweep import plan

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'


def load(name, *variant):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*variant)


@pytest.mark.parametrize('name', methods.names())
def test_every_method_has_a_configuration(name):
  config = load('methods', name)
  config_lib.validate(config)
  assert config.method.name == name
  # The weights are the authors', the defaults but for what CIFAR needs.
  defaults = methods.defaults(name)
  if name != 'wkd_l':
    assert config.method[name].to_dict() == defaults
  for text in config.method.schedule:
    assert text.partition('=')[0] in defaults


def test_a_method_that_is_unknown_has_no_configuration():
  with pytest.raises(ValueError, match="unknown method 'nonsense'"):
    load('methods', 'nonsense')


@pytest.mark.parametrize('variant', ['cifar', 'digits'])
def test_the_patient_recipe_has_no_labels_and_mixes_images(variant):
  config = load('patient', variant)
  config_lib.validate(config)
  assert config.method.kd.ce_weight == 0
  assert config.data.mixup == 1
  assert config.train.epochs >= 60


SWEEPS = ('quickstart_sweep', 'sweep')


@pytest.mark.parametrize(
  'file', sorted({path.stem for path in CONFIGS.glob('*.py')} - {*SWEEPS})
)
def test_every_file_is_valid_and_tells_its_command(file):
  config = load(file)
  if file == 'finetune_teacher':
    with pytest.raises(ValueError, match=r'config\.student\.init_from names'):
      config_lib.validate(config)
    config.student.init_from = 'weights.pth'
  config_lib.validate(config)
  text = (CONFIGS / f'{file}.py').read_text()
  assert f'python -m kdjax.main --config=configs/{file}.py' in text


@pytest.mark.parametrize(
  ('file', 'variant', 'sizes'),
  [
    ('quickstart_sweep', 'comparison', [9]),
    ('quickstart_sweep', 'tuning', [10, 10]),
    ('sweep', 'comparison', [15]),
    ('sweep', 'published_sum', [15]),
    ('sweep', 'few_images', [15]),
    ('sweep', 'tuning', [10, 10]),
    ('sweep', 'tuned', [10, 10, 5, 15]),
    ('sweep', 'reduced', [4, 5, 3, 15]),
  ],
)
def test_every_sweep_has_the_runs_that_it_promises(file, variant, sizes):
  config = load(file, variant)
  found = [plan.runs(config, stage, {}) for stage in config.stages]
  assert [len(runs) for runs in found] == sizes
  text = (CONFIGS / f'{file}.py').read_text()
  assert f'python -m kdjax.sweep --config=configs/{file}.py' in text
  assert load(file).to_json() == load(file, 'comparison').to_json()


def test_a_sweep_is_not_taken_for_a_run():
  with pytest.raises(ValueError, match=r'belongs to kdjax\.sweep'):
    config_lib.normalize(load('sweep'))


@pytest.mark.parametrize(
  ('file', 'variant', 'settings'),
  [
    (
      'fkd',
      'sum',
      {'ce_weight': 1.0, 'feature_weight': 0.1, 'reduction': 'sum'},
    ),
    (
      'fkd',
      'mean',
      {'ce_weight': 0.3, 'feature_weight': 0.7, 'reduction': 'mean'},
    ),
    ('rkd', 't4', {'temperature': 4.0, 'alpha': 0.5}),
    ('rkd', 't2', {'temperature': 2.0, 'alpha': 0.7}),
  ],
)
def test_published_variants_are_there_by_name(file, variant, settings):
  config = load(file, variant)
  chosen = config.method[config.method.name].to_dict()
  assert settings.items() <= chosen.items()
  adam = variant in ('sum', 't4')
  assert config.train.epochs == 20
  assert config.teacher.train.epochs == (20 if adam else 60)
  if adam:
    assert config_lib.teacher_run(config).train.learning_rate == 0.001


@pytest.mark.parametrize('file', ['fkd', 'rkd', 'scratch', *SWEEPS])
def test_unknown_variants_are_refused(file):
  with pytest.raises(ValueError, match='unknown variant'):
    load(file, 'nonsense')


def test_response_and_feature_runs_share_their_teacher():
  for variants in (('mean', 't2'), ('sum', 't4')):
    feature, response = load('fkd', variants[0]), load('rkd', variants[1])
    assert feature.teacher.sibling == response.teacher.sibling
    assert run_directory.as_json(
      config_lib.teacher_run(feature)
    ) == run_directory.as_json(config_lib.teacher_run(response))
  assert run_directory.as_json(load('teacher')) == run_directory.as_json(
    config_lib.teacher_run(load('fkd'))
  )


def test_teacher_inherits_what_it_is_not_given():
  config = config_lib.default()
  config.student.stem = 'imagenet'
  config.train.batch_size = 7
  config.train.max_steps = 5
  config.teacher.train.max_steps = 9
  config.teacher.seed = 3
  run = config_lib.teacher_run(config)
  assert run.student.to_dict() == config.student.to_dict() | {
    'name': 'resnet50'
  }
  assert (run.train.batch_size, run.train.max_steps) == (7, 9)
  assert (run.train.epochs, run.seed) == (60, 3)
  assert run.method.name == 'scratch'
  assert config.student.name == 'resnet18'


def test_misspelt_fields_cannot_be_set():
  config = config_lib.default()
  with pytest.raises(AttributeError):
    config.train.learnign_rate = 0.1
  with pytest.raises(AttributeError):
    config_lib.teacher_run(config).tarin = 1


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('train.epochs', 0),
    ('train.max_steps', -1),
    ('train.batch_size', 0),
    ('train.optimizer', 'sdg'),
    ('train.learning_rate', 0.0),
    ('train.schedule', 'linear'),
    ('train.warmup_epochs', -1.0),
    ('train.momentum', 1.0),
    ('train.weight_decay', -0.1),
    ('train.clip_norm', -1.0),
    ('train.label_smoothing', 1.0),
    ('data.validation_fraction', 1.0),
    ('data.crop_padding', -1),
    ('data.image_size', -1),
    ('data.random_resized_crop', 1.5),
    ('data.workers', -1),
    ('data.corrupt', 'ignore'),
    ('eval.batch_size', 0),
    ('checkpoint.keep', 0),
    ('log.every_steps', 0),
    ('teacher.checkpoint', 'first'),
  ],
)
def test_values_that_make_no_sense_are_named(field, value):
  config = config_lib.default()
  section, key = field.split('.')
  config[section][key] = value
  with pytest.raises(ValueError, match=rf'config\.{field} is {value!r}'):
    config_lib.validate(config)


@pytest.mark.parametrize(
  'missing', [{'streaming': False}, {'image_size': 0}, {'crop_padding': 4}]
)
def test_random_crops_say_what_they_need(missing):
  config = config_lib.default()
  config.data.update(
    random_resized_crop=0.1, streaming=True, image_size=8, crop_padding=0
  )
  config_lib.validate(config)
  config.data.update(missing)
  with pytest.raises(ValueError, match='it needs streaming, an image size'):
    config_lib.validate(config)


def test_method_settings_are_checked():
  config = config_lib.default()
  config.method.name = 'response'
  config.method.response.temperature = 0.0
  with pytest.raises(ValueError, match='temperature is 0'):
    config_lib.validate(config)
  config.method.name = 'nonsense'
  with pytest.raises(ValueError, match="unknown method 'nonsense'"):
    config_lib.validate(config)


def test_a_field_has_its_whole_name_where_the_end_is_not_enough():
  assert config_lib.short_names(['student.name', 'data.name', 'seed']) == {
    'student.name': 'student.name',
    'data.name': 'data.name',
    'seed': 'seed',
  }


def test_a_teacher_with_a_fresh_head_begins_with_what_path_names():
  config = config_lib.default()
  config.student.init_from = 'mine'
  config.teacher.path = 'theirs'
  assert config_lib.teacher_run(config).student.init_from == ''
  config.teacher.head = 'fresh'
  student = config_lib.teacher_run(config).student
  assert (student.init_from, student.head) == ('theirs', 'fresh')
  assert (student.name, student.stem, student.width) == ('', '', 0)


@pytest.mark.parametrize(
  ('section', 'fields', 'message'),
  [
    ('student', {'width': 0}, r'init_from names a network'),
    ('student', {'head': 'none'}, r"student\.head is 'none'"),
    ('teacher', {'head': 'fresh'}, r'names no network'),
    ('teacher', {'mean': (0.5,)}, r'as many numbers in both'),
    (
      'teacher',
      {'mean': (123.675,), 'std': (58.395,)},
      r'teacher.mean and .std are .* from 0 to 255: .* 0\.485 and 0\.229$',
    ),
    ('teacher', {'mean': ('a',), 'std': (1.0,)}, r"mean is \('a',\): expected"),
    ('teacher', {'mean': (math.nan,), 'std': (1.0,)}, 'finite numbers$'),
    ('teacher', {'mean': (0.5,), 'std': (math.inf,)}, 'finite numbers above 0'),
    ('teacher', {'mean': (0.5,), 'std': (0.0,)}, r'std is \(0\.0,\): expected'),
  ],
)
def test_a_beginning_that_makes_no_sense_is_refused(section, fields, message):
  config = config_lib.default()
  config[section].update(fields)
  with pytest.raises(ValueError, match=message):
    config_lib.validate(config)


NUMBERS = sorted(
  field
  for field, value in config_lib.flatten(config_lib.default()).items()
  if isinstance(value, int | float) and not isinstance(value, bool)
)


@pytest.mark.parametrize('field', [*NUMBERS, 'teacher.width'])
@pytest.mark.parametrize(
  'value', [math.inf, math.nan, 1e-320, -1, 10**12, 2**63]
)
def test_no_number_is_beyond_all_measure(field, value):
  config = config_lib.default()
  is_float = isinstance(config_lib.flatten(config)[field], float)
  if isinstance(value, float) and not is_float:
    return  # Fields have types.
  section, _, name = field.partition('.')
  if section == 'method':
    config.method.name = name.partition('.')[0]
  with config.unlocked():
    config.update_from_flattened_dict({field: value})
  said = ''
  try:
    config_lib.validate(config)
  except ValueError as error:
    said = str(error)
  if said:
    assert field.removeprefix('method.') in said
    assert '\n' not in said
  else:
    # Large, and yet no more than float32 holds.
    assert is_float
    assert value > 1


def test_a_home_directory_is_expanded_in_every_path(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  config = config_lib.default()
  config.data.data_dir = '~/data'
  config.student.init_from = '~/a.pth'
  config.teacher.update(path='~/t', replay='~', ensemble=('~/b', 'c~'))
  found = config_lib.normalize(config)
  assert found.data.data_dir == '/home/me/data'
  assert found.student.init_from == '/home/me/a.pth'
  assert (found.teacher.path, found.teacher.replay) == (
    '/home/me/t',
    '/home/me',
  )
  assert found.teacher.ensemble == ('/home/me/b', 'c~')
  assert config.teacher.path == '~/t'


def test_names_in_one_text_are_several(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'x,y').touch()
  config = config_lib.default()
  config.teacher.ensemble = ('a, b', 'x,y', '')
  config.device.remat = ('stage1,stage2',)
  config.method.feature.student_features = ('stage3,stage4',)
  config.method.feature.teacher_features = ('stage1', 'stage2')
  config.teacher.mean = config.teacher.std = (0.5, 0.5)
  found = config_lib.normalize(config)
  assert found.teacher.ensemble == ('a', 'b', 'x,y')
  assert found.device.remat == ('stage1', 'stage2')
  assert found.method.feature.student_features == ('stage3', 'stage4')
  assert found.method.feature.teacher_features == ('stage1', 'stage2')
  assert found.teacher.mean == (0.5, 0.5)
