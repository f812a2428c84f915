"""Evaluates a run again on its test split, or any network on a folder.

python -m kdjax.evaluate --workdir=runs/fkd
python -m kdjax.evaluate --model=runs/fkd --images=photos
"""

import pathlib

from absl import app, flags

from kdjax.evaluation import example_files as predictions_lib
from kdjax.evaluation import tables
from kdjax.export import labelled_folder, predictor
from kdjax.storage import checkpoint, run_directory
from kdjax.system import atomic, escape
from kdjax.system.command import command, define_path, start
from kdjax.training import final_test

_WORKDIR = define_path('workdir', None, 'Run directory.')
_MODEL = define_path(
  'model',
  None,
  'For --images: a run directory, one checkpoint in it, or what kdjax.export '
  'made of it.',
)
_IMAGES = define_path(
  'images', None, 'A folder of images, with a folder for each class.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 64, 'Images of the folder read at once.', lower_bound=1
)
_DATA_DIR = define_path(
  'data_dir', None, 'Where the data are, if not where they were in training.'
)
_OUTPUT = define_path(
  'output',
  None,
  'File for the prediction of each test example: .csv (classes by name) or '
  '.npz (classes by index; logits as well).',
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  'best',
  ['best', 'last'],
  'Whose predictions --output receives, and which --images are classified by. '
  'The table of a run shows both.',
)


def main(argv: list[str]) -> None:
  """Reads the flags, evaluates the run and writes the predictions."""
  with command(argv):
    if bool(_WORKDIR.value) == bool(_IMAGES.value and _MODEL.value):
      raise app.UsageError(
        'expected --workdir=RUN, or --model=PATH and --images=FOLDER'
      )
    output = atomic.local(_OUTPUT.value) if _OUTPUT.value else None
    if output:
      # Before the run is evaluated, rather than after.
      predictions_lib.prepare(output)
    if _IMAGES.value:
      _evaluate_folder(output)
      return
    workdir = atomic.local(_WORKDIR.value)
    config = run_directory.read_config(workdir)
    if _DATA_DIR.value:
      config.data.data_dir = _DATA_DIR.value
    result, predictions = final_test.evaluate(workdir, config)
    print(tables.table(result))
    if output:
      which = _CHECKPOINT.value
      predictions_lib.write(
        output,
        checkpoint.read_metadata(workdir, which)['class_names'],
        predictions,
        which,
      )
      print(escape.lines(f'\npredictions: {output}'))


def _evaluate_folder(output: pathlib.Path | None) -> None:
  """Classifies a folder of labelled images, and shows how well."""
  student = predictor.load_student(
    atomic.local(_MODEL.value), _CHECKPOINT.value
  )
  measured = labelled_folder.classify(
    student, str(atomic.local(_IMAGES.value)), _BATCH_SIZE.value
  )
  print(labelled_folder.table(measured))
  if output:
    predictions = {'labels': measured.labels, 'best': measured.logits}
    predictions_lib.write(
      output, measured.class_names, predictions, files=measured.files
    )
    print(escape.lines(f'\npredictions: {output}'))
  if measured.left_out:
    total = measured.left_out + len(measured.files)
    raise ValueError(f'{measured.left_out} of {total} files were left out')


if __name__ == '__main__':
  start(main)
