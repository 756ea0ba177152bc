from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import GaussianData, alpha_sigma
from scipy import integrate, stats

from vdm_jax import parameterization, process, schedule
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


@pytest.mark.parametrize("gamma", GAMMAS)
def test_density_and_denoiser_of_the_latents_are_those_of_the_oracle(x64, gamma):
    z = jnp.asarray(points((20, 2)))
    q = ours().noised(gamma)
    expected = jax.vmap(lambda v: ORACLE.log_prob(v, gamma))(z)
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-12)
    x_hat = ours().posterior_mean(z, gamma)
    expected = jax.vmap(lambda v: ORACLE.denoise(v, gamma))(z)
    np.testing.assert_allclose(x_hat, expected, rtol=1e-9, atol=1e-12)


def test_one_diagonal_component_is_the_gaussian_oracle(x64):
    mean, var = np.array([0.3, -0.5, 1.0]), np.array([0.02, 0.5, 2.0])
    data, oracle = Mixture.of([1.0], mean[None], var[None]), GaussianData(mean, np.diag(var))
    z, gamma = jnp.asarray(points((4, 3))), jnp.asarray(GAMMAS)
    np.testing.assert_allclose(data.log_prob(z), oracle.log_prob(z), rtol=1e-12)
    np.testing.assert_allclose(data.noised(gamma).score(z), oracle.score(z, gamma), rtol=1e-9)
    np.testing.assert_allclose(data.posterior_mean(z, gamma), oracle.denoise(z, gamma), rtol=1e-9)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_tweedie_against_finite_differences_of_the_log_density(x64, gamma):
    q, z, h = ours().noised(gamma), points((20, 2)), 1e-5
    differences = np.stack(
        [(q.log_prob(z + row) - q.log_prob(z - row)) / (2 * h) for row in h * np.eye(2)], axis=-1
    )
    np.testing.assert_allclose(q.score(z), differences, rtol=1e-6, atol=1e-6)
    x_hat = ours().posterior_mean(z, gamma)
    tweedie = parameterization.to_x(jnp.asarray(differences), jnp.asarray(z), gamma, kind="score")
    np.testing.assert_allclose(tweedie, x_hat, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        parameterization.to_score(x_hat, z, gamma, kind="x"), differences, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("gamma_s", "gamma_t"), [(-13.3, 5.0), (-4.0, -3.9), (0.5, 2.0)])
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


def test_the_reverse_of_one_data_point_is_the_posterior(x64):
    x, z_t = jnp.asarray(points((1, 3))), jnp.asarray(points((5, 3), 1))
    reverse = Mixture.of([1.0], x, 0.0).reverse(z_t, -3.0, 1.0)
    posterior = process.posterior(z_t, jnp.broadcast_to(x, z_t.shape), -3.0, 1.0)
    np.testing.assert_allclose(reverse.means[:, 0], posterior.mean, rtol=1e-12)
    np.testing.assert_allclose(reverse.var.ravel(), posterior.var.ravel(), rtol=1e-12)


def test_a_finite_data_set_has_the_weighted_mean_of_its_points_as_denoiser(x64):
    x, z_t, gamma = points((6, 2)), points((5, 2), 1), -1.0
    alpha, sigma = alpha_sigma(gamma)
    odds = np.exp(normal_log_density(z_t[:, None], alpha * x, np.full(2, sigma**2)))
    expected = odds @ x / odds.sum(1, keepdims=True)
    got = Mixture.of(np.ones(6), x, 0.0).posterior_mean(jnp.asarray(z_t), gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_noising_twice_is_noising_once(x64):
    for gamma_s, gamma_t in ((-13.3, -6.0), (-1.0, 3.0)):
        step = schedule.gamma_from_alpha_bar(schedule.step_alpha(gamma_s, gamma_t))
        twice, once = ours().noised(gamma_s).noised(step), ours().noised(gamma_t)
        for a, b in zip(twice, once, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_reverse_step_from_pure_noise_forgets_it_and_one_of_no_length_stays(x64):
    z = jnp.asarray(points((3, 2)))
    forgetful, q_s = ours().reverse(z, -2.0, 60.0), ours().noised(-2.0)
    x = jnp.asarray(points((3, 2), 1))
    np.testing.assert_allclose(forgetful.log_prob(x), q_s.log_prob(x), rtol=1e-9)
    still = ours().reverse(z, 0.7 - 1e-12, 0.7).moment_matched()
    np.testing.assert_allclose(still.mean, z, atol=1e-10)
    np.testing.assert_allclose(still.var, 1e-12 / (1 + np.exp(-0.7)), rtol=1e-3)


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


def test_true_reverse_steps_lead_from_the_last_latent_to_the_data():
    """Each by itself, few and large, where Gaussian steps would be far off."""
    n, gammas = 20_000, [4.0, 0.0, -3.0, -12.0]
    z = line().noised(gammas[0]).sample(jax.random.key(0), n)
    for i, (gamma_t, gamma_s) in enumerate(pairwise(gammas)):
        z = line().reverse(z, gamma_s, gamma_t).sample(jax.random.key(1 + i), 1)[0]
        assert stats.kstest(np.ravel(z), cdf(line().noised(gamma_s))).pvalue > 1e-4


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
    for other in ((mean + 0.01, var), (mean - 0.01, var), (mean, 1.02 * var), (mean, 0.98 * var)):
        assert kl(*other) > least + 1e-5


def test_negentropy_of_far_humps_is_the_difference_of_entropies(x64):
    """Where the humps don't meet, the entropy is their own and that of the choice."""
    data = Mixture.of([0.25, 0.75], [[-10.0], [10.0]], [0.01, 0.04])
    choice = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    inside = 0.25 * 0.5 * np.log(2 * np.pi * np.e * 0.01) + 0.75 * 0.5 * np.log(
        2 * np.pi * np.e * 0.04
    )
    var = 0.25 * 0.01 + 0.75 * 0.04 + 400 * 0.25 * 0.75
    expected = 0.5 * np.log(2 * np.pi * np.e * var) - choice - inside
    np.testing.assert_allclose(mixture.negentropy(data), expected, rtol=1e-10)


def test_negentropy_is_zero_for_a_gaussian_and_does_not_change_with_the_unit(x64):
    same = Mixture.of([0.4, 0.6], [[0.3], [0.3]], 0.7)
    assert abs(mixture.negentropy(same)) < 1e-15
    moved = Mixture.of([0.3, 0.7], 1e-3 * line().means + 5.0, 1e-6 * line().var)
    np.testing.assert_allclose(mixture.negentropy(moved), mixture.negentropy(line()), rtol=1e-8)


def test_reverse_negentropy_is_the_kl_of_the_two_densities_on_average(x64):
    """By adaptive quadrature over z_s, and a plain sum over a coarse grid of z_t."""
    gamma_s, gamma_t = -2.5, 0.0
    alone = Mixture.of([0.3, 0.7], [-0.5, 0.6], [0.01, 0.05])  # a scalar is an event too
    z_t = np.linspace(-3.0, 3.0, 25)
    kls = np.asarray(mixture.negentropy(alone.reverse(jnp.asarray(z_t), gamma_s, gamma_t)))
    for z, got in zip(z_t[8:17:4], kls[8:17:4], strict=True):
        q = alone.reverse(jnp.asarray([z]), gamma_s, gamma_t)
        weights = np.exp(q.logits[0] - np.max(q.logits[0]))
        weights /= weights.sum()
        means, sd = np.asarray(q.means[0]), np.sqrt(np.broadcast_to(q.var, (1, 2))[0])

        def density(x, weights=weights, means=means, sd=sd):
            return weights @ (np.exp(-0.5 * ((x - means) / sd) ** 2) / (np.sqrt(2 * np.pi) * sd))

        mean = weights @ means
        best = stats.norm(mean, np.sqrt(weights @ (sd**2 + (means - mean) ** 2)))
        expected, _ = integrate.quad(
            lambda x, d=density, b=best: d(x) * (np.log(d(x)) - b.logpdf(x)), -3, 3, epsabs=1e-11
        )
        np.testing.assert_allclose(got, expected, rtol=1e-7)
    weight = np.exp(alone.noised(gamma_t).log_prob(jnp.asarray(z_t))) * (z_t[1] - z_t[0])
    averaged = mixture.reverse_negentropy(alone, gamma_s, gamma_t)
    np.testing.assert_allclose(averaged, weight @ kls, rtol=2e-3)


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
    steps = np.array([0.16, 0.08, 0.04, 0.02, 0.01, 1e-3])
    kls = np.array([mixture.reverse_negentropy(line(), gamma - h, gamma) for h in steps])
    slopes = np.diff(np.log(kls)) / np.diff(np.log(steps))
    assert np.all(abs(slopes - 3.0) < steps[:-1])
    assert np.all(abs(kls / (limit * steps**3) - 1.0) < steps)


# ---- shapes, types, transformations, errors ----


def test_any_event_shape_and_a_gamma_per_example_give_the_same_as_one_by_one():
    means, var = points((3, 2, 3, 1)), np.abs(points((3, 2, 3, 1), 1)) + 0.1
    data, flat = (
        Mixture.of(WEIGHTS, means, var),
        Mixture.of(WEIGHTS, means.reshape(3, 6), var.reshape(3, 6)),
    )
    z, gamma_s, gamma_t = points((4, 2, 3, 1), 2), jnp.array(GAMMAS) - 1.0, jnp.array(GAMMAS)
    z = jnp.asarray(z, jnp.float32)

    @jax.jit
    def batched(z):
        q = data.noised(gamma_t)
        reverse = data.reverse(z, gamma_s, gamma_t)
        return (
            q.log_prob(z), q.score(z), data.posterior_mean(z, gamma_t), reverse.log_prob(0.5 * z),
            *reverse.moment_matched(),
        )  # fmt: skip

    def one(z, gamma_s, gamma_t):
        z = z.reshape(1, 6)
        reverse = flat.reverse(z, gamma_s, gamma_t)
        q = flat.noised(gamma_t)
        return (
            q.log_prob(z), q.score(z), flat.posterior_mean(z, gamma_t), reverse.log_prob(0.5 * z),
            *reverse.moment_matched(),
        )  # fmt: skip

    singles = jax.vmap(one)(z, gamma_s, gamma_t)
    for a, b in zip(batched(z), singles, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=2e-4, atol=2e-5)
    assert data.sample(jax.random.key(0), 5).shape == (5, 2, 3, 1)
    assert data.reverse(z, -1.0, 0.0).sample(jax.random.key(0), 5).shape == (5, 4, 2, 3, 1)


def test_the_gradient_of_the_log_density_is_the_score_in_both_types(dtype):
    data = Mixture(*(jnp.asarray(v, dtype) for v in ours().noised(-2.0)))
    z = jnp.asarray(points((7, 2)), dtype)
    gradient = jax.vmap(jax.grad(data.log_prob))(z)
    assert gradient.dtype == dtype == data.score(z).dtype
    np.testing.assert_allclose(data.score(z), gradient, rtol=1e4 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("weights", "means", "var", "message"),
    [
        ([0.5, 0.5], [[0.0]], 1.0, r"weights must be \[k\] .* got \(2,\) and \(1, 1\)"),
        (1.0, [[0.0]], 1.0, r"weights must be \[k\] .* got \(\) and \(1, 1\)"),
        ([1.0, 1.0], [[0.0], [1.0]], [[1.0, 2.0]], r"var must be a scalar, .* got shape \(1, 2\)"),
        ([1.0, 0.0], [[0.0], [1.0]], 1.0, r"weights must be positive and finite, got \[1\. 0\.\]"),
        ([1.0, 1.0], [[0.0], [1.0]], -1.0, r"var must be nonnegative and finite, got -1\.0"),
        ([1.0, np.nan], [0.0, 1.0], 1.0, r"weights must be positive and finite, got \[ 1\. nan\]"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, means, var, message):
    with pytest.raises(ValueError, match=message):
        Mixture.of(weights, means, var)


def test_quadrature_wants_one_dimension():
    for call in (mixture.negentropy, lambda m: mixture.reverse_negentropy(m, -1.0, 0.0)):
        with pytest.raises(ValueError, match=r"one-dimensional .* got events of shape \(2,\)"):
            call(ours())
