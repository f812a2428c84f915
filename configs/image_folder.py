r"""Distils ResNet-50 into ResNet-18 on a folder of images of any sizes.

  python -m kdjax.main --config=configs/image_folder.py \
    --config.data.data_dir=DIR

DIR holds train/CLASS/*.jpg, and the same in validation (or val), test or both.
Without test, validation serves as it; without a validation split, a tenth of
train is split off. Images are decoded while they are needed, by as many
processes as --config.data.workers says (as many as there are cores to spare),
and cut and resized as is usual on ImageNet.

Cost: 90 epochs of each network at 224×224 pixels, which needs an accelerator,
unless there is a teacher in the run directory `image_folder_teacher` already or
--config.teacher.path names one. A data set of TFDS whose images have several
sizes, such as imagenette, works the same way with --config.data.name.
"""

import ml_collections

from kdjax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Returns the configuration."""
  config = config_lib.default()
  config.method.name = 'response'
  config.student.stem = 'imagenet'
  config.data.name = 'image_folder'
  config.data.image_size = 224
  config.data.streaming = True
  config.data.random_resized_crop = 0.08
  config.data.crop_padding = 0
  config.data.workers = 8
  config.train.epochs = 90
  config.train.batch_size = 256
  config.train.weight_decay = 1e-4
  config.train.warmup_epochs = 5.0
  config.eval.batch_size = 256
  config.teacher.train.epochs = 90
  config.teacher.sibling = 'image_folder_teacher'
  return config
