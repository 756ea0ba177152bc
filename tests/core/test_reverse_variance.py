"""The variance of p(z_s|z_t): the kernel, its loss, and data for which a choice of it is exact."""

import functools
import itertools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affine_chain, alpha_sigma, cubature, gauss_legendre
from scipy import optimize, special, stats

from vdm_jax import bounds, loss, parameterization, pixels, process, sampler, schedule, timestep
from vdm_jax.gaussian import Gaussian

REVERSE_VARS = parameterization.REVERSE_VARS
GAMMAS = {"linear": schedule.linear(-6.0, 4.0), "cosine": schedule.cosine(-6.0, 4.0)}


def wavy(z, gamma_t):
    """Some prediction, far from linear, that couples the elements of an example."""
    return jnp.tanh(z + 0.3 * process.expand(gamma_t, z)) + 0.2 * jnp.roll(z, 1, -1)


def wavy_share(z, gamma_t):
    """Some share, another in each element, that depends on the latent."""
    return jax.nn.sigmoid(2.0 * z - 0.4 * process.expand(gamma_t, z))


def with_share(denoise, share):
    return lambda z, gamma_t: (denoise(z, gamma_t), share(z, gamma_t))


def for_var(reverse_var, denoise=wavy, share=wavy_share):
    """What `denoise` must be for this variance."""
    return with_share(denoise, share) if reverse_var == "learned" else denoise


def log_ratio(gammas):
    """log(sigma_t^2 / sigma_s^2) of each step of gammas [T + 1], increasing."""
    return -np.diff(np.logaddexp(0.0, -np.asarray(gammas, np.float64)))


# ---- the kernel ----

STEPS = [(-80.0, 5.0), (-13.3, -13.28), (-13.3, 5.0), (-1.0, 2.0), (5.0, 5.0001), (40.0, 80.0)]


@pytest.mark.parametrize(("gamma_s", "gamma_t"), [*STEPS, (-np.inf, 1.0), (-1000.0, 1000.0)])
def test_share_zero_is_the_posterior_bit_for_bit(dtype, gamma_s, gamma_t):
    z_t, x_hat = (jax.random.normal(jax.random.key(i), (3, 4), dtype) for i in (0, 1))
    q = process.posterior(z_t, x_hat, gamma_s, gamma_t)
    shares = [0.0] if abs(gamma_s) > 80 else [0.0, jnp.zeros_like(z_t)]
    for share in shares:
        p = process.reverse(z_t, x_hat, gamma_s, gamma_t, share)
        np.testing.assert_array_equal(p.mean, q.mean)
        np.testing.assert_array_equal(p.var, np.broadcast_to(q.var, np.shape(p.var)))
    np.testing.assert_array_equal(process.reverse(z_t, x_hat, gamma_s, gamma_t).var, q.var)


@pytest.mark.parametrize(("gamma_s", "gamma_t"), STEPS)
def test_share_one_has_the_transition_s_variance_and_others_are_log_linear(dtype, gamma_s, gamma_t):
    z_t, x_hat = (jax.random.normal(jax.random.key(i), (3, 4), dtype) for i in (0, 1))
    narrow = process.posterior(z_t, x_hat, gamma_s, gamma_t)
    wide = process.transition(z_t, gamma_s, gamma_t).var
    rtol = 2e-5 if dtype == "float32" else 1e-11
    for share in (1.0, jnp.ones_like(z_t)):
        p = process.reverse(z_t, x_hat, gamma_s, gamma_t, share)
        np.testing.assert_allclose(p.var, np.broadcast_to(wide, np.shape(p.var)), rtol=rtol)
    share = jax.random.uniform(jax.random.key(2), z_t.shape, dtype)
    p = process.reverse(z_t, x_hat, gamma_s, gamma_t, share)
    between = (1 - share) * jnp.log(narrow.var) + share * jnp.log(wide)
    np.testing.assert_allclose(jnp.log(p.var), between, rtol=rtol)
    np.testing.assert_array_equal(p.mean, narrow.mean)
    assert p.var.dtype == dtype


def log_ratio_exact(gamma_s, gamma_t):
    with localcontext() as context:
        context.prec = 80
        s, t = Decimal(float(gamma_s)), Decimal(float(gamma_t))
        return float(((1 + (-s).exp()) / (1 + (-t).exp())).ln())


def test_log_ratio_of_the_variances_has_all_digits_for_steps_of_any_size(dtype):
    starts = np.array([-80.0, -13.3, -5.0, -0.3, 0.0, 2.0, 5.0, 12.0], dtype)
    for step in (1e-3, 0.0183, 0.3, 0.69, 0.7, 3.0, 80.0):
        gamma_s, gamma_t = starts, (starts + np.asarray(step, dtype)).astype(dtype)
        found = process.variance_log_ratio(jnp.asarray(gamma_s), jnp.asarray(gamma_t))
        exact = [log_ratio_exact(s, t) for s, t in zip(gamma_s, gamma_t, strict=True)]
        # The plain difference of logarithms is off by up to a thousandth in float32.
        np.testing.assert_allclose(found, exact, rtol=4e-6 if dtype == "float32" else 1e-14)
        slope = jax.vmap(jax.grad(process.variance_log_ratio, (0, 1)))(gamma_s, gamma_t)
        rtol = 2e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(slope[0], -special.expit(-gamma_s.astype(float)), rtol=rtol)
        np.testing.assert_allclose(slope[1], special.expit(-gamma_t.astype(float)), atol=rtol)


# ---- the loss ----


@pytest.mark.parametrize(
    ("reverse_var", "kind"),
    [("posterior", "eps"), ("transition", "x"), ("learned", "v"), ("learned", "score")],
)
def test_loss_is_the_kl_of_posterior_and_reverse_for_each_latent(x64, reverse_var, kind):
    num_steps, batch, gamma = 12, 24, schedule.cosine(-9.0, 5.0)
    x, eps = (jax.random.normal(jax.random.key(i), (batch, 3, 2, 1)) for i in (0, 1))
    t = (jnp.arange(batch) + 0.5) / batch
    denoise = for_var(reverse_var)
    s, t_grid = timestep.grid(t, num_steps)
    gamma_s, gamma_t = gamma(s), gamma(t_grid)
    z_t = process.marginal(x, gamma_t).at(eps)
    x_hat = parameterization.to_x(wavy(z_t, gamma_t), z_t, gamma_t, kind)
    share = {"posterior": 0.0, "transition": 1.0, "learned": wavy_share(z_t, gamma_t)}[reverse_var]
    q = process.posterior(z_t, x, gamma_s, gamma_t)
    p = process.reverse(z_t, x_hat, gamma_s, gamma_t, share)
    found = loss.diffusion(x, eps, t, denoise, gamma, num_steps, kind, reverse_var)
    np.testing.assert_allclose(found, num_steps * q.kl(p).sum((1, 2, 3)), rtol=1e-9)


def test_a_constant_share_of_zero_or_one_is_the_fixed_variance(x64):
    x, eps = (jax.random.normal(jax.random.key(i), (8, 5)) for i in (0, 1))
    t = (jnp.arange(8) + 0.5) / 8
    for share, name in ((0.0, "posterior"), (1.0, "transition")):
        learned = with_share(wavy, lambda z, g, share=share: jnp.full_like(z, share))
        for num_steps in (1, 5, None):
            args = (x, eps, t), (GAMMAS["linear"], num_steps, "v")
            one = loss.diffusion(*args[0], learned, *args[1], "learned")
            other = loss.diffusion(*args[0], wavy, *args[1], name)
            np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(("num_steps", "per_unit"), [(1000, 64.0), (10_000, 512.0)])
@pytest.mark.parametrize("reverse_var", ["transition", "learned"])
def test_float32_keeps_the_digits_of_a_loss_of_second_order(reverse_var, num_steps, per_unit):
    """A perfect denoiser: all that is left is what the variance costs."""

    def gamma(t):  # without rounding in either type, so that both see one schedule
        return jnp.rint(t * num_steps) / per_unit - 13.0

    def value(dtype):
        eps = np.random.default_rng(0).normal(size=(num_steps, 3))
        t = (np.arange(num_steps) + 0.5) / num_steps
        share = jnp.asarray([0.1, 0.5, 1.3], dtype)
        denoise = for_var(
            reverse_var,
            lambda z, g: jnp.asarray(eps, dtype),
            lambda z, g: jnp.broadcast_to(share, z.shape),
        )
        x, eps_, t = jnp.full(eps.shape, 0.5, dtype), jnp.asarray(eps, dtype), jnp.asarray(t, dtype)
        run = jax.jit(
            lambda *args: loss.diffusion(*args, denoise, gamma, num_steps, "eps", reverse_var)
        )
        return run(x, eps_, t)

    single = value("float32")
    with jax.enable_x64(True):
        double = value("float64")
        ratio = log_ratio(gamma(np.arange(num_steps + 1) / num_steps))[:, None]
    log_r = -ratio * np.array([0.1, 0.5, 1.3] if reverse_var == "learned" else [1.0] * 3)
    # 1/2 (r - 1 - log r), whose plain form in float64 is exact to some 1e-16 / log_r^2.
    expected = 0.5 * num_steps * np.sum(np.expm1(log_r) - log_r, axis=-1)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=5e-6)
    near = np.abs(log_r).max(-1) > 1e-4
    np.testing.assert_allclose(double[near], expected[near], rtol=1e-7)


def expected_diffusion(x, denoise, gamma, num_steps, reverse_var, times=None):
    """Expectation over t and eps for one x [d]; exact for a denoiser linear in z."""
    noise = cubature(len(x))
    if num_steps is None:
        t, weights = gauss_legendre(40, 8)
    else:
        t, weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    eps = jnp.asarray(np.tile(noise, (len(t), 1)))
    data = jnp.broadcast_to(jnp.asarray(x), eps.shape)
    run = compiled_diffusion(denoise, gamma, num_steps, reverse_var)
    losses = np.asarray(run(data, eps, jnp.repeat(jnp.asarray(t), len(noise))))
    return float(np.repeat(weights, len(noise)) @ losses / len(noise))


@functools.cache
def compiled_diffusion(denoise, gamma, num_steps, reverse_var):
    return jax.jit(
        lambda x, eps, t: loss.diffusion(x, eps, t, denoise, gamma, num_steps, "x", reverse_var)
    )


def linear_denoise(z, gamma_t):
    """Not optimal for anything."""
    return 0.4 * z + 0.1


def half(z, gamma_t):
    return jnp.broadcast_to(jnp.linspace(0.2, 0.8, z.shape[-1]), z.shape)


@pytest.mark.parametrize("reverse_var", REVERSE_VARS)
def test_with_many_steps_every_variance_has_the_continuous_loss_and_its_excess_halves(
    x64, reverse_var
):
    x, gamma = np.array([0.9, -1.1]), GAMMAS["linear"]
    denoise = for_var(reverse_var, linear_denoise, half)
    limit = expected_diffusion(x, linear_denoise, gamma, None, "posterior")
    excess = np.array(
        [expected_diffusion(x, denoise, gamma, n, reverse_var) - limit for n in (256, 512, 1024)]
    )
    ratios = excess[:-1] / excess[1:]
    np.testing.assert_allclose(ratios[-1], 2.0, rtol=0.02)
    assert np.all(np.diff(np.abs(ratios - 2.0)) < 0)
    assert np.all(np.abs(excess) > 1e-5)
    assert abs(excess[-1]) < 0.02 * limit


def test_in_continuous_time_no_variance_makes_a_difference(x64):
    x, eps = (jax.random.normal(jax.random.key(i), (8, 5)) for i in (0, 1))
    t = (jnp.arange(8) + 0.5) / 8
    first, *others = (
        loss.diffusion(x, eps, t, for_var(name), GAMMAS["cosine"], None, "v", name)
        for name in REVERSE_VARS
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("reverse_var", REVERSE_VARS)
def test_gradient_of_the_schedule_and_the_share_agrees_with_finite_differences(x64, reverse_var):
    x, eps = (jax.random.normal(jax.random.key(i), (6, 3)) for i in (0, 1))
    t = (jnp.arange(6) + 0.5) / 6

    def total(c):
        gamma = schedule.linear(c[0], c[1])
        denoise = for_var(reverse_var, wavy, lambda z, g: jax.nn.sigmoid(c[2] + z))
        return loss.diffusion(x, eps, t, denoise, gamma, 6, "v", reverse_var).sum()

    at, h = jnp.array([-3.0, 2.0, 0.3]), 1e-6
    run = jax.jit(jax.value_and_grad(total))
    numeric = [(run(at + e)[0] - run(at - e)[0]) / (2 * h) for e in h * np.eye(3)]
    np.testing.assert_allclose(run(at)[1], numeric, rtol=1e-6, atol=1e-6)


# ---- exact cases (Ho et al. 2020, section 3.2) ----

POINTS = [np.zeros(2), np.array([0.9, -1.1]), np.array([3.0, 0.2])]


def standard(z, gamma_t):
    """E[x|z_t] = alpha_t z_t of data x ~ N(0, I)."""
    return schedule.alpha(process.expand(gamma_t, z)) * z


def kl_to(x, gamma, var=1.0, mean=0.0):
    """KL(q(z|x) || q(z)) summed, for data N(mean, var), elementwise."""
    alpha, sigma = alpha_sigma(gamma)
    v = alpha**2 * np.asarray(var) + sigma**2
    ratio = sigma**2 / v
    return float(0.5 * np.sum(ratio - 1 - np.log(ratio) + alpha**2 * (x - mean) ** 2 / v))


@pytest.mark.parametrize("name", GAMMAS)
@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_transition_s_variance_is_exact_for_standard_normal_data(x64, name, num_steps):
    """Each reverse kernel is the true one: what the steps cost is what they tell of x, exactly.

    p(z_0, ..., z_1) is then the joint of the forward chain, so that for every single x the prior
    and the steps together are KL(q(z_0|x) || N(0, I)), whatever the schedule and T.
    """
    gamma = GAMMAS[name]
    for x in POINTS:
        found = expected_diffusion(x, standard, gamma, num_steps, "transition")
        np.testing.assert_allclose(found, kl_to(x, -6.0) - kl_to(x, 4.0), rtol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_posterior_s_variance_costs_standard_normal_data_its_closed_form(x64, num_steps):
    """1/2 (e^L - 1 - L) more per dimension and step, L the log of the variances' ratio."""
    gamma = GAMMAS["cosine"]
    wide, narrow = (
        np.mean([expected_diffusion(x, standard, gamma, num_steps, name) for x in cubature(2)])
        for name in ("transition", "posterior")
    )
    ratio = log_ratio(gamma(jnp.arange(num_steps + 1) / num_steps))
    expected = np.sum(np.expm1(ratio) - ratio)  # times 2 dimensions / 2
    assert expected > 0.01
    np.testing.assert_allclose(narrow - wide, expected, rtol=1e-9)


@functools.cache
def compiled_total(denoise, num_steps, reverse_var):
    def total(x, eps, t, low, high):
        return loss.elbo_given(
            x, eps, eps, t, denoise, schedule.linear(low, high), None, num_steps, "x", None,
            reverse_var,
        ).total.mean()  # fmt: skip

    return jax.jit(total)


def mean_total(points, denoise, ends, num_steps, reverse_var):
    """The bound by `loss.elbo_given`, averaged over x, t and eps, all by exact quadrature."""
    noise = cubature(points.shape[-1])
    t = (np.arange(num_steps) + 0.5) / num_steps
    i, j, k = (a.ravel() for a in np.indices((len(points), len(noise), num_steps)))
    return float(compiled_total(denoise, num_steps, reverse_var)(points[i], noise[j], t[k], *ends))


@pytest.mark.parametrize("low", [-2.0, -12.0])
def test_the_whole_bound_of_standard_normal_data_is_the_entropy_but_for_the_decoder(x64, low):
    """E bound = H(x) + E KL(q(x|z_0) || p(x|z_0)), and that is -log alpha_0^2 / 2 per dimension.

    q(x|z_0) = N(alpha_0 z_0, sigma_0^2); the decoder knows nothing of the data and has
    N(z_0 / alpha_0, sigma_0^2 / alpha_0^2).
    """
    entropy, points, ends = np.log(2 * np.pi * np.e), cubature(2), (low, 3.0)
    for num_steps in (1, 20):
        total = mean_total(points, standard, ends, num_steps, "transition")
        np.testing.assert_allclose(total, entropy + np.logaddexp(0.0, low), rtol=1e-11)
        assert mean_total(points, standard, ends, num_steps, "posterior") > total + 1e-2


@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_posterior_s_variance_is_exact_for_data_that_is_one_point(x64, num_steps):
    x, gamma = np.array([0.9, -1.1]), GAMMAS["cosine"]

    def known(z, gamma_t):
        return jnp.broadcast_to(x, z.shape)

    found = expected_diffusion(x, known, gamma, num_steps, "posterior")
    np.testing.assert_allclose(found, 0.0, atol=1e-12)
    # The other costs 1/2 (e^-L - 1 + L) per dimension and step.
    ratio = log_ratio(gamma(jnp.arange(num_steps + 1) / num_steps))
    wide = expected_diffusion(x, known, gamma, num_steps, "transition")
    np.testing.assert_allclose(wide, np.sum(np.expm1(-ratio) + ratio), rtol=1e-9)


# Independent Gaussian data, one element narrow, one wider than N(0, 1), one standard.
MEANS, VARS = np.array([0.4, -0.8, 0.1]), np.array([0.05, 2.5, 1.0])


def optimal(z, gamma_t):
    """E[x|z_t] for x ~ N(MEANS, VARS)."""
    g = process.expand(gamma_t, z)
    a, v = schedule.alpha(g), VARS * schedule.alpha_bar(g) + schedule.variance(g)
    return MEANS + a * VARS / v * (z - a * MEANS)


def exact_share(gamma_s, gamma_t):
    """The share of the true reverse variance, V_s sigma_{t|s}^2 / V_t, V_t the variance of z_t.

    Of the posterior's it is (V_s / sigma_s^2) / (V_t / sigma_t^2) times as much.
    """
    v = [VARS * schedule.alpha_bar(g) + schedule.variance(g) for g in (gamma_s, gamma_t)]
    log_sigmas = np.logaddexp(0.0, -gamma_s) - np.logaddexp(0.0, -gamma_t)
    return 1.0 + np.log(v[0] / v[1]) / log_sigmas


@functools.cache
def gaussian_model(num_steps):
    """Denoiser and share, exact for a linear schedule from -6 to 4 with this many steps."""
    step = 10.0 / num_steps

    def share(z, gamma_t):
        g = process.expand(gamma_t, z)
        v_s = VARS * schedule.alpha_bar(g - step) + schedule.variance(g - step)
        v_t = VARS * schedule.alpha_bar(g) + schedule.variance(g)
        ratio = jax.nn.log_sigmoid(g) - jax.nn.log_sigmoid(g - step)
        return jnp.broadcast_to(1.0 + jnp.log(v_s / v_t) / ratio, z.shape)

    return with_share(optimal, share)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_right_share_is_exact_for_gaussian_data(x64, num_steps):
    """For every x: the steps cost KL(q(z_0|x) || q(z_0)) - KL(q(z_1|x) || q(z_1))."""
    model, gamma = gaussian_model(num_steps), GAMMAS["linear"]
    for x in (MEANS, np.array([0.9, -1.1, 0.3]), np.array([0.0, 4.0, -2.0])):
        found = expected_diffusion(x, model, gamma, num_steps, "learned")
        expected = kl_to(x, -6.0, VARS, MEANS) - kl_to(x, 4.0, VARS, MEANS)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # And so the bound is the entropy, but for the decoder's KL and that of q(z_1) to N(0, I).
    points = MEANS + cubature(3) * np.sqrt(VARS)
    a0, s0 = alpha_sigma(-6.0)
    v0, (a1, s1) = a0**2 * VARS + s0**2, alpha_sigma(4.0)
    v1 = a1**2 * VARS + s1**2
    last = 0.5 * np.sum(v1 + (a1 * MEANS) ** 2 - 1 - np.log(v1))
    # E log q(x|z_0) - log p(x|z_0), as q(x|z_0) has the variance VARS s0^2 / v0.
    decoder = 0.5 * np.sum(np.log(s0**2 / a0**2) - np.log(VARS * s0**2 / v0))
    entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e * VARS))
    total = mean_total(points, model, (-6.0, 4.0), num_steps, "learned")
    np.testing.assert_allclose(total, entropy + decoder + last, rtol=1e-10)
    for name in ("posterior", "transition"):
        assert mean_total(points, optimal, (-6.0, 4.0), num_steps, name) > total + 1e-3


def test_a_share_minimised_on_the_loss_finds_the_true_reverse_variance(x64):
    num_steps, gamma = 3, GAMMAS["linear"]
    points, noise = MEANS + cubature(3) * np.sqrt(VARS), cubature(3)
    i, j, k = (a.ravel() for a in np.indices((len(points), len(noise), num_steps)))
    x, eps, t = points[i], noise[j], (k + 0.5) / num_steps

    @jax.jit
    @jax.value_and_grad
    def objective(flat):
        shares = flat.reshape(num_steps, 3)
        model = with_share(optimal, lambda z, g: shares[k])
        return loss.diffusion(x, eps, t, model, gamma, num_steps, "x", "learned").mean()

    start = np.full(3 * num_steps, 0.5)
    found = optimize.minimize(objective, start, jac=True, options={"gtol": 1e-10})
    gammas = np.asarray(gamma(np.arange(num_steps + 1) / num_steps))
    exact = [exact_share(s, t) for s, t in itertools.pairwise(gammas)]
    np.testing.assert_allclose(found.x.reshape(num_steps, 3), exact, atol=1e-5)
    assert np.ptp(exact) > 0.5  # they are not all alike
    expected = np.mean([kl_to(x, -6.0, VARS, MEANS) - kl_to(x, 4.0, VARS, MEANS) for x in points])
    np.testing.assert_allclose(found.fun, expected, rtol=1e-9)
    assert objective(start)[0] > expected + 0.01


# ---- sampling ----

VAR = 0.3
SHARE = 0.3


def narrow_data(z, gamma_t):
    """E[x|z_t] for independent x ~ N(0, VAR), elementwise."""
    g = process.expand(gamma_t, z)
    a, v = schedule.alpha(g), VAR * schedule.alpha_bar(g) + schedule.variance(g)
    return a * VAR / v * z


def constant_share(z, gamma_t):
    return jnp.full_like(z, SHARE)


def exact_variance(gammas, var, share, var_1=1.0):
    """The variance of z_0 of the chain for data N(0, var), from the paper; gammas increase."""
    s, t = gammas[:-1][::-1], gammas[1:][::-1]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    step = alpha_t / alpha_s
    step_var = sigma_t**2 - step**2 * sigma_s**2
    x_hat = alpha_t * var / (var * alpha_t**2 + sigma_t**2)
    gain = step * sigma_s**2 / sigma_t**2 + alpha_s * step_var / sigma_t**2 * x_hat
    noise = (step_var * sigma_s**2 / sigma_t**2) ** (1 - share) * step_var**share
    return affine_chain(gain, 0 * gain, noise, 0.0, var_1)[1]


def assert_normal(sample, var):
    """Mean and variance within five standard errors of N(0, var)."""
    sample = np.asarray(sample, np.float64).ravel()
    assert abs(sample.mean()) < 5 * np.sqrt(var / sample.size)
    assert abs(sample.var() / var - 1.0) < 5 * np.sqrt(2 / sample.size)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("reverse_var", REVERSE_VARS)
def test_samples_have_the_variance_of_the_exact_chain(reverse_var, num_steps):
    gamma = schedule.linear(-4.0, 3.0)
    gammas = np.linspace(-4.0, 3.0, num_steps + 1)
    denoise = for_var(reverse_var, narrow_data, constant_share)
    key, shape = jax.random.key(num_steps), (40_000, 5)
    sample = sampler.ancestral(key, denoise, gamma, shape, num_steps, "x", reverse_var)
    shares = {"posterior": 0.0, "transition": 1.0, "learned": SHARE}
    exact = {name: exact_variance(gammas, VAR, share) for name, share in shares.items()}
    assert_normal(sample, exact[reverse_var])
    # The others are too far away to be taken for it.
    assert min(abs(a / b - 1) for a, b in itertools.combinations(exact.values(), 2)) > 0.02
    assert np.max(np.abs(np.corrcoef(sample.T) - np.eye(5))) < 5 / np.sqrt(40_000)


def test_standard_normal_data_are_sampled_exactly_in_a_single_step():
    args = jax.random.key(0), standard, schedule.linear(-8.0, 6.0), (50_000, 4), 1, "x"
    assert_normal(sampler.ancestral(*args, "transition"), 1.0)
    assert np.var(sampler.ancestral(*args, "posterior")) < 0.98


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_right_share_leads_from_the_last_latent_to_the_first_exactly(x64, num_steps):
    """Moments carried through `ancestral_step`, affine in z_t and eps, from the true q(z_1)."""
    model = gaussian_model(num_steps)
    gammas = np.linspace(4.0, -6.0, num_steps + 1)
    latent = process.marginal_of_gaussian(Gaussian(MEANS[None], VARS), 4.0)
    zero, one = jnp.zeros((1, 3)), jnp.ones((1, 3))
    mean, var = latent
    for t, s in itertools.pairwise(gammas):
        step = functools.partial(
            sampler.ancestral_step, denoise=model, gamma_s=s, gamma_t=t, kind="x",
            reverse_var="learned",
        )  # fmt: skip
        offset = step(zero, zero)
        gain, noise = step(one, zero) - offset, step(zero, one) - offset
        mean, var = gain * mean + offset, gain**2 * var + noise**2
    alpha, sigma = alpha_sigma(-6.0)
    np.testing.assert_allclose(mean, alpha * MEANS[None], rtol=1e-10)
    np.testing.assert_allclose(var, (alpha**2 * VARS + sigma**2)[None], rtol=1e-10)


# ---- chains of weights ----

LEVELS = 4
EVERY_LEVEL = np.arange(LEVELS)[:, None]  # a batch of one-pixel images


def exact_nats(gammas, share):
    """-log p(x) of the chain for each level of one pixel: p(z_0) is normal, then quadrature."""
    var = exact_variance(gammas, VAR, share)
    u, weights = gauss_legendre(200, 4)
    z_0 = np.sqrt(var) * (18 * u - 9)
    weights = 18 * weights * stats.norm.pdf(18 * u - 9)
    scaled = z_0 / alpha_sigma(gammas[0])[0]
    return -np.log(weights @ np.exp(pixels.decode_log_probs(scaled, gammas[0], LEVELS)))


def exact_bound(gamma, num_steps, denoise, reverse_var):
    """The bound's expectation for each level of one pixel, by quadrature over the noise."""
    u, weights = gauss_legendre(200, 4)
    eps = jnp.asarray(18 * u - 9)[:, None]
    weights = 18 * weights * stats.norm.pdf(18 * u - 9)
    gamma_0, gamma_1 = gamma(jnp.array([0.0, 1.0]))
    total = []
    for level in range(LEVELS):
        x = np.asarray(pixels.encode(EVERY_LEVEL[level], LEVELS))
        images = np.full(eps.shape, level)
        read = weights @ loss.reconstruction(images, eps, gamma_0, LEVELS)
        steps = expected_diffusion(x, denoise, gamma, num_steps, reverse_var)
        total.append(read + loss.prior(x[None], gamma_1)[0] + steps)
    return np.array(total)


# Three steps of these ratios of the variances, below 2: a p wider than that has weights of infinite
# variance under q.
LINEAR = schedule.linear(-1.0, 2.0)


@pytest.mark.parametrize("reverse_var", REVERSE_VARS)
def test_log_weights_average_to_the_bound_and_weights_to_the_likelihood(x64, reverse_var):
    num_steps, repeats = 3, 2**15
    denoise = for_var(reverse_var, narrow_data, constant_share)
    run = jax.jit(
        lambda key: bounds.chain(
            key, np.tile(EVERY_LEVEL, (repeats, 1)), denoise, LINEAR, LEVELS, num_steps, "x",
            reverse_var,
        )
    )  # fmt: skip
    log_weights = np.asarray(run(jax.random.key(num_steps))).reshape(repeats, LEVELS)
    bound = exact_bound(LINEAR, num_steps, denoise, reverse_var)
    error = log_weights.std(0) / repeats**0.5
    assert np.all(np.abs(-log_weights.mean(0) - bound) < 5 * error)
    assert np.all(error < 0.01 * bound)
    share = {"posterior": 0.0, "transition": 1.0, "learned": SHARE}[reverse_var]
    exact = exact_nats(np.linspace(-1.0, 2.0, num_steps + 1), share)
    np.testing.assert_allclose(np.exp(-exact).sum(), 1.0, rtol=1e-9)  # over the levels
    weights = np.exp(log_weights + exact)
    error = weights.std(0) / repeats**0.5
    assert np.all(np.abs(weights.mean(0) - 1.0) < 5 * error)
    assert np.all(error < 0.02)
    assert np.all(bound > exact)


def test_elbo_and_chains_hand_the_variance_on(x64):
    """`loss.elbo` is `elbo_given` at its draws, and `chains` a `chain` of each key."""
    key, images = jax.random.key(1), np.array([[0, 3], [1, 2], [3, 3]])
    args = with_share(wavy, wavy_share), LINEAR, LEVELS, 6, "v"

    @jax.jit
    def all_of_them(key):
        eps_0, eps, t = loss.draw(key, images.shape)
        x = pixels.encode(images, LEVELS)
        steps = loss.diffusion(x, eps, t, args[0], LINEAR, 6, "v", "learned")
        given = loss.elbo_given(images, eps_0, eps, t, *args, None, "learned")
        single = [bounds.chain(k, images, *args, "learned") for k in jax.random.split(key, 2)]
        one = loss.elbo(key, images, *args, reverse_var="learned")
        many = bounds.chains(key, images, *args[:2], 2, *args[2:], "learned")
        return (one.diffusion, one.total, many), (steps, given.total, jnp.stack(single))

    for found, expected in zip(*all_of_them(key), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
