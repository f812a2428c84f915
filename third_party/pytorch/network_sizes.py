"""Numbers of parameters, which PyTorch's networks and kdjax's must have."""

# Parameters of networks for 100 classes (a ViT of patches of 16: 1,000, at
# 224×224), as published where a paper or a library says so.
PARAMETERS = {
  'resnet8': 83_892,
  'resnet14': 181_108,
  'resnet20': 278_324,
  'resnet32': 472_756,
  'resnet44': 667_188,
  'resnet56': 861_620,
  'resnet110': 1_736_564,
  'resnet8x4': 1_233_540,
  'resnet32x4': 7_433_860,
  'wrn_16_1': 180_916,
  'wrn_16_2': 703_284,
  'wrn_40_1': 569_780,
  'wrn_40_2': 2_255_156,
  'vgg8': 3_965_028,
  'vgg13': 9_462_180,
  'mobilenetv2': 812_836,
  'shufflenetv1': 949_258,
  'shufflenetv2': 1_355_528,
  'vit_tiny_patch16': 5_717_416,
  'vit_small_patch16': 22_050_664,
}
