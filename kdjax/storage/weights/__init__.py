"""Weights in others' files, read without executing anything, and written."""

from kdjax.storage.weights.loading import (
  Imported,
  load,
  read,
  save,
  save_arrays,
  to_torchvision,
)
from kdjax.storage.weights.stored_tensors import Stored, Tensor

__all__ = [
  'Imported',
  'Stored',
  'Tensor',
  'load',
  'read',
  'save',
  'save_arrays',
  'to_torchvision',
]
