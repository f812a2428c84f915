"""Max-pooling for the models, lowered to suit the platform.

On CPU, XLA runs a max-pool, and its gradient several times, slower than the
same choice written with comparisons. There, and only there, it is written so;
as in `kdjax.models.cpu_conv`, the choice falls when a program is lowered.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_Pair = tuple[int, int]


class _Pool(NamedTuple):
  """What `max_pool` is given beside the images, each for height and width."""

  window: _Pair
  strides: _Pair
  padding: tuple[_Pair, _Pair]


def max_pool(
  x: jax.Array,
  window_shape: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  """Computes the maximum of each window, as `flax.linen.max_pool` does.

  Args:
    x: `[batch, height, width, channels]`.
    window_shape: height and width of a window.
    strides: step from one window to the next, down and to the right.
    padding: `(low, high)` for height and for width.

  Returns:
    `[batch, out_height, out_width, channels]`. The gradient of a window goes to
    the first of its largest elements.
  """
  height, width = window_shape
  down, right = strides
  rows, columns = padding
  return _max_pool(_Pool((height, width), (down, right), (rows, columns)), x)


def _general(pool: _Pool, x: jax.Array) -> jax.Array:
  return nn.max_pool(x, *pool)


def _prediction(pool: _Pool, x: jax.Array) -> jax.Array:
  """The pool where no gradient is wanted; XLA makes one operation of it."""
  # A conversion to ONNX by jax2onnx 0.17 drops the padding of the pool itself.
  padding = ((0, 0), *pool.padding, (0, 0))
  padded = jnp.pad(x, padding, constant_values=-jnp.inf)
  return nn.max_pool(padded, window_shape=pool.window, strides=pool.strides)


_max_pool = jax.custom_vjp(_prediction, nondiff_argnums=(0,))


def _forward(pool: _Pool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  general = functools.partial(_general, pool)
  largest = functools.partial(_largest, pool)
  return lax.platform_dependent(x, cpu=largest, default=general), x


def _backward(
  pool: _Pool, x: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array]:
  general = functools.partial(_general, pool)

  def gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jax.vjp(general, x)[1](cotangent)[0]

  on_cpu = functools.partial(_gradient, pool)
  return (lax.platform_dependent(x, cotangent, cpu=on_cpu, default=gradient),)


_max_pool.defvjp(_forward, _backward)


def _taps(pool: _Pool, x: jax.Array) -> Iterator[jax.Array]:
  """Yields the first element of all windows, the second, and so on."""
  window, strides, padding = pool
  out_height, out_width = (
    (x.shape[axis + 1] + sum(padding[axis]) - window[axis]) // strides[axis] + 1
    for axis in (0, 1)
  )
  padded = lax.pad(
    x,
    jnp.array(-jnp.inf, x.dtype),
    ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)),
  )
  for i in range(window[0]):
    for j in range(window[1]):
      tap = padded[:, i :: strides[0], j :: strides[1]]
      yield tap[:, :out_height, :out_width]


def _largest(pool: _Pool, x: jax.Array) -> jax.Array:
  """The pool written with comparisons."""
  return functools.reduce(jnp.maximum, _taps(pool, x))


def _gradient(pool: _Pool, x: jax.Array, cotangent: jax.Array) -> jax.Array:
  """Gradient of the pool, summed phase by phase of the stride."""
  window, strides, padding = pool
  batch, height, width, channels = x.shape
  out_height, out_width = cotangent.shape[1:3]

  # The tap of each window that won, the first of equals.
  winner = jnp.zeros(cotangent.shape, jnp.int32)
  largest = jnp.full(cotangent.shape, -jnp.inf, x.dtype)
  for index, tap in enumerate(_taps(pool, x)):
    wins = tap > largest
    winner = jnp.where(wins, index, winner)
    largest = jnp.where(wins, tap, largest)

  # Element stride · a + phase was tap i of window a + shift. Padding with zeros
  # between the elements instead would add mostly zeros.
  def shifts(axis: int, phase: int) -> list[_Pair]:
    found = []
    for i in range(window[axis]):
      shift, rest = divmod(phase + padding[axis][0] - i, strides[axis])
      if not rest:
        found.append((i, shift))
    return found

  rows, columns = -(-height // strides[0]), -(-width // strides[1])
  phases = []
  for row_phase in range(strides[0]):
    for column_phase in range(strides[1]):
      total = jnp.zeros((batch, rows, columns, channels), x.dtype)
      for i, down in shifts(0, row_phase):
        for j, right in shifts(1, column_phase):
          total += lax.pad(
            jnp.where(winner == i * window[1] + j, cotangent, 0),
            jnp.zeros((), x.dtype),
            (
              (0, 0, 0),
              (-down, rows + down - out_height, 0),
              (-right, columns + right - out_width, 0),
              (0, 0, 0),
            ),
          )
      phases.append(total)
  # Interleaving is slow enough without computing what is interleaved.
  gradient = jnp.stack(lax.optimization_barrier(phases), axis=3)
  gradient = gradient.reshape(batch, rows, columns, *strides, channels)
  gradient = gradient.swapaxes(2, 3)
  gradient = gradient.reshape(
    batch, rows * strides[0], columns * strides[1], channels
  )
  return gradient[:, :height, :width]
