"""Hyperparameters that change over the epochs."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import methods


@pytest.mark.parametrize(
  ('text', 'epochs_done', 'expected'),
  [
    ('linear:20', [0, 9.5, 19, 30], [1 / 20, 10 / 20, 1, 1]),
    ('cosine:10', [0, 4, 9.9, 30], [0.02447174, 0.5, 1, 1]),
    ('decay:2:6', [0, 1.9, 3, 5, 9], [1, 1, 0.5, 0, 0]),
  ],
)
def test_a_schedule_multiplies_its_hyperparameter(text, epochs_done, expected):
  change = methods.schedule([f'weight={text}'], ['weight', 'alpha'])
  values = {'weight': jnp.float32(3.0), 'alpha': jnp.float32(0.5)}
  for done, factor in zip(epochs_done, expected, strict=True):
    changed = change(values, jnp.float32(done))
    np.testing.assert_allclose(changed['weight'], 3 * factor, atol=1e-6)
    assert changed['alpha'] == 0.5


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('weight', 'names no value'),
    ('beta=linear:20', 'is of beta, which the method .* it has weight'),
    ('weight=step:20', "'step:20' is unknown: expected NAME=KIND:EPOCHS"),
    ('weight=linear', "'linear' is unknown"),
    ('weight=linear:0', "'linear:0' is unknown"),
    ('weight=linear:x', "'linear:x' is unknown"),
    ('weight=decay:6:2', "'decay:6:2' is unknown"),
  ],
)
def test_a_schedule_of_another_form_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    methods.schedule([text], ['weight'])
