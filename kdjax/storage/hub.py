"""Pretrained networks by their name on the Hugging Face Hub."""

import os
import re

from kdjax.system.logs import logger

# What is read of a repository: weights, and what says what they are.
_FILES = ('*.json', '*.safetensors', 'pytorch_model*.bin')
_NAME = re.compile(
  r'hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?/?'
)


def is_name(path: str) -> bool:
  """Whether a path names a repository, `hf://OWNER/NAME` or `timm:NAME`."""
  return path.startswith(('hf://', 'timm:'))


def fetch(name: str) -> str:
  """Fetches a pretrained network, or finds it in the cache of the hub.

  Args:
    name: `hf://OWNER/NAME`, or `timm:NAME` for `hf://timm/NAME`; a revision may
      follow, `@REVISION`. Where the network is cached and the hub cannot be
      reached (or `HF_HUB_OFFLINE=1`), the cache is used.

  Returns:
    The folder with its files, which `kdjax.storage.networks` reads.

  Raises:
    ValueError: the name is no such name, there is no such repository, it cannot
      be reached, or `huggingface_hub` is not installed.
  """
  if name.startswith('timm:'):
    name = f'hf://timm/{name.removeprefix("timm:")}'
  found = _NAME.fullmatch(name)
  if not found:
    raise ValueError(
      f'{name} is no name on the hub: expected hf://OWNER/NAME or '
      'hf://OWNER/NAME@REVISION'
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(
      f'{name} is read by huggingface_hub, which is not installed: pip install '
      "'kdjax[hub]', or name a local file"
    ) from error
  try:
    folder = huggingface_hub.snapshot_download(
      found['repository'],
      revision=found['revision'],
      allow_patterns=list(_FILES),
    )
  # Of the network, of the hub and of the file system; of many types.
  except Exception as error:
    raise ValueError(
      f'{name} is neither in the cache of the hub nor can it be fetched '
      f'({type(error).__name__}: {" ".join(str(error).split())[:200]}): check '
      'the name and the network, or name a local file'
    ) from error
  logger.info('%s: %s', name, folder)
  return os.fspath(folder)
