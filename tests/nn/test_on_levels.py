"""Predictions moved to the pixel levels."""

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import pixels
from vdm_jax.nn.on_levels import distance_to_levels, moved_to_levels


@pytest.mark.parametrize("var", [1e-4, 0.02, 0.1, 0.4, 1.0])
def test_it_is_the_mean_over_all_levels(var):
    mean = np.linspace(-0.4, 15.4, 200)
    k = np.arange(16)
    logits = -0.5 * (k - mean[:, None]) ** 2 / (var + 1e-6)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact = weights @ k / weights.sum(axis=1) - mean
    found = distance_to_levels(jnp.asarray(mean, jnp.float32), jnp.full(mean.shape, var), 16)
    np.testing.assert_allclose(found, exact, atol=2e-3 if var == 1.0 else 2e-5)


def test_where_levels_cannot_be_told_apart_nothing_moves():
    mean = jnp.linspace(20.0, 200.0, 333)
    assert np.max(np.abs(distance_to_levels(mean, jnp.full(mean.shape, 1e4), 256))) < 2e-3
    assert distance_to_levels(jnp.float32(-1e9), jnp.float32(1.0), 256) == 0.0


@pytest.mark.parametrize("gamma", [-13.0, -11.0, -9.0, -6.0])
def test_a_gaussians_prediction_becomes_that_of_its_levels(gamma):
    """Pixels with probabilities as N(m, s^2) has at the levels: E[x|z] by Bayes' rule."""
    levels, m, s = 256, 0.1, 0.01
    values = np.asarray(pixels.level_values(levels), np.float64)
    prior = -0.5 * (values - m) ** 2 / s**2
    alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))
    x = values[np.random.default_rng(0).integers(135, 145, 500)]
    z = alpha * x + sigma * np.random.default_rng(1).normal(size=500)
    logits = prior - 0.5 * (z[:, None] - alpha * values) ** 2 / sigma**2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact = (z - alpha * (weights @ values / weights.sum(axis=1))) / sigma
    doubt = s**2 / (s**2 + sigma**2 / alpha**2)
    mean = m + doubt * (z / alpha - m)
    eps, z_t, gamma_t, narrow = map(
        jnp.float32, ((z - alpha * mean) / sigma, z, np.full(500, gamma), np.full(500, doubt))
    )
    found = moved_to_levels(eps[:, None], z_t[:, None], gamma_t, narrow[:, None], levels)
    np.testing.assert_allclose(found[:, 0], exact, atol=4e-3)
    if gamma < -10.0:  # and it matters there
        assert np.max(np.abs(eps - exact)) > 0.05
