"""Whether a teacher from elsewhere knows the data, measured before it teaches.

How its images are normalised, whether a max-pool follows its first convolution,
which class each of its outputs is and which image each of its logits belongs to
shows in nothing else.
"""

import itertools
from typing import NamedTuple

import ml_collections
import numpy as np
import scipy.optimize
import scipy.stats

from kdjax import data
from kdjax.evaluation import predict
from kdjax.models import resnet
from kdjax.models.network import Network
from kdjax.models.normalization import IMAGENET, Normalization, usual
from kdjax.system.logs import logger
from kdjax.training.teacher import Teacher

# So many images show whether a teacher knows a data set.
_IMAGES = 1000
# So many show which of several candidates may be better. One program serves for
# both numbers.
_SCREENED = 100
# It knows them if it is so much better than guessing, where 1 is to be always
# right.
_KNOWS = 0.2
# One candidate is clearly better than another if it is by so much more of the
# images, and would be so with less than this probability if they were alike.
_MARGIN = 0.02
_CHANCE = 0.001
# The same of one class that seems to be another one. A cycle has two or more.
_CLASS_CHANCE = 0.01


class _Candidate(NamedTuple):
  """A way to run a teacher.

  Attributes:
    normalization: how its images are normalised.
    stem: its stem; '' of a network without one.
    reversed: whether its images have their channels in reverse order.
  """

  normalization: Normalization
  stem: str
  reversed: bool = False

  def describe(self) -> str:
    """Says what it is, and which flags set it."""
    words, flags = [self.normalization.name], [self.normalization.flags()]
    if resnet.stems_like(self.stem):
      words.append(f'stem {self.stem}')
      flags.append(f'--config.teacher.stem={self.stem}')
    if self.reversed:
      words.append('channels reversed (BGR)')
      flags.append(
        'and the input channels of its first convolution reversed in the file'
      )
    return f'{", ".join(words)}: {" ".join(flags)}'


class _Measured(NamedTuple):
  """What a candidate predicts.

  Attributes:
    right: for each image whether it is classified rightly.
    nll: mean negative log-likelihood of the labels in nats.
  """

  right: np.ndarray
  nll: float


def clearly_better(right: np.ndarray, than: np.ndarray) -> bool:
  """Tells whether one of two classifiers is better, and not by accident.

  The sign test on the images that only one of them classifies rightly, which is
  exact for any number of images (McNemar, 1947,
  https://doi.org/10.1007/BF02295996), and a margin.

  Args:
    right: for each image whether the first classifies it rightly, `[N]`.
    than: the same of the second.

  Returns:
    Whether the first is clearly better.
  """
  won, lost = int((right & ~than).sum()), int((than & ~right).sum())
  if won - lost <= _MARGIN * len(right):
    return False
  return bool(scipy.stats.binom.sf(won - 1, won + lost, 0.5) < _CHANCE)


def balanced_accuracy(
  predicted: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
  """Averages accuracy over classes, so that frequent ones count no more.

  Args:
    predicted: predicted classes, `[N]`.
    labels: the true ones, `[N]`.

  Returns:
    The mean over the classes that occur of the share of their images which is
    classified rightly; and what guessing returns, one over their number.
  """
  classes, index, counts = np.unique(
    labels, return_inverse=True, return_counts=True
  )
  right = np.bincount(index, weights=predicted == labels)
  return float((right / counts).mean()), 1 / max(len(classes), 2)


def exchanged(
  predicted: np.ndarray, labels: np.ndarray, num_classes: int
) -> list[list[int]]:
  """Finds classes that seem to stand in each other's place.

  Args:
    predicted: predicted classes, `[N]`.
    labels: the true ones, `[N]`.
    num_classes: number of classes.

  Returns:
    Cycles of at least two classes: of the images of each one clearly more are
    classified as the next than as itself.
  """
  confusion = np.zeros((num_classes, num_classes), int)
  np.add.at(confusion, (labels, predicted), 1)
  _, places = scipy.optimize.linear_sum_assignment(confusion, maximize=True)
  other = confusion[np.arange(num_classes), places]
  own = confusion.diagonal()
  moved = (places != np.arange(num_classes)) & (
    scipy.stats.binom.sf(other - 1, other + own, 0.5) < _CLASS_CHANCE
  )
  cycles, seen = [], set[int]()
  for first in range(num_classes):
    cycle, place = [], first
    while place not in seen:
      seen.add(place)
      cycle.append(place)
      place = int(places[place])
    if len(cycle) > 1 and moved[cycle].all():
      cycles.append(cycle)
  return cycles


def check_asked(teacher: Teacher, config: ml_collections.ConfigDict) -> None:
  """Checks that what a configuration says of a teacher is so.

  What members of an ensemble say themselves may be otherwise, if it is so of
  others.

  Args:
    teacher: the teacher, as `load` gave it.
    config: configuration of the run that it is to teach in.

  Raises:
    ValueError: a normalisation is asked for, and the network says another; or a
      stem, and the weights are those of another.
  """
  asked, members = config.teacher, teacher.members or (teacher,)
  reports = [each.report for each in members if each.network]
  if asked.mean and not any(
    len(report['mean']) == len(asked.mean)
    and np.allclose(report['mean'], asked.mean, rtol=1e-3)
    and np.allclose(report['std'], asked.std, rtol=1e-3)
    for report in reports
  ):
    said = '; '.join(
      f'{report["path"]} says itself mean {report["mean"]} and std '
      f'{report["std"]}'
      for report in reports
    )
    raise ValueError(
      f'config.teacher.mean is {asked.mean} and config.teacher.std '
      f'{asked.std}, and {said or "logits are of no images"}: leave both out'
    )
  # Of others' weights: those that kdjax trained have the stem that they had.
  stems = {
    each.report['path']: each.network.model.stem
    for each in members
    if each.network
    and isinstance(each.network.model, resnet.ResNet)
    and each.report['data_digest'] is None
  }
  if asked.stem and stems and asked.stem not in stems.values():
    said = '; '.join(
      f'{path} are those of {" or ".join((stem, *resnet.stems_like(stem)))}'
      for path, stem in stems.items()
    )
    raise ValueError(
      f'config.teacher.stem is {asked.stem!r}, and the weights in {said}: give '
      'one of these, or leave it out'
    )


def check_accuracy(
  teacher: Teacher, dataset: data.Dataset, batch_size: int
) -> None:
  """Measures the accuracy of a pretrained teacher from another source.

  Args:
    teacher: the teacher. Of an ensemble each member from another source is
      measured too: the others may outvote it.
    dataset: the data set, of whose validation images at most 1,000 are used; of
      the training images where there are none, or where those are all that the
      teacher has logits of.
    batch_size: how many images to compute at most at once.

  Raises:
    ValueError: its logits are not finite, or are of other images; or it is
      clearly better with other images or another stem, where neither its source
      nor the configuration says that these are right.
  """
  for member in teacher.members:
    if member.report['data_digest'] is None:
      check_accuracy(member, dataset, batch_size)
  if teacher.logits:
    logits, labels, where = _look_up(teacher, dataset)
  else:
    assert teacher.network
    images, where = _sample(dataset)
    batch_size = min(batch_size, _SCREENED)
    logits, labels = (
      _predict(teacher.network, images, batch_size),
      images.labels,
    )
  path = teacher.report['path']
  if wrong := int((~np.isfinite(logits)).any(axis=1).sum()):
    raise ValueError(
      f'the teacher in {path} returns logits that are not finite for {wrong} '
      f'of {len(labels)} {where} images: its weights or how its images are '
      'normalised (config.teacher.mean, config.teacher.std) are wrong'
    )
  predicted = logits.argmax(axis=-1)
  accuracy = float((predicted == labels).mean())
  balanced, chance = balanced_accuracy(predicted, labels)
  known = f'{100 * accuracy:.1f} % of {len(labels)} {where} images'
  logger.info(
    'the teacher in %s classifies %s (%.1f %% as the mean over classes)',
    path,
    known,
    100 * balanced,
  )
  if teacher.network and not teacher.members:
    _check_alternatives(teacher, dataset, images, logits, known, batch_size)
  _check_order(teacher, dataset, predicted, labels)
  if balanced < chance + _KNOWS * (1 - chance):
    logger.warning(
      'the teacher in %s classifies %s of %s, %.1f %% as the mean over '
      'classes, and guessing %.1f %%: are its classes the same, in the same '
      'order, and %s?',
      path,
      known,
      dataset.name,
      100 * balanced,
      100 * chance,
      'its ids those of the images'
      if teacher.logits
      else 'its images normalised so (config.teacher.mean, config.teacher.std)',
    )


def check_test_logits(
  teacher: Teacher, logits: np.ndarray, labels: np.ndarray
) -> None:
  """Warns of precomputed logits that are not those of the test images.

  Args:
    teacher: the teacher.
    logits: its logits of the test images, `[size, classes]`.
    labels: the labels of these, `[size]`.
  """
  balanced, chance = balanced_accuracy(logits.argmax(axis=-1), labels)
  if balanced < chance + _KNOWS * (1 - chance):
    logger.warning(
      'test_logits in %s classify %.1f %% of the test images as the mean over '
      'classes, and guessing %.1f %%: are test_ids indices of these images?',
      teacher.report['path'],
      100 * balanced,
      100 * chance,
    )


def _rows(size: int) -> np.ndarray:
  """Chooses examples from everywhere in a split, in random order."""
  count = min(_IMAGES, size)
  rows = np.arange(count) * size // count
  return np.random.default_rng(0).permutation(rows)


def _sample(dataset: data.Dataset) -> tuple[data.Split, str]:
  """Reads some images, held-out ones if there are any."""
  split, where = dataset.train, 'training'
  if dataset.validation.size:
    split, where = dataset.validation, 'held-out'
  images = data.read(split, _rows(split.size))
  if not images.size:
    raise ValueError(
      f'none of the {where} images of {dataset.name} can be read'
    )
  return images, where


def _predict(
  network: Network, images: data.Split, batch_size: int
) -> np.ndarray:
  return np.asarray(predict.predict_images(network, images.images, batch_size))


def _look_up(
  teacher: Teacher, dataset: data.Dataset
) -> tuple[np.ndarray, np.ndarray, str]:
  """Looks logits up, and checks that they are not those of a neighbour."""
  assert teacher.logits
  split, table = dataset.train, teacher.logits.train
  if isinstance(split, data.Split):
    rows, labels = np.arange(split.size), split.labels
  else:
    # A stream is read for its labels.
    rows = _rows(split.size)
    labels = data.labels_of(split, rows)
    rows, labels = rows[labels >= 0], labels[labels >= 0]
  ids = dataset.train_ids[rows]
  logits = table.rows(ids)
  right = logits.argmax(axis=-1) == labels
  for shift in (1, -1):
    known = np.isin(ids + shift, table.ids)
    there = table.rows(ids[known] + shift).argmax(axis=-1) == labels[known]
    if known.any() and clearly_better(there, right[known]):
      remedy = 'subtracted from' if shift > 0 else 'added to'
      raise ValueError(
        f'{table.what} are shifted by one: of {len(there)} training images '
        f'{100 * right[known].mean():.1f} % are classified rightly as it is, '
        f'and {100 * there.mean():.1f} % if 1 is {remedy} each of its ids, '
        'which are indices from 0: do so'
      )
  return logits, labels, 'training'


def _measure(logits: np.ndarray, labels: np.ndarray) -> _Measured:
  shifted = np.float64(logits - logits.max(axis=1, keepdims=True))
  own = np.take_along_axis(shifted, labels[:, np.newaxis], axis=1)[:, 0]
  nll = np.log(np.exp(shifted).sum(axis=1)) - own
  mean = float(nll.mean())
  return _Measured(
    logits.argmax(axis=-1) == labels, mean if np.isfinite(mean) else np.inf
  )


def _candidates(
  teacher: Teacher, dataset: data.Dataset
) -> tuple[_Candidate, list[_Candidate]]:
  """Lists the ways to run a network, that in which it is run first."""
  assert teacher.network
  mean, std = (tuple(teacher.report[name]) for name in ('mean', 'std'))
  own = Normalization(
    "the data's own", tuple(dataset.mean.tolist()), tuple(dataset.std.tolist())
  )
  known = [own, *usual(len(mean))]
  used = Normalization('mean and std as they are', mean, std)
  for one in known:
    if one.is_close(used):
      used = one
  model = teacher.network.model
  stem = model.stem if isinstance(model, resnet.ResNet) else ''
  others = [one for one in known if not one.is_close(used)]
  stems = [stem, *resnet.stems_like(stem)]
  candidates = [
    _Candidate(*pair) for pair in itertools.product((used, *others), stems)
  ]
  if len(mean) == 3:
    # As Caffe's networks were trained, which are still converted.
    caffe = Normalization(
      "ImageNet's mean, of pixels from 0 to 255", IMAGENET.mean, (1 / 255,) * 3
    )
    candidates += [
      _Candidate(caffe, stem),
      *(_Candidate(one, stem, reversed=True) for one in (used, caffe)),
    ]
  return candidates[0], candidates[1:]


def _run(
  network: Network,
  candidate: _Candidate,
  images: data.Split,
  batch_size: int,
) -> _Measured:
  """Measures one way to run a network."""
  _, mean, std = candidate.normalization
  arrays = {
    'mean': np.array(mean, np.float32),
    'std': np.array(std, np.float32),
  }
  if candidate.reversed:
    images = images._replace(images=images.images[..., ::-1])
    arrays = {name: values[::-1] for name, values in arrays.items()}
  model = network.model
  if candidate.stem:
    model = model.clone(stem=candidate.stem)
  network = Network(model, {**network.variables, 'normalization': arrays})
  return _measure(_predict(network, images, batch_size), images.labels)


def _check_alternatives(
  teacher: Teacher,
  dataset: data.Dataset,
  images: data.Split,
  logits: np.ndarray,
  known: str,
  batch_size: int,
) -> None:
  """Checks that no other normalisation or stem is clearly better.

  All are tried on a few images; the best there, by accuracy and then by its
  negative log-likelihood, is compared on all.
  """
  assert teacher.network
  right = logits.argmax(axis=-1) == images.labels
  if (~right).mean() <= _MARGIN:
    return
  assumed, others = _candidates(teacher, dataset)
  few = data.Split(images.images[:_SCREENED], images.labels[:_SCREENED])
  first = _measure(logits[:_SCREENED], few.labels)
  tried = [
    (other, _run(teacher.network, other, few, batch_size)) for other in others
  ]
  best, found = max(
    tried, key=lambda each: (each[1].right.mean(), -each[1].nll)
  )
  if found.right.mean() <= first.right.mean():
    return
  whole = _run(teacher.network, best, images, batch_size)
  # Of ways that all know nothing one is the best by accident.
  balanced, chance = balanced_accuracy(
    np.where(whole.right, images.labels, -1), images.labels
  )
  if balanced < chance + _KNOWS * (1 - chance):
    return
  if not clearly_better(whole.right, right):
    return
  rows = '\n  '.join(
    f'{100 * measured.right.mean():5.1f} %  {candidate.describe()}'
    for candidate, measured in ((assumed, first), *tried)
  )
  better = whole.right.mean()
  message = (
    f'the teacher in {teacher.report["path"]} classifies {known}, and guessing '
    f'{100 * chance:.1f} %, but {100 * better:.1f} % if it is run otherwise. '
    f'Of {len(few.labels)} of them it classifies, run with\n  {rows}\n'
  )
  if _is_assumed(teacher, assumed, best):
    raise ValueError(
      f'{message}It was run with the first, and nothing says that this is '
      'right: give the flags of the line that is, which may be the first, or '
      'write the same into the file (kdjax.convert --mean --std --stem)'
    )
  # Somebody has said so, and may be wrong.
  logger.warning('%sIt teaches run with the first, as it is told', message)


def _is_assumed(teacher: Teacher, used: _Candidate, better: _Candidate) -> bool:
  """Whether nobody has said what another candidate has otherwise."""
  return (better.stem != used.stem and 'stem' in teacher.assumed) or (
    better._replace(stem=used.stem) != used
    and 'normalization' in teacher.assumed
  )


def _check_order(
  teacher: Teacher,
  dataset: data.Dataset,
  predicted: np.ndarray,
  labels: np.ndarray,
) -> None:
  """Warns if classes seem to be in another order."""
  names = dataset.class_names
  for cycle in exchanged(predicted, labels, len(names)):
    places = zip(cycle, (*cycle[1:], cycle[0]), strict=True)
    shown = []
    for one, other in places:
      share = (predicted[labels == one] == other).mean()
      shown.append(f"{100 * share:.0f} % of '{names[one]}' as '{names[other]}'")
    logger.warning(
      'the teacher in %s seems to have the classes in another order than %s: '
      'it classifies %s. %s',
      teacher.report['path'],
      dataset.name,
      ', '.join(shown[:5]) + (', …' if len(shown) > 5 else ''),
      'Add `class_names` to the file, the name of each column'
      if teacher.logits
      else 'Write the names of its classes into the file, in its own order '
      '(python -m kdjax.convert SOURCE DESTINATION --class_names=FILE)',
    )
