"""Examples from their source to the device, in a reproducible order."""

from kdjax.data.dataset import (
  Dataset,
  class_counts,
  in_memory,
  labels_of,
  load,
  read,
)
from kdjax.data.sources import Split
from kdjax.data.stream import Stream

__all__ = [
  'Dataset',
  'Split',
  'Stream',
  'class_counts',
  'in_memory',
  'labels_of',
  'load',
  'read',
]
