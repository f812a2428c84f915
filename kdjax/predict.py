"""Classifies images with a trained network.

python -m kdjax.predict --model=runs/fkd photos/ digit.png
"""

import itertools
import os

import tqdm
from absl import app, flags

from kdjax.export import classify_files, predictor
from kdjax.system import atomic, logs
from kdjax.system.command import command, define_path, start

_MODEL = define_path(
  'model',
  None,
  'Run directory, one checkpoint in it, or what kdjax.export made of it.',
  required=True,
)
_TOP = flags.DEFINE_integer(
  'top', 3, 'How many classes are shown of each image.', lower_bound=1
)
_JSON = flags.DEFINE_bool('json', False, 'Print a line of JSON for each image.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which checkpoint of a run.'
)
_EMA = flags.DEFINE_bool(
  'ema', False, 'Use the moving averages of the weights of a run.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 64, 'Images that are read and shown at once.', lower_bound=1
)


def main(argv: list[str]) -> None:
  """Reads the arguments, files and folders, and classifies their images."""
  program, *paths = map(os.path.expanduser, argv)
  if not paths:
    raise app.UsageError(
      'expected images, or folders of images: python -m kdjax.predict '
      '--model=PATH IMAGES…'
    )
  with command([program]):
    # Before the network is loaded, rather than after.
    total = classify_files.count(paths)
    network = predictor.load_student(
      atomic.local(_MODEL.value), _CHECKPOINT.value, _EMA.value
    )
    files = itertools.chain.from_iterable(map(classify_files.files_of, paths))
    shown = left_out = 0
    with logs.progress(total, 'images') as bar:
      for some in classify_files.classify(network, files, _BATCH_SIZE.value):
        text = classify_files.describe(
          network, some, _TOP.value, as_json=_JSON.value
        )
        if text:
          gap = '\n' if shown and not _JSON.value else ''
          # Above the bar.
          tqdm.tqdm.write(gap + text)
        shown += len(some.files)
        left_out += len(some.left_out)
        bar.update(some.images)
    if left_out:
      raise ValueError(
        f'{left_out} of {shown + left_out} files were left out'
        if shown
        else 'none of the images can be read'
      )


if __name__ == '__main__':
  start(main)
