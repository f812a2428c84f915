r"""Distils ResNet-50 into ResNet-18 on a folder of images of any sizes.

  python -m kdjax.main --config=configs/image_folder.py \
    --config.data.data_dir=DIR

DIR holds train/CLASS/*.jpg, and the same in validation (or val), test, both or
neither; or CLASS/*.jpg. Without test, validation serves as it, or a fifth of
each class; without a validation split, a tenth of train is split off. Images
are decoded while they are needed, by as many processes as --config.data.workers
says (as many as there are cores to spare), and cut and resized as is usual on
ImageNet.

Cost: 90 epochs of each network at 224×224 pixels, which needs an accelerator,
unless there is a teacher in the run directory `image_folder_teacher` already or
--config.teacher.path names one. A data set of TFDS whose images have several
sizes, such as imagenette, works the same way with --config.data.name.

1,000 images of CIFAR-10 written as JPEGs of 40 to 120 pixels a side, 900 to
train on, narrow networks: teacher 34.0 %, student 33.0 % (chance is 10 %) after
12 epochs each, in 8 min 50 s on two cores of an Intel Xeon with other work
beside it:

  python tests/benchmarks/streaming.py --make_only --folder=DIR \
    --images=1000 --sizes 40 120
  python -m kdjax.main --config=configs/image_folder.py \
    --config.data.data_dir=DIR --config.data.image_size=64 \
    --config.data.workers=1 --config.data.random_resized_crop=0.3 \
    --config.student.width=16 --config.train.batch_size=50 \
    --config.train.epochs=12 --config.teacher.train.epochs=12 \
    --config.train.warmup_epochs=1 --config.train.optimizer=adamw \
    --config.train.learning_rate=0.002
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
