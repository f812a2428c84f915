"""How long a run is, in steps."""

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from kdjax import data
from kdjax.models import features
from kdjax.system import memory, target


class Plan(NamedTuple):
  """How long a run is, in steps.

  Attributes:
    batch_size: images in a step.
    steps_per_epoch: steps in an epoch.
    steps_per_eval: steps from one validation to the next.
    total_steps: steps in the run.
    steps_per_dispatch: most steps that the device is given at once.
    overlap: whether the host does its own work while the device trains.
  """

  batch_size: int
  steps_per_epoch: int
  steps_per_eval: int
  total_steps: int
  steps_per_dispatch: int
  overlap: bool

  def epoch(self, steps_done: int) -> float:
    """Converts steps to epochs."""
    return steps_done / self.steps_per_epoch

  def next_dispatch(self, steps_done: int) -> int:
    """Returns the number of steps of the next dispatch.

    They stay within one epoch, so that one order of examples serves, and end
    where the run does.
    """
    return min(
      self.steps_per_dispatch,
      self.steps_per_epoch - steps_done % self.steps_per_epoch,
      self.total_steps - steps_done,
    )

  def validates(self, steps_done: int) -> bool:
    """Whether the run is validated after so many steps."""
    at_end = steps_done == self.total_steps
    return at_end or steps_done % self.steps_per_eval == 0

  def remaining(self, steps_done: int) -> Iterator[tuple[int, int]]:
    """Yields the steps done before and after each dispatch that is left."""
    while steps_done < self.total_steps:
      before = steps_done
      steps_done += self.next_dispatch(before)
      yield before, steps_done

  def dispatches(self, steps_done: int) -> set[int]:
    """Lists the sizes of all dispatches from a step on.

    All whole epochs are divided alike, however many they are.
    """
    size = self.steps_per_epoch
    following = (steps_done // size + 1) * size
    last = (self.total_steps - 1) // size * size
    found = set()
    for first, end in (
      (steps_done, following),
      (following, following + size),
      (max(last, steps_done), self.total_steps),
    ):
      while first < min(end, self.total_steps):
        steps = self.next_dispatch(first)
        found.add(steps)
        first += steps
    return found


logger = logging.getLogger('kdjax')

# Of fewer values per channel BatchNorm's statistics are mostly noise.
_FEW_VALUES = 8

# With fewer images on a chip XLA puts other axes than the batch into the 128
# lanes of a TPU, and fills them up. By `kdjax.benchmark --aot=v5e` a step of
# ResNet-18 moves 25.7 MB for each of 64 images, and 16.0 MB for each of 128.
_TPU_LANES = 128

# On an accelerator the host is told of so many steps at once, by default.
_STEPS_PER_DISPATCH = 32


# They are counted in int32.
_MOST_STEPS = 2**31 - 1


def plan(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Plan:
  """Plans a run.

  Args:
    config: its configuration.
    dataset: its data set.

  Returns:
    The plan.

  Raises:
    ValueError: the data set is smaller than a batch, or a batch cannot be
      divided over the devices and into `config.train.accumulate` parts.
  """
  batch_size = config.train.batch_size
  size = dataset.train.size
  steps_per_epoch = size // batch_size
  if not steps_per_epoch:
    raise ValueError(
      f'config.train.batch_size is {batch_size}, and {dataset.name} has only '
      f'{size} training images'
    )
  count, parts = target.device_count(), config.train.accumulate
  if batch_size % (count * parts):
    raise ValueError(
      f'config.train.batch_size is {batch_size}, and cannot be divided over '
      f'{count} devices in {parts} equal parts (config.train.accumulate): make '
      f'it a multiple of {count * parts}'
    )
  total_steps = config.train.epochs * steps_per_epoch
  if config.train.max_steps:
    total_steps = min(total_steps, config.train.max_steps)
  if total_steps > _MOST_STEPS:
    raise ValueError(
      f'config.train.epochs is {config.train.epochs}, which are '
      f'{total_steps:,} steps: expected at most {_MOST_STEPS:,}'
    )
  _check_images(config, dataset)
  _check_lanes(batch_size // (count * parts), count * parts)
  # On CPU host and device are the same processor, and convolutions in a loop
  # lose their parallel kernels.
  on_cpu = target.on_cpu()
  dispatch = config.device.steps_per_dispatch
  if isinstance(dataset.train, data.Stream):
    dispatch = 1
  elif not dispatch:
    dispatch = 1 if on_cpu else _STEPS_PER_DISPATCH
  # A dispatch ends with its epoch.
  dispatch = min(dispatch, steps_per_epoch)
  # Every number of steps is compiled by itself: best one that divides an epoch.
  dividing = (n for n in range(dispatch, 0, -1) if steps_per_epoch % n == 0)
  divisor = next(dividing)
  return Plan(
    batch_size,
    steps_per_epoch,
    config.eval.every_epochs * steps_per_epoch,
    total_steps,
    divisor if divisor > dispatch // 4 else dispatch,
    overlap=not on_cpu,
  )


def check_batch_norm(
  config: ml_collections.ConfigDict, dataset: data.Dataset, model: nn.Module
) -> None:
  """Checks that BatchNorm has values to take statistics of in training.

  A single value per channel is its own mean, and the output would be the same
  for all images. A few values have statistics that are mostly noise, which is a
  warning.

  Args:
    config: a run's configuration.
    dataset: its data set.
    model: its student.

  Raises:
    ValueError: a BatchNorm would see one value per channel.
  """
  images = config.train.batch_size // config.train.accumulate
  # There are no fewer values than images, and finding them takes time.
  if images >= _FEW_VALUES:
    return
  shape = jax.ShapeDtypeStruct((images, *dataset.image_shape), jnp.float32)
  counts = features.batch_norm_values(model, shape)
  layer = min(counts, key=lambda name: counts[name], default='')
  if not counts or counts[layer] >= _FEW_VALUES:
    return
  message = (
    f'BatchNorm {layer} of {config.student.name} sees {counts[layer]} '
    f'value{"s" * (counts[layer] > 1)} per channel in training (batches of '
    f'{config.train.batch_size} images, in {config.train.accumulate} parts of '
    f'{images})'
  )
  stem = (
    " or config.student.stem='cifar'"
    if config.student.stem == 'imagenet'
    else ''
  )
  remedy = (
    'set a larger config.train.batch_size, a smaller config.train.accumulate, '
    f'larger images{stem} (for a teacher config.teacher.train.batch_size and '
    'so on)'
  )
  if counts[layer] == 1:
    raise ValueError(f'{message}, which cannot be normalised: {remedy}')
  logger.warning('%s, too few for its statistics: %s', message, remedy)


def _check_lanes(images: int, parts: int) -> None:
  """Warns of batches that are small for a TPU.

  Args:
    images: those that a chip computes at once.
    parts: how many times as many are in a batch.
  """
  if target.platform() == 'tpu' and images < _TPU_LANES:
    logger.warning(
      'config.train.batch_size is %d, of which a TPU chip has %d images at '
      'once: below %d it moves more bytes for each, at 64 about 1.6 times as '
      'many. If the recipe allows it, make it a multiple of %d, or use fewer '
      'chips',
      images * parts,
      images,
      _TPU_LANES,
      _TPU_LANES * parts,
    )


def _check_images(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Checks what is made of the images of a run."""
  height, width, _ = dataset.image_shape
  padding = config.data.crop_padding
  if padding > min(height, width):
    raise ValueError(
      f'config.data.crop_padding is {padding}, and images of {dataset.name} '
      f'have {height}×{width} pixels: a crop could be of nothing but padding. '
      f'Expected at most {min(height, width)}'
    )
  # As bytes, and normalised, of which each device has a part.
  pixels = config.train.batch_size * math.prod(dataset.image_shape)
  memory.check(
    5 * pixels // target.device_count(),
    f'a batch of {config.train.batch_size:,} images of {height}×{width} pixels',
    'Lower config.train.batch_size or config.data.image_size',
  )
