r"""Fine-tunes a network that knows other classes into a teacher of CIFAR-10.

  python -m kdjax.main --config=configs/finetune_teacher.py \
    --config.student.init_from=resnet50.safetensors

begins with the weights and BatchNorm statistics of that file (or of a run or an
export) and a new last layer, and trains all of it with a small learning rate.
Architecture, stem and width are those of the file. Writes
runs/finetune_teacher, for

  python -m kdjax.main --config=configs/rkd.py \
    --config.teacher.path=runs/finetune_teacher

which needs, for features, a student with the same stem. Networks trained on
ImageNet see more in larger images: --config.data.image_size=64, then in both
commands.

Cost: 5 epochs of the network. Not run on CIFAR-10 so far.
"""

import ml_collections

from kdjax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Returns the configuration."""
  config = config_lib.default()
  config.student.update(name='', stem='', width=0, head='fresh')
  config.train.epochs = 5
  config.train.learning_rate = 0.01
  config.train.weight_decay = 1e-4
  config.train.warmup_epochs = 0.5
  return config
