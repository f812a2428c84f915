"""Knowledge distillation for image classifiers in functional JAX."""

from etils import epy

import kdjax.system.startup  # noqa: F401 (before all that takes long to import)
from kdjax.version import __version__

# Each is imported when it is first used.
with epy.lazy_api_imports(globals()):
  from kdjax import losses, methods, models
  from kdjax.api import load_config, train
  from kdjax.distiller import Distiller
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
  from kdjax.training.callbacks import Callbacks

__all__ = [
  'Callbacks',
  'Distiller',
  'Outputs',
  'Student',
  '__version__',
  'checkpoint',
  'cross_entropy',
  'feature_loss',
  'feature_mse',
  'forward',
  'load_config',
  'load_student',
  'losses',
  'methods',
  'models',
  'normalize',
  'response_loss',
  'temperature_kl',
  'train',
]
