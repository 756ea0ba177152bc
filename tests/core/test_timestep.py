"""Times and their grid, and importance sampling against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gauss_legendre
from scipy import stats

from vdm_jax import timestep
from vdm_jax.timestep import Proposal

at = jax.jit(Proposal.at)
grid = jax.jit(timestep.grid, static_argnums=1)

# ---- draws ----


def test_antithetic_times_lie_one_in_each_cell_and_evenly_around_the_circle():
    keys = jax.random.split(jax.random.key(0), 50)
    for batch_size in (1, 7, 128):
        draw = jax.jit(jax.vmap(lambda key, n=batch_size: timestep.antithetic(key, n)))
        times = np.asarray(draw(keys), np.float64)
        assert np.all((times >= 0.0) & (times < 1.0))
        for t in times:
            cells = np.bincount(np.floor(t * batch_size).astype(int), minlength=batch_size)
            np.testing.assert_array_equal(cells, 1)
            gaps = np.diff(np.sort(t), append=1.0 + t.min())
            np.testing.assert_allclose(gaps, 1.0 / batch_size, atol=2e-7)


@pytest.mark.parametrize(("method", "of_mean"), [("uniform", 96), ("antithetic", 768)])
def test_each_time_of_a_batch_is_uniform_by_itself(method, of_mean):
    keys = jax.random.split(jax.random.key(3), 4000)
    t = jax.jit(jax.vmap(lambda key: timestep.draw(key, 8, method)))(keys)
    for position in (0, 4):
        assert stats.kstest(np.asarray(t[:, position]), "uniform").pvalue > 1e-3
    # Var of the mean of 8: 1/(12 * 8) when independent; 1/(12 * 64) when evenly spaced.
    assert abs(np.var(np.mean(t, 1)) * of_mean - 1.0) < 4 * np.sqrt(2 / 4000)
    with jax.enable_x64(True):
        assert timestep.draw(jax.random.key(0), 3, method).dtype == jnp.float64


def test_spread_times_are_the_golden_rotation_and_uniform_with_u():
    golden = 0.5 * (np.sqrt(5.0) - 1.0)
    index = np.array([0, 1, 2, 5, 3000])
    expected = np.mod(0.3 + index * golden + 2 / 5, 1.0)
    found = timestep.spread(jnp.asarray(0.3), jnp.asarray(index), 2, 5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    u = np.linspace(0, 1, 200)[:-1].astype(np.float32)
    draws = timestep.spread(jnp.asarray(u), jnp.full(199, 3), 1, 5)
    assert np.abs(np.sort(draws) - u).max() < 0.01


# ---- the grid, and the noise level ----


@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_grid_rounds_up_to_a_step_of_length_one_over_num_steps(x64, num_steps):
    draws = np.random.default_rng(0).uniform(size=500)
    s, t = grid(jnp.asarray(draws), num_steps)
    i = np.asarray(t) * num_steps
    np.testing.assert_allclose(i, np.rint(i), atol=1e-9)
    np.testing.assert_allclose(t - s, 1.0 / num_steps, rtol=1e-12)
    assert np.all((s < draws) & (draws <= t)) and s.min() >= 0.0 and t.max() <= 1.0


def test_a_time_on_the_grid_stays_where_it_is_and_neighbours_share_theirs(dtype):
    for num_steps in (10, 1000):
        i = np.arange(1, num_steps + 1).astype(dtype)
        for given in (i / num_steps, np.linspace(0.0, 1.0, num_steps + 1, dtype=dtype)[1:]):
            s, t = grid(given, num_steps)
            assert s.dtype == t.dtype == dtype
            np.testing.assert_array_equal(np.rint(np.asarray(t) * num_steps), i)
            np.testing.assert_array_equal(np.rint(np.asarray(s) * num_steps), i - 1)
        # s of one step and t of the one before are the same number: the bound telescopes.
        s, t = grid((i - 0.5) / num_steps, num_steps)
        np.testing.assert_array_equal(s[1:], t[:-1])
        np.testing.assert_array_equal(np.rint(np.asarray(t) * num_steps), i)
    # A draw of exactly 0 belongs to the first step.
    s, t = timestep.grid(jnp.array([0.0, 1.0]), 3)
    np.testing.assert_array_equal(s[0], 0.0)
    np.testing.assert_allclose([t[0], s[1], t[1]], [1 / 3, 2 / 3, 1.0], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [None, 4])
def test_noise_level_is_that_of_the_schedule_at_the_time_or_the_step(x64, num_steps):
    level = timestep.noise_level(jnp.array([0.3, 0.9]), lambda t: 8.0 * t**2 - 5.0, num_steps)
    t = np.array([0.3, 0.9]) if num_steps is None else np.array([0.5, 1.0])
    s = t if num_steps is None else t - 0.25
    gamma_s, gamma_t = 8.0 * s**2 - 5.0, 8.0 * t**2 - 5.0
    weight = 16.0 * t if num_steps is None else 4.0 * (np.exp(gamma_t - gamma_s) - 1.0)
    for found, expected in zip(level, (gamma_s, gamma_t, weight), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


# ---- importance sampling: the density and the map ----

PROFILES = {"gaps": [0.0, 5.0, 0.0, 0.0, 0.3, 2.0], "steep": np.exp(np.linspace(0.0, 9.0, 64))}


def integral(q: Proposal, f, order: int = 5) -> float:
    """int_0^1 weight(u) f(t(u)) du, by Gauss-Legendre quadrature between the edges of the bins."""
    nodes, weights = gauss_legendre(1, order)
    width = np.diff(q.cdf)
    t, w = at(q, q.cdf[:-1, None] + width[:, None] * nodes)
    return float(np.sum(width[:, None] * weights * np.asarray(w) * f(np.asarray(t))))


@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_density_is_the_profile_mixed_with_a_floor_and_integrates_to_one(x64, values):
    for floor in (0.02, 1.0):
        q = timestep.proposal(values, floor)
        expected = (1 - floor) * np.array(values) / np.mean(values) + floor
        np.testing.assert_allclose(q.density, expected, rtol=1e-11)
        np.testing.assert_allclose(np.mean(q.density), 1.0, rtol=1e-14)
        u = jnp.linspace(0.0, 1.0, 999)
        t, weight = at(q, u)
        assert weight.max() <= (1 + 1e-9) / floor
        if floor == 1.0:
            np.testing.assert_allclose(t, u, atol=1e-15)


@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_weighted_integrals_are_those_of_uniform_times_for_any_function(x64, values):
    q = timestep.proposal(values, 0.05)
    # Polynomials, of which the quadrature is exact within the bins.
    for power in range(6):
        np.testing.assert_allclose(integral(q, lambda t, p=power: t**p), 1 / (power + 1), rtol=1e-9)
    # A jump, on no edge of a bin, by the midpoint rule in u; and the steps of a grid.
    t, weight = at(q, (jnp.arange(400_000) + 0.5) / 400_000)
    np.testing.assert_allclose(np.mean(weight * (t < 0.3)), 0.3, atol=5e-5)
    step = np.rint(np.asarray(grid(t, 10)[1]) * 10).astype(int)
    share = np.bincount(step, weight / len(t), 11)[1:]
    np.testing.assert_allclose(share, 0.1, atol=5e-5)


@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_map_is_the_inverse_of_the_distribution_function(values):
    q = timestep.proposal(values)
    u = jnp.linspace(0.0, 1.0, 1000, endpoint=False).reshape(10, 100)
    t, weight = at(q, u)
    assert t.shape == weight.shape == u.shape and t.dtype == weight.dtype == jnp.float32
    back = np.interp(np.asarray(t, np.float64), np.linspace(0, 1, len(q.cdf)), np.asarray(q.cdf))
    # A rounding of t is magnified by the density.
    eps = float(jnp.finfo(jnp.float32).eps) * float(q.density.max())
    np.testing.assert_allclose(back, u, atol=4 * eps)
    last = jnp.nextafter(jnp.asarray(1.0), jnp.asarray(0.0))
    t, weight = at(q, jnp.array([0.0, last, 1.0]))
    assert t[0] == 0.0 and t[1] <= t[2] == 1.0
    np.testing.assert_allclose(weight, 1 / q.density[jnp.array([0, -1, -1])], rtol=1e-5)


def test_times_in_proportion_to_the_root_mean_square_have_the_least_variance(x64):
    """E (f / p)^2 is mean(f^2 / p), by Cauchy and Schwarz least for p in proportion to f."""
    f, u = np.array([0.5, 2.0, 1.0, 4.0]), (jnp.arange(400_000) + 0.5) / 400_000

    def second_moment(power):
        t, weight = at(timestep.proposal(f**power, 1e-9), u)
        return np.mean(np.square(weight * f[np.minimum(np.asarray(4 * t, int), 3)]))

    powers = [0.0, 0.5, 0.9, 1.0, 1.1, 2.0]
    found = [second_moment(power) for power in powers]
    expected = [np.mean(f**power) * np.mean(f ** (2 - power)) for power in powers]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.argmin(found) == 3 and found[3] == pytest.approx(f.mean() ** 2, rel=1e-4)


# ---- importance sampling: the profile ----


def test_profile_is_the_moments_of_each_bin_and_interpolated_where_there_are_none():
    t = np.array([[0.0, 0.1, 0.24], [0.26, 0.74, 1.0]])
    losses = np.array([[1.0, 2.0, 6.0], [5.0, 3.0, 2.0]])
    measured = timestep.profile(t, jnp.asarray(losses), 4)
    np.testing.assert_array_equal(measured.draws, [3, 1, 1, 1])
    np.testing.assert_allclose(measured.mean, [3.0, 5.0, 3.0, 2.0], rtol=1e-7)
    np.testing.assert_allclose(measured.rms, [np.sqrt(41 / 3), 5.0, 3.0, 2.0], rtol=1e-7)
    measured = timestep.profile([0.15, 0.45, 0.44], [2.0, -8.0, -8.0], 10)
    np.testing.assert_array_equal(np.nonzero(measured.draws)[0], [1, 4])
    np.testing.assert_allclose(measured.rms, [2, 2, 4, 6, 8, 8, 8, 8, 8, 8])
    np.testing.assert_allclose(measured.mean[:5], [2, 2, 2 - 10 / 3, 2 - 20 / 3, -8])


def test_weights_undo_a_proposal_of_other_bins(x64):
    q = timestep.proposal([1.0, 9.0, 2.0])
    t, weight = at(q, (jnp.arange(100_000) + 0.5) / 100_000)
    measured = timestep.profile(t, t**2, 2, weight)
    np.testing.assert_allclose(measured.mean, [1 / 12, 7 / 12], rtol=1e-4)
    np.testing.assert_allclose(measured.rms**2, [1 / 80, 31 / 80], rtol=1e-4)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "match"),
    [
        *[
            (lambda p=p: timestep.proposal(p), r"profile must be \[n\], finite, nonnegative and")
            for p in ([[1.0, 2.0]], [1.0, -2.0], [np.inf, 2.0], [0.0, 0.0])
        ],
        (lambda: timestep.proposal([1.0, 2.0], 0.0), r"floor must lie in \(0, 1\], .* got"),
        (lambda: timestep.proposal([1.0, 0.0, 1.0], 1e-9), "lost in the rounding of float32; rai"),
        (lambda: timestep.profile([0.1, 0.2], [1.0], 4), "must be of one shape"),
        (lambda: timestep.profile([], [], 4), "at least one draw"),
        (lambda: timestep.profile([0.1, 1.2], [1, 1], 4), "isn't so in 1 of 2 draws"),
        (lambda: timestep.profile([0.1], [1.0], 4, [0.0]), "isn't so in 1 of 1 draws"),
        (lambda: timestep.profile([0.1], [1.0], 0), "num_bins must be an integer of at least 1"),
        (lambda: timestep.grid(jnp.array([0.5]), 0), "num_steps must be an integer .*None"),
        (lambda: timestep.draw(jax.random.key(0), 3, "sobol"), "one of uniform, antithetic, got"),
        (lambda: timestep.antithetic(jax.random.key(0), 2.5), "batch_size must be an integer"),
    ],
)
def test_what_makes_no_sense_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
