import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, Mixture, alpha_sigma, gauss_legendre
from scipy import stats

from vdm_jax import divergence, flow, parameterization, pixels, process, schedule

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def gaussian_data(dims: int) -> GaussianData:
    """Correlated Gaussian data, whose variances span two orders of magnitude."""
    rng = np.random.default_rng(dims)
    basis, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    cov = (basis * np.geomspace(0.01, 1.0, dims)) @ basis.T
    return GaussianData(rng.uniform(-1, 1, dims), cov)


def mixture_data(dims: int) -> Mixture:
    """Three well separated modes of different widths."""
    means = np.random.default_rng(dims).normal(size=(3, dims))
    return Mixture(np.array([0.5, 0.3, 0.2]), means, np.array([0.02, 0.05, 0.1]))


def draws(data: GaussianData | Mixture, gamma: float, batch: int = 6) -> np.ndarray:
    """Latents of the data at gamma, [batch, d]."""
    rng = np.random.default_rng(0)
    dims = data.means.shape[1] if isinstance(data, Mixture) else len(data.mean)
    noise = rng.normal(size=(batch, dims))
    if isinstance(data, Mixture):
        k = rng.integers(0, 3, batch)
        x = data.means[k] + np.sqrt(data.var[k])[:, None] * noise
    else:
        x = data.mean + noise @ np.linalg.cholesky(data.cov).T
    alpha, sigma = alpha_sigma(gamma)
    return alpha * x + sigma * rng.normal(size=(batch, dims))


def denoiser(data: GaussianData | Mixture):
    """The optimal denoiser, for a batch: a prediction of kind x."""
    return jax.vmap(data.denoise) if isinstance(data, Mixture) else data.denoise


@functools.cache
def compiled(make, dims: int):
    """flow.log_prob of (z_0, gamma_0, gamma_1) with the optimal denoiser, compiled once for all."""
    return jax.jit(
        lambda z, low, high: flow.log_prob(z, denoiser(make(dims)), low, high, "x", **TIGHT)
    )


def marginal_log_prob(data: GaussianData | Mixture, z: np.ndarray, gamma: float) -> np.ndarray:
    """log q(z) of the latents at gamma, [batch]."""
    if isinstance(data, Mixture):
        return np.asarray(jax.vmap(lambda row: data.log_prob(row, gamma))(jnp.asarray(z)))
    alpha, sigma = alpha_sigma(gamma)
    latent = GaussianData(alpha * data.mean, alpha**2 * data.cov + sigma**2 * np.eye(z.shape[1]))
    return latent.log_prob(z)


def standard_log_prob(z: np.ndarray) -> np.ndarray:
    return stats.norm.logpdf(np.asarray(z)).sum(1)


def gaussian_flow(data: GaussianData, z_0: np.ndarray, gamma_0: float, gamma_1: float):
    """z_1 and log p(z_0) of the exact flow of Gaussian data, which is linear.

    In the basis of cov's eigenvectors each element keeps its number of standard deviations.
    """
    (alpha_0, sigma_0), (alpha_1, sigma_1) = alpha_sigma(gamma_0), alpha_sigma(gamma_1)
    variances, basis = np.linalg.eigh(data.cov)
    ratio = (alpha_1**2 * variances + sigma_1**2) / (alpha_0**2 * variances + sigma_0**2)
    stretch = (basis * np.sqrt(ratio)) @ basis.T
    z_1 = alpha_1 * data.mean + (z_0 - alpha_0 * data.mean) @ stretch
    return z_1, standard_log_prob(z_1) + 0.5 * np.log(ratio).sum(), stretch


# ---- the drift ----


def test_drift_is_the_probability_flow_of_the_score(x64):
    data, z = mixture_data(3), draws(mixture_data(3), -1.0)
    score_of = jax.jit(jax.vmap(jax.grad(data.log_prob), (0, None)))
    for gamma in (-6.0, 0.3, 5.0):
        score = score_of(jnp.asarray(z), gamma)
        _, sigma = alpha_sigma(gamma)
        expected = -0.5 * sigma**2 * (z + score)
        got = flow.drift(jnp.asarray(z), gamma, denoiser(data), "x")
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_drift_obeys_the_continuity_equation_of_the_marginals(x64):
    # d log q / d gamma + div drift + drift . grad log q = 0: nothing of the SDE is taken on trust.
    data, z = mixture_data(2), jnp.asarray(draws(mixture_data(2), 0.0))
    gamma = jnp.array([-4.0, -2.0, -0.5, 0.0, 1.0, 3.0])

    def one(row, g):
        return flow.drift(row[None], g[None], denoiser(data), "x")[0]

    def both_sides(row, g):
        score, by_gamma = jax.grad(data.log_prob, (0, 1))(row, g)
        return by_gamma, -jnp.trace(jax.jacfwd(one)(row, g)) - one(row, g) @ score

    np.testing.assert_allclose(*jax.jit(jax.vmap(both_sides))(z, gamma), rtol=1e-9)


# ---- the density against closed forms ----


@pytest.mark.parametrize("ends", [(-9.0, 8.0), (-2.0, 1.0)])
@pytest.mark.parametrize("dims", [1, 7])
def test_flow_of_gaussian_data_is_its_closed_form(x64, dims, ends):
    data = gaussian_data(dims)
    z_0 = draws(data, ends[0])
    z_1, log_prob, _ = gaussian_flow(data, z_0, *ends)
    got = compiled(gaussian_data, dims)(z_0, *ends)
    np.testing.assert_allclose(got.z_1, z_1, atol=1e-6)
    np.testing.assert_allclose(got.log_prob / dims, log_prob / dims, atol=1e-6)


@pytest.mark.parametrize("make", [gaussian_data, mixture_data])
@pytest.mark.parametrize("dims", [1, 2, 16])
def test_density_is_that_of_the_marginal_but_for_the_prior(x64, dims, make):
    # log q(z_0) - log p(z_0) = log q(z_1) - log N(z_1; 0, I) for the data's own score, at any end.
    data, (low, high) = make(dims), (-8.0, 6.0)
    z_0 = draws(data, low)
    got = compiled(make, dims)(z_0, low, high)
    prior = marginal_log_prob(data, got.z_1, high) - standard_log_prob(got.z_1)
    error = got.log_prob + prior - marginal_log_prob(data, z_0, low)
    assert np.max(np.abs(error)) < 1e-6 * dims
    assert np.max(np.abs(prior)) > 1e-3


@pytest.mark.parametrize("make", [gaussian_data, mixture_data])
def test_density_tends_to_that_of_the_data_as_the_ends_go_outwards(x64, make):
    data, dims = make(2), 2
    x = draws(data, -200.0)  # no noise: the data itself
    exact = marginal_log_prob(data, x, -200.0)
    errors = []
    for reach in (8.0, 16.0, 32.0):
        alpha, _ = alpha_sigma(-reach)
        log_prob = compiled(make, dims)(alpha * x, -reach, reach).log_prob
        errors.append(np.max(np.abs(log_prob - exact)) / dims)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


def test_tighter_tolerance_means_a_smaller_error_and_more_evaluations(x64):
    data, ends = gaussian_data(5), (-9.0, 8.0)
    z_0 = draws(data, ends[0])
    _, exact, _ = gaussian_flow(data, z_0, *ends)
    tolerances = np.array([1e-3, 1e-6, 1e-9])
    results = [
        flow.log_prob(z_0, data.denoise, *ends, "x", rtol=tol, atol=tol) for tol in tolerances
    ]
    errors = np.array([np.max(np.abs(r.log_prob - exact)) / 5 for r in results])
    # Per dimension and nat, the error is about the tolerance.
    assert np.all(errors < 30 * tolerances)
    assert np.all(errors[1:] < 0.01 * errors[:-1])
    assert np.all(np.diff([int(r.num_evaluations) for r in results]) > 0)


@pytest.mark.parametrize("kind", ["eps", "v", "score"])
def test_one_denoiser_written_in_four_kinds_has_one_density(x64, kind):
    data, ends = mixture_data(2), (-7.0, 7.0)
    z_0 = draws(data, ends[0])
    convert = getattr(parameterization, f"to_{kind}")

    def denoise(z, gamma):
        return convert(denoiser(data)(z, gamma), z, gamma, kind="x")

    got = flow.log_prob(z_0, denoise, *ends, kind, **TIGHT)
    expected = compiled(mixture_data, 2)(z_0, *ends)
    np.testing.assert_allclose(got.log_prob, expected.log_prob, atol=1e-6)


@pytest.mark.parametrize("make", [gaussian_data, mixture_data])
def test_float32_agrees_to_a_ten_thousandth_of_a_nat_per_dimension(make):
    data, ends, dims = make(16), (-10.0, 8.0), 16
    z_0 = draws(data, ends[0]).astype(np.float32)
    single = type(data)(*(np.asarray(a, np.float32) for a in data))
    got = flow.log_prob(z_0, denoiser(single), *ends, "x")
    assert got.log_prob.dtype == jnp.float32
    with jax.enable_x64(True):
        exact = compiled(make, dims)(z_0.astype(np.float64), *ends)
    exact = np.asarray(exact.log_prob)
    np.testing.assert_allclose(got.log_prob / dims, exact / dims, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (12,), (2, 3, 2)])
def test_events_of_any_shape_are_their_elements(x64, shape):
    # Elements independent and alike, so that the density is the sum of that of each.
    var, ends = 0.3, (-6.0, 3.0)

    def optimal(z, gamma):
        g = process.expand(gamma, z)
        alpha = jnp.sqrt(jax.nn.sigmoid(-g))
        return alpha * var / (var * alpha**2 + jax.nn.sigmoid(g)) * z

    z_0 = np.random.default_rng(0).normal(size=(3, *shape))
    run = jax.jit(lambda z: flow.log_prob(z, optimal, *ends, "x", **TIGHT))
    got = run(z_0)
    data = GaussianData(np.zeros(1), np.array([[var]]))
    z_1, log_prob, _ = gaussian_flow(data, z_0.reshape(-1, 1), *ends)
    np.testing.assert_allclose(got.log_prob, log_prob.reshape(3, -1).sum(1), rtol=1e-7)
    np.testing.assert_allclose(got.z_1, z_1.reshape(z_0.shape), rtol=1e-6)


def test_exact_trace_of_more_columns_than_are_computed_at_once(x64):
    dims = 2 * divergence._COLUMNS + 3
    matrix = np.random.default_rng(0).normal(size=(2, dims, dims))
    tangent = functools.partial(jnp.einsum, "bij,bj->bi", jnp.asarray(matrix))
    got = divergence.exact(tangent, jnp.zeros((2, dims)))
    np.testing.assert_allclose(got, np.trace(matrix, axis1=1, axis2=2), rtol=1e-12)


# ---- a batch ----


def test_examples_of_a_batch_have_the_density_they_have_alone(x64):
    data, ends = mixture_data(3), (-8.0, 6.0)
    # An example far out is much the hardest: the easy ones must not hide its error.
    z_0 = np.concatenate([draws(data, ends[0], 20), np.full((1, 3), 6.0)])
    run = jax.jit(lambda z: flow.log_prob(z, denoiser(data), *ends, "x", rtol=1e-6, atol=1e-6))
    together = run(z_0)
    alone = np.array([float(run(row[None]).log_prob[0]) for row in z_0])
    np.testing.assert_allclose(together.log_prob, alone, rtol=1e-5, atol=3e-5)
    prior = marginal_log_prob(data, together.z_1, ends[1]) - standard_log_prob(together.z_1)
    exact = marginal_log_prob(data, z_0, ends[0])
    np.testing.assert_allclose(together.log_prob + prior, exact, rtol=1e-5, atol=3e-5)


def test_an_example_that_is_no_number_leaves_the_others_theirs(x64):
    data, ends = gaussian_data(2), (-6.0, 4.0)
    z_0 = draws(data, ends[0], 4)
    spoilt = np.concatenate([z_0, [[np.nan, 0.1], [np.inf, 0.0]]])
    clean, got = (flow.log_prob(z, data.denoise, *ends, "x") for z in (z_0, spoilt))
    np.testing.assert_allclose(got.log_prob[:4], clean.log_prob, atol=1e-4)
    assert np.all(np.isnan(got.log_prob[4:]))


# ---- back again ----


@pytest.mark.parametrize("make", [gaussian_data, mixture_data])
def test_sample_undoes_the_way_to_z_1(x64, make):
    data, ends = make(2), (-8.0, 6.0)
    z_0 = draws(data, ends[0])
    forth = compiled(make, 2)(z_0, *ends)
    back = flow.sample(forth.z_1, denoiser(data), *ends, "x", **TIGHT)
    np.testing.assert_allclose(back.z_0, z_0, atol=1e-5)


def test_samples_of_gaussian_data_are_the_linear_map_of_their_noise(x64):
    data, (low, high) = gaussian_data(4), (-8.0, 9.0)
    z_1 = np.random.default_rng(3).normal(size=(5, 4))
    got = flow.sample(z_1, data.denoise, low, high, "x", **TIGHT).z_0
    alpha_0, _ = alpha_sigma(low)
    alpha_1, _ = alpha_sigma(high)
    _, _, stretch = gaussian_flow(data, z_1, low, high)
    expected = alpha_0 * data.mean + (z_1 - alpha_1 * data.mean) @ np.linalg.inv(stretch)
    np.testing.assert_allclose(got, expected, atol=1e-6)


# ---- Hutchinson's estimate ----


@pytest.mark.parametrize("probes", divergence.PROBES)
def test_hutchinson_is_unbiased_and_has_the_variance_of_its_closed_form(x64, probes):
    # For Gaussian data the flow is linear and its estimate noise^T log(stretch) noise.
    data, ends, n = gaussian_data(3), (-5.0, 4.0), 4000
    num_probes = 1 if probes == "gaussian" else 3
    z_0 = draws(data, ends[0], 1)
    _, exact, stretch = gaussian_flow(data, z_0, *ends)
    values, basis = np.linalg.eigh(stretch)
    log_stretch = (basis * np.log(values)) @ basis.T
    variance = 2 * np.sum(log_stretch**2)
    if probes == "rademacher":
        variance -= 2 * np.sum(np.diag(log_stretch) ** 2)
    run = jax.jit(
        lambda key: flow.log_prob(
            np.repeat(z_0, n, 0),
            data.denoise,
            *ends,
            "x",
            "hutchinson",
            key,
            probes,
            num_probes,
        )
    )
    estimates = np.asarray(run(jax.random.key(0)).log_prob)
    variance /= num_probes
    assert abs(estimates.mean() - exact[0]) < 4 * np.sqrt(variance / n)
    fourth = np.mean((estimates - estimates.mean()) ** 4)
    assert abs(estimates.var() - variance) < 4 * np.sqrt((fourth - variance**2) / n)
    assert np.max(np.abs(run(jax.random.key(1)).log_prob - estimates)) > 0.1


def test_rademacher_probes_vary_less_than_gaussian_ones(x64):
    data, ends = mixture_data(4), (-5.0, 4.0)
    z_0 = np.repeat(draws(data, ends[0], 1), 500, 0)
    rademacher, gaussian = (
        np.var(
            flow.log_prob(
                z_0, denoiser(data), *ends, "x", "hutchinson", jax.random.key(0), probes
            ).log_prob
        )
        for probes in ("rademacher", "gaussian")
    )
    assert 0 < rademacher < 0.5 * gaussian


# ---- cost, failure, gradient ----


@pytest.mark.parametrize(
    ("trace", "ends"), [("exact", (-8.0, 6.0)), ("hutchinson", (-8.0, 6.0)), ("exact", (-40.0, 30))]
)
def test_count_of_evaluations_is_the_number_of_calls_of_the_denoiser(x64, trace, ends):
    data = mixture_data(3)
    calls = []

    def counted(z, gamma):
        jax.debug.callback(lambda: calls.append(1))
        return denoiser(data)(z, gamma)

    def forth(z):
        return flow.log_prob(z, counted, *ends, "x", trace, jax.random.key(0))

    def back(z):
        return flow.sample(z, counted, *ends, "x")

    rejected = 0
    for run, z in ((forth, draws(data, ends[0])), (back, draws(data, ends[1]))):
        calls.clear()
        got = jax.block_until_ready(jax.jit(run)(z))
        jax.effects_barrier()
        assert len(calls) == int(got.num_evaluations)
        rejected += int(got.num_rejected)
    assert rejected > 0


def test_count_is_right_when_the_first_step_is_rejected(x64):
    # A kink right after the start: the length chosen for the first step is far too long.
    calls = []

    def kinked(z, gamma):
        jax.debug.callback(lambda: calls.append(1))
        return 1e4 * z * jnp.maximum(process.expand(gamma, z) + 0.999999, 0.0)

    got = jax.block_until_ready(flow.log_prob(jnp.ones((1, 1)), kinked, -1.0, -0.9, "v"))
    jax.effects_barrier()
    assert int(got.num_rejected) > 0
    assert len(calls) == int(got.num_evaluations)


def test_giving_up_shows():
    data = gaussian_data(2)
    z = jnp.asarray(draws(data, -9.0, 3), jnp.float32)

    def run(denoise, max_steps):
        forth = flow.log_prob(z, denoise, -9.0, 8.0, "x", max_steps=max_steps)
        return forth, flow.sample(z, denoise, -9.0, 8.0, "x", max_steps=max_steps)

    forth, back = jax.jit(lambda: run(data.denoise, 4))()
    assert np.all(np.isnan(forth.log_prob)) and np.all(np.isnan(back.z_0))
    assert np.all(np.isnan(forth.z_1))
    assert int(forth.num_accepted + forth.num_rejected) == 4
    # Not finite halfway: that is seen in few steps, and not by trying until max_steps.
    forth, back = run(
        lambda z, g: jnp.where(process.expand(g, z) > 0.0, jnp.nan, data.denoise(z, g)), 4096
    )
    assert np.all(np.isnan(forth.log_prob)) and np.all(np.isnan(back.z_0))
    assert int(forth.num_accepted + forth.num_rejected) < 100


def test_ends_in_the_wrong_order_give_no_number_where_no_check_sees_them():
    data, z = gaussian_data(2), jnp.zeros((2, 2))
    run = jax.jit(lambda low, high: flow.log_prob(z, data.denoise, low, high, "x").log_prob)
    assert np.all(np.isfinite(run(-3.0, 3.0)))
    assert np.all(np.isnan(run(3.0, -3.0)))
    back = jax.jit(lambda low, high: flow.sample(z, data.denoise, low, high, "x").z_0)
    assert np.all(np.isnan(back(3.0, -3.0)))


@pytest.mark.parametrize("trace", divergence.TRACES)
def test_gradient_agrees_with_finite_differences(x64, trace):
    data = mixture_data(2)
    z_0 = draws(data, -5.0, 3)

    def total(params):
        def denoise(z, gamma):
            return params[0] * denoiser(data)(z + params[1], gamma)

        low, high, shift = -5.0 + params[2], 4.0 + params[3], params[4]
        got = flow.log_prob(
            z_0 + shift, denoise, low, high, "x", trace, jax.random.key(0), rtol=1e-10, atol=1e-10
        )
        return got.log_prob.sum()

    params, h = jnp.array([0.9, 0.05, 0.0, 0.0, 0.02]), 1e-4
    value = jax.jit(total)
    numeric = [(value(params + row) - value(params - row)) / (2 * h) for row in h * np.eye(5)]
    np.testing.assert_allclose(jax.jit(jax.grad(total))(params), numeric, rtol=1e-4)
    assert np.all(np.abs(np.array(numeric)) > 1e-3)


# ---- images ----

MEAN, VAR, LEVELS, ENDS = 0.2, 0.02, 4, (-4.0, 3.0)
IMAGE = np.array([2, 3])


def pixel_denoiser(z, gamma):
    """E[x|z] of independent pixels x ~ N(MEAN, VAR), elementwise."""
    g = process.expand(gamma, z)
    alpha = jnp.sqrt(jax.nn.sigmoid(-g))
    gain = alpha * VAR / (VAR * alpha**2 + jax.nn.sigmoid(g))
    return MEAN + gain * (z - alpha * MEAN)


def pixel_model():
    """The exact distribution of one element of z_0 in that model."""
    data = GaussianData(np.array([MEAN]), np.array([[VAR]]))
    _, _, stretch = gaussian_flow(data, np.zeros((1, 1)), *ENDS)
    (alpha_0, _), (alpha_1, _) = alpha_sigma(ENDS[0]), alpha_sigma(ENDS[1])
    scale = 1 / stretch[0, 0]
    return stats.norm(alpha_0 * MEAN - scale * alpha_1 * MEAN, scale)


def bin_of(level: int) -> tuple[float, float]:
    alpha_0, _ = alpha_sigma(ENDS[0])
    return alpha_0 * (2 * level / LEVELS - 1), alpha_0 * (2 * (level + 1) / LEVELS - 1)


def noise_within(low: float, high: float, method: str):
    """The distribution of z_0 in a bin, by scipy."""
    if method == "uniform":
        return stats.uniform(low, high - low)
    _, sigma_0 = alpha_sigma(ENDS[0])
    tau = 0.5 * (high - low) / sigma_0
    return stats.truncnorm(-tau, tau, loc=0.5 * (low + high), scale=sigma_0)


@functools.cache
def image_bounds(method: str, num_samples: int) -> np.ndarray:
    """3000 independent samples of the bound on -log P(IMAGE)."""
    images = np.repeat(IMAGE[None], 3000, 0)
    run = jax.jit(
        lambda key: (
            flow.dequantized_nats(
                key,
                images,
                pixel_denoiser,
                schedule.linear(*ENDS),
                LEVELS,
                method,
                num_samples,
                kind="x",
            ).nats
        )
    )
    return np.asarray(run(jax.random.key(num_samples)), np.float64)


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_dequantized_bound_averages_to_its_integral_over_the_bin(method):
    t, weights = gauss_legendre(40, 8)
    expected = 0.0
    for level in IMAGE:
        low, high = bin_of(level)
        z, q = low + (high - low) * t, noise_within(low, high, method)
        values = q.pdf(z) * (q.logpdf(z) - pixel_model().logpdf(z))
        expected += (high - low) * weights @ values
    got = image_bounds(method, 1)
    error = got.std() / np.sqrt(got.size)
    assert abs(got.mean() - expected) < 4 * error
    assert error < 0.05 * expected


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_more_draws_bring_the_bound_down_to_the_probability_of_the_image(method):
    edges = np.array([bin_of(level) for level in IMAGE])
    exact = -np.log(np.diff(pixel_model().cdf(edges), axis=1)).sum()
    bounds = [image_bounds(method, num_samples) for num_samples in (1, 8, 64)]
    excess = np.array([b.mean() for b in bounds]) - exact
    errors = np.array([b.std() / np.sqrt(b.size) for b in bounds])
    assert np.all(excess > -4 * errors)
    assert np.all(np.diff(excess) < 0)
    # About var(weight) / 2K: with 64 draws what is left is small beside log 64 = 4.2.
    assert excess[0] > 0.1
    assert abs(excess[-1]) < 0.2 * excess[0] < 1.0


def test_every_draw_is_counted_and_has_its_own_noise():
    images, gamma = IMAGE[None], schedule.linear(*ENDS)
    one, four = (
        flow.dequantized_nats(
            jax.random.key(0), images, pixel_denoiser, gamma, LEVELS, num_samples=k, kind="x"
        )
        for k in (1, 4)
    )
    assert 3 * one.num_evaluations < four.num_evaluations < 5 * one.num_evaluations
    assert np.unique(image_bounds("uniform", 1)).size > 2900


def test_what_is_no_image_has_no_bound():
    images = jnp.array([[1, 2], [1, 4], [-1, 2]])
    got = flow.dequantized_nats(
        jax.random.key(0), images, pixel_denoiser, schedule.linear(*ENDS), LEVELS, kind="x"
    )
    np.testing.assert_array_equal(np.isnan(got.nats), [False, True, True])


# ---- errors ----


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (
            r"gamma_0 must be below gamma_1 .* got gamma_0 = 1\.0 and gamma_1 = 1\.0",
            {"gamma_0": 1.0},
        ),
        (r"gamma_0 must be below gamma_1 .* both finite", {"gamma_0": -np.inf}),
        (r"gamma_0 must be below gamma_1 .* both finite", {"gamma_1": np.nan}),
        (r"gamma_0 must be a scalar, got shape \(2,\)", {"gamma_0": np.zeros(2)}),
        (
            r"latents must be floats \[batch, \*event\], got int32\[2, 3\]",
            {"z": np.zeros((2, 3), int)},
        ),
        (r"latents must be floats \[batch, \*event\], got float32\[\]", {"z": np.zeros(())}),
        (r"rtol must be positive, got 0\.0", {"rtol": 0.0}),
        (r"atol must be positive, got -1e-05", {"atol": -1e-5}),
        (r"rtol must be positive, got nan", {"rtol": np.nan}),
        (r"are finer than float32 resolves; raise rtol to 4\.8e-07", {"rtol": 1e-8, "atol": 1e-8}),
        (r"max_steps must be an integer of at least 1, got 0", {"max_steps": 0}),
        (r"kind must be one of eps, x, v, score, got 'z'", {"kind": "z"}),
        (
            r"the prediction has shape \(2,\), but z_t has \(2, 3\)",
            {"denoise": lambda z, g: z[:, 0]},
        ),
    ],
)
def test_settings_out_of_range_are_refused(match, options):
    arguments = {"z": np.zeros((2, 3)), "denoise": lambda z, g: z, "gamma_0": -1.0, "gamma_1": 1.0}
    arguments |= options
    z = arguments.pop("z")
    for run in (flow.log_prob, flow.sample):
        with pytest.raises(ValueError, match=match):
            run(z, **arguments)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"trace must be one of exact, hutchinson, got 'skilling'", {"trace": "skilling"}),
        (r"probes must be one of rademacher, gaussian, got 'sphere'", {"probes": "sphere"}),
        (r"num_probes must be an integer of at least 1, got 0", {"num_probes": 0}),
        (r"trace='hutchinson' draws probes: give it a key", {"trace": "hutchinson"}),
    ],
)
def test_unknown_estimates_of_the_trace_are_refused(match, options):
    with pytest.raises(ValueError, match=match):
        flow.log_prob(np.zeros((2, 3)), lambda z, g: z, -1.0, 1.0, **options)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"num_samples must be an integer of at least 1, got 0", {"num_samples": 0}),
        (
            r"method must be one of uniform, truncated_normal, got 'logit'",
            {"dequantization": "logit"},
        ),
        (r"levels must be an integer of at least 1, got 0", {"levels": 0}),
    ],
)
def test_images_that_cannot_be_bounded_are_refused(match, options):
    with pytest.raises(ValueError, match=match):
        flow.dequantized_nats(
            jax.random.key(0),
            IMAGE[None],
            pixel_denoiser,
            schedule.linear(*ENDS),
            **options,
        )
