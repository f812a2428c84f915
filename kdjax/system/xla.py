"""What kdjax asks of XLA's compiler and of the process that it runs in."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from kdjax.system import target

_T = TypeVar('_T')

# Of all that a compilation cache keeps, the least recently used goes first.
_CACHE_BYTES = 2 * 2**30

# How kdjax compiles for CPU.
_CPU_OPTIONS = {
  # On CPU, XLA drops optimisation barriers before it looks for computations
  # that are made twice and before it decides on their order. Activations that
  # are to be made again would be kept after all, and parts of a batch that are
  # to follow each other would be computed side by side.
  'xla_disable_hlo_passes': 'cse_barrier_expander',
  # By default XLA hands reductions, matrix products and convolutions to
  # YNNPACK. Of reductions jaxlib 0.10.2 computes some wrongly there
  # (https://github.com/jax-ml/jax/issues/39103), and convolutions are twice as
  # slow as in oneDNN, their gradients four times. Empty: hand it nothing.
  'xla_cpu_experimental_ynn_fusion_type': '',
}

# Rows of the sums that `check_compiler` computes. In jaxlib 0.10.2 those from
# the 32,769th on can be wrong.
_CHECKED_ROWS = 2**15 + 1

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


# How many seconds programs were compiled, and until when.
_compiling = {'seconds': 0.0, 'until': 0.0}


class CompilerError(RuntimeError):
  """What is compiled on this machine computes something else than it should."""


def setup() -> None:
  """Prepares the process; for commands, before they use a device.

  Compiled programs are cached in the user's cache directory
  (`$XDG_CACHE_HOME/kdjax`, or `~/.cache/kdjax`), unless JAX is told of another
  (`JAX_COMPILATION_CACHE_DIR`) or to keep none
  (`JAX_ENABLE_COMPILATION_CACHE=false`).
  """
  _cache_programs()
  _retain_freed_memory()


def compile_seconds() -> float:
  """Returns how long this process has traced and compiled programs so far."""
  return _compiling['seconds']


def _count_compiling(event: str, duration_secs: float, **kwargs: Any) -> None:
  """Counts what JAX says that it spent; what is within another thing once."""
  if event.startswith('/jax/core/compile/'):
    now = time.perf_counter()
    _compiling['seconds'] += now - max(now - duration_secs, _compiling['until'])
    _compiling['until'] = now


jax.monitoring.register_event_duration_secs_listener(_count_compiling)


def return_memory() -> None:
  """Returns freed memory to the system, which `setup` has the process keep.

  For after a compilation, which takes much and needs none of it again.
  """
  if sys.platform.startswith('linux'):
    # Another C library than glibc has no such function.
    with contextlib.suppress(AttributeError):
      ctypes.CDLL(None).malloc_trim(0)


def wait_on_cpu(values: _T) -> _T:
  """Waits for a large computation on CPU, and for none on an accelerator.

  On CPU a computation takes its working memory when it is queued: to queue
  several would take several times the memory, and gain nothing.
  """
  if target.on_cpu():
    jax.block_until_ready(values)
  return values


def missing_backend() -> str | None:
  """Says why JAX cannot start where the user needs it to.

  Returns:
    None where it can, or where JAX chooses by itself.
  """
  wanted = jax.config.values['jax_platforms']
  if not wanted:
    return None
  try:
    jax.devices()
  # Of a platform that its plugin does not find JAX only asserts that it is.
  except (RuntimeError, AssertionError) as error:
    reason = str(error) or (
      "there is no such device here (set JAX_PLATFORMS='' to have JAX choose)"
    )
    return f'JAX cannot use {wanted}: {reason}'
  return None


def cache_directory(name: str) -> pathlib.Path | None:
  """Makes a folder in the user's cache directory.

  Returns:
    `$XDG_CACHE_HOME/kdjax/NAME`, or `~/.cache/kdjax/NAME`; None where there is
    no home or it cannot be written.
  """
  try:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    directory = pathlib.Path(root, 'kdjax', name)
    directory.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):
    return None
  return directory


def jit(function: Callable[..., Any], **options: Any) -> jax.stages.Wrapped:
  """Compiles a function as `jax.jit` does, with `compiler_options`.

  Whatever kdjax compiles, it compiles through this. The options are looked up
  at the first call: to import kdjax starts no device.

  Args:
    function: a function of arrays.
    **options: keyword arguments of `jax.jit`; its `compiler_options` are added.

  Returns:
    The jitted function, with the method `lower`. Where it is traced (inside
    another jitted function, `jax.vmap`, `jax.grad`) it is a plain `jax.jit`,
    since JAX takes compiler options at the top level only.

  Raises:
    CompilerError: at the first call, as `check_compiler`.
  """
  own = options.pop('compiler_options', {})
  inner = jax.jit(function, **options)

  @functools.cache
  def outer() -> Any:
    common = {} if target.absent() else compiler_options()
    return jax.jit(function, compiler_options={**common, **own}, **options)

  def lower(*args: Any, **kwargs: Any) -> jax.stages.Lowered:
    absent = target.absent()
    return (
      outer()
      .trace(*args, **kwargs)
      .lower(lowering_platforms=absent and (absent.platform,))
    )

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    leaves = jax.tree.leaves((args, kwargs))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return inner(*args, **kwargs)
    return outer()(*args, **kwargs)

  jitted: Any = call
  jitted.lower = lower
  return jitted


@functools.cache
def compiler_options() -> dict[str, str]:
  """Returns the options that kdjax compiles its programs with.

  There are none on an accelerator.

  Raises:
    CompilerError: as `check_compiler`.
  """
  if jax.default_backend() != 'cpu':
    return {}
  try:
    check_compiler(_CPU_OPTIONS)
  except jax.errors.JaxRuntimeError:
    # A jaxlib that lacks one of them; its defaults are checked all the same.
    check_compiler({})
    return {}
  return dict(_CPU_OPTIONS)


def check_compiler(options: Mapping[str, str]) -> None:
  """Checks that sums which a known compiler computes wrongly come out right.

  The sums are those of https://github.com/jax-ml/jax/issues/39103: a product
  and a sum of squares in each of more rows than the compiler computes in one
  block. Every number is zero or a power of two, so that the right sums are
  exact. Most of the 50 ms that it takes is compilation.

  Args:
    options: the compiler options.

  Raises:
    CompilerError: one of them is wrong.
    JaxRuntimeError: jaxlib does not know one of the options.
  """
  # NumPy's, as JAX would compile each operation by itself.
  rows = np.zeros((_CHECKED_ROWS, 3), np.float32)
  rows[-1, 0] = 2.0**10

  def squares(rows: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

  checked = jax.jit(squares, compiler_options=dict(options))
  found = np.asarray(checked(rows))
  if float(found[-1]) != 2.0**20 or found[:-1].any():
    raise CompilerError(
      f'jaxlib {jaxlib.__version__} computes a sum wrongly on this processor: '
      f'{float(found[-1])} where {2.0**20} is right '
      '(https://github.com/jax-ml/jax/issues/39103). Nothing that kdjax '
      "computes could be trusted: install another version, pip install -U 'jax'"
    )


def _cache_programs() -> None:
  settings = jax.config.values
  if (
    settings['jax_compilation_cache_dir'] is not None
    or not settings['jax_enable_compilation_cache']
  ):
    return
  directory = cache_directory('compiled')
  if directory is None:
    return
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_compilation_cache_max_size', _CACHE_BYTES)


def _retain_freed_memory() -> None:
  """Makes the C library keep freed memory, where XLA computes in it.

  Else each step's working memory is returned to the system and taken again, and
  the system clears it page by page: a tenth of a step's time. One arena,
  because others never hold blocks so large.
  """
  if not sys.platform.startswith('linux') or _has_accelerator_plugin():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:  # Another C library than glibc.
    return
  mallopt(_M_ARENA_MAX, 1)
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, -1)


def _has_accelerator_plugin() -> bool:
  """Whether JAX may find an accelerator; asking JAX would start it."""
  if jax.config.values['jax_platforms'] == 'cpu':
    return False
  return bool(
    importlib.metadata.entry_points(group='jax_plugins')
    or importlib.util.find_spec('libtpu')
  )
