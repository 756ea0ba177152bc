from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import bernoulli, bounds, loss, pixels, schedule
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import binomial, hierarchy

LEVELS = 5
GAMMA = schedule.linear(-5.0, 2.0)


@pytest.fixture(autouse=True)
def _float64(x64):
    """Everything here in float64."""


def network(z_t, gamma_t):
    """An arbitrary denoiser that mixes the elements of an event and knows gamma."""
    shifted = jnp.roll(z_t, 1, axis=-1)
    return jnp.tanh(0.8 * z_t - 0.3 * shifted + 0.2 * gamma_t[:, None])


# ---- linear Gaussian hierarchies: all is known ----


def linear_hierarchy(depth, dims=3, seed=0):
    """x = W_0 z_1 + noise, z_i = W_i z_{i+1} + noise, z_L ~ N(0, I): and its exact marginals."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(dims, dims)) / dims**0.5 for _ in range(depth)]
    noise = rng.uniform(0.3, 0.8, depth)
    cov = [np.eye(dims)]  # of z_L, z_{L-1}, ..., x
    for w, s in zip(reversed(maps), reversed(noise), strict=True):
        cov.append(w @ cov[-1] @ w.T + s * np.eye(dims))
    return maps, noise, cov[::-1]  # cov[0] of x, cov[i] of z_i


def decoders_of(maps, noise):
    def decode(w, s):
        return lambda z: Gaussian(z @ w.T, jnp.full(z.shape, s))

    return [decode(w, s) for w, s in zip(maps, noise, strict=True)]


def reversed_encoders(maps, noise, cov):
    """p(z_i|z_{i-1}), the exact posteriors; diagonalised, as encoders are diagonal Gaussians."""
    encoders = []
    for w, s, c in zip(maps, noise, cov[1:], strict=True):
        precision = np.linalg.inv(c) + w.T @ w / s
        gain = np.linalg.solve(precision, w.T / s)
        assert np.allclose(precision, np.diag(np.diag(precision)))
        encoders.append((gain, 1.0 / np.diag(precision)))
    return [
        lambda z, g=g, v=v: Gaussian(z @ g.T, jnp.broadcast_to(v, z.shape)) for g, v in encoders
    ]


def test_with_the_exact_posteriors_every_draw_gives_the_exact_likelihood():
    """One dimension, where diagonal encoders can be exact: the weight is p(x) whatever is drawn."""
    for depth in (1, 2, 5):
        maps, noise, cov = linear_hierarchy(depth, dims=1, seed=depth)
        likelihood, *decoders = decoders_of(maps, noise)
        encoders = reversed_encoders(maps, noise, cov)
        x = jnp.array([[-1.3], [0.2], [2.0]])
        terms = hierarchy.elbo(
            jax.random.key(depth), x, encoders, decoders,
            lambda z, p=likelihood, x=x: loss.sum_event(p(z).log_prob(x)), closed_form=False,
        )  # fmt: skip
        exact = -stats.norm(0.0, cov[0][0, 0] ** 0.5).logpdf(np.asarray(x)[:, 0])
        np.testing.assert_allclose(terms.total, exact, rtol=1e-12)
        assert terms.levels.shape == (depth, 3)


def closed_bound(x, likelihood, decoders, encoders):
    """The bound of a hierarchy of linear Gaussians given as (matrix, variances), by moments."""
    mean, cov = np.asarray(x, float), np.zeros((len(x), len(x)))
    gain, var = encoders[0]
    mean, cov = gain @ mean, np.diag(var)
    w, s = likelihood
    total = 0.5 * (
        np.sum((x - w @ mean) ** 2 / s) + np.trace(w @ cov @ w.T / s)
        + np.sum(np.log(2 * np.pi * s * np.ones(len(x))))
    )  # fmt: skip
    total -= 0.5 * np.sum(np.log(2 * np.pi * np.e * var))
    for (gain, var), (w, s) in zip(encoders[1:], decoders, strict=True):
        # z and z' = gain z + noise, together; then E[-log N(z; w z', s)].
        joint = np.block([[cov, cov @ gain.T], [gain @ cov, gain @ cov @ gain.T + np.diag(var)]])
        read = np.hstack([np.eye(len(mean)), -w])
        residual = read @ np.concatenate([mean, gain @ mean])
        spread = np.trace(read @ joint @ read.T)
        total += 0.5 * (np.sum(residual**2) + spread) / s
        total += 0.5 * len(mean) * np.log(2 * np.pi * s)
        total -= 0.5 * np.sum(np.log(2 * np.pi * np.e * var))
        mean, cov = gain @ mean, gain @ cov @ gain.T + np.diag(var)
    cross = 0.5 * (np.sum(mean**2) + np.trace(cov)) + 0.5 * len(mean) * np.log(2 * np.pi)
    return total + cross


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("closed_form", [True, False])
def test_any_linear_hierarchy_has_the_bound_of_its_moments_in_expectation(depth, closed_form):
    rng = np.random.default_rng(depth)
    maps, noise, cov = linear_hierarchy(depth, seed=depth)
    gains = [rng.normal(size=(3, 3)) / 2 for _ in range(depth)]
    variances = [rng.uniform(0.2, 1.5, 3) for _ in range(depth)]
    encoders = [
        lambda z, g=g, v=v: Gaussian(z @ g.T, jnp.broadcast_to(v, z.shape))
        for g, v in zip(gains, variances, strict=True)
    ]
    likelihood, *decoders = decoders_of(maps, noise)
    x = np.array([0.7, -1.1, 0.4])
    batch = jnp.broadcast_to(x, (200_000, 3))
    terms = hierarchy.elbo(
        jax.random.key(1), batch, encoders, decoders,
        lambda z: loss.sum_event(likelihood(z).log_prob(batch)), closed_form=closed_form,
    )  # fmt: skip
    expected = closed_bound(
        x, (maps[0], noise[0]), list(zip(maps[1:], noise[1:], strict=True)),
        list(zip(gains, variances, strict=True)),
    )  # fmt: skip
    total = np.asarray(terms.total)
    assert abs(total.mean() - expected) < 5 * total.std() / len(total) ** 0.5
    exact = -stats.multivariate_normal(np.zeros(3), cov[0]).logpdf(x)
    assert expected > exact  # a bound on -log p(x), and not tight for these encoders


def test_the_closed_form_of_the_last_kl_has_the_same_mean_and_varies_less():
    encode = lambda z: Gaussian(0.5 * z, jnp.full(z.shape, 0.7))  # noqa: E731
    x = jnp.broadcast_to(jnp.array([1.0, -2.0]), (100_000, 2))
    zero = lambda z: jnp.zeros(len(z))  # noqa: E731
    closed, sampled = (
        np.asarray(hierarchy.elbo(jax.random.key(0), x, [encode], [], zero, None, c).levels[0])
        for c in (True, False)
    )
    assert closed.std() < 1e-12 < sampled.std()
    assert abs(closed.mean() - sampled.mean()) < 5 * sampled.std() / len(x) ** 0.5
    # Another prior than N(0, I), here the encoder's own distribution: nothing to pay.
    same = hierarchy.elbo(jax.random.key(0), x, [encode], [], zero, encode(x))
    np.testing.assert_allclose(same.levels, 0.0, atol=1e-12)


# ---- the VDM as a hierarchy ----


def vdm_lists(num_steps, reverse_var="posterior", denoise=network):
    encode, decode = hierarchy.of_diffusion(denoise, GAMMA, num_steps, "v", reverse_var)
    encoders = [partial(encode, i) for i in range(num_steps + 1)]
    return encoders, [partial(decode, i) for i in range(num_steps)]


def log_likelihood(images):
    gamma_0 = GAMMA(0.0)

    def of(z_0):
        rescaled = z_0 / schedule.alpha(gamma_0)
        return loss.sum_event(pixels.log_prob(images, rescaled, gamma_0, LEVELS))

    return of


@pytest.mark.parametrize("reverse_var", ["posterior", "transition", "learned"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_vdm_s_conditionals_give_the_vdm_s_bound_in_expectation(num_steps, reverse_var):
    count = 150_000
    images = jnp.broadcast_to(jnp.array([0, 3, 4]), (count, 3))
    x = pixels.encode(images, LEVELS)
    denoise = network
    if reverse_var == "learned":
        denoise = lambda z, g: (network(z, g), jax.nn.sigmoid(z + g[:, None]))  # noqa: E731
    encoders, decoders = vdm_lists(num_steps, reverse_var, denoise)
    chain = hierarchy.elbo(jax.random.key(2), x, encoders, decoders, log_likelihood(images))
    vdm = loss.elbo(
        jax.random.key(3), images, denoise, GAMMA, LEVELS, num_steps, "v", "uniform",
        reverse_var=reverse_var,
    )  # fmt: skip
    a, b = np.asarray(chain.total), np.asarray(vdm.total)
    assert abs(a.mean() - b.mean()) < 5 * np.hypot(a.std(), b.std()) / count**0.5
    assert np.hypot(a.std(), b.std()) / count**0.5 < 0.02 * b.mean()  # and that says something
    r, s = np.asarray(chain.reconstruction), np.asarray(vdm.reconstruction)
    assert abs(r.mean() - s.mean()) < 5 * np.hypot(r.std(), s.std()) / count**0.5


@pytest.mark.parametrize("reverse_var", ["posterior", "transition", "learned"])
def test_latent_for_latent_it_is_the_weight_of_a_chain(monkeypatch, reverse_var):
    """`bounds.chain` draws z_T first and works with noise; at its latents the weights agree."""
    num_steps, images = 3, jnp.array([[0, 3, 4], [2, 2, 1]])
    x = pixels.encode(images, LEVELS)
    noise = []
    normal = jax.random.normal

    def recorded(*args, **kwargs):
        noise.append(normal(*args, **kwargs))
        return noise[-1]

    denoise = network
    if reverse_var == "learned":
        denoise = lambda z, g: (network(z, g), jax.nn.sigmoid(z + g[:, None]))  # noqa: E731
    monkeypatch.setattr(jax.random, "normal", recorded)
    with jax.disable_jit():
        weight = bounds.chain(
            jax.random.key(4), images, denoise, GAMMA, LEVELS, num_steps, "v", reverse_var
        )
    gammas = GAMMA(jnp.arange(num_steps, -1, -1) / num_steps)
    assert len(noise) == num_steps + 1
    e, latents = noise[0], []
    for i, eps in enumerate(noise):
        if i:
            r2 = jnp.exp(gammas[i] - gammas[i - 1])
            e = jnp.sqrt(r2) * e + jnp.sqrt(1.0 - r2) * eps
        latents.append(schedule.alpha(gammas[i]) * x + schedule.sigma(gammas[i]) * e)
    encoders, decoders = vdm_lists(num_steps, reverse_var, denoise)
    terms = hierarchy.elbo_given(x, latents[::-1], encoders, decoders, log_likelihood(images))
    np.testing.assert_allclose(-terms.total, weight, rtol=1e-10)


@pytest.mark.parametrize("closed_form", [True, False])
def test_the_loop_is_the_list(closed_form):
    images = jnp.array([[0, 3, 4], [2, 2, 1]])
    x, num_steps = pixels.encode(images, LEVELS), 4
    encode, decode = hierarchy.of_diffusion(network, GAMMA, num_steps, "v")
    encoders, decoders = vdm_lists(num_steps)
    key, of = jax.random.key(5), log_likelihood(images)
    one = hierarchy.elbo(key, x, encoders, decoders, of, None, closed_form)
    other = jax.jit(
        lambda x: hierarchy.elbo_scan(key, x, encode, decode, num_steps + 1, of, None, closed_form)
    )(x)
    np.testing.assert_allclose(one.levels, other.levels, rtol=1e-9)
    np.testing.assert_allclose(one.reconstruction, other.reconstruction, rtol=1e-9)


def test_gradients_of_the_bound_are_finite_and_those_of_finite_differences():
    images = jnp.array([[0, 3, 4]])
    x = pixels.encode(images, LEVELS)

    def total(c):
        gamma = schedule.linear(-5.0 + c[0], 2.0 + c[1])
        encode, decode = hierarchy.of_diffusion(lambda z, g: c[2] * network(z, g), gamma, 3, "v")
        terms = hierarchy.elbo_scan(
            jax.random.key(6), x, encode, decode, 4, lambda z: -jnp.sum(z**2, -1)
        )
        return terms.total.sum()

    at, h = jnp.array([0.1, -0.2, 0.9]), 1e-6
    found = jax.grad(total)(at)
    steps = np.eye(3) * h
    numeric = [(total(at + s) - total(at - s)) / (2 * h) for s in steps]
    np.testing.assert_allclose(found, numeric, rtol=1e-6)


def test_samples_of_the_hierarchy_have_the_moments_of_the_chain():
    maps, noise, cov = linear_hierarchy(4, dims=2, seed=3)
    _, *decoders = decoders_of(maps, noise)
    z_last = jax.random.normal(jax.random.key(0), (100_000, 2))
    z_1 = np.asarray(hierarchy.ancestral(jax.random.key(1), z_last, decoders))
    white = np.linalg.solve(np.linalg.cholesky(cov[1]), z_1.T)
    np.testing.assert_allclose(np.cov(white), np.eye(2), atol=5 * (2 / 1e5) ** 0.5)
    np.testing.assert_allclose(white.mean(1), 0.0, atol=5 / 1e5**0.5)
    assert hierarchy.ancestral(jax.random.key(1), z_last, []) is z_last


# ---- other distributions, and mistakes ----


def test_binomial_diffusion_is_a_hierarchy_too():
    """z_0 = x, so that the chain is z_1, ..., z_T and p(x|z_1) the last reverse step."""
    num_steps, count = 3, 60_000
    images = jnp.broadcast_to(jnp.array([1, 0]), (count, 2))
    keep = 1.0 - jnp.arange(num_steps + 1) / num_steps

    def denoise(z, keep_t):
        return 0.7 * z + 0.4 * jnp.roll(z, 1, axis=-1) * keep_t[:, None] + 0.2

    def decode(i, z):  # of latent i given i + 1, both counted from 1
        keep_t = jnp.full(count, keep[i + 1])
        return binomial.reverse(z, denoise(2.0 * z - 1.0, keep_t), keep[i], keep[i + 1])

    encoders = [
        lambda z, i=i: binomial.transition(z, keep[i], keep[i + 1]) for i in range(num_steps)
    ]
    decoders = [partial(decode, i) for i in range(1, num_steps)]
    terms = hierarchy.elbo(
        jax.random.key(0), images, encoders, decoders,
        lambda z: loss.sum_event(decode(0, z).log_prob(images)),
        bernoulli.Bernoulli(jnp.zeros((count, 2))),
    )  # fmt: skip
    other = binomial.elbo(
        jax.random.key(1), images, denoise, lambda t: 1.0 - t, num_steps, "uniform"
    )
    a, b = np.asarray(terms.total), np.asarray(other.total)
    assert abs(a.mean() - b.mean()) < 5 * np.hypot(a.std(), b.std()) / count**0.5
    assert np.hypot(a.std(), b.std()) / count**0.5 < 0.02


def test_mistakes_are_named():
    encode = lambda z: Gaussian(z, jnp.ones_like(z))  # noqa: E731
    x, zero = jnp.zeros((1, 2)), lambda z: jnp.zeros(len(z))
    for encoders, decoders in (([encode], [encode]), ([encode, encode], []), ([], [])):
        wanted = rf"wanted L >= 1 encoders.* got {len(encoders)}, {len(decoders)} and"
        with pytest.raises(ValueError, match=wanted):
            hierarchy.elbo(jax.random.key(0), x, encoders, decoders, zero)
    for wrong in (lambda z: z, lambda z: jnp.zeros(())):
        with pytest.raises(ValueError, match=r"one number per example, \[1\], got shape"):
            hierarchy.elbo(jax.random.key(0), x, [encode], [], wrong)
    with pytest.raises(ValueError, match="num_steps"):
        hierarchy.of_diffusion(network, GAMMA, 0)
