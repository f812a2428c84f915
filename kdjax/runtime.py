"""What kdjax asks of XLA's compiler and of the process that it runs in."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
from typing import TypeVar

import jax

_T = TypeVar('_T')

# Of all that a compilation cache keeps, the least recently used goes first.
_CACHE_BYTES = 2 * 2**30

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def setup() -> None:
  """Prepares the process; for commands, before they use a device.

  Compiled programs are kept in the user's cache directory
  (`$XDG_CACHE_HOME/kdjax`, or `~/.cache/kdjax`), unless JAX is told of another
  (`JAX_COMPILATION_CACHE_DIR`) or to keep none
  (`JAX_ENABLE_COMPILATION_CACHE=false`).
  """
  _keep_programs()
  _keep_memory()


def return_memory() -> None:
  """Gives freed memory back to the system, which `setup` has the process keep.

  For after a compilation, which takes much and needs none of it again.
  """
  if sys.platform.startswith('linux'):
    # Another C library than glibc has no such function.
    with contextlib.suppress(AttributeError):
      ctypes.CDLL(None).malloc_trim(0)


def settle(values: _T) -> _T:
  """Waits for a large computation on CPU, and for none on an accelerator.

  On CPU a computation takes its working memory when it is queued: to queue
  several would take several times the memory, and gain nothing.

  Args:
    values: the computation's results, a PyTree.

  Returns:
    The same.
  """
  if jax.default_backend() == 'cpu':
    jax.block_until_ready(values)
  return values


def missing_backend() -> str | None:
  """Says why JAX cannot start where the user wants it to.

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
  """Gives a folder of kdjax's in the user's cache directory, and makes it.

  Args:
    name: the folder's name.

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


@functools.cache
def compiler_options() -> dict[str, str]:
  """Gives the options to compile a network's programs with.

  Returns:
    Options for `jax.jit(…, compiler_options=…)`; none where XLA's defaults are
    best or the options are unknown.
  """
  if jax.default_backend() != 'cpu':
    return {}
  # On CPU, XLA drops optimisation barriers before it looks for computations
  # that are made twice and before it decides on their order. Activations that
  # are to be made again would be kept after all, and parts of a batch that are
  # to follow each other would be computed side by side.
  options = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
  if platform.machine() in ('x86_64', 'AMD64'):
    # By default XLA hands convolutions and matrix products to YNNPACK as well:
    # convolutions are twice as slow there as in oneDNN, and their gradients
    # four times, on two cores with AVX-512.
    options['xla_cpu_experimental_ynn_fusion_type'] = ','.join(
      f'LIBRARY_FUSION_TYPE_{kind}' for kind in ('REDUCE', 'ELTWISE')
    )
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return options


def _keep_programs() -> None:
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


def _keep_memory() -> None:
  """Has the C library keep what is freed, where XLA computes in its memory.

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
