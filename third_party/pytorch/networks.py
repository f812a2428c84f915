"""The networks of published distillation pairs in PyTorch.

Written for this project from the papers and from what Tian et al., 2019
(https://arxiv.org/abs/1910.10699) say of their versions for CIFAR. Modules are
named as kdjax names them, but for the ViT's, which have timm's names. Each
returns its logits and its stage outputs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
  """Convolutions with BatchNorm: modules `conv1`, `bn1`, …, by name."""

  def add(
    self,
    name: str,
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
  ) -> None:
    conv = nn.Conv2d(
      in_channels,
      out_channels,
      size,
      stride,
      padding=size // 2,
      groups=groups,
      bias=bias,
    )
    self.add_module(name, conv)
    self.add_module(name.replace('conv', 'bn'), nn.BatchNorm2d(out_channels))

  def apply_to(self, x: Tensor, name: str) -> Tensor:
    norm = self.get_submodule(name.replace('conv', 'bn'))
    return norm(self.get_submodule(name)(x))


class Stage(nn.Module):
  """Modules `block1`, `block2`, …, one after the other."""

  def __init__(self, blocks: Sequence[nn.Module]):
    super().__init__()
    self.size = len(blocks)
    for number, block in enumerate(blocks, 1):
      self.add_module(f'block{number}', block)

  def forward(self, x: Tensor) -> Tensor:
    for number in range(1, self.size + 1):
      x = self.get_submodule(f'block{number}')(x)
    return x


class Network(ConvNorm):
  """A stem, stages, and a linear layer of the last stage's mean."""

  def set_stages(
    self, stages: Sequence[nn.Module], channels: int, num_classes: int
  ) -> None:
    self.count = len(stages)
    for number, stage in enumerate(stages, 1):
      self.add_module(f'stage{number}', stage)
    self.fc = nn.Linear(channels, num_classes)

  def stem(self, x: Tensor) -> Tensor:
    return F.relu(self.apply_to(x, 'conv1'))

  def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x, features = self.stem(x), []
    for number in range(1, self.count + 1):
      x = self.get_submodule(f'stage{number}')(x)
      features.append(x)
    return self.fc(x.mean(dim=(2, 3))), features


class BasicBlock(ConvNorm):
  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.add('conv1', in_channels, channels, 3, stride)
    self.add('conv2', channels, channels, 3)
    self.projects = stride != 1 or in_channels != channels
    if self.projects:
      self.add('downsample_conv', in_channels, channels, 1, stride)

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu(self.apply_to(x, 'conv1'))
    y = self.apply_to(y, 'conv2')
    if self.projects:
      x = self.apply_to(x, 'downsample_conv')
    return F.relu(x + y)


class CifarResNet(Network):
  def __init__(self, size: int, width: int, stem: int, num_classes: int):
    super().__init__()
    self.add('conv1', 3, stem, 3)
    channels, stages = stem, []
    for stage in range(3):
      blocks = []
      for block in range(size):
        stride = 2 if stage > 0 and block == 0 else 1
        blocks.append(BasicBlock(channels, width * 2**stage, stride))
        channels = width * 2**stage
      stages.append(Stage(blocks))
    self.set_stages(stages, channels, num_classes)


class WideBlock(nn.Module):
  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(in_channels)
    self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
    self.projects = in_channels != channels
    if self.projects:
      self.downsample_conv = nn.Conv2d(
        in_channels, channels, 1, stride, bias=False
      )

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu(self.bn1(x))
    shortcut = self.downsample_conv(y) if self.projects else x
    y = self.conv2(F.relu(self.bn2(self.conv1(y))))
    return shortcut + y


class NormedStage(Stage):
  """A stage with the last BatchNorm of a wide ResNet."""

  def __init__(self, blocks: Sequence[nn.Module], channels: int):
    super().__init__(blocks)
    self.bn = nn.BatchNorm2d(channels)

  def forward(self, x: Tensor) -> Tensor:
    return F.relu(self.bn(super().forward(x)))


class WideResNet(Network):
  def __init__(self, size: int, factor: int, num_classes: int):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    channels, stages = 16, []
    for stage in range(3):
      blocks = []
      for block in range(size):
        width = 16 * 2**stage * factor
        stride = 2 if stage > 0 and block == 0 else 1
        blocks.append(WideBlock(channels, width, stride))
        channels = width
      last = stage == 2
      stages.append(NormedStage(blocks, channels) if last else Stage(blocks))
    self.set_stages(stages, channels, num_classes)

  def stem(self, x: Tensor) -> Tensor:
    return self.conv1(x)


class VGGStage(ConvNorm):
  def __init__(self, in_channels: int, channels: int, size: int, pooled: bool):
    super().__init__()
    self.size, self.pooled = size, pooled
    for number in range(1, size + 1):
      self.add(f'conv{number}', in_channels, channels, 3, bias=True)
      in_channels = channels

  def forward(self, x: Tensor) -> Tensor:
    if self.pooled:
      x = F.max_pool2d(x, 2)
    for number in range(1, self.size + 1):
      x = F.relu(self.apply_to(x, f'conv{number}'))
    return x


class VGG(Network):
  def __init__(self, sizes: Sequence[int], num_classes: int):
    super().__init__()
    channels, stages = 3, []
    for index, size in enumerate(sizes):
      width = 64 * 2**index
      stages.append(VGGStage(channels, width, size, pooled=index > 0))
      channels = width
    self.set_stages(stages, channels, num_classes)

  def stem(self, x: Tensor) -> Tensor:
    return x


class LastConv(Stage, ConvNorm):
  """A stage with a 1×1 convolution at its end."""

  def __init__(
    self, blocks: Sequence[nn.Module], in_channels: int, channels: int
  ):
    super().__init__(blocks)
    self.add('last_conv', in_channels, channels, 1)

  def forward(self, x: Tensor) -> Tensor:
    return F.relu(self.apply_to(super().forward(x), 'last_conv'))


class InvertedResidual(ConvNorm):
  def __init__(
    self, in_channels: int, channels: int, stride: int, expansion: int
  ):
    super().__init__()
    inside = in_channels * expansion
    self.add('conv1', in_channels, inside, 1)
    self.add('conv2', inside, inside, 3, stride, groups=inside)
    self.add('conv3', inside, channels, 1)
    self.adds = stride == 1 and in_channels == channels

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu(self.apply_to(x, 'conv1'))
    y = F.relu(self.apply_to(y, 'conv2'))
    y = self.apply_to(y, 'conv3')
    return x + y if self.adds else y


class MobileNetV2(Network):
  # Of each group of blocks: stage, expansion, channels, blocks, stride.
  GROUPS = (
    (0, 1, 16, 1, 1),
    (0, 6, 24, 2, 1),
    (1, 6, 32, 3, 2),
    (2, 6, 64, 4, 2),
    (2, 6, 96, 3, 1),
    (3, 6, 160, 3, 2),
    (3, 6, 320, 1, 1),
  )

  def __init__(self, num_classes: int):
    super().__init__()
    self.add('conv1', 3, 16, 3, stride=2)
    channels = 16
    blocks: list[list[nn.Module]] = [[], [], [], []]
    for stage, expansion, width, count, stride in self.GROUPS:
      for index in range(count):
        blocks[stage].append(
          InvertedResidual(
            channels, width // 2, stride if index == 0 else 1, expansion
          )
        )
        channels = width // 2
    stages = [Stage(each) for each in blocks[:3]]
    stages.append(LastConv(blocks[3], channels, 1280))
    self.set_stages(stages, 1280, num_classes)


def shuffle(x: Tensor, groups: int) -> Tensor:
  batch, channels, height, width = x.shape
  split = x.view(batch, groups, channels // groups, height, width)
  return split.transpose(1, 2).reshape(x.shape)


class GroupBlock(ConvNorm):
  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.stride = stride
    out = channels - in_channels if stride == 2 else channels
    inside = out // 4
    self.groups = 1 if in_channels == 24 else 3
    self.add('conv1', in_channels, inside, 1, groups=self.groups)
    self.add('conv2', inside, inside, 3, stride, groups=inside)
    self.add('conv3', inside, out, 1, groups=3)

  def forward(self, x: Tensor) -> Tensor:
    y = shuffle(F.relu(self.apply_to(x, 'conv1')), self.groups)
    y = F.relu(self.apply_to(y, 'conv2'))
    y = self.apply_to(y, 'conv3')
    if self.stride == 1:
      return F.relu(x + y)
    x = F.avg_pool2d(x, 3, stride=2, padding=1)
    return F.relu(torch.cat([y, x], dim=1))


class SplitBlock(ConvNorm):
  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.stride, half = stride, channels // 2
    right = half
    if stride == 2:
      right = in_channels
      self.add('left_conv1', in_channels, in_channels, 3, 2, groups=in_channels)
      self.add('left_conv2', in_channels, half, 1)
    self.add('conv1', right, half, 1)
    self.add('conv2', half, half, 3, stride, groups=half)
    self.add('conv3', half, half, 1)

  def forward(self, x: Tensor) -> Tensor:
    if self.stride == 2:
      left = self.apply_to(self.apply_to(x, 'left_conv1'), 'left_conv2')
      left = F.relu(left)
    else:
      left, x = x.chunk(2, dim=1)
    y = F.relu(self.apply_to(x, 'conv1'))
    y = F.relu(self.apply_to(self.apply_to(y, 'conv2'), 'conv3'))
    return shuffle(torch.cat([left, y], dim=1), 2)


class ShuffleNet(Network):
  def __init__(
    self,
    block: type[nn.Module],
    widths: Sequence[int],
    last: int,
    num_classes: int,
  ):
    super().__init__()
    self.add('conv1', 3, 24, 1)
    channels, stages = 24, []
    for width, size in zip(widths, (4, 8, 4), strict=True):
      blocks = [block(channels, width, 2)]
      blocks += [block(width, width, 1) for _ in range(size - 1)]
      channels = width
      stages.append(Stage(blocks))
    if last:
      stages[-1] = LastConv(blocks, channels, last)
    self.set_stages(stages, last or channels, num_classes)


class Attention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    qkv = self.qkv(x).view(batch, tokens, 3, -1, 64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 8).softmax(dim=-1)
    return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.fc1 = nn.Linear(width, 4 * width)
    self.fc2 = nn.Linear(4 * width, width)

  def forward(self, x: Tensor) -> Tensor:
    return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.attn = Attention(width)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = Mlp(width)

  def forward(self, x: Tensor) -> Tensor:
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
  def __init__(self, width: int, patch: int):
    super().__init__()
    self.proj = nn.Conv2d(3, width, patch, patch)

  def forward(self, x: Tensor) -> Tensor:
    return self.proj(x)


class ViT(nn.Module):
  """A ViT with a class token, whose names are timm's."""

  def __init__(self, width: int, patch: int, side: int, num_classes: int):
    super().__init__()
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    patches = (side // patch) ** 2
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
    self.patch_embed = PatchEmbed(width, patch)
    self.blocks = nn.ModuleList(ViTBlock(width) for _ in range(12))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.head = nn.Linear(width, num_classes)

  def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x, features = self.patch_embed(x), []
    shape = x.shape
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
    x = x + self.pos_embed
    for number, block in enumerate(self.blocks, 1):
      x = block(x)
      if number % 3 == 0:
        features.append(x[:, 1:].transpose(1, 2).reshape(shape))
    return self.head(self.norm(x)[:, 0]), features


def build(name: str, num_classes: int, side: int = 32) -> nn.Module:
  """Builds a network by the name that kdjax gives it.

  Args:
    name: 'resnet20', 'resnet8x4', 'wrn_16_2', 'vgg8', 'vit_tiny_patch4', ….
    num_classes: number of logits.
    side: height and width of the images of a ViT.
  """
  if name.startswith('resnet'):
    depth, _, wide = name.removeprefix('resnet').partition('x')
    width, stem = (64, 32) if wide else (16, 16)
    return CifarResNet((int(depth) - 2) // 6, width, stem, num_classes)
  if name.startswith('wrn'):
    _, depth, factor = name.split('_')
    return WideResNet((int(depth) - 4) // 6, int(factor), num_classes)
  if name.startswith('vit'):
    _, size, patch = name.split('_')
    width = {'tiny': 192, 'small': 384}[size]
    patch = int(patch.removeprefix('patch'))
    return ViT(width, patch, side, num_classes)
  return {
    'vgg8': lambda: VGG((1, 1, 1, 2), num_classes),
    'vgg13': lambda: VGG((2, 2, 2, 4), num_classes),
    'mobilenetv2': lambda: MobileNetV2(num_classes),
    'shufflenetv1': lambda: ShuffleNet(
      GroupBlock, (240, 480, 960), 0, num_classes
    ),
    'shufflenetv2': lambda: ShuffleNet(
      SplitBlock, (116, 232, 464), 1024, num_classes
    ),
  }[name]()
