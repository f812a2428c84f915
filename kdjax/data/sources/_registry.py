"""Data sets by name."""

from kdjax.data.sources._base import Source
from kdjax.system import escape, plugins


def names() -> tuple[str, ...]:
  """Lists the data sets that have a file of their own here.

  Returns:
    Their names, sorted. `load` knows those of TFDS as well.
  """
  return tuple(
    name for name in plugins.names('kdjax.data.sources') if name != 'tfds'
  )


def load(name: str, data_dir: str | None) -> Source:
  """Finds a data set.

  Args:
    name: one of `names()`, or a data set of TFDS as TFDS writes it:
      `name[/config][:version]`.
    data_dir: folder of the data set, or of those that TFDS has prepared; None
      is TFDS's own, `~/tensorflow_datasets`. A data set that comes with a
      library ignores it.

  Returns:
    The data set. Nothing is decoded yet of one that lies in files.

  Raises:
    ValueError: the name is unknown, or the data set is of a kind that kdjax
      cannot use; the message says why and what to do.
    FileNotFoundError: the data set is not in `data_dir`, and could not be
      fetched or prepared; the message says how to do it by hand.
  """
  # Imported here: a source may need a library that the others do without.
  if name in names():
    source = plugins.module('kdjax.data.sources', name).load(data_dir)
  else:
    source = plugins.module('kdjax.data.sources', 'tfds').load(name, data_dir)
  if len(source.class_names) < 2:
    raise ValueError(
      f'{name} has one class, {escape.listed(source.class_names)}: expected '
      'two or more to tell apart'
    )
  return source
