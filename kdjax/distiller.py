"""Distillation of arrays in a few lines, without a configuration.

distiller = kdjax.Distiller(teacher='resnet50', student='resnet18')
student = distiller.fit(images, labels)
probabilities = student(images)
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax import api, models
from kdjax import config as config_lib
from kdjax.export.predictor import Student, load_student
from kdjax.system import atomic, config_files


class Distiller:
  """Teaches a student on arrays.

  It writes the arrays to a file and trains a run from a configuration: what
  holds of `kdjax.train` holds here, and every command works on the run
  directory. Interrupted, the same call continues. A tenth of the training
  images chooses the best epoch.

  Args:
    teacher: the name or import path of a model, which is trained first; or the
      path of a pretrained network (see `kdjax.storage.networks`); or None, for
      a method without a teacher.
    student: the name or import path of the student's model.
    method: the name or import path of the method; see `kdjax.methods.names()`.
    changes: further fields of the configuration by dotted name, such as
      `{'train.epochs': 5, 'method.response.temperature': 2.0}`.
    class_names: name of each class; by default their indices.

  Attributes:
    config: the configuration, which may be changed before `fit`. Its recipe is
      AdamW, learning rate 0.001, 20 epochs, without augmentation.
    result: after `fit` the content of `result.json`: accuracies and the like.

  Raises:
    ValueError: there is no such method or field, a value has another type, or
      the method needs a teacher and there is none.
  """

  def __init__(
    self,
    teacher: str | pathlib.Path | None = 'resnet50',
    student: str = 'resnet18',
    method: str = 'response',
    changes: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
  ):
    config = config_lib.default()
    config_lib.set_adam_recipe(config)
    config.data.name = 'arrays'
    # Nothing is known of the images: a mirrored digit is none.
    config.data.flip = False
    config.data.crop_padding = 0
    config.teacher.sibling = 'teacher'
    config.student.name = student
    config.method.name = method
    built, _ = config_lib.build_method(config)
    if teacher is None and built.needs_teacher:
      raise ValueError(
        f"the method '{method}' needs a teacher, and none is given: name a "
        "model or a file, or choose the method 'scratch'"
      )
    if teacher is not None:
      is_model = str(teacher) in models.names() or ':' in str(teacher)
      config.teacher['name' if is_model else 'path'] = str(teacher)
    config_files.override(config, changes or {})
    self.config = config
    self.result: dict[str, Any] | None = None
    self._class_names = list(class_names)

  def fit(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    workdir: str | pathlib.Path = 'runs/distiller/student',
    test: tuple[np.ndarray, np.ndarray] | None = None,
    **options: Any,
  ) -> Student:
    """Trains the student, and before it the teacher if that has to be trained.

    Args:
      images: pixels, uint8 from 0 to 255 or floats from 0 to 1,
        `[size, height, width, channels]`, or `[size, height, width]` if grey.
      labels: index of each image's class from 0, integers `[size]`.
      workdir: the run directory; the teacher's and the arrays' are beside it.
        A run that has finished there is only measured again.
      test: images and labels that are measured once, at the end; by default a
        share of the others, kept from training.
      **options: `callbacks` and `verbose` of `kdjax.train`.

    Returns:
      The student of the best epoch; `student(images)` returns probabilities.

    Raises:
      ValueError: the arrays are not as above, or the directory has another
        run; all others as `kdjax.train`.
    """
    workdir = atomic.local(workdir)
    arrays = {'train_images': images, 'train_labels': labels}
    if test is not None:
      arrays['test_images'], arrays['test_labels'] = test
    if self._class_names:
      arrays['class_names'] = np.array(self._class_names)
    config = self.config.copy_and_resolve_references()
    config.data.data_dir = str(_write(workdir.absolute().parent, arrays))
    self.result = api.train(config, workdir, **options)
    return load_student(workdir)


def _write(folder: pathlib.Path, arrays: Mapping[str, Any]) -> pathlib.Path:
  """Writes arrays to a file that is named by what is in it."""
  content = hashlib.sha256()
  for name, array in arrays.items():
    array = np.ascontiguousarray(array)
    content.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    content.update(array.tobytes())
  path = folder / f'arrays-{content.hexdigest()[:16]}.npz'
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as file:
      np.savez(file, **arrays)
  return path
