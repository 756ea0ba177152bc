import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    GaussianData,
    affine_chain,
    cubature,
    gauss_hermite,
    gauss_legendre,
    normal_denoiser,
)
from scipy import special, stats

from vdm_jax import VDM, bounds, loss, parameterization, pixels, process, schedule
from vdm_jax.gaussian import Gaussian

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
POINT = np.array([0.9, -1.1])
LINEAR, COSINE = schedule.linear(-6.0, 4.0), schedule.cosine(-6.0, 4.0)
LEVELS, VAR = 4, 0.3
optimal = normal_denoiser(0.0, VAR)
EVERY_LEVEL = np.arange(LEVELS)[:, None]  # a batch of one-pixel images


def wavy(z, gamma_t):
    """Some prediction of x that is far from linear and couples the elements of an example."""
    return jnp.tanh(z + 0.3 * process.expand(gamma_t, z)) + 0.2 * jnp.roll(z, 1, -1)


def model(denoise, gamma, num_steps, kind="x", levels=LEVELS, **fields) -> VDM:
    return VDM(denoise, gamma, (1,), levels, kind, num_steps, **fields)


# ---- importance_weighted ----


def test_importance_weighted_is_minus_the_log_of_the_mean_weight():
    log_weights = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = -np.log(np.mean(np.exp(log_weights), axis=0))
    np.testing.assert_allclose(bounds.importance_weighted(log_weights), expected, rtol=1e-5)
    across = bounds.importance_weighted(log_weights.T, axis=-1)
    np.testing.assert_allclose(across, expected, rtol=1e-5)
    # Thousands of nats don't underflow, and equal weights are worth one of them.
    value = bounds.importance_weighted(jnp.full((100, 2), -9000.0))
    np.testing.assert_allclose(value, 9000.0, atol=2e-3)


# ---- chain ----


@pytest.mark.parametrize(("reverse_var", "kind"), [("posterior", "eps"), ("learned", "v")])
def test_log_weight_is_that_of_its_latents_by_the_densities_of_the_process(
    x64, monkeypatch, reverse_var, kind
):
    images = np.random.default_rng(0).integers(0, LEVELS, (3, 2, 2, 1))
    x, num_steps = pixels.encode(images, LEVELS), 3
    latents, decoded, share = [], [], 0.4 if reverse_var == "learned" else 0.0

    def denoise(z, gamma_t):
        latents.append(z)
        prediction = getattr(parameterization, f"to_{kind}")(wavy(z, gamma_t), z, gamma_t, "x")
        return (prediction, jnp.full_like(z, share)) if share else prediction

    def reconstruction(images, eps_0, gamma_0, levels, mask):
        latents.append(process.marginal(x, gamma_0).at(eps_0))
        decoded.append(original(images, eps_0, gamma_0, levels, mask))
        return decoded[0]

    original = loss.reconstruction
    monkeypatch.setattr(loss, "reconstruction", reconstruction)
    vdm = model(denoise, COSINE, num_steps, kind, reverse_var=reverse_var)
    with jax.disable_jit():
        log_weight = bounds.chain(vdm, jax.random.key(0), images)
    gammas = COSINE(jnp.linspace(1.0, 0.0, num_steps + 1))
    log_p = Gaussian(0.0, 1.0).log_prob(latents[0])
    log_q = process.marginal(x, gammas[0]).log_prob(latents[0])
    for z_t, z_s, t, s in zip(latents[:-1], latents[1:], gammas[:-1], gammas[1:], strict=True):
        log_p += process.reverse(z_t, wavy(z_t, jnp.full(3, t)), s, t, share).log_prob(z_s)
        log_q += process.posterior(z_t, x, s, t).log_prob(z_s)
    assert len(latents) == num_steps + 1
    expected = jnp.sum(log_p - log_q, axis=(1, 2, 3)) - decoded[0]
    np.testing.assert_allclose(log_weight, expected, rtol=1e-9)


def exact_nats(num_steps: int) -> np.ndarray:
    """-log p(x) of the chain, for each level of one pixel: p(z_0) is normal, then quadrature."""
    gammas = np.linspace(3.0, -2.0, num_steps + 1)
    steps = []
    for t, s in itertools.pairwise(gammas):
        zero, one = (
            process.reverse(z, optimal(z, np.full(1, t)), s, t)
            for z in (np.zeros((1, 1)), np.ones((1, 1)))
        )
        steps.append([float(v[0, 0]) for v in (one.mean - zero.mean, zero.mean, one.var)])
    mean, var = affine_chain(*np.array(steps).T)
    u, weights = gauss_legendre(200, 4)
    z_0 = mean + np.sqrt(var) * (18 * u - 9)
    weights = 18 * weights * stats.norm.pdf(18 * u - 9)
    scaled = z_0 / np.sqrt(special.expit(2.0))
    return -np.log(weights @ np.exp(pixels.decode_log_probs(scaled, -2.0, LEVELS)))


def test_importance_weighted_bound_decreases_with_k_to_the_exact_likelihood(x64):
    # Minus the mean log weight is the bound, and the mean weight the likelihood of the chain.
    repeats, exact = 2**14, exact_nats(3)
    np.testing.assert_allclose(np.exp(-exact).sum(), 1.0, rtol=1e-9)  # over the levels
    images, vdm = np.tile(EVERY_LEVEL, (repeats, 1)), model(optimal, schedule.linear(-2.0, 3.0), 3)
    run = jax.jit(
        lambda key: (
            bounds.chain(vdm, key, images),
            bounds.consistency(vdm, key, images).total,
            vdm.elbo(key, images).total,
        )
    )
    log_weights, form, bound = np.asarray(run(jax.random.key(3))).reshape(3, repeats, LEVELS)
    for other in (-log_weights, form):  # three estimates of one bound
        error = np.hypot(other.std(0), bound.std(0)) / np.sqrt(repeats)
        assert np.all(np.abs(other.mean(0) - bound.mean(0)) < 4 * error)
        assert np.all(error < 0.02 * bound.mean(0))
    means, errors = [], []
    for k in (1, 4, 16, 256):
        values = bounds.importance_weighted(log_weights.reshape(k, -1, LEVELS))
        means.append(values.mean(0) - exact)
        errors.append(values.std(0) / np.sqrt(len(values)))
    # Each K is below the last, by more than chance, until the gap is as small as chance.
    assert np.all(np.diff(means[:3], axis=0) < -3 * np.array(errors[1:3]))
    assert np.all(np.array(means) > -4 * np.array(errors))
    assert np.all(means[-1] < 0.05 * means[0])
    weights = np.exp(log_weights + exact)
    assert np.all(np.abs(weights.mean(0) - 1.0) < 4 * weights.std(0) / np.sqrt(repeats))


def test_chains_are_chains_of_the_split_keys_for_events_of_any_shape():
    images, key = np.random.default_rng(0).integers(0, LEVELS, (3, 2, 2, 1)), jax.random.key(3)
    vdm = model(optimal, LINEAR, 5)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 2)
        each = jax.lax.map(lambda k: bounds.chain(vdm, k, images.reshape(3, 4)), keys)
        forms = [bounds.consistency(vdm, key, i) for i in (images, images.reshape(3, 4))]
        return bounds.chains(vdm, key, images, 2), each, *forms

    together, each, shaped, flat = run(key)
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-4)
    assert len(np.unique(together)) == 6
    chex.assert_trees_all_close(shaped, flat, rtol=1e-4)


# ---- consistency ----


def outer(num_steps: int, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, eps_s and eps_u whose plain mean is the expectation of anything quadratic."""
    noise = np.tile(cubature(2 * dims), (num_steps, 1))
    t = np.repeat((np.arange(num_steps) + 0.5) / num_steps, 4 * dims)
    return t, noise[:, :dims], noise[:, dims:]


def outer_latents(x, eps_s, eps_u, gamma_s, gamma_t, gamma_u):
    """z_{i+1} and q(z_i|z_{i-1}), by the process; with gamma_s = -inf z_{i-1} is the data."""
    z_s = process.marginal(x, gamma_s).at(eps_s)
    z_u = process.transition(z_s, gamma_s, gamma_u).at(eps_u)
    return z_u, process.transition(z_s, gamma_s, gamma_t)


@pytest.mark.parametrize("i", [0, 1, 4])
def test_consistency_term_is_the_log_ratio_averaged_over_the_bridge(x64, i):
    num_steps, gammas = 5, np.asarray(COSINE(jnp.arange(6.0) / 5))
    x, eps_s, eps_u = (np.random.default_rng(k).normal(size=(8, 2)) for k in range(3))
    z_u, q = outer_latents(x, eps_s, eps_u, gammas[i - 1] if i else -np.inf, *gammas[i : i + 2])
    # Bayes' rule for z_i: precision and mean from q(z_i|z_{i-1}) and q(z_{i+1}|z_i).
    step = process.transition(np.ones((1, 1)), gammas[i], gammas[i + 1])
    precision = 1 / q.var + step.mean**2 / step.var
    bridge = Gaussian((q.mean / q.var + step.mean * z_u / step.var) / precision, 1 / precision)
    p = process.reverse(z_u, wavy(z_u, np.full(8, gammas[i + 1])), gammas[i], gammas[i + 1])
    nodes, weights = gauss_hermite(8)
    z = [bridge.at(node) for node in nodes]
    average = sum(w * (q.log_prob(v) - p.log_prob(v)) for w, v in zip(weights, z, strict=True))
    t = jnp.full(8, (i + 0.7) / num_steps)
    value = bounds.consistency_term(model(wavy, COSINE, num_steps), x, eps_s, eps_u, t)
    np.testing.assert_allclose(value, num_steps * average.sum(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 5])
def test_consistency_form_is_the_bound_in_expectation(x64, num_steps):
    vdm = model(DATA.denoise, LINEAR, num_steps)

    @jax.jit
    def both(t, eps_s, eps_u, u, eps):
        data = jnp.broadcast_to(POINT, eps_s.shape)
        term = bounds.consistency_term(vdm, data, eps_s, eps_u, t)
        prior = bounds.prior_matching(data[:4], cubature(2), LINEAR, num_steps)
        data = jnp.broadcast_to(POINT, eps.shape)
        diffusion = loss.diffusion(data, eps, u, DATA.denoise, LINEAR, num_steps, "x")
        return prior.mean() + term.mean(), loss.prior(data[:1], 4.0)[0] + diffusion.mean()

    u, eps = np.repeat((np.arange(num_steps) + 0.5) / num_steps, 4), cubature(2)
    form, expected = both(*outer(num_steps, 2), u, np.tile(eps, (num_steps, 1)))
    np.testing.assert_allclose(form, expected, rtol=1e-10)


# ---- arithmetic ----


def rounded_gamma(num_steps):
    """A schedule whose values on the grid are the same numbers in both types."""
    table = np.asarray(schedule.cosine(-13.3, 5.0)(np.arange(num_steps + 1) / num_steps))
    table = table.astype(np.float32)

    def gamma(t):
        return jnp.asarray(table, t.dtype)[jnp.rint(t * num_steps).astype(int)]

    return gamma


def test_eq_45_read_literally_exceeds_eq_44_by_a_nat_per_dimension_and_step(x64):
    """Of Gaussian data and its optimal denoiser, along each axis of the covariance."""
    steps, axes = 100, np.linalg.eigvalsh(DATA.cov)[:, None]
    g = jnp.append(-jnp.inf, LINEAR(jnp.arange(steps + 1) / steps))  # before z_0 stands x
    var = axes * schedule.alpha_bar(g) + schedule.variance(g)
    s, t, u = slice(None, -2), slice(1, -1), slice(2, None)  # of z_(i-1), z_i, z_(i+1)
    a, noise = np.sqrt(schedule.step_alpha(g[s], g[t])), schedule.step_beta(g[s], g[t])
    r = np.sqrt(schedule.step_alpha(g[t], g[u]))
    gain = r * var[:, t] / var[:, u]  # E[z_i|z_(i+1)] = gain z_(i+1), but for the mean
    of_p = -schedule.variance(g[t]) * jnp.expm1(g[t] - g[u])
    kl = Gaussian(0.0, noise).kl(Gaussian(0.0, of_p))
    square = (a - gain * r * a) ** 2 * var[:, s] + gain**2 * (var[:, u] - (r * a) ** 2 * var[:, s])
    eq_45 = np.sum(kl + square / (2 * of_p))
    log_ratio = kl - noise / (2 * of_p) + (var[:, t] - gain**2 * var[:, u]) / (2 * of_p)
    weight, share = jnp.expm1(g[2:] - g[1:-1]), schedule.alpha_bar(g[2:]) * axes / var[:, 2:]
    diffusion = 0.5 * np.sum(weight * share)
    # The two forms' prior terms differ by log(sigma_T^2 / sigma_(T|T-1)^2) / 2 per dimension.
    last = jnp.log(schedule.step_beta(g[-2], g[-1]) / schedule.variance(g[-1]))
    eq_44 = np.sum(log_ratio)
    np.testing.assert_allclose(eq_44, diffusion + last, rtol=1e-9)
    np.testing.assert_allclose([eq_45 - eq_44, diffusion], [209.0, 5.1], rtol=2e-3)


def test_float32_of_a_thousand_steps_agrees_with_float64():
    num_steps = 1000
    vdm = model(lambda z, g: 0.5 * z, rounded_gamma(num_steps), num_steps, "eps")
    x, eps_s, eps_u = (np.random.default_rng(k).normal(size=(num_steps, 5)) for k in range(3))
    t = (np.arange(num_steps) + 0.5) / num_steps

    def values(kind):
        arrays = [jnp.asarray(a.astype(np.float32), kind) for a in (x, eps_s, eps_u, t)]

        def both(x, eps_s, eps_u, t):
            prior = bounds.prior_matching(x, eps_s, vdm.gamma, num_steps)
            return bounds.consistency_term(vdm, x, eps_s, eps_u, t), prior

        return tuple(map(np.asarray, jax.jit(both)(*arrays)))

    single = values(jnp.float32)
    with jax.enable_x64(True):
        double = values(jnp.float64)
    # Relative to what adds up to the term.
    np.testing.assert_allclose(single[0], double[0], rtol=2e-5, atol=2e-5 * double[0].std())
    np.testing.assert_allclose(single[1], double[1], rtol=1e-5)


# ---- errors ----


def test_models_without_a_chain_and_arrays_that_do_not_fit_are_refused():
    key, z = jax.random.key(0), jnp.zeros((2, 3))

    def of(run=bounds.chain, **changes):
        return lambda: run(model(optimal, LINEAR, 3)._replace(**changes), key, EVERY_LEVEL)

    def weighted(weights, axis):
        return lambda: bounds.importance_weighted(weights, axis)

    def term(eps_u, t):
        return lambda: bounds.consistency_term(model(optimal, LINEAR, 3), z, z, eps_u, t)

    chains = functools.partial(bounds.chains, num_chains=0)
    count = "must be an integer of at least 1,"
    for call, message in (
        (of(num_steps=None), f"num_steps {count} got None."),
        (of(bounds.consistency, num_steps=0), f"num_steps {count} got 0"),
        (of(bounds.consistency, reverse_var="transition"), "is of the posterior's variance, got"),
        (of(levels=0), f"levels {count} got 0."),
        (of(chains), f"num_chains {count} got 0."),
        (weighted(z[:0], 0), "weight along axis 0, got shape (0, 3)."),
        (weighted(z[0], 1), "weight along axis 1, got shape (3,)."),
        (term(z[:, :1], z[:, 0]), "x (2, 3) and eps_u (2, 1) differ"),
        (term(z, z[:, :1]), "t must be [2], one time per example, got shape (2, 1)."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            jax.eval_shape(call)
