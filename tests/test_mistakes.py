import json
import pathlib
import subprocess
import sys

import pytest

# A command line, and part of the one line that answers it.
MISTAKES = {
  # Fields.
  'train --config=quickstart --config.train.lr=0.1': 'did you mean '
  'config.train.learning_rate?',
  'train --config=quickstart --config.chekpoint.keep=1': 'did you mean '
  'config.checkpoint?',
  'train --config=quickstart --config.method.response.temprature=4': 'has no '
  'field temprature: did you mean config.method.response.temperature?',
  'train --config=quickstart --config.train.lr=0.1 --config.data.nam=x': 'nam',
  # Flags.
  'train --config=quickstart --epochs=2': '--config.train.epochs',
  'train --config=quickstart --wordkir=runs/x': 'did you mean --workdir',
  'train --config=quickstart --workdir': 'missing value for flag --workdir',
  'train --config': 'missing value for flag --config',
  'train': '--config is missing',
  'train quickstart': '--config is missing',
  'train --config=quickstart again': 'unexpected arguments: again',
  'train --config=quickstart --config.train': 'config.train',
  'evaluate': 'expected --workdir=RUN, or --model=PATH and --images=FOLDER',
  'evaluate --workdr=x': 'did you mean --workdir?',
  'report --titel=x runs': 'there is no flag --titel',
  'report': 'expected',
  'predict --model=runs/nothing': 'expected images',
  'convert --input=nothing.pth --output=x': 'there is no flag --input',
  'benchmark --config=quickstart --mode=fast': 'did you mean --modes?',
  'trian --config=quickstart': "no command 'trian' (did you mean train?)",
  # Names.
  'train --config=quickstart --mode=rkdd': '(did you mean rkd or ',
  'train --config=quickstart --mode=KD': '(did you mean kd or ',
  'train --config=quickstart --config.method.name=mine.kd:at': "'mine.kd:at' "
  'cannot be imported',
  'train --config=quickstart --config.student.name=resnet19': '(did you mean '
  'resnet18',
  'train --config=quickstart --config.student.name=mine:Net': "'mine:Net'",
  'train --config=quickstart --config.student.stem=cifr': 'cifar_pool',
  'train --config=quickstart --config.train.optimizer=adm': "'adamw'",
  'train --config=quickstart --config.train.schedule=cosin': "'cosine'",
  'train --config=quickstart --config.student.dtype=fp16': "'bfloat16'",
  'train --config=quickstart --config.method.schedule=weight=linear': 'weight',
  'train --config=quikstart': '(did you mean quickstart',
  'train --config=quickstart:nothing': "has no variants, and 'nothing'",
  'train --config=rkd:t5': "unknown variant 't5': expected 't2' or 't4'",
  'train --config=methods:kdd': "unknown method 'kdd'",
  'sweep --config=sweep:nothing': "unknown variant 'nothing'",
  'sweep --config=quickstart': 'the configuration of a run',
  'train --config=quickstart_sweep': 'that of a sweep',
  # Values.
  'train --config=quickstart --config.train.epochs=two': 'expected an integer',
  'train --config=quickstart --config.train.epochs=2.5': 'expected an integer',
  'train --config=quickstart --config.train.epochs=-1': 'is -1: expected',
  'train --config=quickstart --config.seed=one': 'expected an integer',
  'train --config=quickstart --config.seed=-1': 'expected from 0',
  'train --config=quickstart --config.train.learning_rate=fast': 'expected a '
  'number',
  'train --config=quickstart --config.train.learning_rate=nan': 'is nan',
  'train --config=quickstart --config.data.flip=maybe': 'expected true or '
  'false',
  'train --config=quickstart --config.data=digits': 'expected fields',
  'train --config=quickstart --mode=response '
  '--config.method.response.temperature=0': 'response.temperature is 0.0',
  'train --config=quickstart --mode=kdjax.methods.kd:kd '
  '--config.method.custom.wieght=2': 'has no setting wieght; it has',
  'train --config=quickstart --mode=kdjax.methods.kd:kd '
  '--config.method.custom.temperature=hot': "is 'hot': expected a number",
  'train --config=quickstart --mode=kdjax.methods.kd:kd '
  '--config.method.custom.temperature=0': 'temperature is 0.0: expected',
  # Paths.
  'train --config=quickstart --config.data.name=image_folder '
  '--config.data.data_dir=/nowhere': 'there is no /nowhere',
  'train --config=quickstart --config.teacher.path=runs/nothing': 'there is no '
  'file or directory',
  'evaluate --workdir=runs/nothing': 'no run in runs/nothing',
  'report runs/nothing': 'runs/nothing does not exist',
  'export --workdir=runs/nothing --output=x': 'expected --workdir=PATH and',
  'predict --model=runs/nothing x.png': 'no file or folder x.png',
}


@pytest.fixture(scope='module')
def outcomes():
  done = subprocess.run(
    [sys.executable, pathlib.Path(__file__).with_name('mistakes.py')],
    input='\n'.join(MISTAKES),
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[1],
  )
  lines = map(json.loads, done.stdout.splitlines())
  return dict(zip(MISTAKES, lines, strict=True))


@pytest.mark.parametrize('line', MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(line, outcomes):
  outcome = outcomes[line]
  assert outcome['status'] == 1
  assert outcome['text'].startswith('error: ')
  assert outcome['text'].count('\n') == 1
  assert MISTAKES[line] in outcome['text']
  assert not outcome['files']
