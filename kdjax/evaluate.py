"""Evaluates a run's checkpoints again, on its test split.

python -m kdjax.evaluate --workdir=runs/fkd
"""

from absl import app, flags

from kdjax import checkpoint, escape, files, measure, results
from kdjax import predictions as predictions_lib
from kdjax.command import command, define_path

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
    workdir = files.local(_WORKDIR.value)
    output = files.local(_OUTPUT.value) if _OUTPUT.value else None
    if output:
      # Before the run is evaluated, rather than after.
      predictions_lib.prepare(output)
    config = results.read_config(workdir)
    if _DATA_DIR.value:
      config.data.data_dir = _DATA_DIR.value
    result, predictions = measure.evaluate(workdir, config)
    print(results.table(result))
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
  app.run(main)
