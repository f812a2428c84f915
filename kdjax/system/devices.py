"""The devices of all processes as one mesh, and what the processes agree on.

A run is the same program on one device and on many: each batch is divided over
the mesh's only axis, everything else is on every device, and XLA adds what has
to be added, BatchNorm's statistics and gradients, over all of them, in float32.
So results do not depend on the number of devices, but for the order of
additions and, of a computation in bfloat16, one rounding on each device.
"""

import contextlib
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.system import target, xla

_T = TypeVar('_T')

_Gradient = Callable[
  [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]
]

_AXIS = 'data'
_dividing = False
# After so long without a sign of life a process counts as dead, and all end.
_HEARTBEAT_SECONDS = 30
# A network file system may show a file so much later elsewhere.
_FILE_SECONDS = 60


def start(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  distributed: bool | None = None,
) -> None:
  """Joins the processes of a run; before anything else asks for a device.

  Args:
    coordinator_address: host and port of process 0, `HOST:PORT`; by default
      that of the cluster that JAX detects (Slurm, Open MPI, Kubernetes, Cloud
      TPU).
    num_processes: how many processes there are; by default the cluster's.
    process_id: which of them this is, from 0; by default the cluster's.
    distributed: whether there are several processes; by default if an address
      is given or a cluster is detected.

  Raises:
    ValueError: the arguments make no sense, or there is no cluster where
      `distributed` asks for one.
    RuntimeError: the others could not be reached.
  """
  arguments = coordinator_address, num_processes, process_id
  given = any(value is not None for value in arguments)
  if distributed is None and given:
    distributed = True
  if distributed is False:
    if given:
      raise ValueError(
        'a coordinator, a number of processes or a process index is given to '
        'a run that is not to be distributed'
      )
    return
  if distributed:
    try:
      jax.distributed.initialize(
        *arguments, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
      )
    except ValueError as error:
      raise ValueError(
        f'cannot start as one of several processes: {error} No cluster was '
        'detected that says so. Give --coordinator_address=HOST:PORT, '
        '--num_processes and --process_id, or --nodistributed'
      ) from error
    return
  # JAX has no way to ask for a cluster but to join it. What it says of clusters
  # that it could not look for concerns nobody who has none.
  with warnings.catch_warnings(), contextlib.suppress(ValueError):
    warnings.simplefilter('ignore')
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, with one axis.

  Within `kdjax.system.target.compile_for`, that of the absent devices.
  """
  return _mesh(target.absent())


@functools.cache
def _mesh(absent: target.Target | None) -> Mesh:
  return jax.make_mesh(
    (target.device_count(),),
    (_AXIS,),
    axis_types=(AxisType.Auto,),
    devices=absent and absent.devices,
  )


def replicated() -> NamedSharding:
  """Returns the sharding of an array that is whole on every device."""
  return NamedSharding(mesh(), PartitionSpec())


def sharded() -> NamedSharding:
  """Returns the sharding of a batch: its first axis is divided over devices."""
  return NamedSharding(mesh(), PartitionSpec(_AXIS))


def replicate(tree: Any) -> Any:
  """Puts arrays on every device, each as a whole.

  Args:
    tree: arrays of the host, the same in each process, or of devices.

  Returns:
    The same PyTree of arrays that are whole on every device; their shapes where
    the devices are absent.
  """
  if target.absent():
    return describe(tree)
  if jax.process_count() == 1:
    return jax.device_put(tree, replicated())

  def put(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == replicated():
      return leaf
    # `device_put` would compare all of it between the processes.
    return jax.make_array_from_process_local_data(
      replicated(), np.asarray(leaf)
    )

  return jax.tree.map(put, tree)


def describe(tree: Any) -> Any:
  """Describes arrays that are whole on every device.

  Args:
    tree: arrays, or their shapes and dtypes.

  Returns:
    The same PyTree of shapes and dtypes, `replicated`.
  """

  def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated())

  return jax.tree.map(place, jax.eval_shape(lambda tree: tree, tree))


def divide(batch: _T) -> _T:
  """Divides a batch over the devices; within a jitted function.

  Args:
    batch: arrays whose first axis is that of the examples. They are left whole
      if their number is not a multiple of that of the devices.
  """

  def constrain(array: jax.Array) -> jax.Array:
    if array.shape[0] % target.device_count():
      return array
    return jax.lax.with_sharding_constraint(array, sharded())

  return jax.tree.map(constrain, batch)


@contextlib.contextmanager
def dividing() -> Iterator[None]:
  """Says that batches are divided in what is traced inside, see `by_device`.

  Yields:
    Nothing; the tracing goes inside.
  """
  global _dividing
  before, _dividing = _dividing, True
  try:
    yield
  finally:
    _dividing = before


def by_device(gradient: _Gradient) -> _Gradient:
  """Adds the gradients of parameters over the devices in float32.

  Left to XLA, those of parameters in bfloat16 would be added in bfloat16. So
  within `dividing` each device computes those of its part of the batch.

  Args:
    gradient: a function of a batch, parameters and the cotangent of the outputs
      that returns the gradients of the first two; the batch's axis comes first.

  Returns:
    The same function.
  """

  def local(
    batch: jax.Array, parameters: jax.Array, cotangent: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    of_batch, own = gradient(batch, parameters, cotangent)
    return of_batch, jax.lax.psum(own.astype('float32'), _AXIS).astype(
      own.dtype
    )

  def divided(
    batch: jax.Array, parameters: jax.Array, cotangent: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    count = target.device_count()
    uneven = count == 1 or batch.shape[0] % count
    if not _dividing or uneven or parameters.dtype == 'float32':
      return gradient(batch, parameters, cotangent)
    rows, whole = PartitionSpec(_AXIS), PartitionSpec()
    return jax.shard_map(
      local,
      mesh=mesh(),
      in_specs=(rows, whole, rows),
      out_specs=(rows, whole),
      # Else the gradient itself would be a sum over devices, in bfloat16.
      check_vma=False,
    )(batch, parameters, cotangent)

  return divided


def local_rows(batch_size: int) -> np.ndarray:
  """Returns the rows of a divided batch that are on this process's devices.

  Their indices are in the order in which `assemble` takes them; `batch_size` is
  a multiple of the number of devices.
  """
  indices = sharded().addressable_devices_indices_map((batch_size,))
  everything = np.arange(batch_size)
  return np.unique([everything[index] for index in indices.values()])


def assemble(batch: Any, batch_size: int) -> Any:
  """Makes a batch whose rows are divided over the devices of all processes.

  Args:
    batch: arrays of the host with the rows that `local_rows` returns.
    batch_size: examples in the whole batch.
  """
  return jax.tree.map(
    lambda array: jax.make_array_from_process_local_data(
      sharded(), array, (batch_size, *array.shape[1:])
    ),
    batch,
  )


def gather(tree: _T) -> _T:
  """Puts arrays that are divided over the devices on each of them."""
  return _gather()(tree)


# Once: JAX would trace and compile another function anew.
@functools.cache
def _gather() -> Callable[[Any], Any]:
  return xla.jit(lambda values: values, out_shardings=replicated())


@contextlib.contextmanager
def share_errors() -> Iterator[None]:
  """Raises an error of one process in all processes.

  Otherwise the others would wait for it forever. For code in which processes do
  not wait for each other.

  Yields:
    Nothing; the work goes inside.

  Raises:
    Exception: as the work inside does; in other processes a ValueError that
      says what went wrong, and where.
  """
  if jax.process_count() == 1:
    yield
    return
  error: Exception | None = None
  try:
    yield
  except Exception as caught:
    error = caught
  text = f'in process {jax.process_index()}: {error}' if error else ''
  messages = _from_all(text)
  if error:
    raise error
  if failed := next(filter(None, messages), None):
    raise ValueError(failed)


def run_on_first(act: Callable[[], None]) -> None:
  """Calls a function in the first process, and waits for it in the others.

  Args:
    act: the function. What it raises, the other processes raise too.

  Raises:
    Exception: as `act` does; in other processes a ValueError that says what
      went wrong in the first.
  """
  with share_errors():
    if is_first():
      act()


def wait_for_all() -> None:
  """Waits until all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('kdjax')


def check_agree(facts: Mapping[str, Any]) -> None:
  """Checks that all processes of a run know the same of it.

  Args:
    facts: values by name, as JSON has them.

  Raises:
    ValueError: in every process, if one differs; the message names what does.
  """
  if jax.process_count() == 1:
    return
  first, *others = map(json.loads, _from_all(json.dumps(dict(facts))))
  differing = [
    f'{name}: {first.get(name)!r} in process 0, {other.get(name)!r} in process '
    f'{number}'
    for number, other in enumerate(others, 1)
    for name in sorted(first.keys() | other.keys())
    if first.get(name) != other.get(name)
  ]
  if differing:
    shown = '\n  '.join(differing)
    raise ValueError(
      f'the processes of this run do not agree:\n  {shown}\nStart all of them '
      'with the same command, on the same data, and with a run directory that '
      'all of them see'
    )


def write_once(write: Callable[[], None], seen: Callable[[], Any]) -> None:
  """Writes a file in one process, and waits until all of them see it.

  Args:
    write: writes it; what it raises, the other processes raise too.
    seen: whether it is there.

  Raises:
    Exception: as `write` does.
    ValueError: a process does not see it.
  """
  run_on_first(write)
  deadline = time.monotonic() + _FILE_SECONDS
  with share_errors():
    while not seen():
      if time.monotonic() > deadline:
        raise ValueError(
          'what process 0 has written is not there: start all processes with a '
          'run directory that all of them see'
        )
      time.sleep(0.5)


def _from_all(text: str) -> list[str]:
  """Gathers the texts of all processes, in their order, on each of them."""
  content = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size))
  padded = np.zeros(max(sizes.max(), 1), np.uint8)
  padded[: content.size] = content
  found = multihost_utils.process_allgather(padded)
  return [
    bytes(row[:size]).decode() for row, size in zip(found, sizes, strict=True)
  ]
