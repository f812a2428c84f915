"""Images in Parquet or Arrow files, as Hugging Face `datasets` writes them.

    data_dir/train-00000-of-00002.parquet, test.parquet, train/0000.parquet, …
    data_dir/train/data-00000-of-00001.arrow, …   (`save_to_disk`)

The name of a file, or else of its folder, tells its split: `train`,
`validation` (`valid`, `val`) or `test`; a missing test split is held out of
`train`. A column holds each image's encoded bytes (JPEG, PNG, …), itself or as
the field `bytes` of a structure; another one, such as `label`, its class as a
number or as text. Where there are several, `config.data.label_column` chooses.
Names of classes are those that `datasets` has recorded, if it has.

Images of Arrow files are read from the disk as they are needed. Those of
Parquet are held in memory, encoded as they are, once in each process that reads
them. Needs pyarrow (`pip install 'kdjax[parquet]'`).
"""

import dataclasses
import functools
import io
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from kdjax.data.sources import Source, _checks, _splits
from kdjax.system import escape

logger = logging.getLogger('kdjax')

_EXPECTED = (
  'expected .parquet files named by split, such as train-00000.parquet, or '
  'what save_to_disk of Hugging Face datasets has written'
)
_ENDINGS = ('.parquet', '.arrow')
_LABELS = ('label', 'labels', 'class', 'category', 'target')
_IMAGES = ('image', 'img')
# Opened sets of files that a process remembers: the splits of some data sets.
_OPEN = 8
_LOCK = threading.Lock()


class _File(NamedTuple):
  """A file, and what tells whether it was changed."""

  path: str
  size: int
  changed: int


def load(data_dir: str | None, label_column: str = '') -> Source:
  """Reads labels, and finds the images.

  Args:
    data_dir: the folder, or one file.
    label_column: name of the column of the labels; '' for the one there is.

  Returns:
    The data set; no image is read yet.

  Raises:
    ValueError: none is given; a file is damaged, a column is missing or one of
      several, or the labels are none.
    FileNotFoundError: it is not there, or holds no such files.
    ModuleNotFoundError: pyarrow is not installed.
  """
  place = _splits.locate('parquet', data_dir, _EXPECTED)
  _pyarrow()
  root = place if os.path.isdir(place) else os.path.dirname(place) or '.'
  files = _find(place, root)
  parts = {}
  labels: dict[str, Any] = {}
  class_names = None
  for split, found in files.items():
    schema = _read(found[0], None).schema
    features = _features(schema)
    image = _image_column(schema, features, found[0].path)
    label = _label_column(schema, features, found[0].path, label_column)
    labels[split] = _labels([_read(file, label) for file in found], label)
    if split == 'train':
      class_names = features.get(label, {}).get('names')
    parts[split] = (found, image)
  for split in [split for split in labels if split != 'train']:
    # As in the hidden test splits of challenges.
    if labels[split].dtype.kind == 'i' and (labels[split] < 0).all():
      logger.warning('%s of %s has no labels, and is not read', split, place)
      del labels[split]
  encoded, names = _checks.encode(labels, class_names, place)
  return _splits.source(
    {
      split: _Rows(root, *parts[split], np.arange(len(array)), array)
      for split, array in encoded.items()
    },
    names,
    place,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
  """Some rows of some files, as `kdjax.data.sources.Files` has them.

  Attributes:
    root: the folder of all files.
    files: the files, in their order.
    column: the column of the images.
    rows: number of each example in all rows of the files, int64 `[size]`.
    labels: class of each example, int32 `[size]`.
    channels: channels that images become.
    shape: None, for they may have any sizes.
  """

  root: str
  files: tuple[_File, ...]
  column: str
  rows: np.ndarray
  labels: np.ndarray
  channels: int = 3
  shape: None = None

  @property
  def identity(self) -> bytes:
    """Which rows, and their labels."""
    return self.rows.astype('<i8').tobytes() + self.labels.astype('<i4').data

  def __len__(self) -> int:
    return len(self.rows)

  def read(self, indices: Sequence[int]) -> Iterator[tuple[Any, int]]:
    # Several threads that begin at once would each read all of it.
    with _LOCK:
      column = _column(self.files, self.column)
    for index in indices:
      value = column[int(self.rows[index])].as_py()
      path = None
      if isinstance(value, Mapping):
        value, path = value['bytes'], value.get('path')
      # One that is empty is an image that cannot be read.
      encoded = io.BytesIO(value or b'')
      found = encoded if value or not path else os.path.join(self.root, path)
      yield found, int(self.labels[index])

  def name(self, index: int) -> str:
    more = len(self.files) - 1
    return f'{self.files[0].path}, row {self.rows[index]}' + (
      f' of it and the {more} files after it' if more else ''
    )

  def paths(self) -> tuple[str, Sequence[str]]:
    return self.root, [
      os.path.relpath(file.path, self.root) for file in self.files
    ]

  def take(self, rows: np.ndarray) -> Self:
    return dataclasses.replace(
      self, rows=self.rows[rows], labels=self.labels[rows]
    )


def _pyarrow() -> Any:
  """Imports pyarrow, which kdjax does without."""
  try:
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError as error:
    raise ModuleNotFoundError(
      f'config.data.name is parquet, which needs pyarrow ({error}): pip '
      "install 'kdjax[parquet]'"
    ) from error
  return pyarrow


def _find(place: str, root: str) -> dict[str, tuple[_File, ...]]:
  """Finds the files of each split."""
  found: dict[str, list[_File]] = {}
  if os.path.isdir(place):
    paths = []
    for folder, below, names in os.walk(place):
      below[:] = sorted(name for name in below if not name.startswith('.'))
      # `datasets` leaves its caches beside its data.
      known = _data_files(os.path.join(folder, 'state.json'))
      paths += [
        os.path.join(folder, name)
        for name in known or sorted(names)
        if name.lower().endswith(_ENDINGS) and not name.startswith('.')
      ]
  else:
    paths = [place]
  for path in paths:
    folder, name = os.path.split(path)
    inside = os.path.relpath(folder, root)
    split = _splits.of_name(name) or _splits.of_name(inside) or 'train'
    status = os.stat(path)
    found.setdefault(split, []).append(
      _File(path, status.st_size, status.st_mtime_ns)
    )
  if not found:
    raise FileNotFoundError(f'{place} holds no such files; {_EXPECTED}')
  return {split: tuple(files) for split, files in found.items()}


def _data_files(path: str) -> list[str]:
  """Returns the names of the files that `save_to_disk` has recorded."""
  try:
    with open(path, encoding='utf-8') as file:
      return [one['filename'] for one in json.load(file)['_data_files']]
  except (OSError, ValueError, KeyError, TypeError):
    return []


def _read(file: _File, column: str | None) -> Any:
  """Reads one column of a file, or its empty table."""
  pyarrow = _pyarrow()
  columns = [] if column is None else [column]
  try:
    if file.path.lower().endswith('.parquet'):
      with pyarrow.parquet.ParquetFile(file.path) as parquet:
        if column is None:
          return parquet.schema_arrow.empty_table()
        return parquet.read(columns)
    mapped = pyarrow.memory_map(file.path)
    is_file = mapped.read(6) == b'ARROW1'
    mapped.seek(0)
    opened = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(
      mapped
    )
    if column is None:
      return opened.schema.empty_table()
    return opened.read_all().select(columns)
  except (pyarrow.ArrowException, KeyError, OSError) as error:
    raise ValueError(
      f'{file.path} cannot be read ({error}): expected columns as in the other '
      'files. Put a sound copy there'
    ) from error


@functools.lru_cache(maxsize=_OPEN)
def _column(files: tuple[_File, ...], column: str) -> Any:
  """Opens a column of several files, as one."""
  pyarrow = _pyarrow()
  tables = [_read(file, column) for file in files]
  return pyarrow.chunked_array(
    [chunk for table in tables for chunk in table.column(column).chunks],
    tables[0].schema.field(column).type,
  )


def _features(schema: Any) -> dict[str, Any]:
  """Returns what `datasets` has recorded of each column."""
  try:
    recorded = json.loads((schema.metadata or {})[b'huggingface'])
    return dict(recorded['info']['features'])
  except (KeyError, ValueError, TypeError):
    return {}


def _choose(
  found: Sequence[str], usual: Sequence[str], path: str, columns: Any, what: str
) -> str:
  """Returns the only column, or the only one of a usual name."""
  if len(found) > 1:
    found = [name for name in found if name in usual] or found
  if len(found) != 1:
    raise ValueError(
      f'{path} has the columns {escape.listed(columns)}: expected one {what}, '
      f'found {escape.listed(found) or "none"}'
    )
  return found[0]


def _image_column(schema: Any, features: Mapping[str, Any], path: str) -> str:
  types = _pyarrow().types

  def holds_bytes(kind: Any) -> bool:
    if types.is_struct(kind):
      return kind.get_field_index('bytes') >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)

  found = [
    field.name
    for field in schema
    if features.get(field.name, {}).get('_type') == 'Image'
    or holds_bytes(field.type)
  ]
  return _choose(
    found, _IMAGES, path, schema.names, 'of the bytes of encoded images'
  )


def _label_column(
  schema: Any, features: Mapping[str, Any], path: str, wanted: str
) -> str:
  classes = [
    name
    for name in schema.names
    if features.get(name, {}).get('_type') == 'ClassLabel'
  ]
  found = classes or [name for name in schema.names if name in _LABELS]
  return _choose(
    [name for name in schema.names if name == wanted] if wanted else found,
    _LABELS,
    path,
    schema.names,
    'of labels (config.data.label_column)',
  )


def _labels(tables: Sequence[Any], column: str) -> np.ndarray:
  """Returns the labels in some tables."""
  pyarrow = _pyarrow()
  chunks = [chunk for table in tables for chunk in table.column(column).chunks]
  whole = pyarrow.chunked_array(chunks, tables[0].schema.field(column).type)
  if pyarrow.types.is_dictionary(whole.type):
    whole = whole.cast(whole.type.value_type)
  if whole.null_count:
    raise ValueError(
      f'the column {column} has no label in {whole.null_count:,} rows: remove '
      'these'
    )
  return np.asarray(whole.to_numpy())
