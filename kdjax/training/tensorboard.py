"""The metrics of a run as TensorBoard reads them."""

import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import tensorboardX
import tensorboardX.record_writer
from tensorboardX.proto import event_pb2, summary_pb2

from kdjax.system import atomic, escape, logs


class TensorBoard:
  """Scalars for TensorBoard, each on the disk once it is written.

  A `SummaryWriter` leaves that to a thread: what it has not got to is lost with
  a run that is killed, and it does not survive a full disk.

  Args:
    workdir: the run directory, where the file is added.
    done: steps done. What earlier files have of later ones is not shown.

  Attributes:
    lacks_earlier: whether metrics of those steps have to be written again: an
      earlier file is damaged.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    done: int,
  ):
    directory = workdir / 'tensorboard'
    directory.mkdir(exist_ok=True)
    written = sorted(directory.glob('events.out.tfevents.*'))
    damaged = [path for path in written if not is_sound(path)]
    for path in damaged:
      logs.logger.warning(
        '%s is damaged, and is now %s; its metrics are written again',
        path,
        atomic.move_to_damaged(path, workdir),
      )
    # TensorBoard reads them in the order of their names.
    parts = int(time.time()), socket.gethostname(), os.getpid()
    name = '.'.join(map(str, ('events.out.tfevents', *parts)))
    # By how a relative path begins, tensorboardX would write to a bucket.
    self._file = tensorboardX.RecordWriter(str(directory.absolute() / name))
    self._add(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self.lacks_earlier = bool(damaged)
    self._add(step=1 if damaged else done + 1, session_log=start)

  def _add(self, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **content)
    self._file.write(event.SerializeToString())

  def write(self, record: Mapping[str, Any]) -> None:
    """Writes one line of metrics."""
    kind, step = record['kind'], record['step']
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(
          # Names of features are a user's.
          tag=escape.printable(f'{kind}/{name}'),
          simple_value=math.nan if value is None else value,
        )
        for name, value in record.items()
        if name not in ('kind', 'step')
      ]
    )
    self._add(step=step, summary=summary)
    self._file.flush()

  def close(self, failed: bool = False) -> None:
    """Closes the file."""
    del failed
    self._file.close()


def is_sound(path: pathlib.Path) -> bool:
  """Whether the records of a TensorBoard file have their checksums.

  The last one may have been cut off with its run.
  """
  content = path.read_bytes()
  checksum = tensorboardX.record_writer.masked_crc32c
  place = 0
  while len(header := content[place : place + 12]) == 12:
    size, expected = struct.unpack('<QI', header)
    if checksum(header[:8]) != expected:
      return False
    end = place + 12 + size
    if len(content) < end + 4:
      break
    (expected,) = struct.unpack_from('<I', content, end)
    if checksum(content[place + 12 : end]) != expected:
      return False
    place = end + 4
  return True
