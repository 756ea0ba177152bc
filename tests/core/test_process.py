"""The four Gaussians of the process against exact arithmetic, and chains of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, posterior_exact

from vdm_jax import process
from vdm_jax.distributions import Gaussian


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def close(left: Gaussian, right: Gaussian, rtol: float = 1e-12) -> None:
    chex.assert_trees_all_close(left, right, rtol=rtol)


def then(first: Gaussian, gain: jax.Array, var: jax.Array) -> Gaussian:
    """The distribution of gain z + sqrt(var) eps for z ~ first."""
    return Gaussian(gain * first.mean, gain**2 * first.var + var)


def test_marginal_then_transition_is_the_later_marginal(x64):
    x = np.linspace(-1.0, 1.0, 3)[:, None]
    s, t = np.array([-13.3, -2.0, 3.0]), np.array([5.0, -1.9, 20.0])
    step = process.transition(jnp.ones((3, 1)), s, t)
    close(then(process.marginal(x, s), step.mean, step.var), process.marginal(x, t))


def test_posterior_is_the_product_of_three_gaussians_in_exact_arithmetic(x64):
    rng = np.random.default_rng(0)
    z_t, x = rng.uniform(-3.0, 3.0, (2, 200))
    gamma_s = rng.uniform(-20.0, 15.0, 200)
    gamma_t = gamma_s + np.exp(rng.uniform(-12.0, 3.0, 200))
    q = process.posterior(z_t[:, None], x[:, None], gamma_s, gamma_t)
    exact = np.array(
        [posterior_exact(*each) for each in zip(z_t, x, gamma_s, gamma_t, strict=True)]
    )
    # The step's digits are those that gamma_t - gamma_s has left.
    error = np.abs(q.var[:, 0] / exact[:, 1] - 1.0)
    assert np.all(error < 1e-13 + 1e-14 / (gamma_t - gamma_s))
    error = np.abs(q.mean[:, 0] - exact[:, 0])
    assert np.all(error < 1e-12 * (np.abs(exact[:, 0]) + np.abs(x) + np.abs(z_t)))


def test_reverse_step_in_terms_of_the_noise_is_the_papers_ancestral_sampler(x64):
    # z_s = alpha_s/alpha_t (z_t - sigma_t c eps_hat) + sqrt((1 - alpha_s^2) c) eps.
    z_t, eps_hat = normal(0, (3, 2)), normal(1, (3, 2))
    s, t = -4.0, -3.0
    alpha_s, alpha_t = (1 + np.exp(s)) ** -0.5, (1 + np.exp(t)) ** -0.5
    sigma_t, c = np.sqrt(1 - alpha_t**2), -np.expm1(s - t)
    p = process.reverse(z_t, (z_t - sigma_t * eps_hat) / alpha_t, s, t)
    mean = alpha_s / alpha_t * (z_t - sigma_t * c * eps_hat)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(p.var, [[(1 - alpha_s**2) * c]], rtol=1e-12)


@pytest.mark.parametrize(("low", "high", "step"), [(-13.3, 5.0, 0.0183), (-20.0, 20.0, 2.0)])
def test_float32_has_the_relative_accuracy_of_its_inputs(low, high, step):
    gamma_s = np.arange(low, high - step, step).astype(np.float32)
    gamma_t = np.float32(gamma_s + np.float32(step))

    @jax.jit
    def coefficients(s, t):
        one, zero = jnp.ones((len(s), 1), s.dtype), jnp.zeros((len(s), 1), s.dtype)
        of_latent, of_data = process.posterior(one, zero, s, t), process.posterior(zero, one, s, t)
        forward, marginal = process.transition(one, s, t), process.marginal(one, t)
        return [of_latent.mean, of_data.mean, of_data.var, *forward, *marginal]

    single = coefficients(gamma_s, gamma_t)
    with jax.enable_x64(True):
        double = coefficients(gamma_s.astype(float), gamma_t.astype(float))
    for s, d in zip(single, double, strict=True):
        assert s.dtype == np.float32 and d.dtype == np.float64
        np.testing.assert_allclose(s, d, rtol=5e-6)


def test_a_step_down_to_no_noise_is_the_data_and_one_from_pure_noise_forgets_the_latent():
    x, z = normal(0, (3, 2)), normal(1, (3, 2))
    clean = process.posterior(z, x, -60.0, 1.0)
    np.testing.assert_allclose(clean.mean, x, rtol=1e-6)
    np.testing.assert_allclose(clean.var, [[np.exp(-60.0)]], rtol=1e-5)
    forgetful = process.posterior(z, x, -1.0, 80.0)
    chex.assert_trees_all_close(forgetful, process.marginal(x, -1.0), rtol=1e-6, atol=1e-12)
    for gamma in (-1000.0, 1000.0):
        q = process.posterior(z, x, gamma, gamma + 50), process.transition(z, gamma - 50, gamma)
        chex.assert_tree_all_finite((*q, process.marginal(x, gamma)))


def test_scalar_per_example_and_per_element_gammas_agree():
    shape = (2, 2, 3, 1)
    x, z = normal(0, shape), normal(1, shape)
    gamma_s, gamma_t = jnp.array([-9.0, 2.0]), jnp.array([-8.0, 9.0])

    @jax.jit
    def full(x, z, s, t):
        four = (
            process.marginal(x, t),
            process.transition(z, s, t),
            process.posterior(z, x, s, t),
            process.reverse(z, x, s, t),
        )
        return [jnp.broadcast_to(each, x.shape) for g in four for each in g]

    batched = full(x, z, gamma_s, gamma_t)
    spread = [np.broadcast_to(process.expand(g, x), shape) for g in (gamma_s, gamma_t)]
    chex.assert_trees_all_close(full(x, z, *spread), batched, rtol=1e-6)
    mapped = jax.vmap(full)(x, z, gamma_s, gamma_t)  # each example by a scalar
    chex.assert_trees_all_close(mapped, batched, rtol=1e-6)


def test_expand_lines_gamma_up_with_the_leading_axes():
    like = jnp.zeros((4, 2, 3))
    for shape, wanted in (
        [(), (1, 1, 1)], [(4,), (4, 1, 1)], [(1, 2), (1, 2, 1)], [(4, 2, 3), (4, 2, 3)],
    ):  # fmt: skip
        assert process.expand(np.zeros(shape), like).shape == wanted
    for shape in [(3,), (4, 3), (4, 2, 3, 1), (2, 3)]:
        with pytest.raises(ValueError, match=r"gamma of shape .* does not go with .*wanted a scal"):
            process.marginal(like, jnp.zeros(shape))


# ---- the forward chain ----


def test_single_steps_have_the_moments_of_the_jump_and_of_their_pairs():
    gammas = np.linspace(-13.3, 5.0, 21)
    n, x = 10_000, np.array([0.7, -1.1, 0.0])
    kept = np.unique(np.linspace(0, len(gammas) - 1, 11).astype(int))
    start = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (n, 3))
    z = np.asarray(process.simulate(jax.random.key(0), start, gammas)[kept], np.float64)
    alpha, sigma = (c[kept][:, None] for c in alpha_sigma(gammas))
    assert np.all(abs(z.mean(1) - alpha * x) < 5 * sigma / np.sqrt(n))
    noise = z - alpha[:, None] * x
    assert np.all(abs(np.mean(noise**2, 1) / sigma**2 - 1) < 5 * np.sqrt(2 / n))
    # Cov(z_s, z_t) = (alpha_t / alpha_s) sigma_s^2: one trajectory, not a draw for each time.
    covariance = np.mean(noise[:-1] * noise[1:], 1)
    expected = alpha[1:] / alpha[:-1] * sigma[:-1] ** 2
    error = np.sqrt((sigma[:-1] ** 2 * sigma[1:] ** 2 + expected**2) / n)
    assert np.all(abs(covariance - expected) < 5 * error)
