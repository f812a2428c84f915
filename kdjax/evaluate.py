"""Evaluates a run's checkpoints again, on its test split.

python -m kdjax.evaluate --workdir=runs/fkd
"""

from absl import flags

from kdjax.evaluation import example_files as predictions_lib
from kdjax.evaluation import tables
from kdjax.storage import checkpoint, run_directory
from kdjax.system import atomic, escape
from kdjax.system.command import command, define_path, start
from kdjax.training import final_test

_WORKDIR = define_path('workdir', None, 'Run directory.', required=True)
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
  'Whose predictions --output receives. The table shows both.',
)


def main(argv: list[str]) -> None:
  """Reads the flags, evaluates the run and writes the predictions."""
  with command(argv):
    workdir = atomic.local(_WORKDIR.value)
    output = atomic.local(_OUTPUT.value) if _OUTPUT.value else None
    if output:
      # Before the run is evaluated, rather than after.
      predictions_lib.prepare(output)
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


if __name__ == '__main__':
  start(main)
