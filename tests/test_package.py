"""The package that `pip wheel` makes."""

import shutil
import subprocess
import sys
import tomllib
import zipfile

import processes
import pytest
import setuptools
from processes import ROOT


def test_every_package_is_listed():
  settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  listed = set(settings['tool']['setuptools']['packages'])
  there = setuptools.find_namespace_packages(str(ROOT), include=['kdjax*'])
  # Folders that Python itself makes.
  there = {name for name in there if '__pycache__' not in name}
  assert listed == there | {'kdjax.configs'}


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Every file of the package, where no checkout is."""
  folder = tmp_path_factory.mktemp('installed')
  # setuptools writes beside what it builds.
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, folder)
  for name in ('kdjax', 'configs'):
    shutil.copytree(ROOT / name, folder / name)
  built = subprocess.run(
    [
      *(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--quiet'),
      *('--no-build-isolation', '--no-index', '--wheel-dir', str(folder)),
      str(folder),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert built.returncode == 0, built.stderr
  (wheel,) = folder.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / 'site')
  return folder / 'site'


def test_a_packaged_configuration_runs_without_a_checkout(installed, tmp_path):
  found = processes.run(
    *('--config=quickstart', '--config.train.epochs=0'),
    cwd=tmp_path,
    env={'PYTHONPATH': str(installed), 'JAX_PLATFORMS': 'cpu'},
  )
  assert 'config.train.epochs is 0: expected from 1' in found.stderr


def test_the_wheel_has_one_command_for_all(installed):
  (metadata,) = installed.glob('*.dist-info')
  assert (
    'kdjax = kdjax.__main__:main' in (metadata / 'entry_points.txt').read_text()
  )
