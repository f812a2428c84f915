"""Files and directories that take their places together, or not at all."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from kdjax import signals


@contextlib.contextmanager
def beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a directory to write into, which is removed with all that is in it.

  Args:
    folder: where it is, made if need be; removed again where it was made and
      the code inside fails.

  Yields:
    The directory.

  Raises:
    OSError: it cannot be made.
  """
  existed = folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with tempfile.TemporaryDirectory(prefix='.export-', dir=folder) as name:
      yield pathlib.Path(name)
  except BaseException:
    if not existed:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise


def put(staged: pathlib.Path, places: Sequence[pathlib.Path]) -> None:
  """Moves files and directories to their places; signals wait until it is done.

  Args:
    staged: the directory of `beside`, in which they have the names that their
      places have. What was at these is moved there.
    places: where they go.

  Raises:
    OSError: one cannot be moved. What was at each place is there again.
  """
  # Once all are in place, there is nothing left that a signal could stop.
  with (
    contextlib.suppress(signals.Interrupted),
    signals.held_back(),
    contextlib.ExitStack() as undo,
  ):
    for place in places:
      new, old = staged / place.name, staged / f'{place.name}.old'
      if place.exists():
        place.rename(old)
        undo.callback(old.rename, place)
      new.rename(place)
      undo.callback(place.rename, new)
    undo.pop_all()
