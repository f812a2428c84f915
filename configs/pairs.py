"""The pairs of networks that papers on distillation compare on CIFAR-100.

  python -m kdjax.main --config=configs/pairs.py:resnet56_resnet20
  python -m kdjax.main --config=configs/pairs.py:vgg13_mobilenetv2 --mode=crd

`pairs.py:NAME`, NAME a key of `PAIRS`, the teacher first; the method is `kd`
unless --mode names another, and each is told which stages of the two networks
belong together. The networks and the recipe are those of Tian et al., 2019,
https://arxiv.org/abs/1910.10699: SGD 0.05 (0.01 for MobileNetV2 and
ShuffleNets), weight decay 5e-4, batches of 64, 240 epochs for each network, the
learning rate divided by ten after 150, 180 and 210 of them. The teacher is
trained first, if there is none in the run directory beside.

Cost: not measured; an accelerator is needed. For the digits in minutes add
--config.data.name=digits --config.train.epochs=2
--config.teacher.train.epochs=2 --config.data.flip=False.
"""

import ml_collections

from kdjax import config as config_lib

PAIRS = {
  'wrn40_2_wrn16_2': ('wrn_40_2', 'wrn_16_2'),
  'wrn40_2_wrn40_1': ('wrn_40_2', 'wrn_40_1'),
  'resnet56_resnet20': ('resnet56', 'resnet20'),
  'resnet110_resnet20': ('resnet110', 'resnet20'),
  'resnet110_resnet32': ('resnet110', 'resnet32'),
  'resnet32x4_resnet8x4': ('resnet32x4', 'resnet8x4'),
  'vgg13_vgg8': ('vgg13', 'vgg8'),
  'vgg13_mobilenetv2': ('vgg13', 'mobilenetv2'),
  'resnet50_mobilenetv2': ('resnet50', 'mobilenetv2'),
  'resnet50_vgg8': ('resnet50', 'vgg8'),
  'resnet32x4_shufflenetv1': ('resnet32x4', 'shufflenetv1'),
  'resnet32x4_shufflenetv2': ('resnet32x4', 'shufflenetv2'),
  'wrn40_2_shufflenetv1': ('wrn_40_2', 'shufflenetv1'),
}
# Height of the maps of each stage, of images of 32×32; 32, 16 and 8 of others.
_SIZES = {
  'resnet50': (32, 16, 8, 4),
  'vgg8': (32, 16, 8, 4),
  'vgg13': (32, 16, 8, 4),
  'mobilenetv2': (16, 8, 4, 2),
  'shufflenetv1': (16, 8, 4),
  'shufflenetv2': (16, 8, 4),
}


def get_config(name: str = 'resnet56_resnet20') -> ml_collections.ConfigDict:
  """Returns the configuration of a pair."""
  if name not in PAIRS:
    raise ValueError(
      f"unknown pair '{name}': expected one of {', '.join(PAIRS)}"
    )
  teacher, student = PAIRS[name]
  config = config_lib.default()
  config.data.name = 'cifar100'
  config.method.name = 'kd'
  config.student.name = student
  config.teacher.name = teacher
  config.teacher.sibling = f'teacher_{teacher}'
  config.teacher.train.epochs = config.train.epochs = 240
  config.train.schedule = 'step'
  config.train.milestones = (150, 180, 210)
  config.train.warmup_epochs = 0.0
  config.train.batch_size = 64
  small = student.startswith(('mobile', 'shuffle'))
  config.train.learning_rate = 0.01 if small else 0.05
  config.teacher.train.learning_rate = 0.05
  _set_features(config.method, teacher, student)
  return config


def _set_features(
  method: ml_collections.ConfigDict, teacher: str, student: str
) -> None:
  """Tells each method which features of the two networks it compares."""
  sizes = {name: _SIZES.get(name, (32, 16, 8)) for name in (teacher, student)}
  equal = [
    (i, sizes[teacher].index(size))
    for i, size in enumerate(sizes[student])
    if size in sizes[teacher]
  ]
  last = len(sizes[student]) - 1
  ours = [f'stage{i + 1}' for i, _ in equal]
  theirs = [f'stage{j + 1}' for _, j in equal]
  for name in ('at', 'nst', 'vid', 'feature', 'reviewkd', 'ofd'):
    method[name].student_features = tuple(ours)
    method[name].teacher_features = tuple(theirs)
  before = tuple(_before_relu(teacher)[j] for _, j in equal)
  method.reviewkd.teacher_features = before
  method.ofd.teacher_features = before
  method.ofd.student_features = tuple(
    _before_relu(student)[i] for i, _ in equal
  )
  method.ofd.teacher_norms = tuple(_norms(teacher)[j] for _, j in equal)
  for name, index in ('fitnet', 1), ('ickd', -1), ('wkd_f', -1):
    method[name].student_feature = ours[index]
    method[name].teacher_feature = theirs[index]
  # Networks of a pair have equally many stages, and the mean of the last is
  # what their last layers are given.
  for name in ('cc', 'crd', 'dcd', 'itrd', 'pkt', 'rkd', 'sp', 'srd'):
    method[name].student_feature = f'stage{last + 1}'
    method[name].teacher_feature = f'stage{last + 1}'
  for name in ('cat_kd', 'sdd', 'srrl'):
    method[name].feature = f'stage{last + 1}'
  method.uskd.feature = f'stage{last}'
  method.byot.features = tuple(f'stage{i}' for i in range(1, last + 1))
  method.byot.last = f'stage{last + 1}'


def _before_relu(network: str) -> list[str]:
  """Names what the ReLU after each stage is given."""
  stages = len(_SIZES.get(network, (32, 16, 8)))
  if network.startswith('wrn'):
    # The BatchNorm after a stage is the next one's first.
    return ['stage2/block1/bn1', 'stage3/block1/bn1', 'stage3/preact']
  return [f'stage{i}/preact' for i in range(1, stages + 1)]


def _norms(network: str) -> list[str]:
  """Names the BatchNorm before the ReLU after each stage of a teacher."""
  if network.startswith('wrn'):
    return ['stage2/block1/bn1', 'stage3/block1/bn1', 'stage3/bn']
  if network == 'vgg13':
    return ['stage1/bn2', 'stage2/bn2', 'stage3/bn2', 'stage4/bn4']
  if network == 'resnet50':
    return [f'stage{i}/block{n}/bn3' for i, n in enumerate((3, 4, 6, 3), 1)]
  depth = int(network.removeprefix('resnet').partition('x')[0])
  return [f'stage{i}/block{(depth - 2) // 6}/bn2' for i in (1, 2, 3)]
