import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


# ---- a value of gamma ----


@pytest.mark.parametrize("of_gamma", ["alpha_bar", "variance", "alpha", "sigma", "snr"])
def test_quantities_have_full_relative_accuracy_at_any_gamma(dtype, of_gamma):
    gamma = np.asarray(GAMMAS, dtype)
    alpha, sigma = alpha_sigma(gamma)
    expected = {
        "alpha_bar": alpha**2,
        "variance": sigma**2,
        "alpha": alpha,
        "sigma": sigma,
        "snr": np.exp(-gamma.astype(np.float64)),
    }[of_gamma]
    value = getattr(schedule, of_gamma)(jnp.asarray(gamma))
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("of_gamma", "condition"),
    [
        # Roundings of the intermediate value, as a multiple of which gamma cannot be recovered:
        # |dgamma / d log value|.
        ("alpha_bar", lambda g: 1 + np.exp(-g)),
        ("alpha", lambda g: 2 + 2 * np.exp(-g)),
        ("sigma", lambda g: 2 + 2 * np.exp(g)),
        ("snr", lambda g: np.ones_like(g)),
    ],
)
def test_gamma_survives_the_round_trip_as_far_as_the_type_can_carry_it(dtype, of_gamma, condition):
    eps = np.finfo(dtype).eps
    gamma = np.asarray(GAMMAS, dtype)
    # XLA's float64 log1p is off by up to 100 units in the last place near -1/3, hence the 16. Where
    # the bound exceeds 0.05 the type cannot hold the value apart from 1.
    tolerance = 16 * eps * (condition(gamma.astype(np.float64)) + np.abs(gamma) + 1)
    gamma, tolerance = gamma[tolerance < 0.05], tolerance[tolerance < 0.05]
    assert len(gamma) > 290
    value = getattr(schedule, of_gamma)(jnp.asarray(gamma))
    back = getattr(schedule, f"gamma_from_{of_gamma}")(value)
    assert back.dtype == dtype
    assert np.all(np.abs(np.asarray(back, np.float64) - gamma) <= tolerance)


@pytest.mark.parametrize("of_gamma", ["alpha_bar", "alpha", "sigma"])
def test_values_survive_the_round_trip_through_gamma(dtype, of_gamma):
    value = np.asarray([1e-6, 1e-3, 0.3, 0.5, 0.9, 0.999, 1 - 1e-6], dtype)
    gamma = getattr(schedule, f"gamma_from_{of_gamma}")(jnp.asarray(value))
    back = getattr(schedule, of_gamma)(gamma)
    np.testing.assert_allclose(back, value, rtol=40 * np.finfo(dtype).eps)


# ---- single steps ----


def test_step_alphas_multiply(x64):
    r, s, t = -9.0, np.linspace(-8.9, 3.9, 40), 4.0
    left = schedule.step_alpha(r, s) * schedule.step_alpha(s, t)
    np.testing.assert_allclose(left, np.full(40, schedule.step_alpha(r, t)), rtol=1e-12)


def test_step_alpha_is_the_ratio_of_alpha_bars_and_step_beta_the_rest(x64):
    s, t = np.linspace(-15, 4, 20), np.linspace(-14.9, 6, 20)
    alpha_s, alpha_t = alpha_sigma(s)[0], alpha_sigma(t)[0]
    ratio = (alpha_t / alpha_s) ** 2
    np.testing.assert_allclose(schedule.step_alpha(s, t), ratio, rtol=1e-12)
    np.testing.assert_allclose(schedule.step_beta(s, t), 1.0 - ratio, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("gamma_s", [0.0, 1e-3, -0.05, 2.0**-6])
def test_step_beta_keeps_its_digits_when_gammas_differ_by_1e_6(gamma_s):
    s = np.float32(gamma_s)
    t = np.float32(s + np.float32(1e-6))
    beta = schedule.step_beta(jnp.asarray(s), jnp.asarray(t))
    assert beta.dtype == jnp.float32
    exact = -np.expm1(np.float64(s) - np.float64(t)) / (1 + np.exp(-np.float64(t)))
    np.testing.assert_allclose(beta, exact, rtol=1e-6)


def test_step_beta_has_full_relative_accuracy_at_low_noise():
    s = np.linspace(-20, 5, 100).astype(np.float32)
    t = np.float32(s + np.float32(0.01))
    exact = -np.expm1(s.astype(float) - t.astype(float)) / (1 + np.exp(-t.astype(float)))
    np.testing.assert_allclose(schedule.step_beta(jnp.asarray(s), jnp.asarray(t)), exact, rtol=2e-6)


# ---- schedules ----


@pytest.mark.parametrize("name", FIXED)
def test_fixed_schedules_start_and_end_where_they_are_told(dtype, name):
    ends = FIXED[name](jnp.array([0.0, 1.0], dtype))
    assert ends.dtype == dtype
    np.testing.assert_allclose(ends, [-13.3, 5.0], rtol=5 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", FIXED | TABLES)
def test_schedules_keep_the_type_and_shape_of_time(x64, name):
    gamma = (FIXED | TABLES)[name]
    for kind in (jnp.float32, jnp.float64):
        out = jax.eval_shape(gamma, jax.ShapeDtypeStruct((2, 3), kind))
        assert out.dtype == kind
        assert out.shape == (2, 3)


@pytest.mark.parametrize("name", FIXED | TABLES)
def test_derivatives_agree_with_finite_differences(x64, name):
    gamma = (FIXED | TABLES)[name]
    # Off the tables' points, which lie at multiples of 1/999 and of 1/4.
    t = (jnp.array([3.0, 100.0, 380.0, 700.0, 997.0]) + 0.5) / 999
    _, slope = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
    h = 1e-6
    np.testing.assert_allclose(slope, (gamma(t + h) - gamma(t - h)) / (2 * h), rtol=1e-6)
    assert np.all(slope > 0)


@pytest.mark.parametrize("name", FIXED | TABLES)
def test_reverse_mode_gives_the_same_derivative_as_forward_mode(x64, name):
    gamma = (FIXED | TABLES)[name]
    t = jnp.linspace(0.05, 0.96, 7)
    _, forward = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(jax.vmap(jax.grad(gamma))(t), forward, rtol=1e-12)


@pytest.mark.parametrize("name", FIXED)
def test_derivatives_are_finite_at_both_ends(dtype, name):
    t = jnp.array([0.0, 1.0], dtype)
    _, slope = jax.jvp(FIXED[name], (t,), (jnp.ones_like(t),))
    assert np.all(np.isfinite(slope))
    assert np.all(slope > 0)


times = st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8, unique=True).map(sorted)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(t=times, low=st.floats(-20, 0), span=st.floats(0.1, 4.9), s=st.floats(0, 0.1))
def test_fixed_schedules_never_decrease(t, low, span, s):
    with jax.enable_x64(True):
        for gamma in (
            schedule.linear(low, low + span),
            schedule.cosine(low, low + span, s),
            schedule.beta_linear(low, low + span),
        ):
            steps = np.diff(gamma(jnp.array(t)))
            assert np.all(steps >= -1e-12)
            assert steps.sum() > 0 or t[-1] - t[0] < 1e-12


@settings(max_examples=40, deadline=None, derandomize=True)
@given(t=times, betas=st.lists(st.floats(1e-6, 0.999), min_size=6, max_size=6))
def test_schedules_of_any_table_of_betas_increase(t, betas):
    with jax.enable_x64(True):
        gamma = schedule.from_betas(betas)(jnp.array(t))
        assert np.all(np.diff(gamma) >= 0.0)


def test_linear_is_a_straight_line_and_passes_gradients_to_its_end_points(x64):
    t = jnp.array([0.0, 0.25, 1.0])

    def total(ends):
        return schedule.linear(ends[0], ends[1])(t).sum()

    np.testing.assert_allclose(schedule.linear(-4.0, 8.0)(t), [-4.0, -1.0, 8.0])
    np.testing.assert_allclose(jax.grad(total)(jnp.array([-4.0, 8.0])), [1.75, 1.25])


@pytest.mark.parametrize("s", [0.0, 0.008, 0.1])
def test_untruncated_cosine_is_the_formula_of_nichol_and_dhariwal(x64, s):
    t = np.linspace(0.0, 1.0, 101)
    gamma = schedule.cosine(-math.inf, math.inf, s)(jnp.asarray(t))
    assert gamma[0] == -math.inf
    assert gamma[-1] == math.inf
    np.testing.assert_allclose(
        schedule.alpha_bar(gamma), nichol_alpha_bar(t, s), rtol=1e-9, atol=1e-15
    )


def test_untruncated_cosine_is_infinite_at_its_ends_in_float32_too():
    gamma = schedule.cosine(-math.inf, math.inf)(jnp.linspace(0.0, 1.0, 11))
    assert gamma[0] == -math.inf
    assert gamma[-1] == math.inf
    assert np.all(np.isfinite(gamma[1:-1]))


@pytest.mark.parametrize(
    ("truncated", "full"),
    [
        (FIXED["cosine"], nichol_alpha_bar),
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


@pytest.mark.parametrize("name", FIXED)
def test_float32_schedules_follow_their_float64_values(name):
    t = np.linspace(0.0, 1.0, 57).astype(np.float32)
    single = FIXED[name](jnp.asarray(t))
    with jax.enable_x64(True):
        double = FIXED[name](jnp.asarray(t, jnp.float64))
    np.testing.assert_allclose(single, double, atol=2e-5)


# ---- tables ----


def test_ddpm_table_ends_at_the_alpha_bar_of_the_paper(x64):
    assert len(BETAS) == 1000
    assert BETAS[0] == 1e-4
    assert BETAS[-1] == 0.02
    last = schedule.alpha_bar(schedule.from_betas(BETAS)(jnp.array(1.0)))
    np.testing.assert_allclose(last, 4.04e-5, rtol=2e-3)


def test_from_betas_is_the_cumulative_product_at_the_points_of_the_table(x64):
    gamma = schedule.from_betas(BETAS)(jnp.linspace(0.0, 1.0, 1000))
    np.testing.assert_allclose(schedule.alpha_bar(gamma), np.cumprod(1.0 - BETAS), rtol=1e-12)


def test_from_alpha_bar_gives_the_table_at_its_points_and_lines_between(dtype):
    table = np.array([0.99, 0.7, 0.65, 0.2, 0.01])
    gamma = schedule.from_alpha_bar(table)
    rtol = 20 * np.finfo(dtype).eps
    points = jnp.linspace(0.0, 1.0, 5, dtype=dtype)
    np.testing.assert_allclose(schedule.alpha_bar(gamma(points)), table, rtol=rtol)
    logits = np.log1p(-table) - np.log(table)
    between = 0.7 * logits[1] + 0.3 * logits[2]
    np.testing.assert_allclose(gamma(jnp.asarray(0.325, dtype)), between, rtol=10 * rtol)


def test_from_betas_and_from_alpha_bar_agree(x64):
    t = jnp.linspace(0.0, 1.0, 333)
    one = schedule.from_betas(BETAS)(t)
    other = schedule.from_alpha_bar(np.cumprod(1.0 - BETAS))(t)
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_to_betas_undoes_from_betas(x64):
    for betas in (BETAS, np.array([0.5, 1e-6, 0.9]), np.array([0.1, 0.2])):
        back = schedule.to_betas(schedule.from_betas(betas), len(betas))
        np.testing.assert_allclose(back, betas, rtol=1e-8)


def test_from_betas_undoes_to_betas_at_the_points_of_the_table(x64):
    gamma = schedule.cosine(-13.3, 5.0)
    table = schedule.from_betas(schedule.to_betas(gamma, 50))
    t = jnp.linspace(0.0, 1.0, 50)
    np.testing.assert_allclose(table(t), gamma(t), rtol=1e-9)


@pytest.mark.parametrize("num_latents", [50, 1000, 4000])
def test_cosine_betas_multiply_to_the_alpha_bars_of_the_paper_and_clip_the_last(num_latents):
    betas = schedule.cosine_betas(num_latents)
    assert betas.shape == (num_latents,) and betas.dtype == np.float64
    assert np.all(np.diff(betas) > 0)
    assert np.sum(betas == 0.999) == 1
    alpha_bar = nichol_alpha_bar(np.arange(1, num_latents) / num_latents)
    np.testing.assert_allclose(np.cumprod(1 - betas[:-1]), alpha_bar, rtol=1e-9)
    # The first by the derivative of log cos^2, which the difference of two squares rounds away.
    c = np.pi / 2 / 1.008
    first = 2 * np.log(np.cos(0.008 * c) / np.cos((1 / num_latents + 0.008) * c))
    np.testing.assert_allclose(-np.log1p(-betas[0]), first, rtol=1e-9)
    assert schedule.cosine_betas(num_latents, max_beta=0.5).max() == 0.5


# ---- errors ----


@pytest.mark.parametrize("factory", [schedule.linear, schedule.cosine, schedule.beta_linear])
@pytest.mark.parametrize(("low", "high"), [(5.0, -13.3), (1.0, 1.0), (math.nan, 1.0)])
def test_end_points_out_of_order_are_refused(factory, low, high):
    with pytest.raises(ValueError, match=r"gamma_min must be below gamma_max .*got gamma_min = "):
        factory(low, high)


def test_negative_cosine_offset_is_refused():
    with pytest.raises(ValueError, match=r"s must be at least 0, got -0\.1"):
        schedule.cosine(s=-0.1)


@pytest.mark.parametrize(("low", "high"), [(20.0, 0.1), (-1.0, 2.0), (1.0, 1.0)])
def test_beta_linear_refuses_rates_out_of_order(low, high):
    with pytest.raises(ValueError, match=r"need 0 <= beta_min < beta_max < inf, got"):
        schedule.beta_linear(beta_min=low, beta_max=high)


def test_beta_linear_refuses_noise_beyond_its_own_end():
    with pytest.raises(ValueError, match=r"gamma_max = 11\.0 is beyond .* gamma\(1\) = 10\.0500"):
        schedule.beta_linear(-13.3, 11.0)


@pytest.mark.parametrize("make", [schedule.from_betas, schedule.from_alpha_bar])
@pytest.mark.parametrize("table", [0.5, [0.5], [[0.5, 0.4]]])
def test_tables_must_be_one_dimensional_and_hold_two_latents(make, table):
    with pytest.raises(ValueError, match=r"must be a table \[N\] with N >= 2, got shape"):
        make(table)


@pytest.mark.parametrize(("bad", "at"), [(0.0, 1), (1.0, 1), (-0.1, 1), (math.nan, 1)])
def test_table_values_must_lie_strictly_between_zero_and_one(bad, at):
    with pytest.raises(ValueError, match=rf"betas must lie strictly .* got betas\[{at}\] = {bad}"):
        schedule.from_betas([0.1, bad, 0.2])
    with pytest.raises(ValueError, match=rf"alpha_bar must lie .* alpha_bar\[{at}\] = {bad}"):
        schedule.from_alpha_bar([0.9, bad, 0.2])


def test_alpha_bars_must_decrease():
    with pytest.raises(
        ValueError, match=r"alpha_bar\[1\] = 0\.5 and alpha_bar\[2\] = 0\.6; is the table reversed"
    ):
        schedule.from_alpha_bar([0.9, 0.5, 0.6])


@pytest.mark.parametrize("num_latents", [0, 1])
def test_to_betas_needs_two_latents(num_latents):
    with pytest.raises(
        ValueError, match=rf"num_latents must be an integer of at least 2, got {num_latents}"
    ):
        schedule.to_betas(schedule.linear(-5.0, 5.0), num_latents)
