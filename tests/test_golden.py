"""The losses against the values of third_party/golden.

`python -m pytest tests/test_golden.py --golden=DIRECTORY` runs other
files of the same format, which third_party/README.md describes.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from kdjax import losses, methods
from kdjax.methods import _connectors as connectors
from kdjax.system import xla
from kdjax.training.dot import dot

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'third_party' / 'golden'

# What a file's cases compute: inputs and parameters, arrays that may have a
# gradient, and hyperparameters, numbers. The result is the loss of each
# example, and more outputs by name.
Compute = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]
METHODS: dict[str, Compute] = {}


def method(function: Compute) -> Compute:
  METHODS[function.__name__.rstrip('_')] = function
  return function


def logits(inputs):
  return inputs['student_logits'], inputs['teacher_logits']


def views(inputs):
  return (
    inputs['student_logits_weak'],
    inputs['teacher_logits_weak'],
    inputs['student_logits_strong'],
    inputs['teacher_logits_strong'],
  )


def maps(inputs):
  return inputs['student_feature'], inputs['teacher_feature']


def embeddings(inputs):
  return inputs['student_embedding'], inputs['teacher_embedding']


def stages(inputs, kind='stage'):
  """Returns the student's and the teacher's features, in order."""
  numbers = sorted(
    int(key.removeprefix(f'student_{kind}'))
    for key in inputs
    if key.startswith(f'student_{kind}')
  )
  return tuple(
    [inputs[f'{who}_{kind}{number}'] for number in numbers]
    for who in ('student', 'teacher')
  )


@method
def kd(inputs, params, hp):
  return losses.kd(*logits(inputs), hp['temperature'])


@method
def dkd(inputs, params, hp):
  return losses.dkd(*logits(inputs), inputs['labels'], **hp)


@method
def gdkd(inputs, params, hp):
  return losses.gdkd(
    *logits(inputs),
    hp['temperature'],
    int(hp['k']),
    hp['w0'],
    hp['w1'],
    hp['w2'],
  )


@method
def rld(inputs, params, hp):
  return losses.rld(*logits(inputs), inputs['labels'], **hp)


@method
def dist(inputs, params, hp):
  return losses.dist(*logits(inputs), hp['tau'], hp['beta'], hp['gamma'])


@method
def logit_std(inputs, params, hp):
  standardized = map(losses.standardize_logits, logits(inputs))
  if 'alpha' in hp:
    return losses.dkd(*standardized, inputs['labels'], **hp)
  return losses.kd(*standardized, hp['temperature'])


@method
def normkd(inputs, params, hp):
  return losses.normkd(*logits(inputs), hp['temperature_norm'])


@method
def nkd(inputs, params, hp):
  return losses.nkd(*logits(inputs), inputs['labels'], **hp)


@method
def ttm(inputs, params, hp):
  return losses.ttm(*logits(inputs), hp['power'])


@method
def wttm(inputs, params, hp):
  return losses.wttm(*logits(inputs), hp['power'])


@method
def ofa(inputs, params, hp):
  return losses.ofa(
    *logits(inputs), inputs['labels'], hp['eps'], hp['temperature']
  )


@method
def abkd(inputs, params, hp):
  return losses.abkd(*logits(inputs), **hp)


@method
def wsld(inputs, params, hp):
  return losses.wsld(*logits(inputs), inputs['labels'], hp['temperature'])


@method
def skd(inputs, params, hp):
  return losses.skd(*logits(inputs), **hp)


@method
def ctkd(inputs, params, hp):
  loss = losses.ctkd(
    *logits(inputs), params['theta'], hp['lambda'], hp['t_start'], hp['t_end']
  )
  temperature = hp['t_start'] + hp['t_end'] * jax.nn.sigmoid(params['theta'])
  return loss, {'temperature': temperature}


@method
def wkd_l(inputs, params, hp):
  return losses.wkd_l(
    *logits(inputs),
    inputs['labels'],
    inputs['cost'],
    hp['temperature'],
    hp['weight'],
    hp['regularization'],
    int(hp['iterations']),
  )


@method
def mlkd(inputs, params, hp):
  return losses.mlkd(*views(inputs), tuple(np.asarray(hp['temperatures'])))


@method
def crld(inputs, params, hp):
  return losses.crld(
    *views(inputs),
    hp['temperature'],
    hp['within_weight'],
    hp['cross_weight'],
    hp['tau_weak'],
    hp['tau_strong'],
  )


@method
def sdd(inputs, params, hp):
  outputs = {}
  if 'student_feature' in inputs:
    levels = tuple(int(level) for level in hp['levels'])
    ours = losses.region_logits(
      inputs['student_feature'],
      params['student_head_kernel'],
      params['student_head_bias'],
      levels,
    )
    theirs = losses.region_logits(
      inputs['teacher_feature'],
      inputs['teacher_head_kernel'],
      inputs['teacher_head_bias'],
      levels,
    )
    outputs = {'student_region_logits': ours, 'teacher_region_logits': theirs}
  else:
    ours, theirs = (
      inputs['student_region_logits'],
      inputs['teacher_region_logits'],
    )

  def loss(student, teacher, labels):
    if 'beta' in hp:
      return losses.dkd(
        student, teacher, labels, hp['temperature'], hp['alpha'], hp['beta']
      )
    if 'gamma' in hp:
      return losses.nkd(
        student, teacher, labels, hp['temperature'], hp['gamma']
      )
    return losses.kd(student, teacher, hp['temperature'])

  return losses.sdd(ours, theirs, inputs['labels'], loss), outputs


@method
def tfkd(inputs, params, hp):
  student, labels = inputs['student_logits'], inputs['labels']
  classes = student.shape[-1]
  if 'smoothing' in hp:
    off = hp['smoothing'] / (classes - 1)
    on = 1 - hp['smoothing']
    onehot = jax.nn.one_hot(labels, classes)
    return losses.cross_entropy(student, off + (on - off) * onehot)
  if 'teacher_logits' in inputs:
    divergence = losses.kd(*logits(inputs), hp['temperature'])
    return hp['multiplier'] * divergence / classes
  return losses.tfkd(student, labels, hp['temperature'], hp['multiplier'])


@method
def uskd(inputs, params, hp):
  auxiliary = connectors.dense(params, inputs['student_mid'])
  return losses.uskd(
    inputs['student_logits'], auxiliary, inputs['labels'], **hp
  )


@method
def pskd(inputs, params, hp):
  past, ids = inputs['past_predictions'], inputs['ids']
  probabilities = jax.nn.softmax(inputs['student_logits'])
  loss = losses.pskd(
    inputs['student_logits'], inputs['labels'], past[ids], hp['alpha']
  )
  return loss, {'new_predictions': past.at[ids].set(probabilities)}


@method
def dml(inputs, params, hp):
  first, second = inputs['student_a_logits'], inputs['student_b_logits']
  first_loss = losses.kd(first, second, 1.0)
  second_loss = losses.kd(second, first, 1.0)
  return first_loss + second_loss, {
    'per_example_a': first_loss,
    'per_example_b': second_loss,
  }


@method
def byot(inputs, params, hp):
  count = len([key for key in inputs if key.startswith('student_logits')])
  every = range(count)
  return losses.byot(
    [inputs[f'student_logits{k}'] for k in every],
    inputs['labels'],
    [inputs['student_embedding0']]
    + [
      connectors.dense(params[str(k)], inputs[f'student_embedding{k}'])
      for k in every[1:]
    ],
    **hp,
  )


@method
def fitnet(inputs, params, hp):
  student, teacher = maps(inputs)
  return losses.feature_mse(
    connectors.regress(params, student, teacher.shape[1]), teacher
  )


@method
def at(inputs, params, hp):
  return losses.at(*stages(inputs))


@method
def nst(inputs, params, hp):
  return losses.nst(*stages(inputs))


@method
def sp(inputs, params, hp):
  return losses.sp(*maps(inputs))


@method
def ickd(inputs, params, hp):
  student, teacher = maps(inputs)
  student = connectors.batch_norm(
    params['bn'], connectors.conv(params['conv'], student)
  )
  return losses.ickd(student, teacher)


@method
def ofd(inputs, params, hp):
  students, teachers = stages(inputs, 'preact')
  connected, margins = [], []
  for index, student in enumerate(students, start=1):
    level = params[str(index)]
    connected.append(
      connectors.batch_norm(
        level['bn'], connectors.conv(level['conv'], student)
      )
    )
    margins.append(
      losses.ofd_margin(
        inputs[f'teacher_bn{index}_scale'], inputs[f'teacher_bn{index}_bias']
      )
    )
  return losses.ofd(connected, teachers, margins), {
    f'margin{index}': margin for index, margin in enumerate(margins, start=1)
  }


@method
def vid(inputs, params, hp):
  total = 0.0
  for index, (student, teacher) in enumerate(
    zip(*stages(inputs), strict=True), start=1
  ):
    student, teacher = losses.match_sizes(student, teacher)
    mean, variance = connectors.gaussian(params[str(index)], student)
    total = total + losses.vid(mean, teacher, variance)
  return total


@method
def reviewkd(inputs, params, hp):
  students, teachers = stages(inputs, 'level')
  return losses.hcl(connectors.fuse(params, students), teachers)


@method
def simkd(inputs, params, hp):
  student, teacher = losses.match_sizes(*maps(inputs))
  projected = connectors.project(params, student)
  head = {
    'kernel': inputs['teacher_head_kernel'],
    'bias': inputs['teacher_head_bias'],
  }
  return losses.feature_mse(projected, teacher), {
    'logits': connectors.dense(head, connectors.pool(projected))
  }


@method
def srrl(inputs, params, hp):
  student, teacher = embeddings(inputs)
  head = {
    'kernel': inputs['teacher_head_kernel'],
    'bias': inputs['teacher_head_bias'],
  }
  head = jax.lax.stop_gradient(head)
  x = jax.nn.relu(
    connectors.batch_norm(
      params['bn'], connectors.dense({'kernel': params['kernel']}, student)
    )
  )
  return losses.feature_mse(x, teacher) + losses.feature_mse(
    connectors.dense(head, x), inputs['teacher_logits']
  )


@method
def cat_kd(inputs, params, hp):
  if 'student_cam' in inputs:
    ours, theirs = inputs['student_cam'], inputs['teacher_cam']
  else:
    student, teacher = maps(inputs)
    ours = student @ params['student_head_kernel']
    theirs = teacher @ inputs['teacher_head_kernel']
  return losses.cat_kd(ours, theirs, int(hp['resolution']))


@method
def wkd_f(inputs, params, hp):
  student, teacher = maps(inputs)
  return losses.wkd_f(
    connectors.regress(params, student, teacher.shape[1]),
    teacher,
    hp['mean_weight'],
  )


@method
def rkd(inputs, params, hp):
  return losses.rkd(*embeddings(inputs), **hp)


@method
def pkt(inputs, params, hp):
  return losses.pkt(*embeddings(inputs))


def both_embedded(inputs, params):
  student, teacher = embeddings(inputs)
  return (
    connectors.dense(params['student'], student),
    connectors.dense(params['teacher'], jax.lax.stop_gradient(teacher)),
  )


@method
def cc(inputs, params, hp):
  if 'gamma' not in hp:
    return losses.cc_pairs(*both_embedded(inputs, params))
  return losses.cc(
    *both_embedded(inputs, params), hp['gamma'], int(hp['order'])
  )


@method
def crd(inputs, params, hp):
  memory = losses.CRD(
    inputs['memory_student'],
    inputs['memory_teacher'],
    jnp.float32(hp['z_student']),
    jnp.float32(hp['z_teacher']),
  )
  loss, memory = losses.crd(
    *both_embedded(inputs, params),
    inputs['ids'],
    inputs['contrast_ids'],
    memory,
    hp['temperature'],
    hp['momentum'],
  )
  return loss, {
    'new_memory_student': memory.student,
    'new_memory_teacher': memory.teacher,
    'z_student': memory.student_constant,
    'z_teacher': memory.teacher_constant,
  }


@method
def srd(inputs, params, hp):
  student, teacher = embeddings(inputs)
  return losses.srd(connectors.dense(params, student), teacher, *logits(inputs))


@method
def itrd(inputs, params, hp):
  student, teacher = embeddings(inputs)
  return losses.itrd(
    connectors.dense(params, student),
    teacher,
    hp['correlation_weight'],
    hp['mutual_weight'],
    hp['alpha'],
  )


@method
def dcd(inputs, params, hp):
  return losses.dcd(
    *both_embedded(inputs, params),
    params['log_scale'],
    params['offset'],
    hp['alpha'],
    hp['max_tau'],
  )


def pytest_generate_tests(metafunc):
  if 'case' not in metafunc.fixturenames:
    return
  folder = metafunc.config.getoption('--golden') or FOLDER
  cases = []
  for file in sorted(pathlib.Path(folder).glob('*.npz')):
    with np.load(file) as arrays:
      names = dict.fromkeys(key.split('/')[0] for key in arrays.files)
    cases += [
      pytest.param((file, name), id=f'{file.stem}-{name}') for name in names
    ]
  assert cases, f'{folder} has no files NAME.npz'
  metafunc.parametrize('case', cases)


def load(file, case):
  """Returns a case's arrays by group, nested."""
  with np.load(file) as arrays:
    flat = {
      key.removeprefix(f'{case}/'): arrays[key]
      for key in arrays.files
      if key.startswith(f'{case}/')
    }
  return traverse_util.unflatten_dict(flat, sep='/')


def as_arrays(tree):
  return jax.tree.map(jnp.asarray, tree)


def check_dot(groups):
  """Compares parameters after each step."""
  inputs, expected, hp = groups['in'], groups['out'], groups['hp']
  names = [key.removeprefix('param_') for key in inputs if 'param_' in key]
  params = {name: jnp.asarray(inputs[f'param_{name}']) for name in names}
  optimizer = dot(**{key: float(value) for key, value in hp.items()})
  state = optimizer.init(params)

  @jax.jit
  def step(ce, kd, state, params):
    updates, state = optimizer.update(ce, state, params, kd_gradients=kd)
    return optax.apply_updates(params, updates), state

  for number in range(len(expected[f'param_{names[0]}'])):
    ce, kd = (
      {
        name: jnp.asarray(gradient[number])
        if (gradient := inputs.get(f'grad_{kind}_{name}')) is not None
        else None
        for name in names
      }
      for kind in ('ce', 'kd')
    )
    params, state = step(ce, kd, state, params)
    for name in names:
      np.testing.assert_allclose(
        params[name],
        expected[f'param_{name}'][number],
        rtol=2e-5,
        atol=1e-6,
        err_msg=f'{name}, step {number}',
      )


def check_schedule(groups):
  """Compares the factor of a hyperparameter; epochs count from 1."""
  epochs, ((key, number),) = groups['in']['epoch'], groups['hp'].items()
  kind = {'ramp_epochs': 'cosine', 'warmup_epochs': 'linear'}[key]
  change = methods.schedule([f'x={kind}:{number}'], ['x'])
  (expected,) = groups['out'].values()
  for epoch, factor in zip(epochs, expected, strict=True):
    found = change({'x': jnp.float32(1)}, jnp.float32(epoch - 1))['x']
    np.testing.assert_allclose(found, factor, atol=1e-6)


def test_golden(case):
  file, name = case
  if file.stem == 'dot':
    check_dot(load(file, name))
    return
  if file.stem not in METHODS:
    pytest.skip(f'kdjax has no {file.stem}')
  groups = load(file, name)
  if name == 'schedule':
    check_schedule(groups)
    return
  inputs, params = groups.get('in', {}), groups.get('param', {})
  expected, checks = groups['out'], groups.get('check', {})
  hp = {
    key: value.item() if value.ndim == 0 else value
    for key, value in groups.get('hp', {}).items()
  }
  trained = {
    key: value
    for key, value in inputs.items()
    if np.issubdtype(value.dtype, np.floating)
  }
  rest = as_arrays({k: v for k, v in inputs.items() if k not in trained})

  @xla.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def compute(trained, params):
    result = METHODS[file.stem](trained | rest, params, hp)
    loss, outputs = result if isinstance(result, tuple) else (result, {})
    return loss.mean(), {'per_example': loss, **outputs}

  (loss, outputs), gradients = compute(as_arrays(trained), as_arrays(params))

  relative = 5e-4 if 'extreme' in name else 2e-5
  target = float(expected['loss'])
  allowed = (
    relative * abs(target) + 10 * float(checks.get('loss_error32', 0)) + 1e-6
  )
  assert abs(float(loss) - target) <= allowed
  for key, value in outputs.items():
    if key in expected:
      np.testing.assert_allclose(
        value,
        expected[key],
        rtol=relative,
        atol=10 * float(checks.get('loss_error32', 0)) + 1e-5,
        err_msg=key,
      )
  wanted = traverse_util.flatten_dict(groups.get('grad', {}), sep='/')
  found = traverse_util.flatten_dict(
    {**gradients[0], 'param': gradients[1]}, sep='/'
  )
  for key, gradient in found.items():
    assert np.isfinite(gradient).all(), key
    if key.startswith('teacher_') and key not in wanted:
      assert not np.asarray(gradient).any(), f'{key} receives a gradient'
  largest = max([np.abs(g).max() for g in wanted.values()], default=0.0)
  allowed = (
    relative * largest + 10 * float(checks.get('grad_error32', 0)) + 1e-7
  )
  for key, gradient in wanted.items():
    error = np.abs(found[key] - gradient).max()
    assert error <= allowed, f'{key}: error {error}, allowed {allowed}'
