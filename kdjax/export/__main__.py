"""Exports a run's student for deployment.

python -m kdjax.export --workdir=runs/fkd --format=safetensors,stablehlo
"""

from absl import app, flags

from kdjax.export import formats, write
from kdjax.system import atomic
from kdjax.system.command import command, define_path, start

_WORKDIR = define_path(
  'workdir',
  None,
  'Run directory, one checkpoint in it, an export, or a file of weights.',
)
_FORMAT = flags.DEFINE_list(
  'format', None, f'Some of {", ".join(formats.WRITERS)}.'
)
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  formats.WEIGHTS[0],
  formats.WEIGHTS,
  'What the weights inside a StableHLO or ONNX program are stored as.',
)
_RENEW = define_path(
  'renew',
  None,
  'A .stablehlo file to write again with this version of JAX, in place of '
  '--workdir.',
)
_OUTPUT = define_path(
  'output',
  None,
  'File or directory of the export; by default export/student.FORMAT in the '
  'run directory.',
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which checkpoint of a run.'
)
_EMA = flags.DEFINE_bool(
  'ema', False, 'Export the moving averages of the weights.'
)
_PLATFORMS = flags.DEFINE_list(
  'platforms',
  list(formats.DEFAULT_PLATFORMS),
  f'What a StableHLO program can run on: {", ".join(formats.PLATFORMS)}.',
)
_IMAGES = flags.DEFINE_integer(
  'images',
  0,
  'Test images to compare the export on, the first ones; 0 for all. Without '
  'them images of noise; 0 for 64.',
  lower_bound=0,
)
_DATA_DIR = define_path(
  'data_dir', None, 'Where the data are, if not where they were in training.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace what is there.')


def main(argv: list[str]) -> None:
  """Reads the flags, exports the network and prints a table."""
  with command(argv):
    if bool(_RENEW.value) == bool(_WORKDIR.value and _FORMAT.value):
      raise app.UsageError(
        'expected --workdir=PATH and --format=FORMATS, or --renew=FILE'
      )
    if _RENEW.value:
      print(formats.renew(atomic.local(_RENEW.value)))
      return
    print(
      write.export(
        atomic.local(_WORKDIR.value),
        _FORMAT.value or [],
        atomic.local(_OUTPUT.value) if _OUTPUT.value else None,
        write.Options(
          checkpoint=_CHECKPOINT.value,
          ema=_EMA.value,
          platforms=_PLATFORMS.value,
          images=_IMAGES.value,
          data_dir=_DATA_DIR.value,
          overwrite=_OVERWRITE.value,
          weights=_WEIGHTS.value,
        ),
      )
    )


if __name__ == '__main__':
  start(main)
