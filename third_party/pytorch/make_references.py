"""Writes losses.npz and resnets.npz, the PyTorch side of kdjax's tests.

Run from the root of the repository, in an environment of its own that holds
`torch==2.13.0` (a CPU build will do) and `numpy`:

    python third_party/pytorch/make_references.py

It takes well under a minute, needs no network, draws nothing at random and
writes both files beside this script. Two runs on one machine write the same
bytes; another machine's float32 results may differ in their last bits.
`third_party/README.md` lists the keys.
"""

import pathlib
import sys
import zlib
from collections.abc import Sequence

import numpy as np
import resnet
import torch
import torch.nn.functional as F
import weights
from torch import Tensor, nn

FOLDER = pathlib.Path(__file__).resolve().parent
TORCH_VERSION = '2.13.0'
DTYPES = {'float64': torch.float64, 'float32': torch.float32}

TEMPERATURES = (1.0, 2.0, 4.0, 10.0)
ALPHAS = (0.1, 0.5, 0.7, 1.0)
# name: (batch, classes, scale of the logits). From a scale of 100, most
# probabilities underflow in float32 at a temperature of 1.
RESPONSE_CASES = {
  '8x10': (8, 10, 1.0),
  '8x10_scale10': (8, 10, 10.0),
  '8x10_scale100': (8, 10, 100.0),
  '4x100': (4, 100, 3.0),
  '3x1000_scale10': (3, 1000, 10.0),
}

# NHWC shapes of the four stage outputs whose loss is taken.
FEATURE_SHAPES = ((6, 8, 8, 4), (6, 4, 4, 8), (6, 2, 2, 16), (6, 1, 1, 32))
# name: (weight of the cross entropy, weight of the features).
FEATURE_VARIANTS = {'sum': (1.0, 0.1), 'mean': (0.3, 0.7)}

PARAMETERS = {
  ('resnet18', 'imagenet', 1000): 11_689_512,
  ('resnet34', 'imagenet', 1000): 21_797_672,
  ('resnet50', 'imagenet', 1000): 25_557_032,
  ('resnet101', 'imagenet', 1000): 44_549_160,
  ('resnet18', 'cifar', 10): 11_173_962,
  ('resnet50', 'cifar', 10): 23_520_842,
}
RESNETS = (
  ('resnet18', 'imagenet'),
  ('resnet18', 'cifar'),
  ('resnet34', 'imagenet'),
  ('resnet34', 'cifar'),
  ('resnet50', 'imagenet'),
  ('resnet50', 'cifar'),
  ('resnet101', 'imagenet'),
  ('resnet101', 'cifar'),
)
NUM_CLASSES = 10
# stem: (batch, pixels a side). With two 32×32 images the last stage of an
# ImageNet stem is 1×1, and batch statistics of two numbers send them to ±1
# whatever their distance: no two programs agree on that in float32. Training
# mode therefore gets more and larger images; evaluation keeps the 1×1 maps.
EVAL_IMAGES = {'imagenet': (2, 32), 'cifar': (2, 16)}
TRAIN_IMAGES = {'imagenet': (8, 48), 'cifar': (8, 16)}


# --- Inputs -------------------------------------------------------------------


def normal(name: str, shape: tuple[int, ...], scale: float = 1) -> np.ndarray:
  """Returns float32 normal numbers, seeded by `name` (Box and Muller)."""
  radius = np.sqrt(-2 * np.log1p(-weights.uniform(f'{name}/radius', shape)))
  angle = 2 * np.pi * weights.uniform(f'{name}/angle', shape)
  return (scale * radius * np.cos(angle)).astype(np.float32)


def labels(name: str, batch: int, classes: int) -> np.ndarray:
  return weights.uniform(name, (batch,), 0, classes).astype(np.int64)


def images(name: str, batch: int, side: int) -> np.ndarray:
  """Returns NHWC images in about ±2: coarse squares under fine noise."""
  coarse = weights.uniform(f'{name}/coarse', (batch, 4, 4, 3))
  coarse = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
  fine = weights.uniform(f'{name}/fine', (batch, side, side, 3))
  pixels = np.floor((0.7 * coarse + 0.3 * fine) * 256)
  return ((pixels - 127.5) / 64).astype(np.float32)


def nchw(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def nhwc(tensor: Tensor) -> np.ndarray:
  return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def leaf(array: np.ndarray, dtype: torch.dtype) -> Tensor:
  """Returns a copy in `dtype` that collects a gradient."""
  return torch.tensor(array, dtype=dtype, requires_grad=True)


# --- Losses -------------------------------------------------------------------


def kl_div(
  student_logits: Tensor, teacher_logits: Tensor, temperature: float, **kwargs
) -> Tensor:
  """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), as published."""
  divergence = F.kl_div(
    F.log_softmax(student_logits / temperature, dim=1),
    F.softmax(teacher_logits / temperature, dim=1),
    **kwargs,
  )
  return temperature**2 * divergence


def kl_div_log_target(
  student_logits: Tensor, teacher_logits: Tensor, temperature: float, **kwargs
) -> Tensor:
  """The same from two log-softmaxes."""
  divergence = F.kl_div(
    F.log_softmax(student_logits / temperature, dim=1),
    F.log_softmax(teacher_logits / temperature, dim=1),
    log_target=True,
    **kwargs,
  )
  return temperature**2 * divergence


def response_references() -> dict[str, np.ndarray]:
  arrays = {
    'response/cases': np.array(list(RESPONSE_CASES)),
    'response/temperatures': np.array(TEMPERATURES),
    'response/alphas': np.array(ALPHAS),
  }
  for case, (batch, classes, scale) in RESPONSE_CASES.items():
    key = f'response/{case}'
    student = normal(f'{key}/student', (batch, classes), scale)
    teacher = normal(f'{key}/teacher', (batch, classes), scale)
    label = labels(f'{key}/labels', batch, classes)
    arrays[f'{key}/student_logits'] = student
    arrays[f'{key}/teacher_logits'] = teacher
    arrays[f'{key}/labels'] = label
    for name, dtype in DTYPES.items():
      cross_entropy, kl, losses, gradients = response(
        student, teacher, label, dtype
      )
      arrays[f'{key}/cross_entropy/{name}'] = cross_entropy
      arrays[f'{key}/temperature_kl/{name}'] = kl
      arrays[f'{key}/loss/{name}'] = losses
      arrays[f'{key}/loss_gradient/{name}'] = gradients
  return arrays


def response(
  student: np.ndarray,
  teacher: np.ndarray,
  label: np.ndarray,
  dtype: torch.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns CE [B], KL [T, B], loss [T, A] and its gradient [T, A, B, C]."""
  teacher_logits = torch.tensor(teacher, dtype=dtype)
  target = torch.tensor(label)
  student_logits = torch.tensor(student, dtype=dtype)
  cross_entropy = F.cross_entropy(student_logits, target, reduction='none')
  kl = torch.stack(
    [
      kl_div(student_logits, teacher_logits, t, reduction='none').sum(dim=1)
      for t in TEMPERATURES
    ]
  )
  losses = np.empty((len(TEMPERATURES), len(ALPHAS)), kl.numpy().dtype)
  gradients = np.empty((*losses.shape, *student.shape), losses.dtype)
  for i, temperature in enumerate(TEMPERATURES):
    for j, alpha in enumerate(ALPHAS):
      both = []
      for divergence in (kl_div, kl_div_log_target):
        logits = leaf(student, dtype)
        loss = (1 - alpha) * F.cross_entropy(logits, target) + (
          alpha
          * divergence(
            logits, teacher_logits, temperature, reduction='batchmean'
          )
        )
        loss.backward()
        both.append((loss.item(), logits.grad.numpy()))
      (losses[i, j], gradients[i, j]), (log_loss, log_gradient) = both
      close(log_loss, losses[i, j], dtype, 'log_target loss')
      close(log_gradient, gradients[i, j], dtype, 'log_target gradient')
      per_example = (1 - alpha) * cross_entropy + alpha * kl[i]
      close(per_example.mean(), losses[i, j], dtype, 'mean of examples')
  return cross_entropy.numpy(), kl.numpy(), losses, gradients


def feature_references() -> dict[str, np.ndarray]:
  batch = FEATURE_SHAPES[0][0]
  logits = normal('feature/student_logits', (batch, NUM_CLASSES), 3.0)
  label = labels('feature/labels', batch, NUM_CLASSES)
  student, teacher = (
    [
      # Not negative, as after a ReLU, and of another scale in each stage.
      np.maximum(normal(f'feature/{who}/{k}', shape, 0.5 * k), 0)
      for k, shape in enumerate(FEATURE_SHAPES, 1)
    ]
    for who in ('student', 'teacher')
  )
  arrays = {
    'feature/student_logits': logits,
    'feature/labels': label,
    'feature/variants': np.array(list(FEATURE_VARIANTS)),
  }
  for k, (student_stage, teacher_stage) in enumerate(
    zip(student, teacher, strict=True), 1
  ):
    arrays[f'feature/student_stage{k}'] = student_stage
    arrays[f'feature/teacher_stage{k}'] = teacher_stage

  for name, dtype in DTYPES.items():
    target = torch.tensor(label)
    teacher_stages = [torch.tensor(nchw(f), dtype=dtype) for f in teacher]
    student_stages = [torch.tensor(nchw(f), dtype=dtype) for f in student]
    pairs = list(zip(student_stages, teacher_stages, strict=True))
    per_example = torch.stack(
      [((s - t) ** 2).flatten(1).mean(dim=1) for s, t in pairs]
    )
    mse = torch.stack([nn.MSELoss()(s, t) for s, t in pairs])
    close(per_example.mean(dim=1), mse, dtype, 'mean of examples')
    arrays[f'feature/mse_per_example/{name}'] = per_example.numpy()
    arrays[f'feature/mse/{name}'] = mse.numpy()
    arrays[f'feature/cross_entropy/{name}'] = F.cross_entropy(
      torch.tensor(logits, dtype=dtype), target, reduction='none'
    ).numpy()

    for variant, (ce_weight, feature_weight) in FEATURE_VARIANTS.items():
      key = f'feature/{variant}'
      arrays[f'{key}/ce_weight'] = np.array(ce_weight)
      arrays[f'{key}/feature_weight'] = np.array(feature_weight)
      student_logits = leaf(logits, dtype)
      stages = [leaf(nchw(f), dtype) for f in student]
      terms = [
        F.mse_loss(s, t) for s, t in zip(stages, teacher_stages, strict=True)
      ]
      feature_term = sum(terms)
      if variant == 'mean':
        feature_term = feature_term / len(terms)
      loss = (
        ce_weight * F.cross_entropy(student_logits, target)
        + feature_weight * feature_term
      )
      loss.backward()
      arrays[f'{key}/loss/{name}'] = loss.detach().numpy()
      arrays[f'{key}/logits_gradient/{name}'] = student_logits.grad.numpy()
      for k, stage in enumerate(stages, 1):
        arrays[f'{key}/stage{k}_gradient/{name}'] = nhwc(stage.grad)
  return arrays


def connector_references() -> dict[str, np.ndarray]:
  """A 1×1 convolution from 8 student to 16 teacher channels, and its loss."""
  inputs = {
    'student_feature': normal('connector/student_feature', (2, 4, 4, 8)),
    'teacher_feature': normal('connector/teacher_feature', (2, 4, 4, 16)),
    'weight': normal('connector/weight', (16, 8, 1, 1), 0.35),
    'bias': normal('connector/bias', (16,), 0.1),
  }
  arrays = {f'connector/{key}': value for key, value in inputs.items()}
  for name, dtype in DTYPES.items():
    student = leaf(nchw(inputs['student_feature']), dtype)
    teacher = torch.tensor(nchw(inputs['teacher_feature']), dtype=dtype)
    weight, bias = leaf(inputs['weight'], dtype), leaf(inputs['bias'], dtype)
    output = F.conv2d(student, weight, bias)
    loss = nn.MSELoss()(output, teacher)
    loss.backward()
    arrays[f'connector/output/{name}'] = nhwc(output)
    arrays[f'connector/loss/{name}'] = loss.detach().numpy()
    arrays[f'connector/student_feature_gradient/{name}'] = nhwc(student.grad)
    arrays[f'connector/weight_gradient/{name}'] = weight.grad.numpy()
    arrays[f'connector/bias_gradient/{name}'] = bias.grad.numpy()
  return arrays


# --- ResNets ------------------------------------------------------------------


def check_parameter_counts() -> None:
  for (name, stem, num_classes), expected in PARAMETERS.items():
    with torch.device('meta'):
      model = getattr(resnet, name)(num_classes=num_classes, stem=stem)
    found = sum(p.numel() for p in model.parameters())
    assert found == expected, (name, stem, num_classes, found, expected)


def resnet_references() -> dict[str, np.ndarray]:
  arrays = {'models': np.array([f'{name}/{stem}' for name, stem in RESNETS])}
  for stem in EVAL_IMAGES:
    arrays[f'eval_images/{stem}'] = images(f'eval/{stem}', *EVAL_IMAGES[stem])
    arrays[f'train_images/{stem}'] = images(
      f'train/{stem}', *TRAIN_IMAGES[stem]
    )
  for name, stem in RESNETS:
    key = f'{name}/{stem}'
    model = getattr(resnet, name)(num_classes=NUM_CLASSES, stem=stem)
    state = {
      entry: weights.tensor(entry, tuple(value.shape))
      for entry, value in model.state_dict().items()
    }
    arrays[f'{key}/names'] = np.array(list(state))
    arrays[f'{key}/shapes'] = np.array(
      [padded(value.shape) for value in state.values()]
    )
    arrays[f'{key}/crc32'] = np.array(checksum(state.values()))
    outputs = {}
    for precision, dtype in DTYPES.items():
      # Loaded anew, for a pass in training mode changes the statistics.
      model.to(dtype).load_state_dict(
        {entry: torch.tensor(value) for entry, value in state.items()}
      )
      outputs[precision] = run(
        model,
        torch.tensor(nchw(arrays[f'eval_images/{stem}']), dtype=dtype),
        torch.tensor(nchw(arrays[f'train_images/{stem}']), dtype=dtype),
      )
    check_resnet(key, outputs)
    for quantity, value in outputs['float64'].items():
      if value.dtype == np.float64:
        value = value.astype(np.float32)
      arrays[f'{key}/{quantity}'] = value
  return arrays


@torch.no_grad()
def run(
  model: resnet.ResNet, eval_images: Tensor, train_images: Tensor
) -> dict[str, np.ndarray]:
  model.eval()
  logits, features = model(eval_images)
  outputs = {'eval_logits': logits.numpy()}
  for k, feature in enumerate(features, 1):
    outputs[f'eval_stage{k}'] = nhwc(feature)
  stem_output = model.conv1(train_images)
  model.train()
  outputs['train_logits'] = model(train_images)[0].numpy()
  outputs['train_bn1_mean'] = model.bn1.running_mean.numpy().copy()
  outputs['train_bn1_var'] = model.bn1.running_var.numpy().copy()
  count = stem_output.numel() // stem_output.shape[1]
  outputs['train_bn1_count'] = np.array(count)
  return outputs


def padded(shape: Sequence[int]) -> list[int]:
  return [*shape, *[-1] * (4 - len(shape))]


def checksum(values) -> int:
  """Returns the CRC-32 of all tensors' little-endian bytes, in order."""
  crc = 0
  for value in values:
    crc = zlib.crc32(value.astype(value.dtype.newbyteorder('<')).tobytes(), crc)
  return crc


# --- Checks -------------------------------------------------------------------


def close(found, expected, dtype: torch.dtype, what: str) -> None:
  """Asserts that two ways to the same value agree, as far as `dtype` can."""
  tolerance = 1e-12 if dtype == torch.float64 else 1e-5
  expected = np.asarray(expected)
  scale = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(
    np.asarray(found), expected, rtol=0, atol=tolerance * scale, err_msg=what
  )


def check_losses(arrays: dict[str, np.ndarray]) -> None:
  """Asserts that all is finite and that float32 agrees with float64."""
  for key, value in arrays.items():
    if value.dtype.kind == 'f':
      assert np.isfinite(value).all(), key
    if key.endswith('/float64'):
      single = arrays[key.replace('/float64', '/float32')]
      assert value.dtype == np.float64, key
      assert single.dtype == np.float32, key
      scale = np.abs(value).max()
      deviation = np.abs(single - value).max() / scale
      # A KL of two nearly equal distributions cancels most of its digits.
      limit = 2e-5 if '/temperature_kl/' in key else 2e-6
      assert deviation < limit, (key, deviation)


def check_resnet(key: str, outputs: dict[str, dict[str, np.ndarray]]) -> None:
  """Asserts that the outputs can tell a right network from a wrong one."""
  double, single = outputs['float64'], outputs['float32']
  for k in range(1, 5):
    std = double[f'eval_stage{k}'].std()
    assert 0.05 < std < 50, (key, k, std)
  for mode in ('eval', 'train'):
    logits = double[f'{mode}_logits']
    assert 0.1 < np.abs(logits).max() < 50, (key, mode, logits)
    between_images = np.abs(logits[0] - logits[1]).max()
    assert between_images > 0.02, (key, mode, between_images)
  deviations = {
    quantity: np.abs(single[quantity] - value).max() / np.abs(value).max()
    for quantity, value in double.items()
  }
  for quantity, deviation in deviations.items():
    # Batch statistics amplify rounding errors layer by layer.
    limit = 1e-3 if quantity == 'train_logits' else 1e-5
    assert deviation < limit, (key, quantity, deviation)
  stds = [float(double[f'eval_stage{k}'].std()) for k in range(1, 5)]
  print(
    f'{key}: stage std {", ".join(f"{std:.2f}" for std in stds)}; '
    'float32 differs from float64, relative to the largest, by '
    f'{deviations["eval_logits"]:.0e} (eval logits), '
    f'{max(deviations[f"eval_stage{k}"] for k in range(1, 5)):.0e} (stages), '
    f'{deviations["train_logits"]:.0e} (train logits)'
  )


def write(name: str, arrays: dict[str, np.ndarray]) -> None:
  path = FOLDER / name
  np.savez_compressed(path, **arrays)
  print(f'{name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes')


def main() -> None:
  if torch.__version__.split('+')[0] != TORCH_VERSION:
    sys.exit(
      f'torch is {torch.__version__}, the reference values are those of '
      f'{TORCH_VERSION}: pip install torch=={TORCH_VERSION}, or change '
      'TORCH_VERSION here and in third_party/README.md'
    )
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  check_parameter_counts()
  losses = {
    **response_references(),
    **feature_references(),
    **connector_references(),
    'torch_version': np.array(TORCH_VERSION),
  }
  check_losses(losses)
  write('losses.npz', losses)
  write(
    'resnets.npz',
    {**resnet_references(), 'torch_version': np.array(TORCH_VERSION)},
  )


if __name__ == '__main__':
  main()
