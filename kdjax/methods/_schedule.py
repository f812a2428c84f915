"""Hyperparameters that change over the epochs."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

# The factor of a hyperparameter, from the epoch, which counts from 1.
Factor = Callable[[jax.Array], jax.Array]

_FORM = (
  "expected NAME=KIND:EPOCHS, such as 'weight=linear:20', KIND one of linear "
  '(from 0 to the value, after so many epochs), cosine (the same, as a cosine) '
  'and decay:FIRST:LAST (from the value after epoch FIRST to 0 at epoch LAST, '
  'as a cosine)'
)


def factor(text: str) -> Factor:
  """Makes the factor of a schedule.

  With e the number of the epoch, from 1: `linear:N` is min(e/N, 1), `cosine:N`
  is (1 - cos(π · min(e/N, 1))) / 2, `decay:A:B` is 1 until epoch A, then (1 +
  cos(π · min((e - A) / (B - A), 1))) / 2.

  Args:
    text: `KIND:EPOCHS`.

  Returns:
    A function of the epoch.

  Raises:
    ValueError: the text is not of that form.
  """
  kind, *numbers = text.split(':')
  try:
    bounds = [float(number) for number in numbers]
  except ValueError:
    bounds = []
  if kind in ('linear', 'cosine') and len(bounds) == 1 and bounds[0] > 0:
    first, last = 0.0, bounds[0]
  elif kind == 'decay' and len(bounds) == 2 and 0 <= bounds[0] < bounds[1]:
    first, last = bounds
  else:
    raise ValueError(f"the schedule '{text}' is unknown: {_FORM}")

  def share(epoch: jax.Array) -> jax.Array:
    done = jnp.clip((epoch - first) / (last - first), 0.0, 1.0)
    if kind == 'linear':
      return done
    rising = (1 - jnp.cos(jnp.pi * done)) / 2
    return rising if kind == 'cosine' else 1 - rising

  return share


def schedule(
  texts: Sequence[str], names: Sequence[str]
) -> Callable[[Mapping[str, jax.Array], jax.Array], dict[str, jax.Array]]:
  """Makes the function that changes hyperparameters over the epochs.

  Args:
    texts: one `NAME=KIND:EPOCHS` for each hyperparameter that changes.
    names: the method's hyperparameters.

  Returns:
    A function of the hyperparameters and the epochs done, a scalar, that
    returns the hyperparameters of that moment.

  Raises:
    ValueError: a text is not of that form, or names no hyperparameter.
  """
  factors = {}
  for text in texts:
    name, equals, rest = text.partition('=')
    if not equals:
      raise ValueError(f"the schedule '{text}' names no value: {_FORM}")
    if name not in names:
      raise ValueError(
        f"the schedule '{text}' is of {name}, which the method does not have; "
        f'it has {", ".join(names) or "no hyperparameters"}'
      )
    factors[name] = factor(rest)

  def change(
    values: Mapping[str, jax.Array], epoch: jax.Array
  ) -> dict[str, jax.Array]:
    number = jnp.floor(epoch) + 1
    return {
      name: value * factors[name](number) if name in factors else value
      for name, value in values.items()
    }

  return change
