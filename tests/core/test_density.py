"""Continuous data: levels=None, a Gaussian decoder, and bounds on -log of a density."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, alpha_sigma, cubature, gauss_legendre
from scipy import stats

from vdm_jax import VDM, loss, pixels, process, schedule

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


def test_fine_levels_have_the_density_times_the_width_of_a_bin(x64):
    """-log p(x|z_0) - log(levels / 2) per element, bins being 2 / levels wide."""
    eps = jax.random.normal(jax.random.key(0), (50, 3))
    reconstruction = jax.jit(loss.reconstruction, static_argnums=3)
    density = reconstruction(jnp.full(eps.shape, 0.2), eps, -6.0, None)
    errors = []
    for levels in (16, 64):
        images = np.broadcast_to(np.array([1, 2, 3]) * levels // 4, eps.shape)
        nats = reconstruction(images, eps, -6.0, levels)
        errors.append(np.max(np.abs(nats - 3 * math.log(levels / 2) - density)))
    assert np.all(np.diff(errors) < 0)
    assert errors[0] > 0.1 and errors[-1] < 1e-8  # faster than any power of the width


def whitened_points(data):
    """Points x [2 d, d] whose plain mean is the expectation over the data of any quadratic."""
    return data.mean + cubature(len(data.mean)) @ np.linalg.cholesky(data.cov).T


def expected_terms(x, num_steps):
    """Expectations of the three terms at each x of [n, d], over t and all noise, [3, n]."""
    noise = cubature(x.shape[-1])
    if num_steps is None:
        t, weights = gauss_legendre(40, 8)
    else:
        t, weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    i, j, k = (a.ravel() for a in np.indices((len(x), len(t), len(noise))))
    vdm = VDM(DATA.denoise, GAMMA, (2,), None, "x", num_steps)
    terms = jax.jit(vdm.elbo_given)(x[i], noise[k], t[j], noise[k])
    means = np.reshape(terms, (3, len(x), len(t), len(noise))).mean(-1)
    return means @ weights


@pytest.mark.parametrize("num_steps", [1, 5, None])
def test_terms_of_gaussian_data_are_their_closed_forms_and_bound_the_entropy(x64, num_steps):
    found = expected_terms(whitened_points(DATA), num_steps).mean(1)
    reconstruction = math.log(2 * math.pi) + LOW + 1.0  # the entropy of the decoder, 2 elements
    diffusion = (
        DATA.diffusion_continuous(LOW, HIGH)
        if num_steps is None
        else DATA.diffusion_discrete(np.linspace(LOW, HIGH, num_steps + 1))
    )
    np.testing.assert_allclose(found, [reconstruction, DATA.prior(HIGH), diffusion], rtol=1e-6)
    assert reconstruction < 0.0  # of a density
    assert found.sum() > DATA.entropy()


def model_nats(x, num_steps):
    """-log p(x) of the chain itself, a Gaussian: carried down through `process.reverse`."""
    mean, cov = np.zeros(2), np.eye(2)
    for t, s in itertools.pairwise(np.linspace(HIGH, LOW, num_steps + 1)):
        z = np.concatenate([np.zeros((1, 2)), np.eye(2)])
        p = process.reverse(z, DATA.denoise(z, np.full(3, t)), s, t)
        offset = np.asarray(p.mean[0])
        gain = np.asarray(p.mean[1:] - p.mean[0]).T
        mean, cov = gain @ mean + offset, gain @ cov @ gain.T + float(p.var.ravel()[0]) * np.eye(2)
    alpha, sigma = alpha_sigma(LOW)
    chain = stats.multivariate_normal(mean / alpha, (cov + sigma**2 * np.eye(2)) / alpha**2)
    return -chain.logpdf(x)


def test_at_every_point_it_is_above_the_exact_density_of_the_chain(x64):
    points = np.concatenate([whitened_points(DATA), np.array([[2.0, -3.0], [0.0, 0.0]])])
    exact = model_nats(points, 5)
    assert np.all(expected_terms(points, 5).sum(0) > exact)
    # And the chain's density is one: on average no better than the data's own.
    assert exact[:4].mean() > DATA.entropy()


def test_data_without_levels_are_taken_as_they_are_and_integers_refused():
    x = np.array([[3.7, -250.0]], np.float32)
    np.testing.assert_array_equal(loss.to_data(x, None), x)
    images = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(loss.to_data(images, 8), pixels.encode(images, 8))
    for kind in ("int32", "uint8", "bool"):
        with pytest.raises(ValueError, match=rf"levels=None is for .* floats, got {kind}"):
            loss.to_data(np.ones((2, 3), kind), None)
