"""Several networks that predict as one, each with images of its own kind."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models import features

_NORMALIZATIONS = 'normalizations'
_ADAPTATIONS = 'adaptations'


@dataclasses.dataclass(frozen=True)
class _Member:
  """Keeps a module from Flax, which would name it by its place in a field."""

  model: nn.Module


class Ensemble(nn.Module):
  """Averages what its members predict; for evaluation only.

  It takes pixels from 0 to 255: each member's images are normalised with its
  own mean and standard deviation, in the collection `normalizations`, and
  its outputs are made logits as the collection `adaptations` says. The members
  are the modules `member1`, `member2`, …, so that their features are
  called `member1/stage1`, ….

  Attributes:
    members: the members' models.
    average: what is averaged: 'probabilities', whose logarithm is given, or
      'logits'.
  """

  members: tuple[_Member, ...]
  average: str

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Classifies images.

    Args:
      images: pixels from 0 to 255, `[batch, height, width, channels]`.
      train: must be False.

    Returns:
      Logits, float32 `[batch, classes]`.

    Raises:
      ValueError: it is to be trained.
    """
    if train:
      raise ValueError('an ensemble cannot be trained, only its members can')
    every = []
    for index, member in enumerate(self.members):
      name = member_name(index)
      normalization: Any = self.get_variable(_NORMALIZATIONS, name)
      model = member.model.clone(parent=self, name=name)
      logits = model(features.normalize(images, **normalization), train=False)
      adaptation: Any = self.get_variable(_ADAPTATIONS, name, {})
      every.append(features.to_logits(logits, adaptation))
    stacked = jnp.stack(every)
    if self.average == 'logits':
      return stacked.mean(axis=0)
    log_probabilities = jax.nn.log_softmax(stacked)
    return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(len(every))


def member_name(index: int) -> str:
  """Returns the name of a member, whose index is from 0."""
  return f'member{index + 1}'


def join(
  networks: Sequence[tuple[nn.Module, features.Variables]], average: str
) -> tuple[Ensemble, dict[str, Any]]:
  """Makes an ensemble of networks.

  Args:
    networks: the model and the variables of each, with `normalization` and, if
      need be, `adaptation`.
    average: 'probabilities', the mean of which is the prediction of Lakshmi-
      narayanan et al., 2017, https://arxiv.org/abs/1612.01474; or 'logits'.

  Returns:
    The ensemble and its collections.
  """
  collections = {
    'params': 'params',
    'batch_stats': 'batch_stats',
    _NORMALIZATIONS: 'normalization',
    _ADAPTATIONS: 'adaptation',
  }
  variables = {
    ours: {
      member_name(index): variables.get(theirs, {})
      for index, (_, variables) in enumerate(networks)
    }
    for ours, theirs in collections.items()
  }
  members = tuple(_Member(model) for model, _ in networks)
  return Ensemble(members, average), variables
