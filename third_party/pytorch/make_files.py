"""Writes resnet10.pth and resnet10_legacy.pth, files of PyTorch's own making.

Run from the root of the repository, in the environment of make_references.py:

    python third_party/pytorch/make_files.py

A narrow ResNet-10 whose weights `weights.tensor` gives, saved as a trainer
would: wrapped in DataParallel, with an optimizer and arguments beside it. The
second file has the format of before PyTorch 1.6; the names of storages in it
are addresses, so that two runs write different bytes.
"""

import argparse
import pathlib

import resnet
import torch
import weights
from torch import nn

FOLDER = pathlib.Path(__file__).resolve().parent


def main() -> None:
  model = resnet.ResNet(
    resnet.BasicBlock, (1, 1, 1, 1), num_classes=3, width=2, stem='cifar'
  )
  state = {
    name: torch.tensor(weights.tensor(name, tuple(value.shape)))
    for name, value in model.state_dict().items()
  }
  model.load_state_dict(state)
  checkpoint = {
    'epoch': 3,
    'args': argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath('data')),
    'state_dict': nn.DataParallel(model).state_dict(),
    'optimizer': torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
  }
  torch.save(checkpoint, FOLDER / 'resnet10.pth')
  torch.save(
    checkpoint,
    FOLDER / 'resnet10_legacy.pth',
    _use_new_zipfile_serialization=False,
  )


if __name__ == '__main__':
  main()
