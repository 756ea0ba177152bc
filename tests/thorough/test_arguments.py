"""Arguments drawn at random, at the edge of sense too, against the paper's formulas."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import alpha_sigma
from scipy.special import logsumexp

from vdm_jax import VDM, pixels, schedule

GAMMAS = st.one_of(st.floats(-80.0, 80.0), st.sampled_from([-80.0, 0.0, 80.0]))
SHAPES = st.sampled_from([(3,), (1, 1), (1, 3, 1, 1), (2, 1, 7, 3), (0, 4)])
quick = settings(max_examples=50, deadline=None, derandomize=True)
quicker = settings(quick, max_examples=15)  # each new shape is compiled anew


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
        vdm = VDM(twice, schedule.linear(*ends), shape[1:], levels, num_steps=num_steps)
        got = vdm.elbo_given(images, eps, t, eps_0)
        drawn = vdm.elbo(jax.random.key(seed), images)
    numpy_line = lambda t: ends[0] + (ends[1] - ends[0]) * t  # noqa: E731
    exact = exact_terms(images, eps_0, eps, t, numpy_line, levels, num_steps)
    for ours, wanted in zip(got, exact, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-9)
    assert drawn.total.shape == shape[:1] and np.isfinite(drawn.total).all()


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
