"""Arguments at the edge of sense: the right number, or a ValueError that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import alpha_sigma
from scipy.special import logsumexp

from vdm_jax import (
    loss,
    parameterization,
    pixels,
    process,
    sampler,
    schedule,
    spacing,
    timestep,
    twosample,
)
from vdm_jax.related import binomial

KEY = jax.random.key(0)
LINE = schedule.linear(-8.0, 5.0)
GAMMAS = st.one_of(st.floats(-80.0, 80.0), st.sampled_from([-80.0, 0.0, 80.0]))
SHAPES = st.sampled_from([(3,), (1, 1), (1, 3, 1, 1), (2, 1, 7, 3), (0, 4)])
quick = settings(max_examples=50, deadline=None, derandomize=True)
# Each new shape is compiled anew.
quicker = settings(quick, max_examples=15)


def twice(z_t, gamma_t):
    """Some denoiser."""
    return 2.0 * z_t


def exact_terms(images, eps_0, eps, t, gamma, levels, num_steps):
    """The bound's three terms by the paper's formulas, in float64, for `twice` as eps."""
    x = 2.0 * (images + 0.5) / levels - 1.0
    batch = (len(images), *[1] * (images.ndim - 1))
    axes = tuple(range(1, images.ndim))
    gamma_0, gamma_1 = gamma(0.0), gamma(1.0)
    if num_steps is None:
        weight, at = np.full(len(t), gamma_1 - gamma_0), gamma(t)
    else:
        i = np.clip(np.ceil(t * num_steps), 1, num_steps)
        at = gamma(i / num_steps)
        weight = num_steps * np.expm1(at - gamma((i - 1) / num_steps))
    alpha, sigma = (each.reshape(batch) for each in alpha_sigma(at))
    error = np.square(eps - 2.0 * (alpha * x + sigma * eps)).sum(axes)
    alpha_1, sigma_1 = alpha_sigma(gamma_1)
    prior = 0.5 * (sigma_1**2 - 1.0 - 2.0 * np.log(sigma_1) + (alpha_1 * x) ** 2).sum(axes)
    z = x + np.exp(gamma_0 / 2.0) * eps_0
    values = 2.0 * (np.arange(levels) + 0.5) / levels - 1.0
    logits = -0.5 * np.exp(-gamma_0) * (z[..., None] - values) ** 2
    picked = -0.5 * np.exp(-gamma_0) * (z - x) ** 2
    return (logsumexp(logits, axis=-1) - picked).sum(axes), prior, 0.5 * weight * error


@quicker
@given(
    shape=SHAPES,
    levels=st.sampled_from([1, 2, 17, 256]),
    ends=st.sampled_from([(-13.3, 5.0), (-40.0, 40.0), (-80.0, 1.0), (-1.0, 80.0)]),
    num_steps=st.sampled_from([None, 2, 1000, 2**23]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_bound_of_any_shape_levels_and_schedule(shape, levels, ends, num_steps, seed):
    """Against the formulas in float64: one example or none, one level, gammas of +-80."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, shape)
    eps_0, eps, t = rng.normal(size=shape), rng.normal(size=shape), rng.random(shape[0])
    with jax.enable_x64(True):
        line = schedule.linear(*ends)
        got = loss.elbo_given(images, eps_0, eps, t, twice, line, levels, num_steps)
        drawn = loss.elbo(jax.random.key(seed), images, twice, line, levels, num_steps)
    numpy_line = lambda t: ends[0] + (ends[1] - ends[0]) * t  # noqa: E731
    exact = exact_terms(images, eps_0, eps, t, numpy_line, levels, num_steps)
    for ours, wanted in zip(got, exact, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-9)
    assert drawn.total.shape == shape[:1] and np.isfinite(drawn.total).all()


@quick
@given(a=GAMMAS, b=GAMMAS, x=st.floats(-1.0, 1.0), z=st.floats(-4.0, 4.0))
def test_the_process_between_any_two_gammas(a, b, x, z):
    """Bayes' rule: q(z_s|z_t, x) has the density of q(z_s|x) q(z_t|z_s) / q(z_t|x)."""
    gamma_s, gamma_t = min(a, b), max(a, b)
    if gamma_t - gamma_s < 1e-3:
        gamma_s, gamma_t = min(gamma_s, 79.0), max(gamma_t, gamma_s + 1.0)
    with jax.enable_x64(True):
        xs, zs = jnp.full((1, 1), x), jnp.full((1, 1), z)
        posterior = process.posterior(zs, xs, gamma_s, gamma_t)
        transition = process.transition(zs, gamma_s, gamma_t)
    alpha_s, sigma_s = alpha_sigma(gamma_s)
    alpha_t, sigma_t = alpha_sigma(gamma_t)
    c = -np.expm1(gamma_s - gamma_t)
    np.testing.assert_allclose(transition.var, sigma_t**2 * c, rtol=1e-9)
    np.testing.assert_allclose(transition.mean, alpha_t / alpha_s * z, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(posterior.var, sigma_s**2 * c, rtol=1e-9)
    of_z = np.exp(0.5 * (np.log(alpha_s) - np.log(alpha_t)) * 2 + gamma_s - gamma_t)
    np.testing.assert_allclose(posterior.mean, of_z * z + alpha_s * c * x, rtol=1e-8, atol=1e-15)


@quick
@given(gamma=st.floats(-30.0, 30.0), x=st.floats(-1.0, 1.0), eps=st.floats(-4.0, 4.0))
@pytest.mark.parametrize("kind", parameterization.KINDS)
def test_every_prediction_stands_for_the_same_data(kind, gamma, x, eps):
    alpha, sigma = alpha_sigma(gamma)
    truth = {"x": x, "eps": eps, "v": alpha * eps - sigma * x, "score": -eps / sigma}
    with jax.enable_x64(True):
        z_t = jnp.full((1, 2), alpha * x + sigma * eps)
        for name, convert in (
            ("x", parameterization.to_x),
            ("eps", parameterization.to_eps),
            ("v", parameterization.to_v),
            ("score", parameterization.to_score),
        ):
            got = convert(jnp.full((1, 2), truth[kind]), z_t, gamma, kind)
            # From the noise to the data and back is worth exp(|gamma| / 2) of the rounding.
            scale = 1e-14 * np.exp(0.5 * abs(gamma)) * (1 + 1 / sigma)
            np.testing.assert_allclose(got, truth[name], rtol=1e-9, atol=10 * scale)


@quicker
@given(gamma_0=GAMMAS, levels=st.sampled_from([1, 2, 17, 256]), seed=st.integers(0, 99))
def test_pixels_at_any_noise(gamma_0, levels, seed):
    """The probabilities of the levels sum to one, and `log_prob` is one of them."""
    rng = np.random.default_rng(seed)
    z, images = rng.normal(size=(1, 5)), rng.integers(0, levels, (1, 5))
    with jax.enable_x64(True):
        every = np.asarray(pixels.decode_log_probs(z, gamma_0, levels))
        picked = pixels.log_prob(images, z, gamma_0, levels)
        expected = pixels.expected_log_prob(images, gamma_0, levels)
        decoded = pixels.decode(z, gamma_0, levels)
    np.testing.assert_allclose(logsumexp(every, axis=-1), 0.0, atol=1e-9)
    wanted = np.take_along_axis(every, images[..., None], -1)[..., 0]
    np.testing.assert_allclose(picked, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(decoded, np.argmax(every, -1))
    assert np.isfinite(expected).all() and (np.asarray(expected) <= 1e-12).all()


@quick
@given(t=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), num_steps=st.integers(1, 2**23))
def test_the_grid_of_any_number_of_steps(t, num_steps):
    """The step that a time falls into holds it, in float32 too."""
    s, up = (np.asarray(each, np.float64) for each in timestep.grid(jnp.array(t), num_steps))
    slack = 1e-6
    assert (s >= 0.0).all() and (up <= 1.0).all() and (up > s).all()
    assert (s <= np.asarray(t) + slack).all() and (np.asarray(t) <= up + slack).all()


@quicker
@given(shape=SHAPES, num_steps=st.integers(1, 3), ends=st.tuples(GAMMAS, GAMMAS))
def test_samples_of_any_shape_between_any_gammas(shape, num_steps, ends):
    low, high = min(ends), max(ends)
    line = schedule.linear(low, max(high, low + 1.0))
    zeros = lambda z, g: jnp.zeros_like(z)  # noqa: E731
    z_0 = sampler.ancestral(KEY, zeros, line, shape, num_steps, kind="x")
    assert z_0.shape == shape and np.isfinite(z_0).all()
    assert sampler.to_images(z_0, low, 4).shape == shape


@pytest.mark.parametrize("ends", [(-80.0, 80.0), (-13.3, 5.0), (-40.0, -3.0), (2.0, 70.0)])
@pytest.mark.parametrize("s", [0.0, 0.008, 3.0])
def test_the_cosine_schedule_between_any_gammas(ends, s):
    """Its own formula in float64 at its end points, however near to the ends of the curve."""
    t = jnp.linspace(0.0, 1.0, 5)
    got = np.asarray(schedule.cosine(*ends, s)(t))
    np.testing.assert_allclose(got[[0, -1]], ends, rtol=2e-5)
    assert (np.diff(got) > 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda a: process.marginal(a([[1.0, 2.0]]), a([0.5])),
        lambda a: process.transition(a([[1.0, 2.0]]), -1.0, 1.0),
        lambda a: process.posterior(a([[1.0, 2.0]]), a([[0.5, 0.0]]), -1.0, 1.0),
        lambda a: loss.prior(a([[1.0, 2.0]]), 5.0),
        lambda a: loss.reconstruction(a([[1, 2]]), a([[0.1, 0.2]]), -5.0, 4),
        lambda a: loss.diffusion(a([[1.0, 2.0]]), a([[0.0, 1.0]]), a([0.5]), twice, LINE),
        lambda a: loss.elbo(KEY, a([[1, 2], [3, 0]]), twice, LINE, levels=4),
        lambda a: pixels.decode(a([0.0, 1.0]), -5.0, 4),
        lambda a: pixels.log_prob(a([0, 1]), a([0.0, 1.0]), -5.0, 4),
        lambda a: timestep.grid(a([0.0, 0.5, 1.0]), 4),
        lambda a: timestep.proposal([1.0, 2.0]).at(a([0.0, 0.5])),
        lambda a: schedule.cosine()(a([0.0, 1.0])),
        lambda a: LINE(a([0.0, 1.0])),
        lambda a: sampler.to_images(a([[1.0, 2.0]]), -5.0, 4),
    ],
)
def test_lists_are_taken_for_arrays(call):
    listed, arrays = jax.tree.leaves(call(lambda v: v)), jax.tree.leaves(call(jnp.array))
    for one, other in zip(listed, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


ONES = jnp.ones((2, 3))
ZEROS = jnp.zeros((2, 3), int)
HALF = jnp.array([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss.elbo(KEY, ZEROS, twice, LINE, levels=0), "levels must be an integer of at"),
        (lambda: loss.elbo(KEY, ZEROS, twice, LINE, levels=2**17), "levels must be at most 65536"),
        (lambda: loss.elbo(KEY, ZEROS, twice, LINE, num_steps=0), "num_steps must be an integer"),
        (lambda: loss.elbo(KEY, ZEROS, twice, LINE, num_steps=2**24), "num_steps = 16777216 is lo"),
        (lambda: loss.elbo(KEY, 3, twice, LINE), r"images must be \[batch, \*event\], got \(\)"),
        (lambda: loss.elbo(KEY, ZEROS + 0j, twice, LINE), "images must be integers .* complex"),
        (lambda: loss.elbo(KEY, ZEROS, lambda z, g: None, LINE), "the prediction has shape NoneT"),
        (lambda: loss.elbo(KEY, ZEROS, twice, lambda t: t.sum()), "gamma must map"),
        (lambda: loss.elbo(KEY, ZEROS, twice, lambda t: 5 - 9 * t), "gamma must rise with t"),
        (
            lambda: loss.elbo(KEY, ZEROS, twice, schedule.linear(-80.0, 80.0), num_steps=1),
            "gamma must rise with t, and by so little in a step that exp of it is a float32",
        ),
        (
            lambda: loss.diffusion(ONES, ONES, jnp.array([0.5, 1.5]), twice, LINE),
            "t must lie in .*1.5",
        ),
        (lambda: loss.diffusion(ONES, ONES, jnp.array([-0.5, 1.0]), twice, LINE), "t must lie in"),
        (lambda: loss.diffusion(ONES, ONES, HALF * jnp.nan, twice, LINE), "t must lie in .* nan"),
        (lambda: timestep.grid(jnp.array([2.0]), 4), "t must lie in"),
        (lambda: binomial.elbo_given(ZEROS, ONES, HALF * 4, twice, LINE, 3), "t must lie in"),
        (lambda: process.transition(ONES, 1.0, -1.0), "gamma_s must not be above gamma_t"),
        (lambda: process.posterior(ONES, ONES, 1.0, -1.0), "gamma_s must not be above gamma_t"),
        (lambda: process.reverse(ONES, ONES, jnp.nan, 1.0), "gamma_s must not be above gamma_t"),
        (lambda: sampler.ancestral_step(ONES, ONES, twice, 1.0, 0.0), "gamma_s must not be above"),
        (lambda: loss.bits_per_dim(1.0, (-1, -2)), "event_shape must be a shape"),
        (lambda: loss.bits_per_dim(1.0, (2.5,)), "event_shape must be a shape"),
        (lambda: loss.bits_per_dim(1.0, 3), "event_shape must be a shape"),
        (lambda: loss.bits_per_dim(1.0, (0,)), "event_shape must be a shape"),
        (lambda: sampler.ancestral(KEY, twice, LINE, (2, 3), 0), "num_steps must be an integer"),
        (lambda: sampler.ancestral(KEY, twice, LINE, (), 2), r"shape must be \[batch, \*event\]"),
        (lambda: sampler.ancestral(KEY, twice, LINE, 3, 2), r"shape must be \[batch, \*event\]"),
        (lambda: sampler.ancestral(KEY, twice, LINE, (-1, 2), 2), "each size of shape must be"),
        (lambda: timestep.uniform(KEY, -1), "batch_size must be an integer of at least 0"),
        (lambda: timestep.antithetic(KEY, 2.5), "batch_size must be an integer of at least 0"),
        (lambda: timestep.profile([0.5], [1.0], 10**12), "num_bins must be at most"),
        (lambda: spacing.table(LINE, -2), "num_steps must be an integer"),
        (lambda: pixels.log_prob(ZEROS, ONES[:1], -5.0, 4), "images .* and z_0_rescaled .* differ"),
        (lambda: schedule.linear(-np.inf, 5.0), "gamma_min must be finite"),
        (lambda: schedule.beta_linear(beta_max=np.inf), "beta_max < inf"),
        (lambda: schedule.ddpm_betas(-1), "num_latents must be an integer of at least 1"),
        (lambda: schedule.cosine_betas(2.5), "num_latents must be an integer of at least 1"),
        (lambda: schedule.to_betas(LINE, 2.5), "num_latents must be an integer of at least 2"),
        (lambda: twosample.mmd(np.ones((3, 2)), np.ones((3, 2)), 0.0), "scales must be positive"),
        (lambda: twosample.mmd(np.ones((3, 2)), np.ones((3, 2)), []), "scales must be positive"),
        (lambda: twosample.directions(KEY, 0, 2), "num must be an integer of at least 1"),
    ],
)
def test_what_would_give_a_wrong_number_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_inside_jit_nothing_is_looked_at():
    """The values are not known there; at the same good ones the numbers are the same."""
    call = lambda t: loss.diffusion(ONES, ONES, t, twice, LINE, 4)  # noqa: E731
    np.testing.assert_allclose(jax.jit(call)(HALF), call(HALF), rtol=1e-6)
    assert np.shape(jax.jit(call)(HALF * 4)) == (2,)
