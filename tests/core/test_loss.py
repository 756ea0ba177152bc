"""The terms of the bound against closed forms, quadrature and the exact likelihood."""

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    GaussianData,
    alpha_sigma,
    expected_log_prob,
    gauss_legendre,
    kl_exact,
    normal_denoiser,
    over_times_and_noise,
)
from scipy import special, stats

from vdm_jax import loss, parameterization, pixels, process, schedule, timestep

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
POINT = np.array([0.9, -1.1])


def eps_of(denoise_x: Callable) -> Callable:
    """The same denoiser, predicting the noise."""
    return lambda z, gamma: parameterization.to_eps(denoise_x(z, gamma), z, gamma, kind="x")


def expected_diffusion(x, denoise, gamma, num_steps=None, noise=None) -> np.ndarray:
    """Expectations of loss.diffusion over t and eps at each x of [n, d]."""
    return over_times_and_noise(compiled_diffusion(denoise, gamma, num_steps), x, num_steps, noise)


@functools.cache
def compiled_diffusion(denoise: Callable, gamma: Callable, num_steps: int | None) -> Callable:
    return jax.jit(lambda x, eps, t: loss.diffusion(x, eps, t, denoise, gamma, num_steps))


# ---- the diffusion term against closed forms ----

OPTIMAL = eps_of(DATA.denoise)
SAME_ENDS = [
    schedule.linear(-6.0, 4.0),
    schedule.cosine(-6.0, 4.0),
    schedule.from_alpha_bar(special.expit([6.0, 5.8, 3.0, 2.5, 0.0, -0.1, -1.0, -3.9, -4.0])),
    lambda t: -6.0 + 10.0 * (0.2 * t + 0.8 * t**3),
]
LINEAR = SAME_ENDS[0]


def test_continuous_loss_of_gaussian_data_is_its_closed_form(x64):
    losses = expected_diffusion(DATA.points, OPTIMAL, LINEAR)
    np.testing.assert_allclose(losses.mean(), DATA.diffusion_continuous(-6.0, 4.0), rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_discrete_loss_of_gaussian_data_is_its_closed_form(x64, num_steps):
    losses = expected_diffusion(DATA.points, OPTIMAL, LINEAR, num_steps)
    expected = DATA.diffusion_discrete(np.linspace(-6.0, 4.0, num_steps + 1))
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-9)


def test_continuous_loss_does_not_depend_on_the_schedule_between_its_ends(x64):
    noise = np.array([[0.4, -1.0], [1.3, 0.2]]), np.array([0.5, 0.5])  # any, the same for each

    def arbitrary(z, gamma):
        return jnp.tanh(z * gamma[:, None]) + 0.1 * z[:, ::-1]

    first, *others = (
        expected_diffusion(POINT[None], arbitrary, gamma, noise=noise) for gamma in SAME_ENDS
    )
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-6)
    nearer = expected_diffusion(POINT[None], arbitrary, schedule.linear(-6.0, 3.0), noise=noise)
    assert abs(nearer - first) > 1e-3


@pytest.mark.parametrize(
    ("kind", "reverse_var"),
    [("eps", "posterior"), ("score", "posterior"), ("x", "transition"), ("v", "learned")],
)
def test_discrete_loss_is_the_kl_of_posterior_and_reverse_for_each_latent(x64, kind, reverse_var):
    num_steps, gamma = 12, schedule.cosine(-9.0, 5.0)
    learned = reverse_var == "learned"

    def denoise(z, gamma_t):
        g = process.expand(gamma_t, z)
        prediction, share = 0.3 * jnp.sin(z + g), jax.nn.sigmoid(2.0 * z - 0.4 * g)
        return (prediction, share) if learned else prediction

    @jax.jit
    def both(x, eps, t):
        s, t_grid = timestep.grid(t, num_steps)
        gamma_s, gamma_t = gamma(s), gamma(t_grid)
        z_t = process.marginal(x, gamma_t).at(eps)
        prediction, share = parameterization.split(denoise(z_t, gamma_t), reverse_var)
        x_hat = parameterization.to_x(prediction, z_t, gamma_t, kind)
        q = process.posterior(z_t, x, gamma_s, gamma_t)
        kl = q.kl(process.reverse(z_t, x_hat, gamma_s, gamma_t, share)).sum((1, 2, 3))
        args = x, eps, t, denoise, gamma, num_steps, kind, reverse_var
        return loss.diffusion(*args), num_steps * kl

    x, eps = jax.random.normal(jax.random.key(0), (2, 24, 3, 2, 1))
    np.testing.assert_allclose(*both(x, eps, (jnp.arange(24) + 0.5) / 24), rtol=1e-9)


@pytest.mark.parametrize("num_steps", [None, 1000])
def test_float32_diffusion_loss_agrees_with_float64(num_steps):
    gamma = schedule.linear(-13.3, 5.0)
    run = jax.jit(lambda *args: loss.diffusion(*args, lambda z, g: 0.5 * z, gamma, num_steps))
    x, eps = np.random.default_rng(0).normal(size=(2, 64, 5))
    args = x, eps, (np.arange(64) + 0.5) / 64
    single = run(*(np.float32(each) for each in args))
    with jax.enable_x64(True):
        double = run(*args)
    assert single.dtype == jnp.float32 and double.dtype == jnp.float64
    # gamma(t) - gamma(s) = 0.0183 is a difference of float32 numbers up to 13.
    np.testing.assert_allclose(single, double, rtol=1e-5 if num_steps is None else 3e-4)


# ---- prior and reconstruction ----


@pytest.mark.parametrize("gamma_1", [-1.0, 5.0])
def test_prior_is_the_kl_to_the_standard_normal(x64, gamma_1):
    x, (alpha, sigma) = np.array([[0.3, -0.9], [1.0, 0.0]]), alpha_sigma(gamma_1)
    expected = [sum(kl_exact(alpha * v, sigma**2, 0.0, 1.0) for v in row) for row in x]
    np.testing.assert_allclose(loss.prior(jnp.asarray(x), gamma_1), expected, rtol=1e-11)
    shaped = DATA.points.reshape(-1, 1, 2, 1)
    np.testing.assert_allclose(loss.prior(shaped, gamma_1).mean(), DATA.prior(gamma_1), rtol=1e-12)


def test_prior_keeps_its_digits_in_float32_when_z_1_is_nearly_pure_noise():
    # (sigma^2 - 1 - log sigma^2)/2 is alpha^4/4 there, far below the roundings of sigma^2.
    alpha2 = 1 / (1 + np.exp(6.0))
    value = loss.prior(jnp.zeros((1, 4)), 6.0)
    np.testing.assert_allclose(value, [4 * 0.5 * (-alpha2 - np.log1p(-alpha2))], rtol=1e-4)


@pytest.mark.parametrize(("levels", "gamma_0"), [(4, -3.0), (256, -13.3)])
def test_reconstruction_averages_to_its_definition(x64, levels, gamma_0):
    nodes, weights = gauss_legendre(200, 4)
    eps = 18 * nodes - 9
    weights = 18 * weights * stats.norm.pdf(eps)
    reconstruction = jax.jit(lambda images, eps: loss.reconstruction(images, eps, gamma_0, levels))
    for level in (0, levels // 2):
        values = reconstruction(np.full((len(eps), 1), level), eps[:, None])
        expected = -expected_log_prob(level, gamma_0, levels)
        np.testing.assert_allclose(weights @ values, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("levels", "gamma_0"), [(17, -7.0), (None, -3.0)])
def test_bound_without_eps_0_has_the_expected_reconstruction(levels, gamma_0):
    """Against the mean over noise, of integers and of continuous data; the rest is the same."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 17, (2, 5)) if levels else rng.normal(size=(2, 5))
    images, gamma = jnp.asarray(np.repeat(images, 4000, axis=0)), schedule.linear(gamma_0, 5.0)
    eps_0, at_t = jax.random.normal(jax.random.key(0), images.shape), jnp.arange(8000.0)
    run = jax.jit(lambda noise: loss.terms(images, at_t, gamma, levels, noise))
    drawn, expected = run(eps_0), run(None)
    chex.assert_trees_all_close(drawn[1:], expected[1:], rtol=1e-6)
    np.testing.assert_array_equal(drawn.diffusion, at_t)
    for row, at in zip(np.split(np.asarray(drawn.reconstruction), 2), (0, 4000), strict=True):
        error = row.std() / np.sqrt(len(row))
        assert 0 < abs(row.mean() - expected.reconstruction[at]) < 4 * error
    each = loss.expected_reconstruction(images[3999:4001], jnp.array([gamma_0, -1.0]), levels)
    alone = loss.expected_reconstruction(images[4000:4001], -1.0, levels)
    np.testing.assert_allclose(each, [expected.reconstruction[0], alone[0]], rtol=1e-6)


# ---- the whole bound against the exact likelihood ----


def gaussian_bound(x: np.ndarray, reach: float, num_steps: int | None) -> np.ndarray:
    """The bounds of continuous data x [n, d], with the decoder N(z_0/alpha_0, exp(gamma_0))."""
    gamma = schedule.linear(-reach, reach)
    reconstruction = 0.5 * x.shape[-1] * (math.log(2 * math.pi) - reach + 1.0)
    steps = expected_diffusion(x, OPTIMAL, gamma, num_steps)
    return reconstruction + np.asarray(loss.prior(jnp.asarray(x), reach)) + steps


def test_bound_with_the_optimal_denoiser_tends_to_the_exact_likelihood(x64):
    points = np.concatenate([DATA.points, POINT[None]])
    exact = -np.append(DATA.log_prob(points[:4]).mean(), DATA.log_prob(POINT))
    # In continuous time it is an equality, of a model that is the data's as the reach grows.
    bounds = [gaussian_bound(points, reach, None) for reach in (4.0, 8.0, 16.0)]
    gaps = np.abs([np.append(b[:4].mean(), b[4]) - exact for b in bounds])
    assert np.all(gaps[1:] < 0.05 * gaps[:-1]) and np.all(gaps[-1] < 1e-6)
    np.testing.assert_allclose(exact[0], DATA.entropy(), rtol=1e-12)
    # Discrete time: the gap is of order 1/T, so that extrapolating from two T closes it.
    coarse, fine = (gaussian_bound(points[4:], 16.0, n)[0] - exact[1] for n in (1000, 2000))
    assert 0.01 < fine < coarse
    np.testing.assert_allclose(2 * fine - coarse, 0.0, atol=2e-2 * coarse)


# ---- elbo ----

elementwise = eps_of(normal_denoiser(0.0, 0.3))


@pytest.mark.parametrize(("num_steps", "method"), [(None, "antithetic"), (10, "uniform")])
def test_elbo_is_unbiased_in_each_term(num_steps, method):
    levels, low, high = 4, -3.0, 2.0
    images = np.arange(8).reshape(4, 2) % levels
    gamma = schedule.linear(low, high)
    keys = jax.random.split(jax.random.key(0), 3000)

    def elbo(key):
        return loss.elbo(key, images, elementwise, gamma, levels, num_steps, timesteps=method)

    terms = jax.jit(jax.vmap(elbo))(keys)
    with jax.enable_x64(True):
        x = np.asarray(pixels.encode(images, levels))
        diffusion = expected_diffusion(x, elementwise, gamma, num_steps)
        prior = loss.prior(jnp.asarray(x), high)
    per_level = [-expected_log_prob(k, low, levels) for k in range(levels)]
    reconstruction = np.array(per_level)[images].sum(1)
    for estimate, expected in (
        (terms.reconstruction, reconstruction),
        (terms.diffusion, np.array(diffusion)),
    ):
        error = np.asarray(estimate).std(0) / np.sqrt(len(keys))
        assert np.all(error < 0.1 * expected)
        assert np.all(np.abs(estimate.mean(0) - expected) < 4 * error)
    np.testing.assert_allclose(terms.prior, np.broadcast_to(prior, (3000, 4)), rtol=1e-5)
    np.testing.assert_allclose(terms.total, sum(terms), rtol=1e-6)


def test_elbo_draws_independent_noise_for_the_two_latents():
    # With eps_hat = 0 both terms show their noise: that of z_0 must not be that of z_t.
    images, gamma = np.full((400, 6), 3), schedule.linear(-4.0, -3.9)
    terms = jax.jit(lambda key: loss.elbo(key, images, lambda z, g: 0 * z, gamma, 8))(
        jax.random.key(0)
    )
    assert abs(np.corrcoef(terms.reconstruction, terms.diffusion)[0, 1]) < 4 / np.sqrt(400)
    # 0.05 sum eps^2 has mean 0.05 * 6.
    assert abs(terms.diffusion.mean() / 0.3 - 1) < 4 * np.sqrt(2 / 2400)


def test_noise_is_of_each_example_s_own_key():
    keys = jax.random.split(jax.random.key(0), 4)
    eps = loss.noise(keys, (500, 3))
    np.testing.assert_array_equal(eps[1], loss.noise(keys[1:2], (500, 3))[0])
    assert np.max(np.abs(np.corrcoef(eps.reshape(4, -1)) - np.eye(4))) < 4 / np.sqrt(1500)
    assert stats.kstest(np.ravel(eps), "norm").pvalue > 1e-3


@pytest.mark.parametrize("num_steps", [None, 10])
def test_gradient_for_learned_end_points_agrees_with_finite_differences(x64, num_steps):
    images = np.random.default_rng(0).integers(0, 8, (6, 3))

    @jax.jit
    @jax.value_and_grad
    def value(params):
        gamma = schedule.linear(params[0], params[1])

        def denoise(z, gamma_t):
            return params[2] * elementwise(z, gamma_t)

        return loss.elbo(jax.random.key(0), images, denoise, gamma, 8, num_steps).total.mean()

    params, h = jnp.array([-4.0, 3.0, 0.8]), 1e-5
    numeric = [(value(params + r)[0] - value(params - r)[0]) / (2 * h) for r in h * np.eye(3)]
    np.testing.assert_allclose(value(params)[1], numeric, rtol=1e-7, atol=1e-8)
    assert np.all(np.abs(np.array(numeric)) > 1e-3)


def test_uniform_bytes_cost_eight_bits_per_dimension():
    nats = np.array([12.0, 24.0]) * np.log(256)
    np.testing.assert_allclose(loss.bits_per_dim(nats, (2, 2, 3)), [8.0, 16.0], rtol=1e-6)
    np.testing.assert_allclose(loss.nats_per_dim(jnp.array([6.0, -3.0]), (2, 3)), [1.0, -0.5])
    assert loss.nats_per_dim(3.0, ()) == 3.0
