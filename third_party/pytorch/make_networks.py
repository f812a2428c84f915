"""Writes networks.npz, PyTorch's outputs of the networks in networks.py.

Run from the root of the repository, in an environment of its own that holds
`torch==2.13.0` and `numpy`:

    python third_party/pytorch/make_networks.py

It takes a minute and writes the file beside this script; all is computed in
float64 and rounded to float32 once.
"""

import pathlib
import sys

import networks
import numpy as np
import torch
import weights
from make_references import TORCH_VERSION, images, nchw, nhwc
from network_sizes import PARAMETERS

PATH = pathlib.Path(__file__).resolve().parent / 'networks.npz'
# Those whose outputs are computed, a depth of each kind.
NETWORKS = (
  *('resnet8', 'resnet20', 'resnet8x4', 'wrn_16_1', 'wrn_16_2', 'vgg8'),
  *('vgg13', 'mobilenetv2', 'shufflenetv1', 'shufflenetv2'),
  *('vit_tiny_patch4', 'vit_small_patch4'),
)
NUM_CLASSES = 10
EVAL_IMAGES = 2, 32
# Few, since an activation that rounding moves across zero in a ReLU changes the
# gradient by more than rounding does.
TRAIN_IMAGES = 8, 16


def check_parameter_counts() -> None:
  for name, expected in PARAMETERS.items():
    vit = name.startswith('vit')
    with torch.device('meta'):
      model = networks.build(name, 1000 if vit else 100, 224)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == expected, (name, found, expected)


def evaluate(
  name: str, images: dict[str, np.ndarray], dtype: torch.dtype
) -> dict[str, np.ndarray]:
  """Outputs in both modes, and a gradient in training mode."""
  model = networks.build(name, NUM_CLASSES).to(dtype)
  state = {
    entry: weights.tensor(entry, tuple(value.shape), fan_in=True)
    for entry, value in model.state_dict().items()
  }
  model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  floats = [value for value in state.values() if value.dtype == np.float32]
  outputs = {
    'count': np.array(len(floats)),
    'sum': np.array(sum(np.abs(x).sum(dtype=np.float64) for x in floats)),
  }
  inputs = {k: torch.tensor(nchw(v), dtype=dtype) for k, v in images.items()}
  model.eval()
  with torch.no_grad():
    logits, features = model(inputs['eval_images'])
  outputs['eval_logits'] = logits.numpy()
  for k, feature in enumerate(features, 1):
    # Of positions and of channels, so that the file stays small.
    feature = nhwc(feature)
    outputs[f'eval_stage{k}/channels'] = feature.mean(axis=(1, 2))
    outputs[f'eval_stage{k}/positions'] = feature.mean(axis=3)
  model.train()
  # A ViT's position embeddings are those of images of one size.
  which = 'eval_images' if name.startswith('vit') else 'train_images'
  logits, _ = model(inputs[which])
  outputs['train_logits'] = logits.detach().numpy()
  # Of a sum of logits that no BatchNorm or softmax makes constant.
  rows = torch.arange(1, 1 + len(logits), dtype=dtype)[:, None]
  (rows * torch.sin(logits)).sum().backward()
  first = next(p for p in model.parameters() if p.ndim == 4)
  outputs['train_gradient'] = first.grad[:16].permute(2, 3, 1, 0).numpy()
  return outputs


def main() -> None:
  if torch.__version__.split('+')[0] != TORCH_VERSION:
    sys.exit(f'torch is {torch.__version__}: expected {TORCH_VERSION}')
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  check_parameter_counts()
  arrays = {
    'torch_version': np.array(TORCH_VERSION),
    'names': np.array(NETWORKS),
    'eval_images': images('eval/networks', *EVAL_IMAGES),
    'train_images': images('train/networks', *TRAIN_IMAGES),
  }
  inputs = {name: arrays[name] for name in ('eval_images', 'train_images')}
  for name in NETWORKS:
    double = evaluate(name, inputs, torch.float64)
    single = evaluate(name, inputs, torch.float32)
    deviations = []
    for key, value in double.items():
      if value.ndim:
        assert np.isfinite(value).all(), (name, key)
        largest = np.abs(value).max()
        deviations.append(np.abs(single[key] - value).max() / largest)
        value = value.astype(np.float32)
      arrays[f'{name}/{key}'] = value
    logits = double['eval_logits']
    print(
      f'{name}: logits of {np.abs(logits).max():.2f}, images differ by '
      f'{np.abs(logits[0] - logits[1]).max():.2f}; float32 differs by up to '
      f'{max(deviations):.0e}, the gradient by {deviations[-1]:.0e}'
    )
  np.savez_compressed(PATH, **arrays)
  print(f'{PATH.name}: {PATH.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
