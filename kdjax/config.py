"""Every field of a run's configuration, once, with its unit and meaning."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from kdjax import methods
from kdjax.models import normalization
from kdjax.system import float32

PATHS = (
  'student.init_from',
  'data.data_dir',
  'teacher.path',
  'teacher.ensemble',
  'teacher.replay',
)
"""The fields that are paths. `teacher.sibling` is a name beside the run."""

# The fields of a network that `kdjax.models.build` takes.
_NETWORK = 'name', 'stem', 'width', 'dtype'


class Settings(ConfigDict):
  """A configuration that prints as nested settings.

  Those of methods that it does not use are left out.
  """

  def __str__(self) -> str:
    """Lists the fields, a line each."""
    return '\n'.join(_lines(self, self.get('method', {}).get('name')))

  __repr__ = __str__


def _lines(
  section: ConfigDict, method: str | None, indent: str = ''
) -> list[str]:
  lines = []
  for name, value in section.items():
    if not isinstance(value, ConfigDict):
      lines.append(f'{indent}{name}: {value!r}')
    elif name == method or name not in methods.names():
      lines += [f'{indent}{name}:', *_lines(value, method, f'{indent}  ')]
  return lines


def default() -> ConfigDict:
  """Returns the configuration that the files in `configs/` start from.

  A field under `teacher` that is None takes the student's value: the compute
  dtype and, where a teacher must be trained, the stem and most of the recipe
  are the same for both unless the teacher is given its own.

  Returns:
    A new configuration. Unknown fields cannot be set.
  """
  config = Settings()
  # Determines initial parameters, order of examples, crops and flips.
  config.seed = 0
  config.method = _method()
  config.student = _student()
  config.data = _data()
  config.train = _training()
  config.device = ConfigDict(
    {
      # Training steps in one dispatch; changes speed only. 0 for 1 on CPU and
      # about 32 on an accelerator.
      'steps_per_dispatch': 0,
      # Modules of the student, 'stage1' … 'stage4' of a ResNet, whose
      # activations are computed again in the backward pass
      # (rematerialization); changes memory and speed only. () for none.
      'remat': (),
    }
  )
  config.eval = ConfigDict(
    {
      'batch_size': 500,  # images; changes speed and memory only
      'every_epochs': 1,  # validate, and save a checkpoint, so often
    }
  )
  config.checkpoint = ConfigDict(
    {
      'keep': 2,  # last checkpoints kept, validated or not, beside the best
      # Also save after so many steps, at the end of a dispatch; 0 for at
      # validations only.
      'every_steps': 0,
    }
  )
  config.log = ConfigDict(
    {
      'every_steps': 50,  # steps between two lines of training metrics
      'tensorboard': True,  # write TensorBoard events as well
      'trackers': (),  # also send metrics to 'wandb', 'mlflow'
      'project': 'kdjax',  # project of W&B, experiment of MLflow
    }
  )

  config.teacher = _teacher(config.train)
  return config.lock()


def _method() -> ConfigDict:
  """The fields of `method`: its name, and the settings of each method.

  T and α of `response`; the weights, reduction and feature names of `feature`;
  and so on.
  """
  section = ConfigDict({'name': 'scratch'})
  for name in methods.names():
    # One that cannot be imported is an error where it is used.
    with contextlib.suppress(ValueError):
      section[name] = methods.defaults(name)
  # Hyperparameters that change over the epochs, each 'NAME=KIND:EPOCHS', such
  # as 'weight=linear:20'; KIND:EPOCHS is linear:N, cosine:N or decay:A:B.
  section.schedule = ()
  # Settings of a method of your own, whose name is an import path.
  section.custom = ConfigDict()
  return section


def _student() -> ConfigDict:
  """The fields of `student`, the model that is trained and kept."""
  return ConfigDict(
    {
      # A name of kdjax.models.names(), or the import path of a Flax module,
      # 'package.module:attribute', which is given those of the fields below
      # that it takes.
      'name': 'resnet18',
      # 'cifar' (3×3, stride 1), 'cifar_pool' (that and a max-pool) or
      # 'imagenet' (7×7, stride 2, and a max-pool).
      'stem': 'cifar',
      'width': 64,  # channels of the first stage
      'dtype': 'float32',  # of the computation: 'float32' or 'bfloat16'
      # Initial weights and BatchNorm statistics: a run, an export or a weight
      # file, as in `teacher.path`; '' for random ones. Where name and stem are
      # '' and width is 0, the network is the one found there.
      'init_from': '',
      # The last layer of the initial weights: 'keep' it, which needs the same
      # number of classes, or make a 'fresh' one at random.
      'head': 'keep',
    }
  )


def _data() -> ConfigDict:
  """The fields of `data`."""
  return ConfigDict(
    {
      # 'digits' or 'synthetic'; 'image_folder', 'arrays', 'table' or 'parquet'
      # for files of your own; the import path of a function, 'mine.data:load';
      # or the name of a TFDS data set.
      'name': 'cifar10',
      # Those files, or where TFDS keeps data sets; '' for its default.
      'data_dir': '',
      # Column of the labels in a table or in Parquet; '' for the usual one.
      'label_column': '',
      'validation_fraction': 0.1,  # of train, where the set has no such split
      # Split off the same share of each class, one image of it at least; by
      # default images are drawn from all of train.
      'stratify': False,
      'train_limit': 0,  # use only so many training images; 0 for all
      'train_fraction': 1.0,  # use this share of each class's training images
      # Share of each class's training images whose label is used; the others
      # have the teacher alone. The cross-entropy of an image without a label
      # is 0, and the mean is that of all images.
      'label_fraction': 1.0,
      # Share of the training labels that are those of another class, each as
      # likely (symmetric noise). Validation and test labels stay right.
      'label_noise': 0.0,
      # Draws which images, labels and wrong labels these three are.
      'subset_seed': 0,
      'crop_padding': 4,  # pixels added on each side before a random crop
      'flip': True,  # mirror half of the training images
      # Change each training image by one random operation of random strength
      # (TrivialAugment, https://arxiv.org/abs/2103.10158).
      'trivial_augment': False,
      'cutout': 0,  # pixels on a side of a black square; 0 for none
      # α of the Beta distribution of the share that images are averaged in, and
      # their labels too (mixup, https://arxiv.org/abs/1710.09412); 0 for none.
      'mixup': 0.0,
      # The same of the area that stays when a rectangle of another image covers
      # the rest (CutMix, https://arxiv.org/abs/1905.04899). With both, each
      # image has one of them.
      'cutmix': 0.0,
      # Height and width in pixels that images are resized to, after a centre
      # crop; 0 leaves them as they are, and all must have one size then.
      'image_size': 0,
      # Smallest share of the image's area in a random crop of a training image
      # before it is resized to `image_size` (0.08 is usual on ImageNet); 0 for
      # the centre crop. Needs `streaming`, and `crop_padding` 0.
      'random_resized_crop': 0.0,
      # Read and decode images during training, for data that do not fit in
      # memory. Batches are the same; each step is dispatched by itself.
      'streaming': False,
      # Worker processes that decode a stream; 0 for threads.
      'workers': 0,
      # An unreadable image is an 'error', or left out ('skip'); in training
      # the next readable one takes its place.
      'corrupt': 'error',
    }
  )


def _training() -> ConfigDict:
  """The fields of a training recipe."""
  return ConfigDict(
    {
      'epochs': 20,
      'max_steps': 0,  # stop after so many steps; 0 for no such limit
      'batch_size': 128,  # images
      # Gradient accumulation: number of equal microbatches of a batch, computed
      # one after the other to save memory, for one update with the mean of
      # their gradients; 1 for none. BatchNorm normalizes each by itself and
      # updates its running statistics after each.
      'accumulate': 1,
      # 'sgd' (Nesterov momentum), 'adamw', 'lion' or 'muon', of optax.
      'optimizer': 'sgd',
      # Further arguments of that function of optax, each 'NAME=VALUE', such
      # as 'b2=0.95'.
      'optimizer_options': (),
      'learning_rate': 0.1,  # at its peak
      # 'cosine' (to zero), 'constant', 'step' or 'polynomial' (to zero).
      'schedule': 'cosine',
      # Of 'step': the epochs after which the rate is multiplied by `decay`.
      'milestones': (),
      'decay': 0.1,
      'power': 1.0,  # of 'polynomial'; 1 is linear
      'warmup_epochs': 1.0,  # the learning rate rises linearly from zero
      'momentum': 0.9,  # SGD only
      'weight_decay': 5e-4,  # on kernels only
      'clip_norm': 0.0,  # largest norm of the gradient; 0 for no clipping
      'label_smoothing': 0.0,  # from 0 to 1
      # 'balanced' multiplies the whole loss of each image by what its class has
      # fewer of: images / (classes · images of the class), 1 on average and for
      # an image without a label. 'none' for 1.
      'class_weights': 'none',
      # At a non-finite loss or gradient 'stop' the run, or 'skip' the update
      # and continue; 50 such steps in a row stop it too.
      'nonfinite': 'stop',
      # Decay of the exponential moving average (EMA) of weights and BatchNorm
      # statistics, such as 0.999; smaller in the first steps. 0 for none. It is
      # evaluated and saved beside the weights, which alone choose the best
      # epoch and teach.
      'ema_decay': 0.0,
    }
  )


def _teacher(training: ConfigDict) -> ConfigDict:
  """The fields of `teacher`, with those of its own training."""
  section = ConfigDict(
    {
      # A pretrained network: a finished run of kdjax, an export, weights of a
      # ResNet (.safetensors, .pth, …) or variables of any Flax module
      # (kdjax/storage/flax_variables.py). Or precomputed logits of the training
      # images (.npz, kdjax/storage/logits_file.py), for a method that needs
      # nothing else. '' for the run directory `sibling` beside this run's,
      # where a teacher is trained first if there is none.
      'path': '',
      # An ensemble: several paths as above, `path` being '' then, and what is
      # averaged, their 'probabilities' or their 'logits'. Features are called
      # 'member1/stage1', ….
      'ensemble': (),
      'average': 'probabilities',
      # 'fresh' trains a teacher from the weights that `path` names with a new
      # last layer, for a network of other classes. Set `train.epochs` and
      # `train.learning_rate` as in configs/finetune_teacher.py: the defaults
      # are for random weights.
      'head': 'keep',
      # Mean and standard deviation of each channel of its images, scaled to
      # 0 … 1, where the file at `path` has none: () for ImageNet's if it has
      # 1,000 classes, else for those of this run's data. A run is refused if
      # others give a clearly better accuracy on held-out images.
      'mean': (),
      'std': (),
      'sibling': 'teacher',
      'checkpoint': 'best',  # 'best' by validation accuracy, or 'last'
      # A directory that caches the teacher's logits, for a method that needs
      # nothing else: computed once, and replayed by every run with the same
      # seed, data, batch size and augmentation. '' computes them in each step.
      # Stored as 'float32', or in half the space as 'bfloat16'.
      'replay': '',
      'replay_dtype': 'float32',
      # The settings of its training. Name and stem also describe the network
      # of a weight file that does not say so itself.
      'seed': 0,
      'name': 'resnet50',
      'stem': placeholder(str),
      'width': placeholder(int),
      'dtype': placeholder(str),
      'train': {
        field: placeholder(type(value)) for field, value in training.items()
      },
    }
  )
  section.train.epochs = 60
  # A teacher's moving averages would not be used.
  section.train.ema_decay = 0.0
  return section


def set_adam_recipe(config: ConfigDict) -> None:
  """Sets the shorter of the two published training recipes.

  Learning rate 0.001 and 20 epochs for all models, teacher included. Its
  optimiser is not stated; that learning rate is Adam's. It has a teacher of
  its own, in the run directory `teacher_adam`.

  Args:
    config: a configuration, changed in place.
  """
  config.train.optimizer = 'adamw'
  config.train.learning_rate = 0.001
  config.train.weight_decay = 0.0
  config.train.schedule = 'constant'
  config.train.warmup_epochs = 0.0
  config.train.epochs = 20
  config.teacher.train.epochs = 20
  config.teacher.sibling = 'teacher_adam'


def set_digits_recipe(config: ConfigDict) -> None:
  """Sets scikit-learn's digits and a recipe that suits them.

  Eight epochs for each network, minutes on two CPU cores; the teacher is in the
  run directory `quickstart_teacher`.

  Args:
    config: a configuration, changed in place.
  """
  config.data.name = 'digits'
  # A mirrored digit is none, and few epochs leave no time for crops.
  config.data.flip = False
  config.data.crop_padding = 0
  config.train.epochs = 8
  config.train.batch_size = 64
  config.train.optimizer = 'adamw'
  config.train.learning_rate = 0.003
  config.train.weight_decay = 0.05
  config.train.label_smoothing = 0.1
  config.eval.every_epochs = 2
  config.log.every_steps = 10
  config.teacher.sibling = 'quickstart_teacher'
  config.teacher.train.epochs = 8


def teacher_run(config: ConfigDict) -> ConfigDict:
  """Derives the configuration of the run that trains the teacher.

  Args:
    config: configuration of a distillation run.

  Returns:
    Configuration of a run without distillation whose student is that teacher.
  """
  run = config.copy_and_resolve_references()
  run.seed = config.teacher.seed
  run.method.name = 'scratch'
  for field in _NETWORK:
    if config.teacher[field] is not None:
      run.student[field] = config.teacher[field]
  run.student.update(init_from='', head='keep')
  if config.teacher.head == 'fresh':
    run.student.update(
      name='',
      stem=config.teacher.stem or '',
      width=0,
      init_from=config.teacher.path,
      head='fresh',
    )
  for field, value in config.teacher.train.items():
    if value is not None:
      run.train[field] = value
  # What concerns other methods and the teacher's teacher says nothing of this
  # run, and must not make it differ from the same teacher's run elsewhere.
  fresh = default()
  run.method.update(fresh.method)
  run.teacher.update(fresh.teacher)
  return run


def is_logits(path: str) -> bool:
  """Whether a path is that of a file of logits, by its name."""
  return path.endswith('.npz')


def has_logits(config: ConfigDict) -> bool:
  """Whether the teacher of a run is a file of logits, and no network.

  Args:
    config: the run's configuration.
  """
  return is_logits(config.teacher.path)


def model_arguments(config: ConfigDict, num_classes: int) -> dict[str, Any]:
  """Returns the arguments that `kdjax.models.build` makes the student with.

  Args:
    config: a run's configuration.
    num_classes: number of classes of its data set.

  Returns:
    The arguments by name.
  """
  student = config.student
  return {
    'num_classes': num_classes,
    **{field: student[field] for field in _NETWORK},
  }


def build_method(config: ConfigDict) -> tuple[methods.Method, dict[str, float]]:
  """Builds the method of a run.

  Args:
    config: a run's configuration.

  Returns:
    The method, and the value of each of its hyperparameters.

  Raises:
    ValueError: as `kdjax.methods.build`.
  """
  name = config.method.name
  return methods.build(name, config.method.get(method_section(name), {}))


def method_section(name: str) -> str:
  """Returns the section of `config.method` with the settings of a method.

  Args:
    name: the method's name, or its import path.
  """
  return 'custom' if ':' in name else name


def short_names(fields: Sequence[str]) -> dict[str, str]:
  """Shortens names of fields to their last part, where that is unique.

  Args:
    fields: dotted names, such as `method.response.temperature`.

  Returns:
    For each of them a name that tells it from the others.
  """
  last = [field.rpartition('.')[2] for field in fields]
  return {
    field: name if last.count(name) == 1 else field
    for field, name in zip(fields, last, strict=True)
  }


# What each field's value must satisfy, and how to say so.
_Check = tuple[Callable[[Any], bool], str]


def _range(low: float, high: float) -> _Check:
  return (lambda value: low <= value <= high, f'from {low:,} to {high:,}')


# No number of examples or steps is larger; indices are int32.
_MOST = 2**31 - 1
_NUMBER_OR_ZERO = _range(0, _MOST)
_POSITIVE = _range(1, _MOST)
_FRACTION = (lambda value: 0 <= value < 1, 'from 0 to less than 1')
_SHARE = (lambda value: 0 < value <= 1, 'above 0, to 1')
_AMOUNT = (lambda value: value >= 0, '0 or more')
# Of a number that says nothing else; as a rule it counts something.
_INTEGER = _NUMBER_OR_ZERO
_FLOAT = (
  float32.holds,
  f'a number that float32 holds: 0, or from {float32.TINY:.1e} to '
  f'{float32.HUGE:.1e}',
)


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
  return (lambda value: value in values, ' or '.join(map(repr, values)))


_DTYPE = _one_of('float32', 'bfloat16')
_HEAD = _one_of('keep', 'fresh')

_CHECKS: dict[str, _Check] = {
  'student.dtype': _DTYPE,
  'student.width': _range(0, 65_536),
  'student.head': _HEAD,
  'data.validation_fraction': _FRACTION,
  'data.train_limit': _NUMBER_OR_ZERO,
  'data.train_fraction': _SHARE,
  'data.label_fraction': _SHARE,
  'data.label_noise': _FRACTION,
  'data.crop_padding': _range(0, 16_384),
  'data.cutout': _range(0, 16_384),
  'data.mixup': _range(0, 1000),
  'data.cutmix': _range(0, 1000),
  'data.image_size': _range(0, 16_384),
  'data.random_resized_crop': _range(0, 1),
  'data.workers': _range(0, 1024),
  'data.corrupt': _one_of('error', 'skip'),
  'train.epochs': _range(1, 1_000_000),
  'train.max_steps': _NUMBER_OR_ZERO,
  'train.batch_size': _POSITIVE,
  'train.accumulate': _POSITIVE,
  'train.optimizer': _one_of('sgd', 'adamw', 'lion', 'muon'),
  'train.learning_rate': (lambda value: value > 0, 'more than 0'),
  'train.schedule': _one_of('cosine', 'constant', 'step', 'polynomial'),
  'train.milestones': (
    lambda value: all(epoch > 0 for epoch in value),
    'a tuple of epochs, numbers above 0',
  ),
  'train.decay': _SHARE,
  'train.power': (lambda value: value > 0, 'more than 0'),
  'train.warmup_epochs': _range(0, 1_000_000),
  'train.momentum': _FRACTION,
  'train.weight_decay': _AMOUNT,
  'train.clip_norm': _AMOUNT,
  'train.label_smoothing': _FRACTION,
  'train.nonfinite': _one_of('stop', 'skip'),
  'train.class_weights': _one_of('none', 'balanced'),
  'train.ema_decay': _FRACTION,
  'device.steps_per_dispatch': _NUMBER_OR_ZERO,
  'eval.batch_size': _POSITIVE,
  'eval.every_epochs': _POSITIVE,
  'checkpoint.keep': _POSITIVE,
  'checkpoint.every_steps': _NUMBER_OR_ZERO,
  'log.every_steps': _POSITIVE,
  'log.trackers': (
    lambda value: {*value} <= {'wandb', 'mlflow'},
    "a tuple of 'wandb', 'mlflow'",
  ),
  'log.project': (bool, 'a name'),
  'teacher.width': _range(1, 65_536),
  'teacher.dtype': _DTYPE,
  'teacher.head': _HEAD,
  'teacher.ensemble': (
    lambda value: all(isinstance(path, str) and path for path in value),
    'a tuple of paths; ensembles have no ensembles as members',
  ),
  'teacher.mean': (
    lambda value: all(map(float32.holds, value)),
    'a tuple of finite numbers',
  ),
  'teacher.std': (
    lambda value: all(float32.holds(one) and one > 0 for one in value),
    'a tuple of finite numbers above 0',
  ),
  'teacher.average': _one_of('probabilities', 'logits'),
  'teacher.checkpoint': _one_of('best', 'last'),
  'teacher.replay_dtype': _DTYPE,
}


def check_is_run(config: ConfigDict) -> None:
  """Checks that a configuration is that of a run, and not of a sweep.

  Raises:
    ValueError: it is not.
  """
  if 'method' not in config:
    raise ValueError(
      'this is not the configuration of a run; that of a sweep belongs to '
      'kdjax.sweep'
    )


def normalize(config: ConfigDict) -> ConfigDict:
  """Normalizes the values of a configuration, such as lists and paths.

  A home directory (`~`) in a path is expanded, and text with commas in a tuple
  of names is several of them, unless it is the path of something as a whole:
  `--config.teacher.ensemble=a,b` sets one such text.

  Args:
    config: a run's configuration.

  Returns:
    A copy.

  Raises:
    ValueError: it is the configuration of a sweep.
  """
  check_is_run(config)
  config = config.copy_and_resolve_references()
  for field in PATHS:
    section, key = field.split('.')
    value = config[section][key]
    if isinstance(value, str):
      config[section][key] = os.path.expanduser(value)

  def split(section: ConfigDict, prefix: str) -> None:
    for key, value in section.items():
      if isinstance(value, ConfigDict):
        split(value, f'{prefix}{key}.')
      elif isinstance(value, tuple) and any(
        isinstance(one, str) for one in value
      ):
        paths = f'{prefix}{key}' in PATHS
        section[key] = tuple(
          part for one in value for part in _split(one, paths=paths)
        )

  split(config, '')
  return config


def _split(value: Any, *, paths: bool) -> list[Any]:
  """Splits a name at its commas."""
  if not isinstance(value, str):
    return [value]
  if paths and os.path.exists(os.path.expanduser(value)):
    parts = [value]
  else:
    parts = [part.strip() for part in value.split(',') if part.strip()]
  return list(map(os.path.expanduser, parts)) if paths else parts


def _check_fields(config: ConfigDict) -> None:
  """Checks each field by itself, and every number, of whatever field."""
  for field, value in flatten(config).items():
    # The teacher is trained with the same fields, unless they are None.
    check = _CHECKS.get(field, _CHECKS.get(field.removeprefix('teacher.')))
    if value is None and field.startswith('teacher.'):
      continue
    checks = [check] if check else []
    if isinstance(value, float):
      checks.insert(0, _FLOAT)
    elif isinstance(value, int) and not isinstance(value, bool) and not check:
      checks.append(_INTEGER)
    for valid, expected in checks:
      if not valid(value):
        raise ValueError(f'config.{field} is {value!r}: expected {expected}')


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns the value of each field of a configuration, by its dotted name."""
  found: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      found |= {f'{key}.{name}': one for name, one in flatten(value).items()}
    else:
      found[key] = value
  return found


def validate(config: ConfigDict) -> None:
  """Checks what can be checked before data and models are loaded.

  Args:
    config: a run's configuration.

  Raises:
    ValueError: a value that makes no sense; the message names the field, the
      value and what is expected.
  """
  _check_fields(config)
  method, _ = build_method(config)
  methods.schedule(config.method.schedule, list(method.hyperparameters))
  _check_networks(config)
  _check_data(config)


def _check_networks(config: ConfigDict) -> None:
  """Checks the fields of student and teacher against one another."""
  student, teacher = config.student, config.teacher
  if not (student.name and student.stem and student.width) and not (
    student.init_from
  ):
    raise ValueError(
      f'config.student is {student.name!r} with stem={student.stem!r} and '
      f'width={student.width}, which can be left out only where '
      'config.student.init_from names a network'
    )
  if teacher.head == 'fresh' and not teacher.path:
    raise ValueError(
      "config.teacher.head is 'fresh', and config.teacher.path names no "
      'network to begin with'
    )
  if teacher.ensemble and teacher.path:
    raise ValueError(
      f'config.teacher.path is {teacher.path!r}, and config.teacher.ensemble '
      f"{tuple(teacher.ensemble)}: name every member there, and set path to ''"
    )
  if any(map(is_logits, teacher.ensemble)):
    raise ValueError(
      f'config.teacher.ensemble is {tuple(teacher.ensemble)}: a file of logits '
      'cannot be a member, only a teacher by itself (config.teacher.path)'
    )
  if len(teacher.mean) != len(teacher.std):
    raise ValueError(
      f'config.teacher.mean is {teacher.mean} and config.teacher.std is '
      f'{teacher.std}: expected as many numbers in both, one for each channel'
    )
  normalization.check_scale(
    teacher.mean, teacher.std, 'config.teacher.mean and .std'
  )


def _check_data(config: ConfigDict) -> None:
  """Checks the fields of the data against one another and the teacher's."""
  data, teacher = config.data, config.teacher
  if has_logits(config):
    for field, wrong in (
      ('teacher.replay', teacher.replay),
      ('teacher.head', teacher.head == 'fresh'),
      # Which examples take the place of others is not known then.
      ('data.corrupt', data.streaming and data.corrupt == 'skip'),
      # Its logits are those of single images.
      ('data.mixup', data.mixup),
      ('data.cutmix', data.cutmix),
    ):
      if wrong:
        section, key = field.split('.')
        raise ValueError(
          f'config.{field} is {config[section][key]!r}, which cannot be with a '
          f'teacher that is a file of logits ({teacher.path})'
          + (' and data that are streamed' if key == 'corrupt' else '')
        )
  if data.random_resized_crop and not (
    data.streaming and data.image_size and not data.crop_padding
  ):
    raise ValueError(
      f'config.data.random_resized_crop is {data.random_resized_crop} with '
      f'streaming={data.streaming}, image_size={data.image_size} and '
      f'crop_padding={data.crop_padding}: it needs streaming, an image size, '
      'and crop_padding=0'
    )
