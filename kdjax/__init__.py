"""Knowledge distillation for image classifiers in functional JAX."""

import kdjax.system.startup  # noqa: F401 (before all that takes long to import)
from kdjax import losses, methods, models
from kdjax.export.predictor import Student, load_student
from kdjax.losses import (
  cross_entropy,
  feature_loss,
  feature_mse,
  response_loss,
  temperature_kl,
)
from kdjax.models.features import Outputs, forward, normalize
from kdjax.storage import checkpoint
from kdjax.version import __version__

__all__ = [
  'Outputs',
  'Student',
  '__version__',
  'checkpoint',
  'cross_entropy',
  'feature_loss',
  'feature_mse',
  'forward',
  'load_student',
  'losses',
  'methods',
  'models',
  'normalize',
  'response_loss',
  'temperature_kl',
]
