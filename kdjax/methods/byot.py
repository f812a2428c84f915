"""Be your own teacher: classifiers on earlier stages learn from the last."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import _connectors
from kdjax.methods._base import (
  Batch,
  Hyperparameter,
  Loss,
  Method,
  Setup,
  Variables,
)
from kdjax.methods._weighted import temperature


def byot(
  *,
  features: tuple[str, ...] = ('stage1', 'stage2', 'stage3'),
  last: str = 'stage4',
) -> Method:
  """Trains on `kdjax.losses.byot`, without a teacher.

  Zhang et al., 2019, https://arxiv.org/abs/1905.08094. Each earlier stage has a
  3×3 convolution to the last stage's channels, a BatchNorm, a ReLU, the mean
  over positions and a linear classifier (the authors have attention modules).

  Args:
    features: the stages that have a classifier.
    last: the stage before the network's own classifier.
  """

  def init(rng: jax.Array, setup: Setup) -> Variables:
    shapes = setup.student.features
    channels = shapes[last].shape[-1]
    params = {}
    for index, name in enumerate(features):
      keys = jax.random.split(jax.random.fold_in(rng, index))
      params[name] = {
        'conv': _connectors.init_conv(
          keys[0], shapes[name].shape[-1], channels, 3, bias=False
        ),
        'bn': _connectors.init_batch_norm(channels),
        'fc': _connectors.init_dense(keys[1], channels, setup.num_classes),
      }
    return Variables(params)

  def loss(variables: Variables, batch: Batch) -> Loss:
    logits = [batch.student.logits]
    embeddings = [_connectors.pool(batch.student.features[last])]
    for name in features:
      branch = variables.params[name]
      x = batch.student.features[name]
      x = _connectors.conv(branch['conv'], x, padding=1)
      x = jax.nn.relu(_connectors.batch_norm(branch['bn'], x))
      embeddings.append(_connectors.pool(x))
      logits.append(_connectors.dense(branch['fc'], embeddings[-1]))
    per_example = losses.byot(
      logits, batch.labels, embeddings, **batch.hyperparameters
    )
    metrics = {'cross_entropy': losses.cross_entropy(logits[0], batch.labels)}
    return Loss(per_example.astype(jnp.float32), metrics)

  return Method(
    loss,
    init,
    teacher=None,
    student_features=(*features, last),
    hyperparameters={
      'temperature': temperature(3.0),
      'kd_weight': Hyperparameter(0.3, 0.0, 1.0),
      'feature_weight': Hyperparameter(0.03),
    },
    batch_level=True,
  )
