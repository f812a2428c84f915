"""The arrows between kdjax's modules point one way, and stay few."""

import ast
import graphlib
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What the modules of each package, or a module that stands alone, may import
# beside their own package: those further down. Commands may import all of it,
# and nothing imports a command.
ALLOWED = {
  'distiller': ('api', 'export', 'config', 'models', 'system'),
  'api': ('training', 'config', 'system'),
  'testing': ('methods', 'models', 'system'),
  'sweep': ('report', 'training', 'storage', 'evaluation', 'config', 'system'),
  'report': (
    'training',
    'storage',
    'evaluation',
    'data',
    'config',
    'methods',
    'models',
    'system',
  ),
  'export': ('training', 'storage', 'evaluation', 'data', 'models', 'system'),
  'training': (
    'storage',
    'evaluation',
    'data',
    'config',
    'methods',
    'models',
    'system',
    'version',
  ),
  'storage': (
    'evaluation',
    'data',
    'config',
    'methods',
    'models',
    'system',
    'version',
  ),
  'evaluation': ('data', 'losses', 'models', 'system'),
  'data': ('system',),
  'config': ('methods', 'models', 'system'),
  'methods': ('losses', 'models', 'system'),
  'models': ('system',),
  'losses': (),
  'system': (),
  'commands': (),
  'version': (),
}
COMMANDS = (
  'kdjax',
  '__main__',
  'benchmark',
  'completion',
  'convert',
  'evaluate',
  'main',
  'predict',
)

# Packages that few modules, or none, may import; by default any may.
ONLY = {
  'configs': (),
  'tests': (),
  'third_party': (),
  # Both make an installation large; every use of them has a lighter one.
  'tensorflow': (),
  'torch': (),
  # Optional: a command says so where they are not installed.
  'equinox': ('kdjax.models._equinox',),
  'jax2onnx': ('kdjax.export.formats',),
  'onnxruntime': ('kdjax.storage.program_files',),
  'pyarrow': ('kdjax.data.sources.parquet',),
  'clu': (),  # It imports TensorFlow.
  'orbax': ('kdjax.storage.checkpoint', 'kdjax.storage.trees'),
  'tensorflow_datasets': (
    'kdjax.data.sources.tfds',
    'kdjax.data.sources._cifar',
  ),
}
# What a module may import beside the standard library; by default anything.
NEEDS_ONLY = {
  'kdjax.losses': ('jax', 'optax'),
  'kdjax.system.plugins': (),
  'kdjax.version': (),
  # A file from anywhere meets no more code than it must.
  'kdjax.storage.weights': ('numpy', 'safetensors'),
  'kdjax.storage.weights.directory': (),
  'kdjax.storage.weights.msgpack_file': ('numpy',),
  'kdjax.storage.weights.resnet_names': ('numpy',),
  'kdjax.storage.weights.unpickler': ('numpy',),
  'kdjax.storage.weights.safetensors_file': ('numpy', 'safetensors'),
  'kdjax.storage.weights.stored_tensors': ('ml_dtypes', 'numpy'),
  'kdjax.storage.weights.pytorch': ('numpy',),
}
# What a module may take from another one; by default anything.
TAKES_ONLY = {
  ('methods', 'kdjax.models.features'): ('Outputs', 'forward', 'init')
}

DEFINE_FLAGS = (
  'kdjax.system.command',
  'kdjax.main',
  'kdjax.evaluate',
  'kdjax.benchmark.__main__',
  'kdjax.sweep.__main__',
  'kdjax.report.__main__',
  'kdjax.convert',
  'kdjax.export.__main__',
  'kdjax.predict',
)
KNOW_INTERMEDIATES = ('kdjax.models.features', 'kdjax.models._adapter')

# An export is compiled where it is loaded.
COMPILE = ('kdjax.system.xla', 'kdjax.export.formats')


# Reading a package


def modules_in(root: pathlib.Path) -> dict[str, ast.Module]:
  """Parses every module of the package kdjax inside a directory."""
  modules = {}
  for path in sorted((root / 'kdjax').rglob('*.py')):
    parts = path.relative_to(root).with_suffix('').parts
    name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    modules[name] = ast.parse(path.read_text(encoding='utf-8'), str(path))
  return modules


def imports(
  name: str, modules: dict[str, ast.Module]
) -> Iterator[tuple[str, str | None]]:
  """Yields what a module imports, wherever in it: a module, and a name of it.

  The name is None where the module is imported as a whole.
  """
  for node in ast.walk(modules[name]):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      assert node.module is not None
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        if whole in modules:
          yield whole, None
        else:
          yield node.module, alias.name


def package_of(name: str) -> str:
  """Finds the package of a module, or the module that stands alone."""
  return ([*name.split('.'), 'kdjax'])[1]


def is_kdjax(name: str) -> bool:
  return name.partition('.')[0] == 'kdjax'


# The rules: each gives the ways in which some modules break it


def without_a_row(modules: dict[str, ast.Module]) -> list[str]:
  return [
    f'{package} has no row in ALLOWED'
    for package in sorted(set(map(package_of, modules)))
    if package not in (*ALLOWED, *COMMANDS)
  ]


def wrong_arrows(modules: dict[str, ast.Module]) -> list[str]:
  wrong = []
  for name in modules:
    own = package_of(name)
    allowed = (own, *(ALLOWED if own in COMMANDS else ALLOWED.get(own, ())))
    for target, attribute in imports(name, modules):
      if not is_kdjax(target):
        continue
      if package_of(target) not in allowed or _is_sibling(name, target):
        wrong.append(f'{name} imports {target}')
      names = TAKES_ONLY.get((own, target))
      if names is not None and attribute not in names:
        wrong.append(f'{name} takes {attribute} from {target}')
  return wrong


def _is_sibling(name: str, target: str) -> bool:
  """Whether both are methods: each stands alone."""
  return all(
    each.startswith('kdjax.methods.') and not each.startswith('kdjax.methods._')
    for each in (name, target)
  )


def wrong_packages(modules: dict[str, ast.Module]) -> list[str]:
  wrong = []
  for name in modules:
    needed = NEEDS_ONLY.get(name)
    for target, _ in imports(name, modules):
      package = target.partition('.')[0]
      if name not in ONLY.get(package, (name,)):
        wrong.append(f'{name} imports {package}')
      if (
        needed is not None
        and package not in (*needed, 'kdjax')
        and package not in sys.stdlib_module_names
      ):
        wrong.append(f'{name} imports {package}')
  return wrong


def wrong_flags(modules: dict[str, ast.Module]) -> list[str]:
  return [
    f'{name} defines a flag'
    for name, tree in modules.items()
    if name not in DEFINE_FLAGS
    and any(
      isinstance(node, ast.Call)
      and ast.unparse(node.func).rpartition('.')[2].startswith('DEFINE_')
      for node in ast.walk(tree)
    )
  ]


def wrong_intermediates(modules: dict[str, ast.Module]) -> list[str]:
  words = {'intermediates', 'capture_intermediates', 'sow'}

  def words_of(node: ast.AST) -> str | None:
    match node:
      case ast.Constant(value=str(word)):
        return word
      case ast.keyword(arg=word) | ast.Attribute(attr=word):
        return word
    return None

  return [
    f'{name} says {words_of(node)}'
    for name, tree in modules.items()
    if name not in KNOW_INTERMEDIATES
    for node in ast.walk(tree)
    if words_of(node) in words
  ]


def wrong_compilations(modules: dict[str, ast.Module]) -> list[str]:
  """What is compiled otherwise than by kdjax.system.xla may be wrong on CPU."""
  return [
    f'{name} calls jax.jit'
    for name, tree in modules.items()
    if name not in COMPILE
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'jax.jit'
  ]


RULES = (
  without_a_row,
  wrong_arrows,
  wrong_packages,
  wrong_flags,
  wrong_intermediates,
  wrong_compilations,
)


# kdjax keeps them


@pytest.mark.parametrize('rule', RULES)
def test_kdjax_keeps_the_rule(rule):
  modules = modules_in(ROOT)
  assert 'kdjax.methods.response' in modules
  assert rule(modules) == []


def test_no_module_imports_itself_through_others():
  modules = modules_in(ROOT)
  graph = {
    name: {target for target, _ in imports(name, modules) if target in modules}
    for name in modules
  }
  # Raises an error that names the cycle.
  order = list(graphlib.TopologicalSorter(graph).static_order())
  assert order.index('kdjax.losses') < order.index('kdjax.training.train')


def test_the_table_names_packages_that_exist():
  packages = set(map(package_of, modules_in(ROOT)))
  assert {*ALLOWED, *COMMANDS} == packages
  for package, allowed in ALLOWED.items():
    assert set(allowed) < ALLOWED.keys() - {package}


# A package that breaks them is found


@pytest.mark.parametrize(
  ('rule', 'path', 'source', 'expected'),
  [
    (without_a_row, 'plots.py', '', 'plots has no row in ALLOWED'),
    (without_a_row, 'plots/lines.py', '', 'plots has no row in ALLOWED'),
    (
      wrong_arrows,
      'losses.py',
      'from kdjax.models import features',
      'kdjax.losses imports kdjax.models.features',
    ),
    (
      wrong_arrows,
      'storage/card.py',
      'import kdjax.training.loop as loop',
      'kdjax.storage.card imports kdjax.training.loop',
    ),
    (
      wrong_arrows,
      'storage/card.py',
      'def late():\n  from kdjax.training.loop import train',
      'kdjax.storage.card imports kdjax.training.loop',
    ),
    (
      wrong_arrows,
      'config.py',
      'from kdjax import __version__',
      'kdjax.config imports kdjax',
    ),
    (
      wrong_arrows,
      'training/loop.py',
      'from kdjax import main',
      'kdjax.training.loop imports kdjax.main',
    ),
    (
      wrong_arrows,
      'methods/hint.py',
      'from kdjax.methods import response',
      'kdjax.methods.hint imports kdjax.methods.response',
    ),
    (
      wrong_arrows,
      'methods/hint.py',
      'from kdjax.models.features import Outputs, normalize',
      'kdjax.methods.hint takes normalize from kdjax.models.features',
    ),
    (
      wrong_packages,
      'training/train.py',
      'import configs.quickstart',
      'kdjax.training.train imports configs',
    ),
    (
      wrong_packages,
      'training/train.py',
      'from orbax import checkpoint',
      'kdjax.training.train imports orbax',
    ),
    (
      wrong_packages,
      'losses.py',
      'import flax.linen as nn',
      'kdjax.losses imports flax',
    ),
    (
      wrong_flags,
      'training/train.py',
      'from absl import flags\nA = flags.DEFINE_string("a", None, "")',
      'kdjax.training.train defines a flag',
    ),
    (
      wrong_flags,
      'system/logs.py',
      'from absl.flags import DEFINE_bool\nDEFINE_bool("a", None, "")',
      'kdjax.system.logs defines a flag',
    ),
    (
      wrong_intermediates,
      'training/step.py',
      'model.apply(x, mutable=["intermediates"])',
      'kdjax.training.step says intermediates',
    ),
    (
      wrong_intermediates,
      'training/step.py',
      'model.apply(x, capture_intermediates=True)',
      'kdjax.training.step says capture_intermediates',
    ),
    (
      wrong_intermediates,
      'models/resnet.py',
      'self.sow(a, b, c)',
      'kdjax.models.resnet says sow',
    ),
    (
      wrong_compilations,
      'training/step.py',
      'import jax\n\nf = jax.jit(abs)\n',
      'kdjax.training.step calls jax.jit',
    ),
  ],
)
def test_a_broken_rule_is_found(tmp_path, rule, path, source, expected):
  sources = {
    'main.py': '',
    'models/features.py': 'import flax',
    'methods/response.py': 'from kdjax.models.features import Outputs',
    'training/step.py': 'from kdjax import methods',
    'training/loop.py': 'from kdjax.training import step',
    path: source,
  }
  packages = {
    f'{pathlib.PurePath(name).parent}/__init__.py' for name in sources
  }
  for name in packages:
    sources.setdefault(name, '')
  for name, text in sources.items():
    file = tmp_path / 'kdjax' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding='utf-8')
  assert rule(modules_in(tmp_path)) == [expected]


def test_a_relative_import_is_found(tmp_path):
  (tmp_path / 'kdjax').mkdir()
  (tmp_path / 'kdjax/main.py').write_text('from . import train')
  with pytest.raises(AssertionError, match=r'kdjax\.main has a relative'):
    wrong_arrows(modules_in(tmp_path))
