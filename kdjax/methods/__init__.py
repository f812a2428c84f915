"""How a student is taught: one file per method.

The file `name.py` defines a function `name` that takes static options (strings,
tuples of names) and returns a `Method`; its traced hyperparameters, with their
defaults and ranges, are in the Method.
"""

from kdjax.methods._base import Hyperparameter, Method, no_parameters
from kdjax.methods._registry import build, defaults, names

__all__ = [
  'Hyperparameter',
  'Method',
  'build',
  'defaults',
  'names',
  'no_parameters',
]
