"""ResNets from files of others, and written for others."""

import functools
import re
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
import safetensors.numpy
import torch_files
from torch_files import Call, Global, Raw, Tensor

from kdjax import models
from kdjax.models import features, resnet
from kdjax.storage import weights
from kdjax.storage.weights import pytorch, resnet_names

FILES = reference.FOLDER
OTHERS = {'epoch': 3, 'args': Call(Global('argparse', 'Namespace'), ())}


@functools.cache
def shapes_of(name='resnet10', stem='cifar', width=2, classes=3, channels=3):
  """The shapes of torchvision's tensors by name, from kdjax's own network."""
  model = models.build(name, num_classes=classes, stem=stem, width=width)
  variables = jax.eval_shape(
    lambda rng: features.init(model, rng, jnp.zeros((1, 32, 32, channels))),
    jax.random.key(0),
  )
  empty = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), variables
  )
  arrays = weights.to_torchvision(empty)
  return {key: array.shape for key, array in arrays.items()}


def state_of(**options):
  """A state dictionary of a narrow network."""
  return {
    name: reference.tensor(name, shape)
    for name, shape in shapes_of(**options).items()
  }


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def write(path, state, metadata=None):
  """Writes a file of the kind that its name says."""
  if path.suffix == '.safetensors':
    flat = {name: np.ascontiguousarray(array) for name, array in state.items()}
    path.write_bytes(safetensors.numpy.save(flat, metadata))
  elif path.suffix == '.legacy':
    torch_files.write_legacy(path, state)
  else:
    torch_files.write_zip(path, state)
  return path


def load(tmp_path, state, name='weights.pth'):
  return weights.load(write(tmp_path / name, state))


# There and back


def test_the_networks_are_those_of_kdjax():
  known = {
    (model.args[0] is resnet.Bottleneck, model.args[1]): name
    for name, model in resnet.MODELS.items()
  }
  assert known == resnet_names.NETWORKS


@pytest.mark.parametrize('name', resnet_names.NETWORKS.values())
@pytest.mark.parametrize('stem', ['imagenet', 'cifar'])
def test_what_is_written_has_torchvisions_names_and_layouts(
  tmp_path, name, stem
):
  """test_resnet.py does so with the weights of the reference values."""
  state = state_of(name=name, stem=stem)
  imported = load(tmp_path, state)
  path = tmp_path / 'saved.safetensors'
  weights.save(path, imported.variables, {'made by': 'kdjax'})
  written = weights.read(path)
  assert written.metadata == {'format': 'pt', 'made by': 'kdjax'}
  assert set(written.tensors) == set(state)
  for key, array in state.items():
    tensor = written.tensors[key]
    assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(tensor.read(), array)
  assert list(weights.to_torchvision(imported.variables)) == list(state)


@pytest.mark.parametrize('name', ['resnet10.pth', 'resnet10_legacy.pth'])
def test_pytorchs_own_files_are_read(name):
  imported = weights.load(FILES / name)
  assert_same(imported.variables, reference.flax_variables(state_of()))
  assert imported.recognised[1:] == (
    'resnet10, cifar stem, width 2, 3 classes, 3 channels',
    'prefix taken off: state_dict.module.',
    'ignored: epoch, args, optimizer',
  )


def test_the_same_logits_as_in_pytorch(tmp_path):
  """In an environment that has PyTorch; others compare stored values."""
  torch = pytest.importorskip('torch')
  spec = reference.module('resnet')
  network = spec.ResNet(spec.BasicBlock, (1, 1, 1, 1), 3, width=2, stem='cifar')
  imported = weights.load(FILES / 'resnet10.pth')
  arrays = weights.to_torchvision(imported.variables)
  network.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
  torch.save(network.state_dict(), tmp_path / 'torch.pth')
  assert_same(
    weights.load(tmp_path / 'torch.pth').variables, imported.variables
  )
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    batch = torch.tensor(images).permute(0, 3, 1, 2)
    expected = network.eval()(batch)[0].numpy()
  outputs, _ = features.forward(
    models.build(**imported.model), imported.variables, images, train=False
  )
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('suffix', ['pth', 'legacy', 'safetensors'])
def test_architecture_is_told_by_shapes(tmp_path, suffix):
  options = {
    'name': 'resnet50',
    'stem': 'imagenet',
    'width': 3,
    'classes': 7,
    'channels': 1,
  }
  imported = load(tmp_path, state_of(**options), f'weights.{suffix}')
  assert (*imported.model.values(), imported.channels) == (
    *('resnet50', 7, 'imagenet', 3),
    1,
  )


def test_a_network_without_a_head(tmp_path):
  state = state_of()
  del state['fc.weight'], state['fc.bias']
  imported = load(tmp_path, state)
  assert imported.model['num_classes'] is None
  assert 'fc' not in imported.variables['params']
  assert 'no classifier' in imported.recognised[1]


def test_what_is_not_a_resnet_is_not_written(tmp_path):
  path = tmp_path / 'out.safetensors'
  variables = {'params': {'Dense_0': {'kernel': np.zeros((2, 3))}}}
  with pytest.raises(ValueError, match='four stages'):
    weights.save(path, variables, {})
  assert not list(tmp_path.iterdir())


def test_a_folded_network_is_not_written():
  variables = reference.flax_variables(state_of())
  model = models.build('resnet10', num_classes=3, stem='cifar', width=2)
  _, folded = models.fold(model, variables)
  with pytest.raises(ValueError, match=r'missing.*bn1\.weight.*conv1\.bias'):
    weights.to_torchvision(folded)


# Names


def rename(state, *pairs):
  renamed = {}
  for name, array in state.items():
    for old, new in pairs:
      name = name.replace(old, new)
    renamed[name] = array
  return renamed


def prefixed(state, prefix):
  return {f'{prefix}{name}': array for name, array in state.items()}


def transformers(state):
  """Renames as Hugging Face transformers does."""
  renamed = {}
  for name, array in state.items():
    words = name.split('.')
    if words[0] == 'fc':
      new = f'classifier.1.{words[1]}'
    elif words[0].startswith('layer'):
      stage = int(words[0].removeprefix('layer')) - 1
      start = f'resnet.encoder.stages.{stage}.layers.{words[1]}'
      is_conv = words[2].startswith('conv') or words[3] == '0'
      kind = 'convolution' if is_conv else 'normalization'
      place = (
        'shortcut'
        if words[2] == 'downsample'
        else f'layer.{int(words[2][-1]) - 1}'
      )
      new = f'{start}.{place}.{kind}.{words[-1]}'
    else:
      kind = 'convolution' if words[0] == 'conv1' else 'normalization'
      new = f'resnet.embedder.embedder.{kind}.{words[-1]}'
    renamed[new] = array
  return renamed


def sequential(state):
  """Renames as implementations with `conv2_x` … `conv5_x` do."""
  renamed = {}
  for name, array in state.items():
    words = name.split('.')
    if words[0] in ('conv1', 'bn1'):
      new = f'conv1.{0 if words[0] == "conv1" else 1}.{words[1]}'
    elif words[0].startswith('layer'):
      stage = int(words[0].removeprefix('layer')) + 1
      if words[2] == 'downsample':
        place = f'shortcut.{words[3]}'
      else:
        number = 3 * (int(words[2][-1]) - 1) + words[2].startswith('bn')
        place = f'residual_function.{number}'
      new = f'conv{stage}_x.{words[1]}.{place}.{words[-1]}'
    else:
      new = name
    renamed[new] = array
  return renamed


def numbered(first, head=None):
  """Renames as the children of a ResNet in a `Sequential`."""

  def rename(state):
    places = {'conv1': '0', 'bn1': '1', 'fc': head or 'classifier'}
    places |= {f'layer{i + 1}': str(first + i) for i in range(4)}
    return {
      '.'.join([places[(words := name.split('.'))[0]], *words[1:]]): array
      for name, array in state.items()
    }

  return rename


def beside(head, body='backbone.'):
  """Renames as a body and a head beside it."""

  def rename(state):
    return {
      name.replace('fc.', f'{head}.')
      if name.startswith('fc.')
      else f'{body}{name}': array
      for name, array in state.items()
    }

  return rename


def wrapped(old, new):
  return lambda state: rename(state, (old, new))


NAMINGS = {
  'torchvision': lambda state: state,
  'cifar': lambda state: rename(
    state, ('downsample', 'shortcut'), ('fc.', 'linear.')
  ),
  'transformers': transformers,
  'transformers without a head': lambda state: {
    name.removeprefix('resnet.'): array
    for name, array in transformers(state).items()
  },
  'sequential': sequential,
  'children in a Sequential': numbered(4, 'fc'),
  'children in a Sequential with a head': numbered(4, '10'),
  'children without a max-pool': numbered(3),
  'children in a Sequential beside a head': lambda state: beside(
    'classifier', 'feature_extractor.'
  )(numbered(4, 'fc')(state)),
  'a Sequential of a body and a head': beside('2', '0.'),
  'a Sequential in a Sequential': lambda state: beside('1.3', '0.')(
    numbered(4, 'fc')(state)
  ),
  'backbone and head.fc': beside('head.fc'),
  'backbone and head': beside('head'),
  'backbone and cls_head.fc': beside('cls_head.fc'),
  'backbone and classifier after dropout': beside('classifier.1'),
  'deeper': lambda state: prefixed(beside('linear')(state), 'module.net.'),
  'torch.compile of a stage': wrapped('layer1.', 'layer1._orig_mod.'),
  'torch.compile of a head': wrapped('fc.', 'fc._orig_mod.'),
  'FSDP of a stage': wrapped('layer3.', 'layer3._fsdp_wrapped_module.'),
  'checkpoints of blocks': lambda state: {
    re.sub(r'(layer\d\.\d)\.', r'\1._checkpoint_wrapped_module.', name): array
    for name, array in state.items()
  },
  'all of them': lambda state: prefixed(
    rename(
      beside('head', '_orig_mod.backbone.module.')(state),
      ('layer1.', 'layer1._fsdp_wrapped_module.'),
      ('head.', '_orig_mod.head.module.'),
    ),
    'module.',
  ),
}


@pytest.mark.parametrize(
  ('naming', 'name'),
  [
    *((naming, 'resnet10') for naming in NAMINGS),
    # Three convolutions in a block; heads and wrappers are the same.
    *((naming, 'resnet50') for naming in [*NAMINGS][:6]),
  ],
)
def test_names_of_others(tmp_path, naming, name):
  state = state_of(name=name)
  imported = load(tmp_path, NAMINGS[naming](state))
  assert_same(imported.variables, reference.flax_variables(state))


@pytest.mark.parametrize(
  ('wrap', 'prefix'),
  [
    (lambda s: s, None),
    (lambda s: {'state_dict': s, **OTHERS}, 'state_dict.'),
    (lambda s: {'net': {'model': s}, 'acc': 91.5}, 'net.model.'),
    (lambda s: {'model_state_dict': prefixed(s, 'module.')}, None),
    (lambda s: [1, {'model': s}], '1.model.'),
    (lambda s: (s, {'lr': 0.1}), '0.'),
    (lambda s: prefixed(s, '_orig_mod.module.'), '_orig_mod.module.'),
    (lambda s: prefixed(s, 'backbone.encoder.'), 'backbone.encoder.'),
    (lambda s: {'teacher': s}, 'teacher.'),
    # As torch.optim.swa_utils.AveragedModel has it.
    (lambda s: {'n_averaged': np.int64([3]), **prefixed(s, 'module.')}, None),
    (lambda s: prefixed(s, 'ema_model.'), 'ema_model.'),
    # What is of no use beside it.
    (lambda s: (s, {'state': {0: {'exp_avg': np.ones(3, 'f')}}}), '0.'),
  ],
)
def test_wrappers(tmp_path, wrap, prefix):
  state = state_of()
  imported = load(tmp_path, wrap(state))
  assert_same(imported.variables, reference.flax_variables(state))
  if prefix:
    assert f'prefix taken off: {prefix}' in imported.recognised


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ('student.', 'teacher.'),
    ('state_dict.', 'state_dict_ema.'),
    ('model.', 'ema_model.module.'),
    ('module.encoder_q.', 'module.encoder_k.'),
    ('online_encoder.', 'target_encoder.'),
    ('', 'teacher.'),
    ('model.', 'model.teacher.'),
  ],
)
@pytest.mark.parametrize('turned', [False, True])
def test_of_two_networks_the_one_that_is_meant(tmp_path, first, second, turned):
  state = state_of()
  other = {name: array + 1 for name, array in state.items()}
  both = [prefixed(state, first), prefixed(other, second)]
  content = {
    k: v for part in (both[::-1] if turned else both) for k, v in part.items()
  }
  imported = load(tmp_path, content)
  assert_same(imported.variables, reference.flax_variables(state))
  assert f'other networks, not taken: {second}' in imported.recognised
  # And nothing else is left over.
  assert not any('ignored' in line for line in imported.recognised)


def test_two_networks_of_which_either_may_be_meant(tmp_path):
  state = state_of()
  other = {**state, 'bn1.bias': state['bn1.bias'] + 1}
  content = {
    'netA': state,
    'netB': {'module': other},
    'teacher': dict(state),
  }
  with pytest.raises(
    ValueError, match=r'2 networks which differ.*: netA\., netB\.module\.; save'
  ):
    load(tmp_path, content)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_the_same_network_twice_is_taken_once(tmp_path, suffix):
  state = state_of()
  body = {
    name: array for name, array in state.items() if not name.startswith('fc.')
  }
  # As of a module that has a network, and its body under another name, too.
  content = {
    **prefixed(numbered(4)(body), 'body.'),
    **prefixed(state, 'model.'),
    **prefixed(state, 'net.module.'),
  }
  imported = load(tmp_path, content, f'weights.{suffix}')
  assert_same(imported.variables, reference.flax_variables(state))
  [line] = [line for line in imported.recognised if 'the same net' in line]
  assert sorted(line.partition(': ')[2].split(', ')) == ['body.', 'net.module.']
  assert not any('ignored' in line for line in imported.recognised)
  content['body.4.0.conv1.weight'] = -content['body.4.0.conv1.weight']
  with pytest.raises(ValueError, match=r'3 networks which differ'):
    load(tmp_path, content, f'weights.{suffix}')


def test_one_dictionary_under_two_names_is_one_network(tmp_path):
  state = state_of()
  first = torch_files.Writer().encode(state) + b'q\xff'
  content = {'best': Raw(first), 'last': Raw(b'h\xff')}
  pickled = torch_files.Writer().pickle(content)
  path = tmp_path / 'weights.pth'
  torch_files.write_zip(path, state, pickled=pickled)
  assert 'prefix taken off: best.' in weights.load(path).recognised


# What else PyTorch and trainers write


BESIDE = {
  'arguments': Call(
    Global('argparse', 'Namespace'), (), b'\x81', {'lr': 0.1, 'path': 'data'}
  ),
  'a number of NumPy': Call(
    Global('numpy._core.multiarray', 'scalar'),
    (Call(Global('numpy', 'dtype'), ('f8', False, True), state=(3, '<')), b'1'),
  ),
  'an array of NumPy': Call(
    Global('numpy.core.multiarray', '_reconstruct'),
    (Global('numpy', 'ndarray'), (0,), b'b'),
    state=(1, (2,), None, False, b'12'),
  ),
  'a device': Call(Global('torch', 'device'), ('cuda', 0)),
  'a size': Call(Global('torch', 'Size'), ((1, 2),)),
  'a dtype': Global('torch', 'float16'),
  'a set': Call(Global('builtins', 'set'), ([1, 2],)),
  'a set of protocol 4': Raw(b'\x8f(K\1K\2\x90'),
  'a default': Raw(
    b'ccollections\ndefaultdict\ncbuiltins\ndict\n\x85R(X\1\0\0\0aK\1u'
  ),
  'milestones': Call(Global('collections', 'Counter'), ({30: 1},)),
  'a path': Call(Global('pathlib', 'PosixPath'), ('a', 'b')),
  'losses': [0.5] * 100_001,
  'a long number': 2**80,
  'bytes': Raw(b'C\3abc'),
  'a number of Python 2': Raw(b'I140735340871680\n'),
  'a tensor that was expanded': Tensor(
    np.zeros(1, np.int64), 0, (5, 6), (0, 0)
  ),
  'a slice': Call(Global('builtins', 'slice'), (None, 1, None)),
}


@pytest.mark.parametrize('beside', BESIDE)
@pytest.mark.parametrize('suffix', ['pth', 'legacy'])
def test_what_trainers_save_beside_the_weights(tmp_path, beside, suffix):
  state = state_of()
  content = {beside: BESIDE[beside], 'model': state}
  imported = load(tmp_path, content, f'weights.{suffix}')
  assert_same(imported.variables, reference.flax_variables(state))
  # What is in a list of numbers has no names.
  ignored = f'ignored: {beside}' in imported.recognised
  assert ignored == (beside != 'losses')


def rebuilt(function, *more, wrap=lambda tensor: tensor):
  """Pickles an array as one of PyTorch's functions makes it."""

  def tensor(array):
    flat = np.ascontiguousarray(array)
    stride = tuple(s // array.itemsize for s in flat.strides)
    name = Global('torch._utils', function)
    return wrap(Tensor(flat.ravel(), 0, array.shape, stride, name, more))

  return tensor


@pytest.mark.parametrize(
  'tensor',
  [
    # Before 0.4.
    rebuilt('_rebuild_tensor'),
    rebuilt(
      '_rebuild_tensor',
      wrap=lambda tensor: Call(
        Global('torch.nn.parameter', 'Parameter'),
        *((tensor,), b'\x81', (True, False, torch_files.ORDERED_DICT)),
      ),
    ),
    rebuilt('_rebuild_tensor_v2', False, {}, {'metadata': 1}),
    rebuilt('_rebuild_tensor_v3', False, {}, Global('torch', 'float32')),
    *(
      rebuilt(
        *('_rebuild_tensor_v2', False, {}),
        wrap=lambda tensor, name=name, more=more: Call(
          Global('torch._utils', name), (tensor, True, {}, *more)
        ),
      )
      for name, more in [
        ('_rebuild_parameter', ()),
        ('_rebuild_parameter_with_state', ({},)),
      ]
    ),
  ],
)
def test_tensors_as_versions_of_pytorch_describe_them(tmp_path, tensor):
  state = state_of()
  content = {
    name: tensor(array)
    for name, array in state.items()
    if array.dtype == np.float32
  }
  imported = load(tmp_path, content)
  assert_same(imported.variables, reference.flax_variables(state))


def test_strided_and_shared_tensors(tmp_path):
  state = state_of()
  kernel = state['layer4.0.conv1.weight']
  last = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1))  # channels_last
  out, height, width, size = last.shape
  both = np.concatenate([state['bn1.weight'], state['bn1.bias']])
  content = {
    **state,
    'layer4.0.conv1.weight': Tensor(
      last.ravel(),
      0,
      (out, size, height, width),
      (height * width * size, 1, width * size, size),
    ),
    'bn1.weight': Tensor(both, 0, (2,), (1,)),
    'bn1.bias': Tensor(both, 2, (2,), (1,)),
  }
  for suffix in ('pth', 'legacy'):
    imported = load(tmp_path, content, f'weights.{suffix}')
    assert_same(imported.variables, reference.flax_variables(state))


def test_dictionaries_as_python_2_wrote_them(tmp_path):
  state = state_of()
  pairs = [[name, array] for name, array in state.items()]
  content = Call(torch_files.ORDERED_DICT, (pairs,), state={'_metadata': {}})
  path = tmp_path / 'weights.pth'
  torch_files.write_zip(path, content)
  writer = torch_files.Writer()
  code = writer.pickle(content)
  # Its strings are bytes: a short one is U, its length, its characters.
  short = re.sub(rb'X(.)\0\0\0', rb'U\1', code, flags=re.DOTALL)
  assert short != code
  torch_files.write_zip(path, content, pickled=short)
  assert_same(weights.load(path).variables, reference.flax_variables(state))


OBJECTS = {
  'message_hub': {
    'loss': Call(
      Global('mmengine.logging.history_buffer', 'HistoryBuffer'),
      *((), b'\x81', {'_max_length': 3}),
    )
  },
  'hyper_parameters': Call(
    Global('lightning.fabric.utilities.data', 'AttributeDict'),
    *((), b'\x81'),
    state={
      'loss': Call(Global('torch.nn.modules.loss', 'MSELoss'), (), b'\x81')
    },
  ),
  'partial': Call(
    Call(Global('functools', 'partial'), (Global('my.code', 'make'),)), ()
  ),
  'of protocol 4': Raw(b'cmy.code\nConfig\n)}\x92(K\1\x910'),
  'floats': {0.5: 1, None: 2, (1, 2): Global('enum', 'Enum')},
  'in a list': [Call(Global('numpy.random._pickle', 'randomstate_ctor'), ())],
}


@pytest.mark.parametrize('suffix', ['pth', 'legacy'])
def test_objects_beside_the_weights_are_named(tmp_path, suffix):
  state = state_of()
  content = {**OBJECTS, 'state_dict': state}
  imported = load(tmp_path, content, f'weights.{suffix}')
  assert_same(imported.variables, reference.flax_variables(state))
  [line] = [line for line in imported.recognised if 'objects' in line]
  assert line.startswith('objects, not read and not executed: mmengine.logging')
  assert 'MSELoss' in line
  assert 'my.code.Config' in line


def test_a_dictionary_of_a_class_of_its_own(tmp_path):
  state = state_of()
  items = torch_files.Writer()
  inner = items.encode(state)
  # (A dictionary's items, without the dictionary.)
  code = b'ceasydict\nEasyDict\n)\x81' + inner[1:]
  torch_files.write_zip(
    tmp_path / 'a.pth', items.storages, pickled=b'\x80\x02' + code + b'.'
  )
  imported = weights.load(tmp_path / 'a.pth')
  assert_same(imported.variables, reference.flax_variables(state))


@pytest.mark.parametrize('suffix', ['pth', 'legacy'])
@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: {'model': x}])
def test_an_object_in_place_of_weights(tmp_path, suffix, wrap):
  whole = Call(
    Global('torchvision.models.resnet', 'ResNet'),
    *((), b'\x81', {'_modules': {'fc': np.ones(3, np.float32)}}),
  )
  if suffix == 'legacy':
    # As before PyTorch 1.6: with the class's source code.
    kind = Global('torchvision.models.resnet', 'ResNet')
    identity = torch_files.Writer().encode(('module', kind, 'a.py', 'code'))
    whole = Call(Raw(identity + b'Q'), (), b'\x81', {})
  with pytest.raises(
    ValueError, match=r'object.*ResNet: nothing was exec.*model\.state_dict\(\)'
  ):
    load(tmp_path, wrap(whole), f'weights.{suffix}')


# Heads


def without_head(state):
  return {name: a for name, a in state.items() if not name.startswith('fc.')}


@pytest.mark.parametrize(
  'head',
  [
    # Linear, ReLU, Dropout, Linear.
    {'fc.0.weight': (4, 16), 'fc.0.bias': (4,), 'fc.3.weight': (3, 4)},
    # As fastai's: pooling, norm, dropout, linear, ReLU, norm, dropout, linear.
    {'1.2.weight': (16,), '1.4.weight': (4, 16), '1.8.weight': (3, 4)},
    # A head of another one's features.
    {'fc.weight': (7, 16), 'fc.bias': (7,), 'classifier.weight': (3, 7)},
    # A network, its body under another name, and a head of that.
    {'model.fc.weight': (7, 16), 'classifier.weight': (3, 16), 'twice': ()},
    # What may come between a body and its head.
    {'head.weight': (3, 16), 'head.bias': (3,), 'neck.fc.weight': (16, 16)},
  ],
)
def test_a_head_of_several_layers(tmp_path, head):
  state = state_of()
  body = {'head.weight': 'backbone.', '1.2.weight': '0.'}
  content = prefixed(without_head(state), body.get(next(iter(head)), ''))
  if 'twice' in head:
    content = prefixed(content, 'model.')
    content |= prefixed(numbered(4)(without_head(state)), 'encoder.')
  for name, shape in head.items():
    content[name] = np.ones(shape, np.float32)
  with pytest.raises(ValueError, match=r'a head of several layers.*head=fresh'):
    load(tmp_path, content)
  # Its body can be taken without it.
  imported = weights.load(tmp_path / 'weights.pth', headless=True)
  assert imported.model['num_classes'] is None
  expected = reference.flax_variables(without_head(state))
  assert_same(imported.variables, expected)
  assert any('last layers, not taken' in line for line in imported.recognised)


def test_a_head_that_has_two_names(tmp_path):
  state = state_of()
  content = {
    **state,
    **{f'linear.{kind}': state[f'fc.{kind}'] for kind in ('weight', 'bias')},
  }
  imported = load(tmp_path, content)
  assert_same(imported.variables, reference.flax_variables(state))


def test_children_without_a_max_pool_after_the_stem_of_imagenet(tmp_path):
  state = state_of(stem='imagenet')
  imported = load(tmp_path, numbered(4)(state))
  assert imported.model['stem'] == 'imagenet'
  with pytest.raises(ValueError, match='7×7 there is no max-pool, or no ReLU'):
    load(tmp_path, numbered(3)(state))


# Normalisation in the network


@pytest.mark.parametrize(
  ('place', 'rest'),
  [
    ('', ''),
    ('normalize.', ''),
    ('0.', '1.'),
    ('model.norm_layer.', 'model.backbone.'),
  ],
)
@pytest.mark.parametrize('shape', [(3,), (1, 3, 1, 1), (3, 1, 1)])
def test_a_layer_that_normalises_images(tmp_path, place, rest, shape):
  state = state_of()
  mean, std = np.float32([0.5, 0.25, 0.125]), np.float32([0.25, 0.5, 1])
  content = prefixed(state, rest)
  content[f'{place}mean'] = 255 * mean.reshape(shape)
  content[f'{place}std'] = 255 * std.reshape(shape)
  imported = load(tmp_path, content)
  assert_same(imported.variables, reference.flax_variables(state))
  assert imported.normalization == {'mean': mean.tolist(), 'std': std.tolist()}
  assert imported.recognised[-1] == (
    f'it normalises its images by its own {place}mean, {place}std: mean 127.5, '
    '63.75, 31.88, standard deviation 63.75, 127.5, 255, of pixels of 0 … 255'
  )


@pytest.mark.parametrize(
  ('mean', 'std', 'found'),
  [
    ([0.5], [0.25], ([0.5] * 3, [0.25] * 3)),
    ([0] * 3, [1] * 3, ([0] * 3, [1] * 3)),
    ([0] * 3, [255] * 3, ([0] * 3, [1] * 3)),
    ([0.5] * 3, [2] * 3, None),
    ([0.5] * 3, [0] * 3, None),
    ([300] * 3, [50] * 3, None),
    ([np.nan] * 3, [0.5] * 3, None),
  ],
)
def test_what_a_layer_normalises_by_is_checked(tmp_path, mean, std, found):
  content = {**state_of(), 'mean': np.float32(mean), 'std': np.float32(std)}
  if found is None:
    with pytest.raises(ValueError, match='expected those of pixels of 0 … 1'):
      load(tmp_path, content)
    return
  imported = load(tmp_path, content)
  assert tuple(imported.normalization.values()) == found


def test_several_layers_that_normalise_images_otherwise(tmp_path):
  content = prefixed(state_of(), 'net.')
  for place in ('a.', 'b.'):
    content[f'{place}mean'] = np.zeros(3, np.float32)
    content[f'{place}std'] = np.full(3, 0.5, np.float32)
  assert load(tmp_path, content).normalization['std'] == [0.5] * 3
  content['b.std'] = np.ones(3, np.float32)
  with pytest.raises(ValueError, match=r'differ: a\.mean, a\.std, b\.mean'):
    load(tmp_path, content)


# What a file is


@pytest.mark.parametrize('length', [0x80, 0x4B50])
def test_a_header_whose_length_looks_like_another_format(tmp_path, length):
  state = {'a': np.zeros(2, np.float32)}
  spare = length - int.from_bytes(
    safetensors.numpy.save(state, {'x': ''})[:8], 'little'
  )
  path = write(tmp_path / 'weights.safetensors', state, {'x': ' ' * spare})
  assert path.read_bytes().startswith((b'\x80', b'PK'))
  assert weights.read(path).format == 'safetensors'


@pytest.mark.parametrize('suffix', ['pth', 'legacy', 'safetensors'])
def test_the_suffix_does_not_matter(tmp_path, suffix):
  path = write(tmp_path / f'weights.{suffix}', state_of())
  other = path.rename(tmp_path / 'weights.bin')
  assert_same(
    weights.load(str(other)).variables, reference.flax_variables(state_of())
  )


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'the file is empty'),
    (
      b'version https://git-lfs.github.com/spec/v1\noid sha256:0',
      'git lfs pull',
    ),
    (b'\n<!DOCTYPE html><html>', 'a web page'),
    (b'\x89HDF\r\n\x1a\n\0\0\0', 'an HDF5 file'),
    (b'\x1f\x8b\x08\0', 'compressed by gzip: unpack it first'),
    (b'\x01\x02\x03', r'neither.*x01'),
    (b'Entry not found', "a text in place of the weights, 'Entry not found'"),
    (b'{"error": "no access"}', 'a text in place of the weights'),
    (b'\x80\x02K\x01.', 'none of torch.save'),
    (b'PK\x03\x04', 'zip archive that is truncated'),
    (
      b'\xff' * 7 + b'\x7f{}',
      'header is said to have 9223372036854775807 bytes',
    ),
    (b'\x02\0\0\0\0\0\0\0{"', 'not a sound safetensors file'),
  ],
)
def test_a_file_that_is_none(tmp_path, content, message):
  path = tmp_path / 'weights.pth'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'weights.pth: .*{message}'):
    weights.load(path)


def test_a_download_that_has_not_finished(tmp_path):
  path = write(tmp_path / 'weights.pth', state_of())
  whole = path.rename(tmp_path / 'weights.pth.part')
  # It may have finished, and not been renamed.
  assert weights.load(whole).model['name'] == 'resnet10'
  whole.write_bytes(whole.read_bytes()[:3000])
  with pytest.raises(ValueError, match=r'pth\.part: .*download that has not'):
    weights.load(whole)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no file'):
    weights.load(tmp_path / 'weights.pth')
  with pytest.raises(IsADirectoryError, match='expected a file of weights'):
    weights.load(tmp_path)


def test_a_zip_archive_that_is_not_pytorchs(tmp_path):
  np.savez(tmp_path / 'weights.npz', a=1)
  with pytest.raises(ValueError, match=r'none of PyTorch.*a\.npy'):
    weights.load(tmp_path / 'weights.npz')


def test_a_torchscript_program(tmp_path):
  path = write(tmp_path / 'weights.pth', state_of())
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/constants.pkl', b'')
  with pytest.raises(ValueError, match='TorchScript'):
    weights.load(path)


def test_a_compressed_archive(tmp_path):
  path = tmp_path / 'weights.pth'
  torch_files.write_zip(path, state_of(), compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match=r'byteorder is compressed'):
    weights.load(path)


def test_big_endian_files(tmp_path):
  path = tmp_path / 'weights.pth'
  torch_files.write_zip(path, state_of(), byteorder=b'big')
  with pytest.raises(ValueError, match="byte order is b'big'"):
    weights.load(path)
  torch_files.write_legacy(path, state_of(), little_endian=False)
  with pytest.raises(ValueError, match='byte order is not little'):
    weights.load(path)
  # As PyTorch 1.6 to 2.0 wrote them.
  torch_files.write_zip(path, state_of(), byteorder=None, root='some name')
  assert_same(
    weights.load(path).variables, reference.flax_variables(state_of())
  )


# Values


@pytest.mark.parametrize('suffix', ['pth', 'legacy', 'safetensors'])
@pytest.mark.parametrize(
  'dtype', [np.float16, ml_dtypes.bfloat16, np.float64, np.float32]
)
def test_dtypes_are_converted(tmp_path, suffix, dtype):
  state = {
    name: array.astype(dtype) if array.dtype == np.float32 else array
    for name, array in state_of().items()
  }
  imported = load(tmp_path, state, f'weights.{suffix}')
  expected = {name: np.float32(array) for name, array in state.items()}
  assert_same(imported.variables, reference.flax_variables(expected))
  name = np.dtype(dtype).name
  converted = f'converted to float32: {name}' in imported.recognised
  assert converted == (name != 'float32')


def test_a_dtype_that_is_not_supported(tmp_path):
  state = state_of()
  state['fc.bias'] = state['fc.bias'].astype(np.int64)
  with pytest.raises(ValueError, match=r'found fc\.bias \(int64\)'):
    load(tmp_path, state)


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (np.nan, r'NaN or infinite values in module\.bn1\.running_var:'),
    (-np.inf, 'NaN or infinite'),
    (1e39, 'NaN or infinite'),
    (-1e-9, r'negative variances in module\.bn1\.running_var:'),
  ],
)
def test_values_that_cannot_be(tmp_path, value, message):
  state = prefixed(state_of(), 'module.')
  name = 'module.bn1.running_var'
  state[name] = state[name].astype(np.float64)
  state[name][1] = value
  with pytest.raises(ValueError, match=message):
    load(tmp_path, state)


# Other networks


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda s: s.pop('layer3.0.bn2.running_mean'),
      r'most like a resnet10, but not one\. Tensors 1 missing \(by '
      r"torchvision's names\): layer3\.0\.bn2\.running_mean$",
    ),
    (
      lambda s: s.update({f'extra.{i}': s['fc.bias'] for i in range(12)}),
      r'12 too many: extra\.0, .*, extra\.9 and 2 more$',
    ),
    (
      lambda s: s.update({'fc.bias': s['bn1.bias']}),
      r'1 of another shape: fc\.bias \(2,\), expected \(3,\)$',
    ),
    (
      # As in ResNeXt and in wide networks.
      lambda s: s.update(
        {'layer2.0.conv2.weight': np.zeros((4, 1, 3, 3), 'f')}
      ),
      r'layer2\.0\.conv2\.weight \(4, 1, 3, 3\), expected \(4, 4, 3, 3\)',
    ),
    (
      # As in ResNet-D.
      lambda s: s.update({'conv1.0.weight': s.pop('conv1.weight')}),
      r'missing .*: conv1\.weight; 1 too many: conv1\.0\.weight$',
    ),
    (
      lambda s: s.update({'conv1.weight': np.zeros((2, 3, 5, 5), 'f')}),
      'first convolution is 5×5: expected 7×7 or 3×3',
    ),
    (
      lambda s: s.update({'layer3.35.conv1.weight': s['fc.bias']}),
      r'\[1, 1, 36, 1\] blocks, which is none of resnet10 .*, resnet101 ',
    ),
    (
      lambda s: [s.pop(name) for name in list(s) if 'layer4' in name],
      r'\[1, 1, 1, 0\] blocks: expected four stages',
    ),
    (
      lambda s: s.update({'layer5.0.conv1.weight': s['fc.bias']}),
      'a stage 5: expected stages 1 to 4',
    ),
    (
      lambda s: s.pop('layer1.0.conv1.weight'),
      r'no ResNet: none of its \d+ tensors is called layer1\.0\.conv1\.weight',
    ),
    (
      lambda s: s.update({'layer1.0._orig_mod.bn1.bias': s['bn1.bias'] + 1}),
      r'layer1\.0\.bn1\.bias, layer1\.0\._orig_mod\.bn1\.bias are the same',
    ),
    (
      # A classifier of no classes.
      lambda s: s.update(
        {name: s[name][:0] for name in list(s) if 'fc' in name}
      ),
      r'tensors without elements: fc\.weight, fc\.bias$',
    ),
  ],
)
def test_another_network_is_refused_by_what_differs(tmp_path, change, message):
  state = state_of()
  change(state)
  with pytest.raises(ValueError, match=message):
    load(tmp_path, state)


def test_differences_are_named_as_in_the_file(tmp_path):
  state = prefixed(transformers(state_of()), 'model.')
  name = 'model.resnet.embedder.embedder.normalization.bias'
  state[name] = np.zeros(5, np.float32)
  with pytest.raises(ValueError, match=rf'{name} \(5,\), expected \(2,\)'):
    load(tmp_path, state)


def test_nothing_is_read_before_the_shapes_are_known(tmp_path, monkeypatch):
  state = state_of()
  state['fc.bias'] = state['bn1.bias']
  path = write(tmp_path / 'weights.pth', state)

  def read(member, content, original=pytorch._member):
    assert '/data/' not in member.filename
    return original(member, content)

  monkeypatch.setattr(pytorch, '_member', read)
  with pytest.raises(ValueError, match='of another shape'):
    weights.load(path)
