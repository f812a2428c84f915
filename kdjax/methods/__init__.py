"""How a student is taught: one file per method.

The file `name.py` defines a function `name` that takes static options (strings,
tuples of names) and returns a `Method`; its traced hyperparameters, with their
defaults and ranges, are in the Method.
"""

from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
  check_loss,
  classes,
  no_variables,
)
from kdjax.methods._registry import build, defaults, names
from kdjax.methods._schedule import schedule

__all__ = [
  'Batch',
  'Hyperparameter',
  'Loss',
  'Method',
  'Setup',
  'Variables',
  'build',
  'check_loss',
  'classes',
  'defaults',
  'names',
  'no_variables',
  'schedule',
]
