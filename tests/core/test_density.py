"""Continuous data: levels=None, a Gaussian decoder, and bounds on -log of a density."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, alpha_sigma, cubature, gauss_legendre
from scipy import stats

from vdm_jax import loss, pixels, process, schedule

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
LOW, HIGH = -6.0, 4.0
GAMMA = schedule.linear(LOW, HIGH)


# ---- the decoder ----


def test_reconstruction_is_the_density_of_the_gaussian_decoder(dtype):
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 4, 2, 3)).astype(dtype)
    gamma_0 = np.array([-4.0, -1.0, 0.0, 2.0])
    alpha, sigma = (v[:, None, None] for v in alpha_sigma(gamma_0))
    z_0 = alpha * x + sigma * eps
    expected = -stats.norm(z_0 / alpha, sigma / alpha).logpdf(x).sum((1, 2))
    found = loss.reconstruction(x, eps, gamma_0, None)
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
    for gamma_0 in (-6.0, -9.0):  # so narrow that the ends of [-1, 1] are out of sight
        density = loss.reconstruction(jnp.full(eps.shape, 0.2), eps, gamma_0, None)
        errors = []
        for levels in (16, 32, 64, 256):
            images = np.broadcast_to(np.array([1, 2, 3]) * levels // 4, eps.shape)
            nats = loss.reconstruction(images, eps, gamma_0, levels)
            errors.append(np.max(np.abs(nats - 3 * math.log(levels / 2) - density)))
        assert np.all(np.diff(errors) <= 0)
        assert errors[0] > 0.1 and errors[-1] < 1e-8  # faster than any power of the width


# ---- the whole bound ----


def whitened_points(data):
    """Points x [2 d, d] whose plain mean is the expectation over the data of any quadratic."""
    return data.mean + cubature(len(data.mean)) @ np.linalg.cholesky(data.cov).T


@functools.cache
def compiled_terms(num_steps):
    return jax.jit(
        lambda x, eps, t: loss.elbo_given(x, eps, eps, t, DATA.denoise, GAMMA, None, num_steps, "x")
    )


def expected_terms(x, num_steps):
    """Expectation of the three terms at one x [d], over t and all noise, by exact quadrature."""
    noise = cubature(len(x))
    if num_steps is None:
        t, weights = gauss_legendre(40, 8)
    else:
        t, weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    eps, data = np.tile(noise, (len(t), 1)), np.broadcast_to(x, (len(t) * len(noise), len(x)))
    terms = compiled_terms(num_steps)(data, eps, np.repeat(t, len(noise)))
    return np.array([np.repeat(weights, len(noise)) @ term / len(noise) for term in terms])


@pytest.mark.parametrize("num_steps", [1, 5, None])
def test_terms_of_gaussian_data_are_their_closed_forms_and_bound_the_entropy(x64, num_steps):
    found = np.mean([expected_terms(x, num_steps) for x in whitened_points(DATA)], axis=0)
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
    gammas = np.linspace(HIGH, LOW, num_steps + 1)
    for t, s in itertools.pairwise(gammas):
        z = np.concatenate([np.zeros((1, 2)), np.eye(2)])
        p = process.reverse(z, DATA.denoise(z, np.full(3, t)), s, t)
        offset = np.asarray(p.mean[0])
        gain = np.asarray(p.mean[1:] - p.mean[0]).T
        mean, cov = gain @ mean + offset, gain @ cov @ gain.T + float(p.var.ravel()[0]) * np.eye(2)
    alpha, sigma = alpha_sigma(LOW)
    return -stats.multivariate_normal(mean / alpha, (cov + sigma**2 * np.eye(2)) / alpha**2).logpdf(
        x
    )


@pytest.mark.parametrize("num_steps", [1, 5])
def test_at_every_point_it_is_above_the_exact_density_of_the_chain(x64, num_steps):
    points = np.concatenate([whitened_points(DATA), np.array([[2.0, -3.0], [0.0, 0.0]])])
    bound = np.array([expected_terms(x, num_steps).sum() for x in points])
    exact = model_nats(points, num_steps)
    assert np.all(bound > exact)
    # And the chain's density is one: on average no better than the data's own.
    assert model_nats(whitened_points(DATA), num_steps).mean() > DATA.entropy()


@pytest.mark.parametrize("num_steps", [3, None])
def test_elbo_of_continuous_data_is_unbiased(x64, num_steps):
    x = jnp.tile(jnp.array([[0.9, -1.1]]), (60_000, 1))
    terms = jax.jit(
        lambda key: loss.elbo(key, x, DATA.denoise, GAMMA, None, num_steps, "x", "uniform")
    )(jax.random.key(0))
    expected = expected_terms(np.array([0.9, -1.1]), num_steps)
    for found, mean in zip(terms, expected, strict=True):
        assert abs(found.mean() - mean) < 5 * found.std() / len(x) ** 0.5 + 1e-9


# ---- data, units, mistakes ----


def test_data_without_levels_are_taken_as_they_are():
    x = np.array([[3.7, -250.0]], np.float32)
    np.testing.assert_array_equal(loss.to_data(x, None), x)
    images = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(loss.to_data(images, 8), pixels.encode(images, 8))


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool"])
def test_integers_without_levels_are_refused(kind):
    images, eps, t = np.ones((2, 3), kind), jnp.zeros((2, 3)), jnp.zeros(2)
    denoise = lambda z, g: z  # noqa: E731
    calls = [
        lambda: loss.to_data(images, None),
        lambda: loss.reconstruction(images, eps, -1.0, None),
        lambda: loss.elbo(jax.random.key(0), images, denoise, GAMMA, None),
        lambda: loss.elbo_given(images, eps, eps, t, denoise, GAMMA, None),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"levels=None is for .* floats, got {kind}"):
            call()


def test_units_are_per_element_and_bits_are_nats_over_log_two():
    nats = jnp.array([6.0, -3.0])
    np.testing.assert_allclose(loss.nats_per_dim(nats, (2, 3)), [1.0, -0.5])
    ratio = loss.nats_per_dim(nats, (2, 3)) / loss.bits_per_dim(nats, (2, 3))
    np.testing.assert_allclose(ratio, np.log(2.0), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"event_shape must be a shape with at least one element, got \(0,\)"
    ):
        loss.nats_per_dim(nats, (0,))
