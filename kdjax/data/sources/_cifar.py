"""CIFAR-10 and CIFAR-100, downloaded and prepared without TensorFlow.

TFDS reads a prepared data set without TensorFlow, but its own preparation of
CIFAR needs it to unpack the archive and to encode the images. The builders here
are those of TFDS, same name, version, address, checksum, features and order of
examples, with those two steps done by tarfile and Pillow. What they leave on
disk is what TFDS leaves, and every reader of TFDS reads it.
"""

import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import download_manager
from tensorflow_datasets.image_classification import cifar

_CHANNELS_ROWS_COLUMNS = (3, 32, 32)
_CONNECT_SECONDS = 30


class _WithoutTensorFlow:
  """Replaces the methods of TFDS's CIFAR builders that call TensorFlow."""

  # Given by the builder of TFDS that this is mixed into.
  info: Any
  name: str
  _cifar_info: Any

  # No checksums beside those that TFDS has of its whole catalogue. Looking for
  # a file of them here would need importlib_resources, which TFDS forgets to
  # install.
  url_infos = None

  def _split_generators(
    self, dl_manager: download_manager.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Downloads the archive and splits its files into train and test."""
    layout = self._cifar_info
    files = unpack(
      _download(dl_manager, self.name, layout.url),
      [*layout.train_files, *layout.test_files, *layout.label_files],
      layout.prefix,
      layout.url,
    )
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
      names = files[file].decode().splitlines()
      self.info.features[key].names = [name for name in names if name]
    return {
      'train': self._generate_examples(
        'train_', [files[file] for file in layout.train_files]
      ),
      'test': self._generate_examples(
        'test_', [files[file] for file in layout.test_files]
      ),
    }

  def _generate_examples(
    self, split_prefix: str, batches: Sequence[bytes]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the examples of one split, each with its key for TFDS."""
    keys = self._cifar_info.label_keys
    record_bytes = len(keys) + int(np.prod(_CHANNELS_ROWS_COLUMNS))
    records = np.concatenate(
      [
        np.frombuffer(batch, np.uint8).reshape(-1, record_bytes)
        for batch in batches
      ]
    )
    for index, record in enumerate(records):
      pixels = record[len(keys) :].reshape(_CHANNELS_ROWS_COLUMNS)
      # TFDS orders the examples by a hash of the index, so it must be its own.
      yield (
        index,
        {
          'id': f'{split_prefix}{index:05d}',
          # As a Pillow image: TFDS encodes an array with TensorFlow.
          'image': Image.fromarray(
            np.ascontiguousarray(pixels.transpose(1, 2, 0))
          ),
          **dict(zip(keys, record[: len(keys)].tolist(), strict=True)),
        },
      )


# TFDS names a builder after its class and has registered these names already.
with registered.skip_registration():

  class Cifar10(_WithoutTensorFlow, cifar.Cifar10):
    """CIFAR-10 3.0.2: 32×32 colour images of 10 classes."""

  class Cifar100(_WithoutTensorFlow, cifar.Cifar100):
    """CIFAR-100 3.0.2: 32×32 colour images of 100 classes."""


BUILDERS: Mapping[str, type] = {'cifar10': Cifar10, 'cifar100': Cifar100}


def prepare(name: str, data_dir: str | None) -> None:
  """Downloads a data set and writes it as TFDS does, in array_record.

  Does nothing when it is there already. Writes into a temporary folder and
  renames it at the end, so that what is there is whole and several processes
  may do this at once.

  Args:
    name: a key of `BUILDERS`.
    data_dir: folder of the prepared data sets; None is that of TFDS.

  Raises:
    FileNotFoundError: the download failed.
    ValueError: the archive is not the published one, or cannot be read.
  """
  builder = BUILDERS[name](data_dir=data_dir)
  try:
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  except OSError:
    # Another process that started meanwhile may have been the first to end.
    if not builder.data_path.exists():
      raise


def _download(
  dl_manager: download_manager.DownloadManager, name: str, url: str
) -> str:
  """Returns the path of the archive, downloaded unless it is there."""
  archive = os.path.basename(url)
  # Where TFDS looks for an archive that came by hand; it has no public name.
  manual = dl_manager.download_dir / 'manual' / archive
  by_hand = (
    f'To do it by hand, download {url} with a browser or on another machine, '
    f'save it as {manual} and run the same command again. '
    'What torchvision has downloaded is read too: set config.data.data_dir to '
    'the folder that it is in.'
  )
  try:
    if not manual.exists() and not any(
      (dl_manager.download_dir / name).glob('*.tar.gz')
    ):
      # TFDS retries for minutes before it says that there is no network.
      requests.head(url, timeout=_CONNECT_SECONDS)
    return os.fspath(dl_manager.download(url))
  except (requests.RequestException, tfds.download.DownloadError) as error:
    raise FileNotFoundError(
      f'{name} is not prepared here and its download from {url} failed: '
      f'{error}. Run the same command again when the address can be reached. '
      f'{by_hand}'
    ) from error
  except download_manager.NonMatchingChecksumError as error:
    found = f'{manual}, put there by hand,' if manual.exists() else url
    raise ValueError(
      f'{found} is not the published archive of {name}, it is truncated or '
      f'changed: {error}. Delete the archive and run the same command again. '
      f'{by_hand}'
    ) from error


def unpack(
  archive: str, names: Collection[str], prefix: str, published: str
) -> dict[str, bytes]:
  """Reads files of an archive.

  Args:
    archive: path of the archive, a tar.gz.
    names: names of the files within the folder of the archive.
    prefix: the folder, with a slash.
    published: what errors call the archive that is expected.

  Returns:
    The content of each file.

  Raises:
    ValueError: the archive is damaged, or lacks one of them.
  """
  files = {}
  try:
    with tarfile.open(archive) as tar:
      for member in tar:
        name = member.name.removeprefix(prefix)
        content = tar.extractfile(member) if name in names else None
        if content is not None:
          files[name] = content.read()
  except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
    raise ValueError(
      f'cannot read {archive}: {error}. Expected a whole tar.gz archive; '
      'delete it and run the same command again.'
    ) from error
  if missing := sorted(set(names) - set(files)):
    raise ValueError(
      f'{archive} holds {sorted(files)} of {prefix} but not {missing}. '
      f'Expected the archive of {published}; delete it and run the same '
      'command again.'
    )
  return files
