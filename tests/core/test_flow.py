import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, Mixture, alpha_sigma, normal_denoiser
from scipy import stats

from vdm_jax import (
    VDM,
    flow,
    ode,
    parameterization,
    pixels,
    process,
    sampling,
    schedule,
    transforms,
)

TIGHT = ode.Solver(rtol=1e-8, atol=1e-8)


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
    if isinstance(data, Mixture):
        k = rng.integers(0, 3, batch)
        x = rng.normal(data.means[k], np.sqrt(data.var[k])[:, None])
    else:
        x = rng.multivariate_normal(data.mean, data.cov, batch)
    alpha, sigma = alpha_sigma(gamma)
    return alpha * x + sigma * rng.normal(size=x.shape)


def model(data: GaussianData | Mixture, low, high) -> VDM:
    """The optimal denoiser of the data, a prediction of kind x, with its schedule's end points."""
    denoise = jax.vmap(data.denoise) if isinstance(data, Mixture) else data.denoise
    shape = data.means.shape[1:] if isinstance(data, Mixture) else data.mean.shape
    return VDM(denoise, schedule.linear(low, high), shape, None, "x")


def marginal_log_prob(data: Mixture, z: np.ndarray, gamma: float) -> np.ndarray:
    """log q(z) of the latents at gamma, [batch]."""
    return np.asarray(jax.vmap(lambda row: data.log_prob(row, gamma))(jnp.asarray(z)))


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
    kind, data, z = "score", mixture_data(3), jnp.asarray(draws(mixture_data(3), -1.0))
    of_x = model(data, -6.0, 5.0)

    def denoise(z, gamma):
        x_hat = of_x.denoise(z, gamma)
        return getattr(parameterization, f"to_{kind}")(x_hat, z, gamma, "x"), jnp.zeros_like(z)

    vdm = of_x._replace(denoise=denoise, kind=kind, reverse_var="learned")
    for gamma in (-6.0, 5.0):
        score = jax.vmap(jax.grad(data.log_prob), (0, None))(z, gamma)
        expected = -0.5 * alpha_sigma(gamma)[1] ** 2 * (z + score)
        np.testing.assert_allclose(flow.drift(vdm, z, gamma), expected, rtol=1e-9, atol=1e-12)


# ---- the density against closed forms ----


def test_flow_of_gaussian_data_is_its_closed_form(x64):
    data = gaussian_data(5)
    run = jax.jit(lambda z, low, high: flow.log_prob(model(data, low, high), z, TIGHT))
    back = jax.jit(lambda z, low, high: flow.sample(model(data, low, high), z, TIGHT))
    for ends in ((-9.0, 8.0), (-2.0, 1.0)):
        z_0 = draws(data, ends[0])
        z_1, log_prob, _ = gaussian_flow(data, z_0, *ends)
        got = run(z_0, *ends)
        np.testing.assert_allclose(got.z, z_1, atol=1e-6)
        np.testing.assert_allclose(got.log_prob / 5, log_prob / 5, atol=1e-6)
        np.testing.assert_allclose(back(z_1, *ends).z, z_0, atol=1e-6)
    # Ends in the wrong order, which no check sees inside jit, give no number.
    assert np.isnan(run(z_0, 3.0, -3.0).log_prob).all()
    assert np.isnan(back(z_1, 3.0, -3.0).z).all()


def test_density_is_that_of_the_marginal_but_for_the_prior(x64):
    # log q(z_0) - log p(z_0) = log q(z_1) - log N(z_1; 0, I) for the data's own score, at any end.
    data = mixture_data(2)
    run = jax.jit(lambda z, low, high: flow.log_prob(model(data, low, high), z, TIGHT))
    low, high = -8.0, 6.0
    # An example far out is much the hardest, and one no number: the others keep their accuracy.
    z_0 = np.concatenate([draws(data, low), [[6.0, 6.0], [np.nan, 0.1]]])
    got = run(z_0, low, high)
    prior = marginal_log_prob(data, got.z, high) - standard_log_prob(got.z)
    error = got.log_prob + prior - marginal_log_prob(data, z_0, low)
    assert np.max(np.abs(error[:-1])) < 2e-6
    assert np.max(np.abs(prior[:-1])) > 1e-3
    assert np.isnan(got.log_prob[-1])
    # It tends to the density of the data as the ends go outwards.
    x = draws(data, -200.0, 8)
    exact, errors = marginal_log_prob(data, x, -200.0), []
    for reach in (8.0, 16.0, 32.0):
        alpha, _ = alpha_sigma(-reach)
        errors.append(np.max(np.abs(run(alpha * x, -reach, reach).log_prob - exact)))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


MEAN, VAR, LEVELS, ENDS = 0.2, 0.02, 4, (-4.0, 3.0)
IMAGE, REPEATS = np.array([2, 3]), 800


PIXELS = VDM(normal_denoiser(MEAN, VAR), schedule.linear(*ENDS), (2,), LEVELS, "x")


def test_log_prob_of_a_model_is_the_density_of_x_itself_for_events_of_any_shape():
    x = np.random.default_rng(0).normal(MEAN, VAR**0.5, size=(3, 2, 2)).astype(np.float32)
    vdm = PIXELS._replace(event_shape=(2, 2), levels=None)
    got = jax.jit(vdm.log_prob)(jax.random.key(0), x)
    scale, data = alpha_sigma(ENDS[0])[0], GaussianData(np.array([MEAN]), np.array([[VAR]]))
    _, exact, _ = gaussian_flow(data, scale * x.reshape(-1, 1), *ENDS)
    np.testing.assert_allclose(got, np.sum((exact + np.log(scale)).reshape(3, 4), 1), atol=4e-4)


# ---- cost ----


def test_count_of_evaluations_is_the_number_of_calls_of_the_denoiser():
    # A kink right after the start: the length chosen for the first step is far too long.
    calls = []

    def kinked(z, gamma):
        jax.debug.callback(lambda: calls.append(1))
        return 1e4 * z * jnp.maximum(process.expand(gamma, z) + 0.999999, 0.0)

    vdm = VDM(kinked, schedule.linear(-1.0, -0.9), (1,), None, "v")
    _, _, steps = jax.block_until_ready(jax.jit(lambda z: flow.log_prob(vdm, z))(jnp.ones((1, 1))))
    jax.effects_barrier()
    assert int(steps.rejected) > 0
    assert len(calls) == int(steps.evaluations)


# ---- images ----


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


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_more_draws_bring_the_bound_down_to_the_probability_of_the_image(method):
    # Independent samples of the bound, and two of what is no image.
    images = np.concatenate([np.repeat(IMAGE[None], REPEATS, 0), [[1, 4], [-1, 2]]])
    one, many = (
        jax.jit(lambda key, k=k: flow.dequantized_nats(PIXELS, key, images, method, k))(
            jax.random.key(k)
        )
        for k in (1, 32)
    )
    samples = np.stack([one.nats, many.nats]).astype(np.float64)
    assert np.isnan(samples[:, REPEATS:]).all()
    samples = samples[:, :REPEATS]
    edges = np.array([bin_of(level) for level in IMAGE])
    exact = -np.log(np.diff(pixel_model().cdf(edges), axis=1)).sum()
    excess, errors = samples.mean(1) - exact, samples.std(1) / np.sqrt(REPEATS)
    assert np.all(excess > -4 * errors)
    # About var(weight) / 2K: with 32 draws what is left is small beside log 32 = 3.5.
    assert excess[0] > 0.1
    assert abs(excess[1]) < 0.2 * excess[0] < 1.0
    # Every draw is counted, and has its own noise.
    assert 24 < int(many.num_evaluations) / int(one.num_evaluations) < 40
    assert np.unique(samples[0]).size > 0.95 * REPEATS


# ---- errors ----


def test_models_without_a_flow_and_what_is_no_latent_are_refused():
    def of(run=flow.log_prob, z=np.zeros((1, 2)), solver=ode.DEFAULT, **changes):  # noqa: B008
        return lambda: run(PIXELS._replace(**changes), z, solver)

    def nats(*args, **changes):
        vdm = PIXELS._replace(**changes)
        return lambda: flow.dequantized_nats(vdm, jax.random.key(0), IMAGE[None], *args)

    order = "gamma(0) must be below gamma(1), both finite, got"
    for call, message in (
        (of(gamma=lambda t: 1.0 - t), f"{order} 1.0 and 0.0."),
        (of(flow.sample, gamma=lambda t: 0.0 * t), f"{order} 0.0 and 0.0."),
        (of(gamma=lambda t: -1.0 / t), f"{order} -inf and -1.0."),
        (nats(levels=None), "data without levels must be floats [batch, *event], got int"),
        (of(flow.sample, IMAGE[None]), "latents must be floats [batch, *event], got int"),
        (of(solver=ode.Solver("hutchinson")), "give it a key, got key=None."),
        (
            lambda: PIXELS.log_prob(jax.random.key(0), jnp.zeros((1, 2), int), rtol=0.0),
            "rtol must be positive, got 0.0.",
        ),
        (nats("uniform", 0), "num_samples must be an integer of at least 1, got 0."),
        (of(gamma=lambda t: t[:, None] + np.zeros((5, 2))), "gamma of shape (5, 2) does not go"),
        (
            lambda: flow.log_prob(sampling.guided(PIXELS, PIXELS, 2.0), np.zeros((1, 2))),
            "a model guided with scale 2 has no likelihood",
        ),
        (nats("logit"), "method must be one of uniform, truncated_normal, got 'logit'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_data_of_half_precision_have_the_density_that_they_have_in_float32():
    gamma, key = schedule.linear(-13.3, 5.0), jax.random.key(0)
    for levels in (None, transforms.Coefficients(None, transforms.dct())):
        vdm = VDM(lambda z, gamma: 0.5 * z, gamma, (4,), levels, "x")
        x = jnp.array([[0.3, -0.4, 0.1, 0.9]], jnp.bfloat16)
        nats = vdm.log_prob(key, x)
        np.testing.assert_allclose(nats, vdm.log_prob(key, x.astype(jnp.float32)), rtol=1e-6)


def test_inside_shard_map_the_density_is_the_same_and_what_it_needs_is_said():
    mesh, x = jax.sharding.Mesh(jax.devices()[:1], "data"), jnp.array([[0.3, -0.4], [0.1, 0.9]])
    vdm = VDM(lambda z, gamma: 0.5 * z, schedule.linear(-4.0, 3.0), (2,), None, "x")
    log_prob = functools.partial(vdm.log_prob, jax.random.key(0))
    specs = {"in_specs": jax.P("data"), "out_specs": jax.P("data")}
    sharded = jax.jit(jax.shard_map(log_prob, mesh=mesh, **specs, check_vma=False))
    np.testing.assert_allclose(sharded(x), jax.jit(log_prob)(x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"in jax\.shard_map needs its check_vma=False"):
        jax.shard_map(log_prob, mesh=mesh, **specs)(x)
