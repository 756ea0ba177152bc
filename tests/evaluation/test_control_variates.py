"""Control variates against Gaussian data, of which the optimal denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, gauss_hermite

from vdm_jax import loss, process, schedule, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation import control_variates
from vdm_jax.evaluation.control_variates import FLOOR, RIDGE, Linear

RNG = np.random.default_rng(0)
COV = np.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.2]])
DATA = GaussianData(np.array([0.2, -0.3, 0.1]), COV)
VAR, BASIS = np.linalg.eigh(COV)
LINEAR = Linear(DATA.mean, BASIS, VAR)
GAMMA = schedule.linear(-8.0, 5.0)


def grid(order: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] and weights [n] of E f(eps), exact for polynomials of degree 2 order - 1."""
    nodes, weights = gauss_hermite(order)
    points = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    return points, np.einsum("i,j,k->ijk", weights, weights, weights).ravel()


@jax.jit
def eps_lin(z, gamma):
    """The noise that the oracle's denoiser, E[x|z_t], predicts, for gamma [batch]."""
    x_hat = jax.vmap(lambda z, g: DATA.denoise(z[None], g)[0])(z, gamma)
    alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
    return (z - alpha[:, None] * x_hat) / sigma[:, None]


def test_controls_have_mean_zero_and_add_up_to_the_optimal_denoiser_s_squared_error(x64):
    eps, weights = grid()
    for gamma in (-9.0, 0.0, 4.0):
        gammas = jnp.full(len(eps), gamma)
        for x in (np.array([0.9, -1.0, 0.4]), np.array([5.0, 2.0, -7.0])):
            x = jnp.asarray(np.broadcast_to(x, eps.shape))
            found = np.asarray(LINEAR.controls(x, jnp.asarray(eps), gammas))
            second = np.sqrt(weights @ found**2)
            assert np.all(second[:2] > 0.01)  # they aren't zero themselves
            np.testing.assert_array_less(np.abs(weights @ found), 1e-9 * (1.0 + second))
            z = process.marginal(x, gammas).at(jnp.asarray(eps))
            square = np.sum((eps - np.asarray(eps_lin(z, gammas))) ** 2, axis=-1)
            expected = square - weights @ square
            np.testing.assert_allclose(found.sum(axis=-1), expected, rtol=1e-6, atol=1e-7)


def test_for_gaussian_data_and_the_optimal_denoiser_no_noise_is_left(x64):
    """And the mean is the exact one, by any coefficients; least squares finds that these are 1."""
    count = 300
    eps, t = RNG.normal(size=(2, count, 3)), RNG.uniform(size=count)
    x = jnp.asarray(np.broadcast_to([0.4, -0.6, 0.2], eps[0].shape))
    level = timestep.noise_level(jnp.asarray(t), GAMMA, None)
    losses = [np.asarray(loss.diffusion(x, e, t, eps_lin, GAMMA)) for e in eps]
    weight = np.asarray(0.5 * level.weight[:, None])
    controls = [weight * np.asarray(LINEAR.controls(x, e, level.gamma_t)) for e in eps]
    subtracted = control_variates.subtracted
    rest = [subtracted(t, *pair, np.ones((1, 3))) for pair in zip(losses, controls, strict=True)]
    assert np.std(losses[0] - losses[1]) > 1.0
    np.testing.assert_allclose(rest[0], rest[1], rtol=1e-6, atol=1e-6)
    differences = losses[0] - losses[1], controls[0] - controls[1]
    left = subtracted(t, *differences, control_variates.fit(t, *differences, 2))
    assert np.std(left) < 0.01 * np.std(differences[0])


def test_any_coefficients_leave_the_expectation(x64):
    """The mean over the noise by quadrature, at several times, of a denoiser that isn't linear."""
    gamma, (eps, weights) = schedule.cosine(-6.0, 4.0), grid()
    x = jnp.asarray(np.broadcast_to([0.9, -1.0, 0.4], eps.shape))
    coefficients = RNG.normal(size=(4, 3))
    for t in (0.0, 0.6, 1.0):
        times = np.full(len(eps), t)
        losses = loss.diffusion(x, eps, times, lambda z, g: jnp.tanh(z), gamma)
        gamma_t = timestep.noise_level(jnp.asarray(times), gamma, None).gamma_t
        controls = LINEAR.controls(x, jnp.asarray(eps), gamma_t)
        rest = control_variates.subtracted(times, losses, controls, coefficients)
        np.testing.assert_allclose(weights @ rest, weights @ losses, rtol=1e-10)
        assert np.abs(rest - losses).max() > 0.1


def test_the_linear_denoiser_is_that_of_the_data_s_mean_and_covariance():
    rows = RNG.multivariate_normal(DATA.mean, COV, size=400)
    found = Linear.of(rows.reshape(400, 3, 1))
    np.testing.assert_allclose(found.mean, rows.mean(axis=0))
    cov = found.basis @ np.diag(found.var) @ found.basis.T
    np.testing.assert_allclose(cov, np.cov(rows.T, bias=True) + FLOOR * np.eye(3), atol=1e-12)
    flat = Linear.of(np.stack([rows[:, 0], np.zeros(400)], axis=1))
    np.testing.assert_allclose(flat.var.min(), FLOOR)
    with pytest.raises(UserError, match=r"of at most 4096 elements; an image has 5000"):
        Linear.of(np.zeros((4, 5000)))


def test_fit_is_least_squares_in_each_bin_with_a_little_ridge():
    t = np.append(RNG.uniform(size=899), 1.0)  # which belongs to the last bin
    controls = RNG.normal(size=(900, 2)) * [1.0, 50.0]
    noise = RNG.normal(size=900)
    losses = np.where(t < 0.5, 2.0, -1.0) * controls[:, 0] + 0.1 * controls[:, 1] + noise
    found = control_variates.fit(t, losses, controls, 2)
    for k, within in enumerate((t < 0.5, t >= 0.5)):
        few = controls[within]
        scale = np.sqrt(np.mean(few**2, axis=0))
        normal = few.T @ few / len(few) + RIDGE * np.diag(scale**2)
        expected = np.linalg.solve(normal, few.T @ losses[within] / len(few))
        np.testing.assert_allclose(found[k], expected, rtol=1e-9)
    rest = control_variates.subtracted(t, losses, controls, found)
    np.testing.assert_allclose(rest, losses - np.sum(found[(t >= 0.5) * 1] * controls, axis=1))
    # What has no draws, and what is no variate at all, isn't subtracted.
    wide = control_variates.fit(t / 2, losses, controls * [1.0, 0.0], 3)
    np.testing.assert_array_equal(wide[2], 0.0)
    assert wide[0, 1] == 0.0 and wide[0, 0] != 0.0
