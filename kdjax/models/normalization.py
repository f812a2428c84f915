"""Means and standard deviations that images are normalised with."""

from collections.abc import Sequence
from typing import NamedTuple

# Pixels scaled to 0 … 1 have no larger mean, and no deviation above a half: one
# of 1 normalises with the mean alone.
_LARGEST_MEAN = 1
_LARGEST_STD = 2


class Normalization(NamedTuple):
  """How images are normalised, (x - mean) / std of pixels x from 0 to 1.

  Attributes:
    name: what it is called, in words.
    mean: mean of each channel.
    std: standard deviation of each channel.
  """

  name: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def flags(self) -> str:
    """Returns the flags that set it for a teacher."""
    return (
      f'--config.teacher.mean={_listed(self.mean)} '
      f'--config.teacher.std={_listed(self.std)}'
    )

  def is_close(self, other: 'Normalization') -> bool:
    """Whether another one is the same but for rounding."""
    pairs = zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True)
    return all(abs(a - b) <= 1e-3 * max(abs(a), abs(b)) for a, b in pairs)


# Of the images that torchvision's and timm's ResNets are trained on.
IMAGENET = Normalization(
  "ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


def usual(channels: int) -> list[Normalization]:
  """Lists the normalisations that networks are usually trained with.

  Args:
    channels: channels of the images.

  Returns:
    That of ImageNet and, of three channels, a common one of CIFAR-10 (whose
    deviations are averages over images); 0.5 for both; none; and none of
    pixels from 0 to 255.
  """
  own = (
    [
      IMAGENET,
      Normalization(
        "CIFAR-10's", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
      ),
    ]
    if channels == 3
    # The averages over colours, as is usual for grey images.
    else [Normalization("ImageNet's", (0.449,) * channels, (0.226,) * channels)]
  )
  return [
    *own,
    Normalization('0.5 for both', (0.5,) * channels, (0.5,) * channels),
    Normalization('none', (0.0,) * channels, (1.0,) * channels),
    Normalization(
      'none, of pixels from 0 to 255',
      (0.0,) * channels,
      (1 / 255,) * channels,
    ),
  ]


def check_scale(
  mean: Sequence[float], std: Sequence[float], what: str = 'mean and std'
) -> None:
  """Checks that numbers are not those of pixels from 0 to 255.

  Raises:
    ValueError: they are; the message calls them `what`, and has them divided.
  """
  if max(mean, default=0) > _LARGEST_MEAN or max(std, default=0) > _LARGEST_STD:
    raise ValueError(
      f'{what} are {_listed(mean)} and {_listed(std)}, which are those of '
      'pixels from 0 to 255: expected those of pixels scaled to 0 … 1, which '
      f'are these divided by 255, {_listed([value / 255 for value in mean])} '
      f'and {_listed([value / 255 for value in std])}'
    )


def _listed(values: Sequence[float]) -> str:
  return ','.join(f'{value:.6g}' for value in values)
