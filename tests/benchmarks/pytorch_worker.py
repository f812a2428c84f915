"""The same training step in PyTorch, as a competent user would write it.

Started by `python -m kdjax.benchmark --baseline`, once for each mode and
variant, with one argument: a JSON object (see `kdjax/benchmark/workers.py`,
which also describes the lines that the two exchange). Without an argument it
says which networks it knows. Needs PyTorch, not kdjax.

What is meant by competent: the whole data set is on the device; batches are
cropped and flipped there, all images at once; `channels_last`; on a GPU bf16
autocast, TF32 and cuDNN's autotuner; the optimiser is the fused one; the
teacher runs in inference mode; nothing waits for the device between steps.
"""

import json
import pathlib
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT / 'third_party/pytorch'))

import resnet  # noqa: E402


class Augmentation:
  """Random crops and flips of images on the device."""

  def __init__(self, padding: int, flip: bool):
    self._padding = padding
    self._flip = flip

  def __call__(self, images: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    pad = self._padding
    if pad:
      images = F.pad(images, (pad, pad, pad, pad))
      shifts = torch.randint(0, 2 * pad + 1, (2, batch, 1), device=device)
      rows, columns = rows + shifts[0], columns + shifts[1]
    if self._flip:
      mirrored = torch.rand(batch, 1, device=device) < 0.5
      columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch, device=device)[:, None, None]
    # The indexed axes come first: NHWC in memory, seen as NCHW.
    return images.permute(0, 2, 3, 1)[
      index, rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)


class Connectors(nn.Module):
  """1×1 convolutions from the student's channels to the teacher's."""

  def __init__(self, student: list[int], teacher: list[int]):
    super().__init__()
    self.convolutions = nn.ModuleList(
      nn.Conv2d(source, target, 1)
      for source, target in zip(student, teacher, strict=True)
    )

  def forward(self, features: list[Tensor]) -> list[Tensor]:
    return [
      convolution(feature)
      for convolution, feature in zip(self.convolutions, features, strict=True)
    ]


class Training:
  """A student, its teacher and all that a step of training needs."""

  def __init__(self, spec: dict):
    torch.manual_seed(0)
    self._spec = spec
    self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if self._device.type == 'cuda':
      torch.backends.cudnn.benchmark = True
      torch.set_float32_matmul_precision('high')
    height, width, channels = spec['image_shape']
    size = spec['train_size']
    self._images = torch.randint(
      0, 256, (size, channels, height, width), dtype=torch.uint8
    ).to(self._device)
    self._labels = torch.randint(0, spec['num_classes'], (size,)).to(
      self._device
    )
    self._augment = Augmentation(spec['crop_padding'], spec['flip'])
    self._mean = torch.full((1, channels, 1, 1), 127.5, device=self._device)
    self._std = torch.full((1, channels, 1, 1), 63.0, device=self._device)

    self._student = self._network(spec['student'])
    self._teacher = None
    modules = nn.ModuleList([self._student])
    if spec['teacher']:
      self._teacher = self._network(spec['teacher'])
      self._teacher.eval().requires_grad_(False)
      for module in self._teacher.modules():
        # Or activations would grow from block to block: it is not trained.
        if isinstance(module, resnet.BasicBlock):
          nn.init.constant_(module.bn2.weight, 0.2)
        elif isinstance(module, resnet.Bottleneck):
          nn.init.constant_(module.bn3.weight, 0.2)
    if spec['method'] == 'feature':
      self._connectors = Connectors(
        _channels(self._student), _channels(self._teacher)
      ).to(self._device, memory_format=torch.channels_last)
      modules.append(self._connectors)
    kernels, others = [], []
    for parameter in modules.parameters():
      (kernels if parameter.ndim > 1 else others).append(parameter)
    recipe = spec['train']
    groups = [
      {'params': kernels, 'weight_decay': recipe['weight_decay']},
      {'params': others, 'weight_decay': 0.0},
    ]
    if recipe['optimizer'] == 'sgd':
      # There is no Nesterov momentum of zero.
      self._optimizer = torch.optim.SGD(
        groups,
        lr=recipe['learning_rate'],
        momentum=recipe['momentum'],
        nesterov=recipe['momentum'] > 0,
        fused=True,
      )
    else:
      self._optimizer = torch.optim.AdamW(
        groups, lr=recipe['learning_rate'], fused=True
      )
    self._parameters = [*kernels, *others]
    self._loss_function = self._loss
    if spec['variant'] == 'compile':
      # Forward pass and loss in one graph: the compiler sees all of it.
      self._loss_function = torch.compile(self._loss)
    self._order = torch.randperm(size, device=self._device)
    self._position = 0
    self._sums: Tensor | None = None

  def _network(self, arguments: dict) -> nn.Module:
    build = getattr(resnet, arguments['name'])
    return build(
      stem=arguments['stem'],
      width=arguments['width'],
      num_classes=self._spec['num_classes'],
      in_channels=self._spec['image_shape'][-1],
    ).to(self._device, memory_format=torch.channels_last)

  def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss and the student's logits."""
    x = (images.float() - self._mean) / self._std
    x = x.contiguous(memory_format=torch.channels_last)
    settings = self._spec['settings']
    if self._teacher is not None:
      with torch.no_grad(), self._autocast('teacher'):
        teacher_logits, teacher_features = self._teacher(x)
    with self._autocast('student'):
      logits, features = self._student(x)
      loss = F.cross_entropy(
        logits.float(),
        labels,
        label_smoothing=self._spec['train']['label_smoothing'],
      )
      if self._spec['method'] == 'response':
        temperature, alpha = settings['temperature'], settings['alpha']
        divergence = F.kl_div(
          F.log_softmax(logits.float() / temperature, 1),
          F.log_softmax(teacher_logits.float() / temperature, 1),
          reduction='batchmean',
          log_target=True,
        )
        loss = (1 - alpha) * loss + alpha * temperature**2 * divergence
      elif self._spec['method'] == 'feature':
        stages = torch.stack(
          [
            F.mse_loss(source.float(), target.float())
            for source, target in zip(
              self._connectors(features), teacher_features, strict=True
            )
          ]
        )
        stages = getattr(stages, settings['reduction'])()
        loss = (
          settings['ce_weight'] * loss + settings['feature_weight'] * stages
        )
    return loss, logits

  def _autocast(self, role: str) -> torch.autocast:
    return torch.autocast(
      self._device.type,
      torch.bfloat16,
      enabled=self._spec[role]['dtype'] == 'bfloat16',
    )

  def step(self) -> None:
    """Trains on the next batch."""
    recipe = self._spec['train']
    batch = recipe['batch_size']
    if self._position + batch > len(self._order):
      self._order = torch.randperm(len(self._order), device=self._device)
      self._position = 0
    indices = self._order[self._position : self._position + batch]
    self._position += batch
    labels = self._labels[indices]
    images = self._augment(self._images[indices])
    self._optimizer.zero_grad(set_to_none=True)
    loss, logits = self._loss_function(images, labels)
    loss.backward()
    if recipe['clip_norm']:
      nn.utils.clip_grad_norm_(self._parameters, recipe['clip_norm'])
    self._optimizer.step()
    # What a log line needs, summed on the device.
    correct = (logits.detach().argmax(1) == labels).float().mean()
    values = torch.stack([loss.detach().float(), correct])
    self._sums = values if self._sums is None else self._sums + values

  def synchronize(self) -> None:
    """Waits for the device."""
    assert self._sums is not None
    self._sums.tolist()

  def peak_memory(self) -> int:
    """Returns the peak memory in bytes: of the device, or of the process."""
    if self._device.type == 'cuda':
      return torch.cuda.max_memory_allocated()
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024


def _channels(network: resnet.ResNet) -> list[int]:
  """Returns the channels of each stage's output."""
  stages = (network.layer1, network.layer2, network.layer3, network.layer4)
  return [stage[-1].bn1.num_features * stage[-1].expansion for stage in stages]


def main() -> None:
  if len(sys.argv) == 1:
    networks = [name for name in dir(resnet) if name.startswith('resnet')]
    print(json.dumps({'networks': networks}))
    return
  spec = json.loads(sys.argv[1])
  training = Training(spec)
  start = time.perf_counter()
  training.step()
  training.synchronize()
  seconds = time.perf_counter() - start
  answer = {
    'versions': {'torch': torch.__version__},
    # With the first step, which cannot be told from it.
    'compile_s': seconds if spec['variant'] == 'compile' else None,
  }
  print(json.dumps(answer), flush=True)
  for line in sys.stdin:
    steps = json.loads(line)['steps']
    start = time.perf_counter()
    for _ in range(steps):
      training.step()
    training.synchronize()
    answer = {
      'seconds': time.perf_counter() - start,
      'steps': steps,
      'peak_memory_bytes': training.peak_memory(),
    }
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
