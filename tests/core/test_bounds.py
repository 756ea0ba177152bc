import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, affine_chain, cubature, gauss_hermite, gauss_legendre
from scipy import special, stats

from vdm_jax import bounds, loss, parameterization, pixels, process, schedule, timestep
from vdm_jax.gaussian import Gaussian

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
POINT = np.array([0.9, -1.1])
GAMMAS = {"linear": schedule.linear(-6.0, 4.0), "cosine": schedule.cosine(-6.0, 4.0)}
LEVELS, VAR = 4, 0.3
EVERY_LEVEL = np.arange(LEVELS)[:, None]  # a batch of one-pixel images


def optimal(z, gamma_t):
    """E[x|z_t] for independent x ~ N(0, VAR), elementwise: a prediction of kind x."""
    g = process.expand(gamma_t, z)
    alpha = jnp.sqrt(jax.nn.sigmoid(-g))
    return alpha * VAR * z / (VAR * alpha**2 + jax.nn.sigmoid(g))


def wavy(z, gamma_t):
    """Some prediction of x that is far from linear and couples the elements of an example."""
    return jnp.tanh(z + 0.3 * process.expand(gamma_t, z)) + 0.2 * jnp.roll(z, 1, -1)


# ---- importance_weighted ----


def test_importance_weighted_is_minus_the_log_of_the_mean_weight(dtype):
    log_weights = np.random.default_rng(0).normal(size=(5, 3))
    expected = -np.log(np.mean(np.exp(log_weights), axis=0))
    value = bounds.importance_weighted(jnp.asarray(log_weights, dtype))
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    across = bounds.importance_weighted(log_weights.T, axis=-1)
    np.testing.assert_allclose(across, expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 100])
def test_equal_weights_are_worth_one_of_them(k):
    # Without the -log K this would be off by it; and thousands of nats don't underflow.
    value = bounds.importance_weighted(jnp.full((k, 2), -9000.0))
    np.testing.assert_allclose(value, 9000.0, atol=2e-3)


@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 0), ((), 0), ((3,), 1), ((3, 2), -3)])
def test_no_weights_along_the_axis_are_refused(shape, axis):
    with pytest.raises(ValueError, match=rf"at least one weight along axis {axis}, got shape"):
        bounds.importance_weighted(jnp.zeros(shape), axis)


# ---- chain ----


@pytest.mark.parametrize("kind", parameterization.KINDS)
@pytest.mark.parametrize("name", GAMMAS)
def test_log_weight_is_that_of_its_latents_by_the_densities_of_the_process(
    x64, monkeypatch, name, kind
):
    images = np.random.default_rng(0).integers(0, LEVELS, (3, 2, 2, 1))
    x, gamma, num_steps = pixels.encode(images, LEVELS), GAMMAS[name], 6
    latents, decoded = [], []

    def denoise(z, gamma_t):
        latents.append(z)
        return getattr(parameterization, f"to_{kind}")(wavy(z, gamma_t), z, gamma_t, "x")

    def reconstruction(images, eps_0, gamma_0, levels):
        latents.append(process.marginal(x, gamma_0).at(eps_0))
        decoded.append(original(images, eps_0, gamma_0, levels))
        return decoded[0]

    original = loss.reconstruction
    monkeypatch.setattr(loss, "reconstruction", reconstruction)
    with jax.disable_jit():
        log_weight = bounds.chain(
            jax.random.key(0), images, denoise, gamma, LEVELS, num_steps, kind
        )
    gammas = gamma(jnp.linspace(1.0, 0.0, num_steps + 1))
    log_p = Gaussian(0.0, 1.0).log_prob(latents[0])
    log_q = process.marginal(x, gammas[0]).log_prob(latents[0])
    for z_t, z_s, t, s in zip(latents[:-1], latents[1:], gammas[:-1], gammas[1:], strict=True):
        log_p += process.reverse(z_t, wavy(z_t, jnp.full(3, t)), s, t).log_prob(z_s)
        log_q += process.posterior(z_t, x, s, t).log_prob(z_s)
    assert len(latents) == num_steps + 1
    expected = jnp.sum(log_p - log_q, axis=(1, 2, 3)) - decoded[0]
    np.testing.assert_allclose(log_weight, expected, rtol=1e-9)


@functools.cache
def many_log_weights(num_steps: int, repeats: int = 2**16) -> np.ndarray:
    """Log weights [repeats, LEVELS] of independent chains, of one pixel of each level."""
    images = np.tile(EVERY_LEVEL, (repeats, 1))
    run = jax.jit(
        lambda key: bounds.chain(
            key, images, optimal, schedule.linear(-2.0, 3.0), LEVELS, num_steps, "x"
        )
    )
    return np.asarray(run(jax.random.key(num_steps)), np.float64).reshape(repeats, LEVELS)


def exact_bound(num_steps: int) -> np.ndarray:
    """The bound's expectation for each level of one pixel, by quadrature over the noise."""
    gamma = schedule.linear(-2.0, 3.0)
    u, weights = gauss_legendre(200, 4)
    eps = 18 * u - 9
    weights = 18 * weights * stats.norm.pdf(eps)
    x = np.asarray(pixels.encode(EVERY_LEVEL, LEVELS), np.float64)
    steps = (np.arange(num_steps) + 0.5) / num_steps
    t, noise = np.repeat(steps, 2), np.tile(cubature(1), (num_steps, 1))
    total = []
    for level in range(LEVELS):
        data = np.full_like(noise, x[level, 0])
        diffusion = loss.diffusion(data, noise, t, optimal, gamma, num_steps, "x").mean()
        images = np.full((len(eps), 1), level)
        reconstruction = weights @ loss.reconstruction(images, eps[:, None], -2.0, LEVELS)
        total.append(reconstruction + loss.prior(x[level : level + 1], 3.0)[0] + diffusion)
    return np.array(total)


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


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_minus_the_mean_log_weight_is_the_bound_of_as_many_steps(x64, num_steps):
    log_weights = many_log_weights(num_steps)
    error = log_weights.std(0) / np.sqrt(len(log_weights))
    expected = exact_bound(num_steps)
    assert np.all(error < 0.01 * expected)
    assert np.all(np.abs(-log_weights.mean(0) - expected) < 4 * error)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_mean_weight_is_the_exact_likelihood_of_the_chain(x64, num_steps):
    log_weights = many_log_weights(num_steps)
    exact = exact_nats(num_steps)
    np.testing.assert_allclose(np.exp(-exact).sum(), 1.0, rtol=1e-9)  # over the levels
    weights = np.exp(log_weights + exact)
    error = weights.std(0) / np.sqrt(len(weights))
    assert np.all(error < 0.02)
    nats = bounds.importance_weighted(log_weights)
    assert np.all(np.abs(np.exp(exact - nats) - 1.0) < 4 * error)
    assert np.all(exact_bound(num_steps) - exact > 0.02)  # the bound itself isn't exact


def test_importance_weighted_bound_decreases_with_k_to_the_exact_likelihood(x64):
    num_steps = 3
    log_weights, exact = many_log_weights(num_steps), exact_nats(num_steps)
    means, errors = [], []
    for k in (1, 2, 4, 16, 64, 256):
        values = bounds.importance_weighted(log_weights.reshape(k, -1, LEVELS))
        means.append(values.mean(0) - exact)
        errors.append(values.std(0) / np.sqrt(len(values)))
    means, errors = np.array(means), np.array(errors)
    np.testing.assert_allclose(means[0], exact_bound(num_steps) - exact, atol=4 * errors[0].max())
    assert np.all(means > -4 * errors)
    # Each K is below the last, by more than chance, until the gap is as small as chance.
    assert np.all(np.diff(means[:4], axis=0) < -4 * errors[1:4])
    assert np.all(means[-1] < 0.02 * means[0])


def test_chains_are_chains_of_the_split_keys():
    gamma, key = GAMMAS["linear"], jax.random.key(3)
    run = jax.jit(lambda key: bounds.chains(key, EVERY_LEVEL, optimal, gamma, 3, LEVELS, 5, "x"))
    one = jax.jit(lambda key: bounds.chain(key, EVERY_LEVEL, optimal, gamma, LEVELS, 5, "x"))
    together = run(key)
    np.testing.assert_allclose(
        together, [one(k) for k in jax.random.split(key, 3)], rtol=1e-4, atol=1e-4
    )
    assert len(np.unique(together)) == 12


@pytest.mark.parametrize("shape", [(12,), (4, 3, 1), (2, 2, 1, 3)])
def test_a_chain_of_an_event_of_any_shape_is_that_of_its_flat_vector(shape):
    images = np.random.default_rng(0).integers(0, LEVELS, (3, *shape))
    gamma, key = GAMMAS["cosine"], jax.random.PRNGKey(1)

    @jax.jit
    def both(array):
        terms = bounds.consistency(key, array, optimal, gamma, LEVELS, 7, "x")
        return bounds.chain(key, array, optimal, gamma, LEVELS, 7, "x"), terms

    shaped, flat = both(images), both(images.reshape(3, -1))
    chex.assert_shape(jax.tree.leaves(shaped), (3,))
    chex.assert_trees_all_close(shaped, flat, rtol=1e-4)


# ---- consistency ----


def outer(num_steps: int, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, eps_s and eps_u whose plain mean is the expectation of anything quadratic."""
    noise = np.tile(cubature(2 * dims), (num_steps, 1))
    t = np.repeat((np.arange(num_steps) + 0.5) / num_steps, 4 * dims)
    return t, noise[:, :dims], noise[:, dims:]


def outer_latents(x, eps_s, eps_u, i, gammas):
    """z_{i-1} (the data for i = 0), z_{i+1}, and q(z_i|z_{i-1}), all by the process."""
    if i == 0:
        return x, process.marginal(x, gammas[1]).at(eps_u), process.marginal(x, gammas[0])
    z_s = process.marginal(x, gammas[i - 1]).at(eps_s)
    z_u = process.transition(z_s, gammas[i - 1], gammas[i + 1]).at(eps_u)
    return z_s, z_u, process.transition(z_s, gammas[i - 1], gammas[i])


@pytest.mark.parametrize("name", GAMMAS)
@pytest.mark.parametrize("i", [0, 1, 4])
def test_consistency_term_is_the_log_ratio_averaged_over_the_bridge(x64, name, i):
    num_steps, gamma = 5, GAMMAS[name]
    gammas = np.asarray(gamma(jnp.arange(num_steps + 1.0) / num_steps))
    x, eps_s, eps_u = (np.random.default_rng(k).normal(size=(8, 2)) for k in range(3))
    _, z_u, q = outer_latents(x, eps_s, eps_u, i, gammas)
    # Bayes' rule for z_i: precision and mean from q(z_i|z_{i-1}) and q(z_{i+1}|z_i).
    step = process.transition(np.ones((1, 1)), gammas[i], gammas[i + 1])
    precision = 1 / q.var + step.mean**2 / step.var
    bridge = Gaussian((q.mean / q.var + step.mean * z_u / step.var) / precision, 1 / precision)
    p = process.reverse(z_u, wavy(z_u, np.full(8, gammas[i + 1])), gammas[i], gammas[i + 1])
    nodes, weights = gauss_hermite(8)
    z = [bridge.at(node) for node in nodes]
    average = sum(w * (q.log_prob(v) - p.log_prob(v)) for w, v in zip(weights, z, strict=True))
    t = jnp.full(8, (i + 0.7) / num_steps)
    value = bounds.consistency_term(x, eps_s, eps_u, t, wavy, gamma, num_steps, "x")
    np.testing.assert_allclose(value, num_steps * average.sum(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", GAMMAS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_consistency_form_is_the_bound_in_expectation(x64, name, num_steps):
    gamma = GAMMAS[name]
    t, eps_s, eps_u = outer(num_steps, 2)
    data = jnp.broadcast_to(POINT, eps_s.shape)
    term = bounds.consistency_term(data, eps_s, eps_u, t, DATA.denoise, gamma, num_steps, "x")
    prior = bounds.prior_matching(jnp.broadcast_to(POINT, (4, 2)), cubature(2), gamma, num_steps)
    t, eps = np.repeat((np.arange(num_steps) + 0.5) / num_steps, 4), cubature(2)
    data, eps = jnp.broadcast_to(POINT, (len(t), 2)), np.tile(eps, (num_steps, 1))
    diffusion = loss.diffusion(data, eps, t, DATA.denoise, gamma, num_steps, "x")
    expected = loss.prior(data[:1], 4.0)[0] + diffusion.mean()
    np.testing.assert_allclose(prior.mean() + term.mean(), expected, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_forms_agree_for_any_network_also_far_from_the_optimum(x64, num_steps):
    nodes, weights = gauss_hermite(60)
    gamma, x = GAMMAS["cosine"], 0.7
    steps = (np.arange(num_steps) + 0.5) / num_steps

    def denoise(z, gamma_t):
        return jnp.tanh(2.0 * z) + 0.05 * gamma_t[:, None]

    t, s, u = (a.reshape(-1, 1) for a in np.meshgrid(steps, nodes, nodes, indexing="ij"))
    both = np.tile(np.outer(weights, weights).ravel(), num_steps) / num_steps
    term = bounds.consistency_term(x + 0 * s, s, u, t[:, 0], denoise, gamma, num_steps, "x")
    prior = bounds.prior_matching(jnp.full((60, 1), x), nodes[:, None], gamma, num_steps)
    t, eps = (a.reshape(-1, 1) for a in np.meshgrid(steps, nodes, indexing="ij"))
    diffusion = loss.diffusion(x + 0 * eps, eps, t[:, 0], denoise, gamma, num_steps, "x")
    expected = loss.prior(jnp.full((1, 1), x), 4.0)[0]
    expected += np.tile(weights, num_steps) / num_steps @ np.asarray(diffusion)
    value = weights @ np.asarray(prior) + both @ np.asarray(term)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 10, 100])
def test_equation_45_read_literally_is_not_the_bound_but_above_it_by_its_closed_form(
    x64, num_steps
):
    # Per step, averaged over the data: (c1 / c) (d r^2 + c E||eps - eps_hat||^2), about d.
    gamma = GAMMAS["linear"]
    gammas = np.linspace(-6.0, 4.0, num_steps + 1)
    points = DATA.mean + cubature(2) @ np.linalg.cholesky(DATA.cov).T
    noise = cubature(4)
    literal = right = 0.0
    for x in points:
        t, eps_s, eps_u = outer(num_steps, 2)
        data = jnp.broadcast_to(x, eps_s.shape)
        term = bounds.consistency_term(data, eps_s, eps_u, t, DATA.denoise, gamma, num_steps, "x")
        right += float(term.mean()) / len(points)
        data = jnp.broadcast_to(x, (len(noise), 2))
        for i in range(num_steps):
            _, z_u, q = outer_latents(data, noise[:, :2], noise[:, 2:], i, gammas)
            x_hat = DATA.denoise(z_u, gammas[i + 1])
            kl = q.kl(process.reverse(z_u, x_hat, gammas[i], gammas[i + 1]))
            literal += float(kl.sum(-1).mean()) / len(points)
    c = -np.expm1(-np.diff(gammas))
    c1 = np.append(1.0, c[:-1])
    excess = np.sum(c1 / c * (2 * (1 - c) + c * DATA.eps_error(gammas[1:])))
    np.testing.assert_allclose(literal - right, excess, rtol=1e-9)
    if num_steps == 100:
        # Two dimensions: some 2 nats a step, where the whole diffusion loss is a few nats.
        np.testing.assert_allclose(excess, 209.2, atol=0.1)
        assert DATA.diffusion_discrete(gammas) < 5.2


@pytest.mark.parametrize("method", timestep.METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_consistency_estimates_each_term_without_bias(num_steps, method):
    gamma, keys = schedule.linear(-2.0, 3.0), jax.random.split(jax.random.key(0), 20_000)
    terms = jax.jit(
        jax.vmap(
            lambda key: bounds.consistency(
                key, EVERY_LEVEL, optimal, gamma, LEVELS, num_steps, "x", method
            )
        )
    )(keys)
    with jax.enable_x64(True):
        expected = exact_bound(num_steps)
        prior = bounds.prior_matching(
            jnp.repeat(pixels.encode(EVERY_LEVEL, LEVELS), 2, axis=0),
            jnp.tile(cubature(1), (LEVELS, 1)),
            gamma,
            num_steps,
        )
        prior = np.asarray(prior).reshape(LEVELS, 2).mean(1)
    for estimate, exact in ((terms.total, expected), (terms.prior, prior)):
        error = np.asarray(estimate, np.float64).std(0) / np.sqrt(len(keys))
        assert np.all(np.abs(np.asarray(estimate, np.float64).mean(0) - exact) < 4 * error + 1e-5)


def test_consistency_varies_more_than_denoising_and_the_more_so_the_more_steps(x64):
    gamma, n = GAMMAS["linear"], 2**16
    x, u = jnp.broadcast_to(POINT, (n, 2)), (jnp.arange(n) + 0.5) / n
    eps_s, eps_u = (jax.random.normal(jax.random.key(k), x.shape) for k in (0, 1))

    def variances(num_steps):
        """Of the consistency term and of diffusion: of all, and of the noise at given times."""
        both = jax.jit(
            lambda: (
                bounds.consistency_term(x, eps_s, eps_u, u, DATA.denoise, gamma, num_steps, "x"),
                loss.diffusion(x, eps_u, u, DATA.denoise, gamma, num_steps, "x"),
            )
        )()
        # The draws of a step follow one another; their number is n / T.
        by_step = np.asarray(both).reshape(2, num_steps, -1)
        return np.var(both, axis=1), by_step.var(-1, ddof=1).mean(-1)

    every, noise = (np.array(v) for v in zip(*map(variances, (8, 64, 256, 1024)), strict=True))
    for ratio in (every[:, 0] / every[:, 1], noise[:, 0] / noise[:, 1]):
        assert 0.9 < ratio[0] < 1.2  # with few steps the network's error is all that varies
        assert ratio[1] > 5
        assert np.all(ratio[2:] / ratio[1:-1] > 3)
    # Denoising has a limit, the noise of consistency is of order T; its choice of a step adds more.
    np.testing.assert_allclose(noise[3] / noise[2], [4.0, 1.0], rtol=0.06)
    np.testing.assert_allclose(every[3] / every[2], [6.8, 1.0], rtol=0.06)


# ---- arithmetic ----


def rounded_gamma(num_steps):
    """A schedule whose values on the grid are the same numbers in both types."""
    table = np.asarray(schedule.cosine(-13.3, 5.0)(np.arange(num_steps + 1) / num_steps))
    table = table.astype(np.float32)

    def gamma(t):
        return jnp.asarray(table, t.dtype)[jnp.rint(t * num_steps).astype(int)]

    return gamma


def test_float32_terms_of_a_thousand_steps_agree_with_float64():
    num_steps = 1000
    gamma = rounded_gamma(num_steps)
    x, eps_s, eps_u = (np.random.default_rng(k).normal(size=(num_steps, 5)) for k in range(3))
    t = (np.arange(num_steps) + 0.5) / num_steps

    def values(kind):
        arrays = [jnp.asarray(a.astype(np.float32), kind) for a in (x, eps_s, eps_u, t)]
        term = jax.jit(
            lambda *a: bounds.consistency_term(*a, lambda z, g: 0.5 * z, gamma, num_steps)
        )(*arrays)
        prior = jax.jit(lambda *a: bounds.prior_matching(*a, gamma, num_steps))(*arrays[:2])
        return np.asarray(term), np.asarray(prior)

    single = values(jnp.float32)
    with jax.enable_x64(True):
        double = values(jnp.float64)
    assert single[0].dtype == np.float32
    assert double[0].dtype == np.float64
    np.testing.assert_allclose(single[1], double[1], rtol=1e-5)
    # Relative to what adds up to the term.
    np.testing.assert_allclose(single[0], double[0], rtol=2e-5, atol=2e-5 * double[0].std())


def test_float32_log_weight_of_a_thousand_steps_agrees_with_float64(monkeypatch):
    num_steps = 1000
    gamma, images = rounded_gamma(num_steps), np.random.default_rng(0).integers(0, LEVELS, (16, 5))
    normal = jax.random.normal

    def same_noise(key, shape, dtype=float):
        return normal(key, shape, jnp.float32).astype(dtype)

    monkeypatch.setattr(jax.random, "normal", same_noise)

    def value():
        key = jax.random.PRNGKey(0)
        return np.asarray(
            jax.jit(
                lambda: bounds.chain(
                    key, images, lambda z, g: 0.5 * z, gamma, LEVELS, num_steps, "eps"
                )
            )()
        )

    single = value()
    with jax.enable_x64(True):
        double = value()
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=2e-5)


@pytest.mark.parametrize("gamma", [schedule.linear(-40.0, 40.0), lambda t: -20 + 30 * t**3])
def test_extreme_and_uneven_steps_give_finite_values_and_gradients(gamma):
    x, eps_s, eps_u = (jax.random.normal(jax.random.key(k), (40, 3)) for k in range(3))
    t = (jnp.arange(40) + 0.5) / 40

    def value(scale, kind):
        return bounds.consistency_term(
            x, eps_s, eps_u, t, lambda z, g: scale * z, lambda t: scale * gamma(t), 10, kind
        ).mean()

    gradient = jax.jit(jax.value_and_grad(value), static_argnums=1)
    for kind in ("eps", "v"):
        chex.assert_tree_all_finite(gradient(0.9, kind))


def test_gradients_agree_with_finite_differences(x64):
    num_steps = 4  # of which the five antithetic times take each, the first too
    images, key = np.random.default_rng(0).integers(0, LEVELS, (5, 3)), jax.random.key(0)

    def values(params):
        gamma = schedule.linear(params[0], params[1])

        def denoise(z, gamma_t):
            return params[2] * wavy(z, gamma_t)

        weights = bounds.chains(key, images, denoise, gamma, 3, LEVELS, num_steps, "x")
        form = bounds.consistency(key, images, denoise, gamma, LEVELS, num_steps, "x")
        return jnp.stack([bounds.importance_weighted(weights).mean(), form.total.mean()])

    params, h = jnp.array([-4.0, 3.0, 0.8]), 1e-5
    values = jax.jit(values)
    numeric = [(values(params + row) - values(params - row)) / (2 * h) for row in h * np.eye(3)]
    np.testing.assert_allclose(jax.jit(jax.jacrev(values))(params), np.array(numeric).T, rtol=1e-7)
    assert np.all(np.abs(np.array(numeric)) > 1e-4)


@pytest.mark.parametrize("kind", parameterization.KINDS)
def test_one_denoiser_written_in_four_kinds_has_one_consistency_form(x64, kind):
    images = np.random.default_rng(0).integers(0, LEVELS, (6, 3))

    def denoise(z, gamma_t):
        return getattr(parameterization, f"to_{kind}")(wavy(z, gamma_t), z, gamma_t, "x")

    args = (jax.random.key(0), images)
    gamma = GAMMAS["cosine"]
    form = bounds.consistency(*args, denoise, gamma, LEVELS, 9, kind)
    chex.assert_trees_all_close(
        form, bounds.consistency(*args, wavy, gamma, LEVELS, 9, "x"), rtol=1e-9
    )


def test_consistency_asks_the_network_once():
    calls = []

    def denoise(z, gamma_t):
        calls.append(z.shape)
        return z

    bounds.consistency(jax.random.key(0), EVERY_LEVEL, denoise, GAMMAS["linear"], LEVELS, 5)
    assert calls == [(LEVELS, 1)]


# ---- errors ----


@pytest.mark.parametrize("call", [bounds.chain, bounds.consistency])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": None}, "num_steps must be an integer of at least 1, .*got None"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"kind": "noise"}, "kind must be one of eps, x, v, score, got 'noise'"),
        ({"levels": 0}, "levels must be an integer of at least 1, got 0"),
        ({"gamma": lambda t: t.sum()}, r"gamma must map .* but returned \(\)"),
        ({"denoise": lambda z, g: z[:, 0]}, r"prediction has shape \(4,\), but z_t has \(4, 1\)"),
    ],
)
def test_bad_arguments_are_named(call, options, match):
    options = {"denoise": optimal, "gamma": GAMMAS["linear"], "levels": LEVELS} | options
    with pytest.raises(ValueError, match=match) as error:
        call(jax.random.key(0), EVERY_LEVEL, **({"num_steps": 3} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_chains", [0, 2.0, True])
def test_a_number_of_chains_that_is_none_is_refused(num_chains):
    with pytest.raises(ValueError, match=r"num_chains must be an integer of at least 1, got"):
        bounds.chains(jax.random.key(0), EVERY_LEVEL, optimal, GAMMAS["linear"], num_chains)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 3), (2, 3), (2, 1), (2,)), r"x \(2, 3\), eps_s \(2, 3\), eps_u \(2, 1\) differ"),
        (((2, 3), (2, 3), (2, 3), (2, 1)), r"t must be \[2\], one time per example"),
        (((2, 3), (2, 3), (2, 3), ()), r"t must be \[2\], one time per example"),
    ],
)
def test_noise_and_times_must_fit_the_data(shapes, match):
    with pytest.raises(ValueError, match=match):
        bounds.consistency_term(*(jnp.zeros(s) for s in shapes), optimal, GAMMAS["linear"], 3)
