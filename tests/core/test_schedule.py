"""Noise schedules against the formulas of their papers, and quantities of gamma to all digits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma
from scipy import optimize

from vdm_jax import schedule

GAMMAS = np.linspace(-20.0, 20.0, 401)
BETAS = schedule.ddpm_betas()

FIXED = {
    "linear": schedule.linear(-13.3, 5.0),
    "cosine": schedule.cosine(-13.3, 5.0),
    "cosine without offset": schedule.cosine(-13.3, 5.0, s=0.0),
    "beta_linear": schedule.beta_linear(-13.3, 5.0),
    "beta_linear from zero": schedule.beta_linear(-13.3, 5.0, beta_min=0.0),
}
TABLES = {
    "from_betas": schedule.from_betas(BETAS),
    "from_alpha_bar": schedule.from_alpha_bar([0.99, 0.7, 0.65, 0.2, 0.01]),
}


def nichol_alpha_bar(t, s: float = 0.008):
    """Nichol & Dhariwal's alpha_bar, as their paper writes it."""

    def f(u):
        return np.cos((u + s) / (1 + s) * np.pi / 2) ** 2

    return f(np.asarray(t)) / f(0.0)


def vp_alpha_bar(u, beta_min: float = 0.1, beta_max: float = 20.0):
    """Song et al.'s exp(-int_0^u beta), beta linear."""
    return np.exp(-beta_min * u - 0.5 * (beta_max - beta_min) * np.asarray(u) ** 2)


# ---- a value of gamma, and single steps ----


def test_quantities_have_full_relative_accuracy_at_any_gamma(dtype):
    gamma = np.asarray(GAMMAS, dtype)
    alpha, sigma = alpha_sigma(gamma)
    expected = {
        "alpha_bar": alpha**2,
        "variance": sigma**2,
        "alpha": alpha,
        "sigma": sigma,
        "snr": np.exp(-gamma.astype(np.float64)),
    }
    for name, exact in expected.items():
        value = getattr(schedule, name)(jnp.asarray(gamma))
        assert value.dtype == dtype
        np.testing.assert_allclose(value, exact, rtol=20 * np.finfo(dtype).eps, err_msg=name)


def test_gamma_survives_the_round_trip_as_far_as_the_type_can_carry_it(dtype):
    # Roundings of alpha_bar are magnified by |dgamma / d log alpha_bar| = 1 + exp(-gamma). XLA's
    # float64 log1p is off by up to 100 units in the last place near -1/3, hence the 16.
    gamma = np.asarray(np.linspace(-8.0, 20.0, 101), dtype)
    back = schedule.gamma_from_alpha_bar(schedule.alpha_bar(jnp.asarray(gamma)))
    tolerance = 16 * np.finfo(dtype).eps * (2 + np.exp(-gamma.astype(float)) + np.abs(gamma))
    assert back.dtype == dtype
    assert np.all(np.abs(np.asarray(back, np.float64) - gamma) <= tolerance)


def test_step_alpha_is_the_ratio_of_alpha_bars_and_step_beta_the_rest(x64):
    s, t = np.linspace(-15, 4, 20), np.linspace(-14.9, 6, 20)
    ratio = (alpha_sigma(t)[0] / alpha_sigma(s)[0]) ** 2
    np.testing.assert_allclose(schedule.step_alpha(s, t), ratio, rtol=1e-12)
    np.testing.assert_allclose(schedule.step_beta(s, t), 1.0 - ratio, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("start", "step"), [(-0.05, 1e-6), (-20.0, 0.01)])
def test_step_beta_keeps_its_digits_when_gammas_differ_by_1e_6(start, step):
    s = np.linspace(start, 5.0 if step > 1e-3 else 0.05, 100).astype(np.float32)
    t = np.float32(s + np.float32(step))
    beta = schedule.step_beta(jnp.asarray(s), jnp.asarray(t))
    assert beta.dtype == jnp.float32
    exact = -np.expm1(s.astype(float) - t.astype(float)) / (1 + np.exp(-t.astype(float)))
    np.testing.assert_allclose(beta, exact, rtol=2e-6)


# ---- schedules ----


@pytest.mark.parametrize("name", FIXED | TABLES)
def test_schedules_keep_type_and_ends_rise_and_have_their_derivatives(name):
    gamma = (FIXED | TABLES)[name]

    def both(t):
        _, forward = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
        return gamma(t), forward, jax.vmap(jax.grad(gamma))(t)

    t = np.linspace(0.0, 1.0, 57)
    single, slope, _ = jax.jit(both)(jnp.asarray(t, jnp.float32))
    assert single.dtype == slope.dtype == jnp.float32
    assert np.all(np.isfinite(slope)) and np.all(slope > 0) and np.all(np.diff(single) > 0)
    with jax.enable_x64(True):
        # Off the tables' points, which lie at multiples of 1/999 and of 1/4.
        inside = (np.array([3.0, 100.0, 380.0, 700.0, 997.0]) + 0.5) / 999
        h = 1e-6
        at = np.concatenate([t, inside, inside + h, inside - h])
        value, forward, backward = map(np.asarray, jax.jit(both)(jnp.asarray(at)))
        assert jax.eval_shape(gamma, jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape == (2, 3)
    np.testing.assert_allclose(single, value[:57], atol=2e-5)
    numeric = (value[62:67] - value[67:72]) / (2 * h)
    np.testing.assert_allclose(forward[57:62], numeric, rtol=1e-6)
    np.testing.assert_allclose(backward[57:62], forward[57:62], rtol=1e-12)
    if name in FIXED:
        np.testing.assert_allclose(value[[0, 56]], [-13.3, 5.0], rtol=2e-15)


def test_linear_is_a_straight_line_and_passes_gradients_to_its_end_points(x64):
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(schedule.linear(-4.0, 8.0)(t), [-4.0, -1.0, 8.0])
    of_ends = jax.grad(lambda ends: schedule.linear(ends[0], ends[1])(t).sum())
    np.testing.assert_allclose(of_ends(jnp.array([-4.0, 8.0])), [1.75, 1.25])


@pytest.mark.parametrize("s", [0.0, 0.008, 0.1])
def test_untruncated_cosine_is_the_formula_of_nichol_and_dhariwal(dtype, s):
    t = np.linspace(0.0, 1.0, 101)
    gamma = schedule.cosine(-math.inf, math.inf, s)(jnp.asarray(t))
    assert gamma[0] == -math.inf and gamma[-1] == math.inf
    assert schedule.beta_linear(-math.inf, 5.0, beta_min=0.0)(jnp.zeros(1)) == -math.inf
    tolerance = {"rtol": 1e-9, "atol": 1e-15} if dtype == "float64" else {"atol": 1e-5}
    np.testing.assert_allclose(schedule.alpha_bar(gamma), nichol_alpha_bar(t, s), **tolerance)


@pytest.mark.parametrize(
    ("truncated", "full"),
    [
        (schedule.cosine(-6.0, 9.0, s=0.05), lambda u: nichol_alpha_bar(u, 0.05)),
        (FIXED["beta_linear"], vp_alpha_bar),
        (schedule.beta_linear(-8.0, 3.0, 0.5, 15.0), lambda u: vp_alpha_bar(u, 0.5, 15.0)),
    ],
)
def test_truncated_schedules_are_the_full_curve_with_time_stretched(x64, truncated, full):
    t = np.linspace(0.0, 1.0, 11)
    alpha_bar = np.asarray(schedule.alpha_bar(truncated(jnp.asarray(t))))
    u = np.array(
        [optimize.brentq(lambda u, a=a: full(u) - a, 0.0, 1.0, xtol=1e-15) for a in alpha_bar]
    )
    # Where on the full curve each value lies, as found by root finding, is affine in t.
    np.testing.assert_allclose(u, u[0] + (u[-1] - u[0]) * t, atol=1e-9)


# ---- tables ----


def test_ddpm_table_ends_at_the_alpha_bar_of_the_paper(x64):
    assert len(BETAS) == 1000 and BETAS[0] == 1e-4 and BETAS[-1] == 0.02
    last = schedule.alpha_bar(TABLES["from_betas"](jnp.array(1.0)))
    np.testing.assert_allclose(last, 4.04e-5, rtol=2e-3)


def test_from_betas_is_the_cumulative_product_at_the_points_of_the_table(x64):
    gamma = TABLES["from_betas"](jnp.linspace(0.0, 1.0, 1000))
    alpha_bar = np.cumprod(1.0 - BETAS)
    np.testing.assert_allclose(schedule.alpha_bar(gamma), alpha_bar, rtol=1e-12)
    t = jnp.linspace(0.0, 1.0, 333)
    other = schedule.from_alpha_bar(alpha_bar)(t)
    np.testing.assert_allclose(TABLES["from_betas"](t), other, rtol=1e-9)


def test_from_alpha_bar_gives_the_table_at_its_points_and_lines_between(x64):
    table = np.array([0.99, 0.7, 0.65, 0.2, 0.01])
    gamma = TABLES["from_alpha_bar"]
    np.testing.assert_allclose(schedule.alpha_bar(gamma(jnp.linspace(0, 1, 5))), table, rtol=1e-14)
    logits = np.log1p(-table) - np.log(table)
    np.testing.assert_allclose(gamma(0.325), 0.7 * logits[1] + 0.3 * logits[2], rtol=1e-14)


@pytest.mark.parametrize("num_latents", [50, 4000])
def test_cosine_betas_multiply_to_the_alpha_bars_of_the_paper_and_clip_the_last(num_latents):
    betas = schedule.cosine_betas(num_latents)
    assert betas.shape == (num_latents,) and betas.dtype == np.float64
    assert np.all(np.diff(betas) > 0) and np.sum(betas == 0.999) == 1
    alpha_bar = nichol_alpha_bar(np.arange(1, num_latents) / num_latents)
    np.testing.assert_allclose(np.cumprod(1 - betas[:-1]), alpha_bar, rtol=1e-9)
    # The first by the derivative of log cos^2, which the difference of two squares rounds away.
    c = np.pi / 2 / 1.008
    first = 2 * np.log(np.cos(0.008 * c) / np.cos((1 / num_latents + 0.008) * c))
    np.testing.assert_allclose(-np.log1p(-betas[0]), first, rtol=1e-9)
    assert schedule.cosine_betas(num_latents, max_beta=0.5).max() == 0.5
