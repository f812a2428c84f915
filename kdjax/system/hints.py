"""What may be meant by a name that does not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Names the nearest of the names that exist, to end a clause of an error.

  Args:
    name: a name that is not among them.
    known: the names that exist.

  Returns:
    ` (did you mean NAME?)`, with up to three names; nothing where none is near.
  """
  spelt = {one.lower(): one for one in known}
  near = difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.6)
  if not near:
    return ''
  return f' (did you mean {" or ".join(spelt[one] for one in near)}?)'
