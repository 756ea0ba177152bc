"""Continuous data: levels=None, a Gaussian decoder, and bounds on -log of a density."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, alpha_sigma, over_times_and_noise
from scipy import stats

from vdm_jax import VDM, loss, schedule

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
LOW, HIGH = -6.0, 4.0
GAMMA = schedule.linear(LOW, HIGH)


def test_reconstruction_is_the_density_of_the_gaussian_decoder(dtype):
    x, eps = np.random.default_rng(0).normal(size=(2, 4, 2, 3)).astype(dtype)
    gamma_0 = np.array([-4.0, -1.0, 0.0, 2.0])
    alpha, sigma = (v[:, None, None] for v in alpha_sigma(gamma_0))
    z_0 = alpha * x + sigma * eps
    expected = -stats.norm(z_0 / alpha, sigma / alpha).logpdf(x).sum((1, 2))
    found = jax.jit(loss.reconstruction, static_argnums=3)(x, eps, gamma_0, None)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_reconstruction_keeps_its_digits_for_data_far_from_zero():
    """z_0 / alpha_0 - x, 1e-3 beside 1e3, is not taken from rounded numbers."""
    x, eps = jnp.full((1, 8), 1e3, jnp.float32), jnp.linspace(-3.0, 3.0, 8)[None]
    expected = 0.5 * np.sum(np.square(eps.astype(float)) + np.log(2 * np.pi) - 13.3)
    np.testing.assert_allclose(loss.reconstruction(x, eps, -13.3, None), [expected], rtol=2e-6)


@pytest.mark.parametrize("num_steps", [5, None])
def test_terms_of_gaussian_data_are_their_closed_forms_and_bound_the_entropy(x64, num_steps):
    vdm = VDM(DATA.denoise, GAMMA, (2,), None, "x", num_steps)
    run = jax.jit(lambda x, eps, t: jnp.stack(vdm.elbo_given(x, eps, t, eps)))
    found = over_times_and_noise(run, DATA.points, num_steps).mean(1)
    reconstruction = math.log(2 * math.pi) + LOW + 1.0  # the entropy of the decoder, 2 elements
    diffusion = (
        DATA.diffusion_continuous(LOW, HIGH)
        if num_steps is None
        else DATA.diffusion_discrete(np.linspace(LOW, HIGH, num_steps + 1))
    )
    np.testing.assert_allclose(found, [reconstruction, DATA.prior(HIGH), diffusion], rtol=1e-6)
    assert reconstruction < 0.0  # of a density
    assert found.sum() > DATA.entropy()


def test_data_without_levels_are_taken_as_they_are_and_integers_refused():
    x = np.array([[3.7, -250.0]], np.float32)
    np.testing.assert_array_equal(loss.to_data(x, None), x)
    for kind in ("int32", "uint8", "bool"):
        with pytest.raises(ValueError, match=rf"levels=None is for .* floats, got {kind}"):
            loss.to_data(np.ones((2, 3), kind), None)
