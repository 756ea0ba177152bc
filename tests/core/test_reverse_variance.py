"""The variance of p(z_s|z_t): the kernel, its loss, and data for which a choice of it is exact."""

import itertools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, cubature, over_times_and_noise
from scipy import special

from vdm_jax import VDM, loss, process, sampling, schedule
from vdm_jax.distributions import Gaussian

GAMMA = schedule.linear(-6.0, 4.0)
COSINE = schedule.cosine(-6.0, 4.0)


# ---- the kernel ----


def test_share_one_has_the_transition_s_variance_and_others_are_log_linear(x64):
    gamma_s = np.array([-80.0, -13.3, -13.3, -1.0, 5.0, 40.0])
    gamma_t = np.array([5.0, -13.28, 5.0, 2.0, 5.0001, 80.0])
    z_t, x_hat = jax.random.normal(jax.random.key(0), (2, 6, 4))
    share = jax.random.uniform(jax.random.key(2), z_t.shape)
    reverse = jax.jit(lambda share: process.reverse(z_t, x_hat, gamma_s, gamma_t, share))
    zero, between, one = (reverse(s) for s in (0 * share, share, 0 * share + 1))
    narrow = process.posterior(z_t, x_hat, gamma_s, gamma_t)
    wide = process.transition(z_t, gamma_s, gamma_t).var
    np.testing.assert_allclose(between.mean, narrow.mean, rtol=1e-12)
    np.testing.assert_allclose(zero.var, np.broadcast_to(narrow.var, (6, 4)), rtol=1e-12)
    np.testing.assert_allclose(one.var, np.broadcast_to(wide, (6, 4)), rtol=1e-11)
    expected = (1 - share) * jnp.log(narrow.var) + share * jnp.log(wide)
    np.testing.assert_allclose(jnp.log(between.var), expected, rtol=1e-11)
    # Without a share it is the posterior to the bit, where the ratio is infinite too.
    for s, t in ((-jnp.inf, 1.0), (-1000.0, 1000.0), (-1.0, 2.0)):
        p, q = process.reverse(z_t, x_hat, s, t), process.posterior(z_t, x_hat, s, t)
        np.testing.assert_array_equal(p.mean, q.mean)
        np.testing.assert_array_equal(p.var, q.var)


def log_ratio_exact(gamma_s, gamma_t):
    with localcontext() as context:
        context.prec = 80
        s, t = Decimal(float(gamma_s)), Decimal(float(gamma_t))
        return float(((1 + (-s).exp()) / (1 + (-t).exp())).ln())


def test_log_ratio_of_the_variances_has_all_digits_for_steps_of_any_size(dtype):
    starts, steps = np.meshgrid(
        [-80.0, -13.3, -5.0, -0.3, 0.0, 5.0, 12.0], [1e-3, 0.0183, 0.3, 0.69, 0.7, 3.0, 80.0]
    )
    gamma_s = starts.ravel().astype(dtype)
    gamma_t = (gamma_s + steps.ravel().astype(dtype)).astype(dtype)
    run = jax.jit(jax.vmap(jax.value_and_grad(process.variance_log_ratio, (0, 1))))
    found, slope = run(gamma_s, gamma_t)
    exact = [log_ratio_exact(s, t) for s, t in zip(gamma_s, gamma_t, strict=True)]
    # The plain difference of logarithms is off by up to a thousandth in float32.
    np.testing.assert_allclose(found, exact, rtol=4e-6 if dtype == "float32" else 1e-14)
    rtol = 2e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(slope[0], -special.expit(-gamma_s.astype(float)), rtol=rtol)
    np.testing.assert_allclose(slope[1], special.expit(-gamma_t.astype(float)), atol=rtol)


def expected_diffusion(x, denoise, gamma, num_steps, reverse_var):
    """Expectations over t and eps at each x of [n, d]; exact for a denoiser linear in z."""
    args = denoise, gamma, num_steps, "x", reverse_var
    return over_times_and_noise(jax.jit(lambda *at: loss.diffusion(*at, *args)), x, num_steps)


# ---- exact cases (Ho et al. 2020, section 3.2) ----


def kl_to(x, gamma, var=1.0, mean=0.0):
    """KL(q(z|x) || q(z)) summed, for data N(mean, var), elementwise, at x [n, d]."""
    alpha, sigma = alpha_sigma(gamma)
    v = alpha**2 * np.asarray(var) + sigma**2
    ratio = sigma**2 / v
    return 0.5 * np.sum(ratio - 1 - np.log(ratio) + alpha**2 * (x - mean) ** 2 / v, axis=-1)


# Independent Gaussian data, one element narrow, one wider than N(0, 1), one standard.
MEANS, VARS = np.array([0.4, -0.8, 0.1]), np.array([0.05, 2.5, 1.0])
POINTS = MEANS + cubature(3) * np.sqrt(VARS)


def variance_of(gamma):
    return VARS * schedule.alpha_bar(gamma) + schedule.variance(gamma)


def optimal(z, gamma_t):
    """E[x|z_t] for x ~ N(MEANS, VARS)."""
    g = process.expand(gamma_t, z)
    a = schedule.alpha(g)
    return MEANS + a * VARS / variance_of(g) * (z - a * MEANS)


def exact_share(gamma_s, gamma_t):
    """The share of the true reverse variance, V_s sigma_{t|s}^2 / V_t, V_t the variance of z_t.

    Of the posterior's it is (V_s / sigma_s^2) / (V_t / sigma_t^2) times as much.
    """
    log_sigmas = jax.nn.log_sigmoid(gamma_t) - jax.nn.log_sigmoid(gamma_s)
    return 1.0 + jnp.log(variance_of(gamma_s) / variance_of(gamma_t)) / log_sigmas


def gaussian_model(num_steps):
    """Denoiser and share, exact for the schedule GAMMA with this many steps."""

    def share(z, gamma_t):
        g = process.expand(gamma_t, z)
        return jnp.broadcast_to(exact_share(g - 10.0 / num_steps, g), z.shape)

    return lambda z, g: (optimal(z, g), share(z, g))


@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_right_share_is_exact_for_gaussian_data(x64, num_steps):
    """For every x: the steps cost KL(q(z_0|x) || q(z_0)) - KL(q(z_1|x) || q(z_1))."""
    model, x = gaussian_model(num_steps), np.concatenate([POINTS, [[0.0, 4.0, -2.0]]])
    found = expected_diffusion(x, model, GAMMA, num_steps, "learned")
    expected = kl_to(x, -6.0, VARS, MEANS) - kl_to(x, 4.0, VARS, MEANS)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # And so the bound is the entropy, but for the decoder's KL and that of q(z_1) to N(0, I).
    (a0, s0), (a1, _) = alpha_sigma(-6.0), alpha_sigma(4.0)
    v0, v1 = np.asarray(variance_of(-6.0)), np.asarray(variance_of(4.0))
    last = 0.5 * np.sum(v1 + (a1 * MEANS) ** 2 - 1 - np.log(v1))
    # E log q(x|z_0) - log p(x|z_0), as q(x|z_0) has the variance VARS s0^2 / v0.
    decoder = 0.5 * np.sum(np.log(s0**2 / a0**2) - np.log(VARS * s0**2 / v0))
    entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e * VARS))
    vdm = VDM(model, GAMMA, (3,), None, "x", num_steps, "learned")
    run = jax.jit(lambda x, eps, t: vdm.elbo_given(x, eps, t, eps).total)
    total = over_times_and_noise(run, POINTS, num_steps).mean()
    np.testing.assert_allclose(total, entropy + decoder + last, rtol=1e-10)


# ---- sampling ----


def test_the_right_share_leads_from_the_last_latent_to_the_first_exactly(x64):
    """Moments carried through `ancestral_step`, affine in z_t and eps, from the true q(z_1)."""
    model = gaussian_model(5)
    mean, var = process.marginal_of_gaussian(Gaussian(MEANS[None], VARS), 4.0)

    @jax.jit
    def affine(s, t):
        zero, one = jnp.zeros((1, 3)), jnp.ones((1, 3))

        def step(z, eps):
            return sampling.ancestral_step(z, eps, model, s, t, "x", "learned")

        offset = step(zero, zero)
        return offset, step(one, zero) - offset, step(zero, one) - offset

    for t, s in itertools.pairwise(np.linspace(4.0, -6.0, 6)):
        offset, gain, noise = affine(s, t)
        mean, var = gain * mean + offset, gain**2 * var + noise**2
    np.testing.assert_allclose(mean, alpha_sigma(-6.0)[0] * MEANS[None], rtol=1e-10)
    np.testing.assert_allclose(var, variance_of(-6.0)[None], rtol=1e-10)
