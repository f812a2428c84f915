"""Runs the command `kdjax` with each line of standard input as its arguments.

Each is a fork of one process that has imported what takes long, in an empty
folder. For each it prints a line of JSON: exit status, output and files.
"""

import json
import os
import runpy
import shlex
import sys
import tempfile
import traceback

import kdjax.export
import kdjax.report
import kdjax.sweep
import kdjax.system.command
import kdjax.training.train  # noqa: F401 (imported once, before the forks)


def run(line):
  """Runs the command; never returns."""
  sys.argv = ['kdjax', *shlex.split(line)]
  status = 0
  try:
    runpy.run_module('kdjax', run_name='__main__', alter_sys=True)
  except SystemExit as leave:
    status = leave.code or 0
    if isinstance(status, str):
      print(status, file=sys.stderr)
      status = 1
  except BaseException:
    traceback.print_exc()
    status = 3
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def outcome(line):
  with tempfile.TemporaryDirectory() as folder:
    read, write = os.pipe()
    child = os.fork()
    if not child:
      for number in (1, 2):
        os.dup2(write, number)
      sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
      os.chdir(folder)
      run(line)
    os.close(write)
    with os.fdopen(read, errors='replace') as output:
      text = output.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {'status': status, 'text': text, 'files': os.listdir(folder)}


for given in sys.stdin:
  print(json.dumps(outcome(given)), flush=True)
