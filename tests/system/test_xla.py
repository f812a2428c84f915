"""What commands set up in their process, seen from outside."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from kdjax.system import xla

CODE = """
import json, sys
import jax
from kdjax.system import xla

xla.setup()
options = xla.compiler_options()
f = jax.jit(lambda x: (x @ x).sum(), compiler_options=options)
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event)
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
value = float(f(jax.numpy.ones((8, 8))))
print(json.dumps([value, '/jax/compilation_cache/cache_hits' in hits]))
"""


def run(**environment):
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('JAX_')
  }
  finished = subprocess.run(
    [sys.executable, '-W', 'error', '-c', CODE],
    env=inherited | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert not finished.stderr
  return json.loads(finished.stdout)


def test_programs_are_kept_in_the_users_cache_directory(tmp_path):
  first = run(XDG_CACHE_HOME=str(tmp_path))
  second = run(XDG_CACHE_HOME=str(tmp_path))
  assert first == [512.0, False]
  assert second == [512.0, True]
  assert list((tmp_path / 'kdjax' / 'compiled').glob('jit_*-cache'))


def test_the_users_own_cache_wins(tmp_path):
  own = tmp_path / 'own'
  run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(own))
  assert list(own.iterdir())
  assert not (tmp_path / 'kdjax').exists()


@pytest.mark.parametrize('home', ['file', 'disabled'])
def test_without_a_cache_all_goes_on(tmp_path, home):
  (tmp_path / 'file').write_text('')
  environment = {'XDG_CACHE_HOME': str(tmp_path / home)}
  if home == 'disabled':
    environment['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  assert run(**environment) == [512.0, False]
  assert not (tmp_path / 'disabled').exists()


def test_the_options_change_no_result():
  def f(x, kernel):
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return y.sum(axis=(0, 1, 2)), y

  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 4)), jnp.float32)
  found = jax.jit(f, compiler_options=xla.compiler_options())(x, kernel)
  for ours, plain in zip(found, jax.jit(f)(x, kernel), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='options are for CPU'
)
def test_unknown_options_are_left_out_and_the_defaults_checked(monkeypatch):
  checked = []

  def check(options):
    checked.append(options)
    if options:
      raise jax.errors.JaxRuntimeError('No such compile option')

  monkeypatch.setattr(xla, 'check_compiler', check)
  xla.compiler_options.cache_clear()
  assert xla.compiler_options() == {}
  assert [bool(options) for options in checked] == [True, False]
  xla.compiler_options.cache_clear()


def test_an_option_that_jaxlib_does_not_know_is_told_from_a_wrong_sum():
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_cpu_unknown'):
    xla.check_compiler({'xla_cpu_unknown': 'true'})


def test_a_compiler_that_sums_wrongly_is_refused(monkeypatch):
  xla.check_compiler(xla.compiler_options())
  jit = jax.jit

  def miscompile(function, **options):
    return jit(lambda rows: function(rows) * 0.75, **options)

  monkeypatch.setattr(jax, 'jit', miscompile)
  with pytest.raises(xla.CompilerError, match='786432'):
    xla.check_compiler(xla.compiler_options())


@pytest.mark.skipif(jaxlib.__version__ != '0.10.2', reason='a fault of 0.10.2')
def test_the_check_finds_the_known_fault():
  with pytest.raises(xla.CompilerError, match='computes a sum wrongly'):
    xla.check_compiler(
      {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}
    )


def test_a_jitted_function_can_be_traced_and_lowered():
  function = xla.jit(lambda x, power: (x**power).sum(), static_argnums=1)
  x = jnp.arange(3.0)
  assert float(function(x, 2)) == 5
  assert float(jax.jit(lambda x: function(x, 2) + 1)(x)) == 6
  np.testing.assert_array_equal(jax.grad(function)(x, 2), 2 * x)
  assert jax.vmap(lambda x: function(x, 1))(jnp.eye(3)).tolist() == [1, 1, 1]
  assert float(function.lower(x, 2).compile()(x)) == 5


def test_waiting_and_returning_memory_change_nothing():
  xla.return_memory()
  values = {'a': jnp.arange(3), 'b': 1}
  assert xla.wait_on_cpu(values) is values


def test_seconds_of_compiling_are_counted_once():
  before, start = xla.compile_seconds(), time.perf_counter()
  function = jax.jit(lambda x: jax.jit(jnp.sin)(x) + jnp.cos(x))
  function.lower(np.ones(3)).compile()
  spent = xla.compile_seconds() - before
  assert 0 < spent <= time.perf_counter() - start
  # What JAX traces within another trace is part of that one.
  until = xla._compiling['until']
  before = xla.compile_seconds()
  xla._count_compiling('/jax/core/compile/outer', 1e9)
  assert xla.compile_seconds() - before == pytest.approx(
    xla._compiling['until'] - until
  )
  xla._count_compiling('/jax/other', 1e9)
  assert xla.compile_seconds() - before < 1e6
