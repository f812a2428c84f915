"""Response-based distillation in plain JAX, with nothing of kdjax but losses.

  python tests/examples/plain_jax.py

A wide convolutional network is trained on scikit-learn's digits, then it
teaches a narrow one. The numbers are those of `python -m kdjax.main` with the
same networks and recipe, which tests/test_examples.py shows: initial weights,
splits and the order of examples are drawn from the same keys.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
import sklearn.model_selection

from kdjax import losses

BATCH_SIZE = 64
LEARNING_RATE = 0.003
TEMPERATURE = 4.0
ALPHA = 0.5


class Cnn(nn.Module):
  """Two convolutions and a dense layer: `[batch, 8, 8, 1]` to logits."""

  num_classes: int = 10
  width: int = 8

  @nn.compact
  def __call__(self, images, train=False):
    del train  # There is neither dropout nor BatchNorm.
    x = nn.relu(nn.Conv(self.width, (3, 3), name='conv1')(images))
    x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2, name='conv2')(x))
    return nn.Dense(self.num_classes, name='fc')(x.reshape(x.shape[0], -1))


class Data(NamedTuple):
  """Pixels from 0 to 255, `[size, 8, 8, 1]`, and labels, `[size]`."""

  images: np.ndarray
  labels: np.ndarray

  def rows(self, rows):
    return Data(self.images[rows], self.labels[rows])


def load_digits():
  """Returns the training, validation and test split of the digits."""
  digits = sklearn.datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  data = Data(images, digits.target.astype(np.int32))
  train, test = sklearn.model_selection.train_test_split(
    np.arange(len(images)),
    test_size=0.2,
    stratify=data.labels,
    random_state=0,
  )
  # A tenth of the training images is for validation.
  order = np.random.default_rng(0).permutation(len(train))
  held_out, kept = np.split(order, [round(0.1 * len(train))])
  return (
    data.rows(train[np.sort(kept)]),
    data.rows(train[np.sort(held_out)]),
    data.rows(test),
  )


class State(NamedTuple):
  """What a training step changes."""

  params: Any
  opt_state: Any


def normalize(images, train_images):
  """Normalizes pixels by mean and standard deviation of the training images."""
  scaled = train_images.astype(np.float64) / 255
  mean, std = np.float32(scaled.mean()), np.float32(scaled.std())
  return (images.astype(np.float32) / 255 - mean) / std


def train(model, data, epochs, seed, loss_fn):
  """Trains a model with Adam.

  Args:
    model: the model.
    data: the splits, as `load_digits` returns them.
    epochs: epochs of training.
    seed: determines the initial parameters and the order of examples.
    loss_fn: from logits `[batch, classes]`, images and labels the loss of each
      example, `[batch]`.

  Returns:
    The parameters of the epoch with the best validation accuracy, and the loss
    of each step.
  """
  train_split, validation, _ = data
  images = normalize(train_split.images, train_split.images)
  labels = jnp.asarray(train_split.labels)
  key = jax.random.key(seed)
  shape = jnp.zeros((BATCH_SIZE, *images.shape[1:]))
  params = model.init(jax.random.fold_in(key, 0), shape)['params']
  optimizer = optax.adam(LEARNING_RATE)
  state = State(params, optimizer.init(params))

  @jax.jit
  def step(state, images, labels):
    def mean_loss(params):
      logits = model.apply({'params': params}, images, train=True)
      return loss_fn(logits, images, labels).mean()

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state)
    return State(optax.apply_updates(state.params, updates), opt_state), loss

  best, best_accuracy, step_losses = state.params, -1.0, []
  data_key = jax.random.fold_in(key, 2)
  for epoch in range(epochs):
    order_key, _ = jax.random.split(jax.random.fold_in(data_key, epoch))
    order = jax.random.permutation(order_key, len(images))
    # The last batch of an epoch would not be full.
    for first in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
      rows = order[first : first + BATCH_SIZE]
      state, loss = step(state, images[rows], labels[rows])
      step_losses.append(loss)
    accuracy = measure(model, state.params, validation, train_split)
    # Of equals the later one.
    if accuracy >= best_accuracy:
      best, best_accuracy = state.params, accuracy
  return best, np.array(step_losses)


def measure(model, params, split, train_split):
  """Measures the accuracy on a split."""
  images = normalize(split.images, train_split.images)
  logits = jax.jit(model.apply)({'params': params}, images)
  return float((logits.argmax(axis=-1) == split.labels).mean())


def cross_entropy(logits, images, labels):
  """The loss of a network without a teacher."""
  del images
  return losses.cross_entropy(logits, labels)


def taught_by(teacher, params):
  """Makes the loss of a student, (1 - α) · CE + α · T² · KL."""

  def loss_fn(logits, images, labels):
    teacher_logits = teacher.apply({'params': params}, images)
    return losses.response_loss(
      logits, teacher_logits, labels, temperature=TEMPERATURE, alpha=ALPHA
    )

  return loss_fn


def main(epochs=8, teacher_width=32, student_width=4):
  """Trains the teacher, then the student; returns what they measured."""
  data = load_digits()
  test = functools.partial(measure, split=data[2], train_split=data[0])
  teacher, student = Cnn(width=teacher_width), Cnn(width=student_width)
  teacher_params, teacher_losses = train(
    teacher, data, epochs, 0, cross_entropy
  )
  params, student_losses = train(
    student, data, epochs, 0, taught_by(teacher, teacher_params)
  )
  return {
    'teacher': (test(teacher, teacher_params), teacher_losses),
    'student': (test(student, params), student_losses),
  }


if __name__ == '__main__':
  for name, (accuracy, step_losses) in main().items():
    print(f'{name}: test accuracy {accuracy:.2%}, loss {step_losses[-1]:.4f}')
