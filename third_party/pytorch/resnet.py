"""ResNet in PyTorch, the form most PyTorch users train and load.

Written for this project from the architecture (He et al., Deep Residual
Learning for Image Recognition, 2015, table 1, with the stride of a bottleneck
in its 3×3 convolution) so that its state dict has the names, shapes and order
of torchvision's `resnet18` … `resnet101`, and the same forward pass. It is the
other side of the reference values and of the side-by-side timings; kdjax
itself never imports it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv(
  in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.Conv2d:
  return nn.Conv2d(
    in_channels,
    out_channels,
    kernel,
    stride=stride,
    padding=kernel // 2,
    bias=False,
  )


class BasicBlock(nn.Module):
  """Two 3×3 convolutions; the stride is in the first."""

  expansion = 1

  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.conv1 = _conv(in_channels, channels, 3, stride)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = _conv(channels, channels, 3)
    self.bn2 = nn.BatchNorm2d(channels)
    self.relu = nn.ReLU(inplace=True)
    self.downsample = _projection(in_channels, channels, stride)

  def forward(self, x: Tensor) -> Tensor:
    shortcut = x if self.downsample is None else self.downsample(x)
    y = self.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return self.relu(y + shortcut)


class Bottleneck(nn.Module):
  """1×1 reduction, 3×3 with the stride, 1×1 expansion to four times."""

  expansion = 4

  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    out_channels = channels * self.expansion
    self.conv1 = _conv(in_channels, channels, 1)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = _conv(channels, channels, 3, stride)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = _conv(channels, out_channels, 1)
    self.bn3 = nn.BatchNorm2d(out_channels)
    self.relu = nn.ReLU(inplace=True)
    self.downsample = _projection(in_channels, out_channels, stride)

  def forward(self, x: Tensor) -> Tensor:
    shortcut = x if self.downsample is None else self.downsample(x)
    y = self.relu(self.bn1(self.conv1(x)))
    y = self.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return self.relu(y + shortcut)


def _projection(
  in_channels: int, out_channels: int, stride: int
) -> nn.Sequential | None:
  """Returns the shortcut's projection, or None where shapes already agree."""
  if stride == 1 and in_channels == out_channels:
    return None
  return nn.Sequential(
    _conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
  )


class ResNet(nn.Module):
  """A ResNet that also returns its four stage outputs.

  Args:
    block: BasicBlock or Bottleneck.
    depths: number of blocks of each of the four stages.
    num_classes: width of the classifier.
    in_channels: channels of the images.
    width: channels of the stem and of the first stage's inner convolutions.
    stem: 'imagenet' (7×7 stride 2, then 3×3 max pooling stride 2) or 'cifar'
      (3×3 stride 1, no pooling).
  """

  def __init__(
    self,
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    stem: str = 'imagenet',
  ):
    super().__init__()
    if stem == 'imagenet':
      self.conv1 = _conv(in_channels, width, 7, stride=2)
      pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
    elif stem == 'cifar':
      self.conv1 = _conv(in_channels, width, 3)
      pool = nn.Identity()
    else:
      raise ValueError(f"stem is {stem!r}: expected 'imagenet' or 'cifar'")
    self.bn1 = nn.BatchNorm2d(width)
    self.relu = nn.ReLU(inplace=True)
    self.maxpool = pool

    channels = width
    stages = []
    for stage, depth in enumerate(depths):
      blocks = []
      for index in range(depth):
        stride = 2 if stage > 0 and index == 0 else 1
        blocks.append(block(channels, width * 2**stage, stride))
        channels = width * 2**stage * block.expansion
      stages.append(nn.Sequential(*blocks))
    self.layer1, self.layer2, self.layer3, self.layer4 = stages
    self.avgpool = nn.AdaptiveAvgPool2d(1)
    self.fc = nn.Linear(channels, num_classes)

    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(
          module.weight, mode='fan_out', nonlinearity='relu'
        )

  def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits and the four stage outputs of NCHW images."""
    x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
    features = []
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = stage(x)
      features.append(x)
    return self.fc(torch.flatten(self.avgpool(x), 1)), features


def resnet18(**kwargs) -> ResNet:
  return ResNet(BasicBlock, (2, 2, 2, 2), **kwargs)


def resnet34(**kwargs) -> ResNet:
  return ResNet(BasicBlock, (3, 4, 6, 3), **kwargs)


def resnet50(**kwargs) -> ResNet:
  return ResNet(Bottleneck, (3, 4, 6, 3), **kwargs)


def resnet101(**kwargs) -> ResNet:
  return ResNet(Bottleneck, (3, 4, 23, 3), **kwargs)
