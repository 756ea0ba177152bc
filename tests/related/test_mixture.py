import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import alpha_sigma
from scipy import stats

from vdm_jax.related import mixture
from vdm_jax.related.mixture import Mixture

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-0.8, 0.1], [0.4, 0.6], [0.2, -0.9]])
VAR = np.array([0.01, 0.05, 0.2])
ORACLE = oracles.Mixture(WEIGHTS, MEANS, VAR)
GAMMAS = [-13.3, -4.0, 0.5, 5.0]


def ours() -> Mixture:
    return Mixture.of(3.0 * WEIGHTS, MEANS, VAR)  # the sum of the weights doesn't matter


def line() -> Mixture:
    """Two humps in one dimension, of different width and weight."""
    return Mixture.of([0.3, 0.7], [[-0.5], [0.6]], [0.01, 0.05])


def points(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return 1.2 * np.random.default_rng(seed).normal(size=shape)


def normal_log_density(x, mean, var) -> np.ndarray:
    """Of the last axis, jointly."""
    return np.sum(stats.norm(mean, np.sqrt(var)).logpdf(x), axis=-1)


# ---- against other ways of computing the same ----


def test_density_score_and_denoiser_of_the_latents_are_those_of_the_oracle(x64):
    z = jnp.asarray(points((20, 2)))
    for gamma in GAMMAS:
        q = ours().noised(gamma)
        log_prob = lambda v, gamma=gamma: ORACLE.log_prob(v, gamma)  # noqa: E731
        np.testing.assert_allclose(q.log_prob(z), jax.vmap(log_prob)(z), rtol=1e-12)
        score = jax.vmap(jax.grad(log_prob))(z)
        np.testing.assert_allclose(q.score(z), score, rtol=1e-9, atol=1e-9)
        x_hat = ours().posterior_mean(z, gamma)
        expected = jax.vmap(lambda v, gamma=gamma: ORACLE.denoise(v, gamma))(z)
        np.testing.assert_allclose(x_hat, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("gamma_s", "gamma_t"), [(-13.3, 5.0), (-4.0, -3.9)])
def test_the_true_reverse_is_bayes_rule_with_the_oracle_s_densities(x64, gamma_s, gamma_t):
    z_s, z_t = points((30, 2), 1), points((30, 2), 2)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(gamma_s), alpha_sigma(gamma_t)
    ratio = alpha_t / alpha_s
    step = normal_log_density(z_t, ratio * z_s, sigma_t**2 - ratio**2 * sigma_s**2)
    q_s, q_t = (
        np.asarray(jax.vmap(lambda v, g=g: ORACLE.log_prob(v, g))(jnp.asarray(z)))
        for z, g in ((z_s, gamma_s), (z_t, gamma_t))
    )
    got = ours().reverse(jnp.asarray(z_t), gamma_s, gamma_t).log_prob(jnp.asarray(z_s))
    # Three densities that add up and cancel: relative to the largest.
    scale = np.max(np.abs([q_s, q_t, step]))
    np.testing.assert_allclose(got, q_s + step - q_t, rtol=1e-9, atol=1e-12 * scale)


# ---- draws ----


def cdf(data: Mixture):
    """Of a mixture in one dimension, in numpy."""
    weights = np.exp(np.asarray(data.logits, float))
    means, sd = np.asarray(data.means, float)[:, 0], np.sqrt(np.asarray(data.var, float)[:, 0])
    return lambda x: sum(
        w * stats.norm(m, s).cdf(x) for w, m, s in zip(weights, means, sd, strict=True)
    )


def test_samples_have_the_distribution_and_moments_of_the_mixture():
    n = 20_000
    assert stats.kstest(np.ravel(line().sample(jax.random.key(0), n)), cdf(line())).pvalue > 1e-4
    sample, gaussian = np.asarray(ours().sample(jax.random.key(1), n)), ours().moment_matched()
    assert np.all(abs(sample.mean(0) - gaussian.mean) < 5 * np.sqrt(gaussian.var / n))
    # Not the moments alone: the two coordinates depend on each other through their component.
    mean = WEIGHTS @ MEANS
    covariance = WEIGHTS @ (MEANS[:, 0] * MEANS[:, 1]) - mean[0] * mean[1]
    products = (sample[:, 0] - mean[0]) * (sample[:, 1] - mean[1])
    assert abs(products.mean() - covariance) < 5 * products.std() / np.sqrt(n)
    assert abs(covariance) > 20 * products.std() / np.sqrt(n)


# ---- moments, and how far from Gaussian ----


def test_the_moment_matched_gaussian_has_the_moments_and_the_least_kl(x64):
    data = line()
    x = np.linspace(-4.0, 4.0, 20_001)
    p, h = np.exp(data.log_prob(jnp.asarray(x)[:, None])), x[1] - x[0]
    mean = h * np.sum(p * x)
    var = h * np.sum(p * (x - mean) ** 2)
    best = data.moment_matched()
    np.testing.assert_allclose([*best.mean, *best.var], [mean, var], rtol=1e-10)

    def kl(mean, var):
        return h * np.sum(p * (np.log(p) - stats.norm(mean, np.sqrt(var)).logpdf(x)))

    least = kl(mean, var)
    np.testing.assert_allclose(mixture.negentropy(data), least, rtol=1e-9)
    assert min(kl(mean + 0.01, var), kl(mean, 1.02 * var), kl(mean, 0.98 * var)) > least + 1e-5


def test_the_true_reverse_becomes_gaussian_as_the_cube_of_the_step(x64):
    """Feller's statement, with the constant: KL -> E[((log q)''')^2] sigma^6 h^3 / 12."""
    gamma = -1.0
    oracle = oracles.Mixture(
        np.array([0.3, 0.7]), np.array([[-0.5], [0.6]]), np.array([0.01, 0.05])
    )
    third = jax.grad(jax.grad(jax.grad(lambda z: oracle.log_prob(z[None], gamma))))
    z = jnp.linspace(-6.0, 6.0, 2001)
    density = jnp.exp(jax.vmap(lambda v: oracle.log_prob(v[None], gamma))(z))
    mean_square = jnp.sum(density * jax.vmap(third)(z) ** 2) * (z[1] - z[0])
    limit = mean_square * alpha_sigma(gamma)[1] ** 6 / 12
    steps = np.array([0.16, 0.04, 0.01, 1e-3])
    kl = jax.jit(lambda h: mixture.reverse_negentropy(line(), gamma - h, gamma))
    kls = np.array([kl(h) for h in steps])
    slopes = np.diff(np.log(kls)) / np.diff(np.log(steps))
    assert np.all(abs(slopes - 3.0) < steps[:-1])
    assert np.all(abs(kls / (limit * steps**3) - 1.0) < steps)


# ---- shapes, types, transformations, errors ----


def test_any_event_shape_and_a_gamma_per_example_give_the_same_as_one_by_one():
    means, var = points((3, 2, 3, 1)), np.abs(points((3, 2, 3, 1), 1)) + 0.1
    data = Mixture.of(WEIGHTS, means, var)
    flat = Mixture.of(WEIGHTS, means.reshape(3, 6), var.reshape(3, 6))
    z = jnp.asarray(points((4, 2, 3, 1), 2), jnp.float32)
    ends = jnp.array(GAMMAS) - 1.0, jnp.array(GAMMAS)

    def run(data, z, gamma_s, gamma_t):
        reverse = data.reverse(z, gamma_s, gamma_t)
        return data.posterior_mean(z, gamma_t), reverse.log_prob(0.5 * z), *reverse.moment_matched()

    singles = jax.jit(jax.vmap(lambda z, *g: run(flat, z.reshape(1, 6), *g)))(z, *ends)
    for a, b in zip(jax.jit(run)(data, z, *ends), singles, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=2e-4, atol=2e-5)
    assert data.sample(jax.random.key(0), 5).shape == (5, 2, 3, 1)
    assert data.reverse(z, -1.0, 0.0).sample(jax.random.key(0), 5).shape == (5, 4, 2, 3, 1)


def test_what_is_no_mixture_or_not_one_dimensional_is_refused():
    two = [[0.0], [1.0]]
    for call, message in (
        (lambda: Mixture.of([0.5, 0.5], [[0.0]], 1.0), "means [k, *event], got (2,) and (1, 1)."),
        (lambda: Mixture.of([1.0, 1.0], two, [[1.0, 2.0]]), "shape (2, 1), got shape (1, 2)."),
        (lambda: Mixture.of([1.0, 0.0], two, 1.0), "weights must be positive and finite, got [1."),
        (lambda: Mixture.of([1.0, 1.0], two, -1.0), "var must be nonnegative and finite, got -1."),
        (lambda: mixture.negentropy(ours()), "one-dimensional events, got events of shape (2,)."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
