import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import cubature, gauss_hermite, gauss_legendre
from scipy import stats

from vdm_jax import loss, pixels, process, schedule, timestep
from vdm_jax.timestep import Proposal

PROFILES = {
    "one bin": [2.0],
    "two bins": [1.0, 3.0],
    "gaps": [0.0, 5.0, 0.0, 0.0, 0.3, 2.0],
    "steep": np.exp(np.linspace(0.0, 9.0, 64)),
}


def integral(q: Proposal, f, order: int = 5) -> float:
    """int_0^1 weight(u) f(t(u)) du, by Gauss-Legendre quadrature between the edges of the bins."""
    nodes, weights = gauss_legendre(1, order)
    width = np.diff(q.cdf)
    t, w = q.at(q.cdf[:-1, None] + width[:, None] * nodes)
    return float(np.sum(width[:, None] * weights * np.asarray(w * f(t))))


# ---- the density and the map ----


@pytest.mark.parametrize("floor", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_density_is_the_profile_mixed_with_a_floor_and_integrates_to_one(x64, values, floor):
    q = timestep.proposal(values, floor)
    expected = (1 - floor) * np.array(values) / np.mean(values) + floor
    np.testing.assert_allclose(q.density, expected, rtol=1e-11)
    np.testing.assert_allclose(np.mean(q.density), 1.0, rtol=1e-14)
    _, weight = q.at(jnp.linspace(0.0, 1.0, 999))
    assert weight.max() <= (1 + 1e-9) / floor


@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_weighted_integrals_are_those_of_uniform_times_for_any_function(x64, values):
    q = timestep.proposal(values, 0.05)
    # Polynomials, of which the quadrature is exact within the bins.
    for power in range(6):
        np.testing.assert_allclose(integral(q, lambda t, p=power: t**p), 1 / (power + 1), rtol=1e-9)
    # A jump, on an edge of no bin but that of the grid; by the midpoint rule in u.
    u = (jnp.arange(400_000) + 0.5) / 400_000
    t, weight = q.at(u)
    np.testing.assert_allclose(np.mean(weight * (t < 0.3)), 0.3, atol=5e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_weighted_times_rounded_to_a_grid_take_each_step_equally_often(x64, num_steps):
    q = timestep.proposal(PROFILES["gaps"], 0.1)
    t, weight = q.at((jnp.arange(600_000) + 0.5) / 600_000)
    _, on_grid = timestep.grid(t, num_steps)
    step = np.rint(np.asarray(on_grid) * num_steps).astype(int)
    share = np.bincount(step, weight / len(t), num_steps + 1)[1:]
    np.testing.assert_allclose(share, 1 / num_steps, atol=2e-5)


@pytest.mark.parametrize("values", PROFILES.values(), ids=PROFILES)
def test_map_is_the_inverse_of_the_distribution_function(dtype, values):
    q = timestep.proposal(values, 0.1)
    u = jnp.linspace(0.0, 1.0, 1000, endpoint=False).reshape(10, 100)
    t, weight = jax.jit(Proposal.at)(q, u)
    chex.assert_shape((t, weight), (10, 100))
    assert t.dtype == weight.dtype == q.cdf.dtype == dtype
    edges = np.linspace(0.0, 1.0, len(q.cdf))
    back = np.interp(np.asarray(t, np.float64), edges, np.asarray(q.cdf, np.float64))
    # A rounding of t is magnified by the density.
    eps = float(jnp.finfo(dtype).eps) * float(q.density.max())
    np.testing.assert_allclose(back, u, atol=4 * eps)
    assert np.all(np.diff(np.asarray(t).ravel()) > 0)
    bins = np.minimum((np.asarray(t) * len(q.density)).astype(int), len(q.density) - 1)
    assert np.mean(np.isclose(weight, 1 / q.density[bins], rtol=1e-4)) > 0.98  # but for edges


def test_map_stays_in_the_unit_interval_at_its_ends(dtype):
    q = timestep.proposal(PROFILES["steep"], 0.1)
    last = jnp.nextafter(jnp.asarray(1.0, dtype), jnp.asarray(0.0, dtype))
    t, weight = q.at(jnp.array([0.0, last, 1.0], dtype))
    assert t[0] == 0.0
    assert t[1] <= t[2] == 1.0
    np.testing.assert_allclose(weight, 1 / q.density[jnp.array([0, -1, -1])], rtol=1e-5)


def test_a_uniform_profile_changes_nothing():
    q = timestep.proposal(np.full(8, 3.0))
    u = jax.random.uniform(jax.random.key(0), (200,))
    t, weight = q.at(u)
    np.testing.assert_allclose(t, u, atol=2e-7)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)


def test_float32_of_a_thousand_bins_agrees_with_float64():
    values = 0.01 + np.random.default_rng(0).gamma(0.5, size=1000)
    u = np.random.default_rng(1).uniform(size=2000)
    single = np.asarray(timestep.proposal(values).at(jnp.asarray(u, jnp.float32)))
    with jax.enable_x64(True):
        double = np.asarray(timestep.proposal(values).at(jnp.asarray(u)))
    np.testing.assert_allclose(single[0], double[0], atol=2e-6)
    same_bin = (single[0] * np.float32(1000)).astype(int) == (double[0] * 1000).astype(int)
    assert same_bin.mean() > 0.99
    # A bin holds at least floor / 1000 = 1e-4 of u, of which a rounding near 1 is 6e-8.
    np.testing.assert_allclose(single[1][same_bin], double[1][same_bin], rtol=1e-3)


# ---- the variance ----


def test_a_profile_of_the_function_itself_leaves_hardly_any_variance(x64):
    def f(t):
        return jnp.exp(4.0 * t) + jnp.sin(9.0 * t)

    mean = integral(timestep.proposal([1.0], 1.0), f, 60)
    variances = []
    for bins in (1, 10, 100, 1000):
        q = timestep.proposal(f((np.arange(bins) + 0.5) / bins), 1e-9)
        t, weight = q.at((jnp.arange(200_000) + 0.5) / 200_000)
        variances.append(float(np.mean((weight * f(t) - mean) ** 2)))
    # What remains is the change within a bin, of order 1 / bins^2.
    ratios = np.array(variances[:-1]) / np.array(variances[1:])
    np.testing.assert_allclose(ratios[1:], 100.0, rtol=0.1)
    assert variances[-1] < 1e-5 * variances[0]


def test_variance_with_the_rms_profile_is_its_closed_form_and_the_least(x64):
    # f(t, eps) = a_k eps^2 in bin k: E f = a_k, E f^2 = 3 a_k^2; and b_k eps, of no mean.
    a, b = np.array([0.5, 3.0, 1.0, 0.1]), np.array([1.0, 0.2, 4.0, 0.3])
    nodes, weights = gauss_hermite(8)
    second = 3 * a**2 + b**2

    def variance(values, floor=1e-12):
        q = timestep.proposal(values, floor)

        def square(t):
            k = np.minimum((np.asarray(t) * 4).astype(int), 3)
            f = a[k][..., None] * nodes**2 + b[k][..., None] * nodes
            return (f**2 @ weights) / q.density[k]

        return integral(q, square) - np.mean(a) ** 2

    rms = np.sqrt(second)
    expected = np.mean(rms) ** 2 - np.mean(a) ** 2
    np.testing.assert_allclose(variance(rms), expected, rtol=1e-9)
    np.testing.assert_allclose(variance(np.ones(4)), np.mean(second) - np.mean(a) ** 2, rtol=1e-9)
    rng = np.random.default_rng(0)
    others = [variance(rms * np.exp(0.3 * rng.normal(size=4))) for _ in range(20)]
    assert min(others) > expected
    assert variance(a) > expected  # the mean isn't the optimal profile where the noise matters
    # A floor can only cost the square root of what it takes away: Var + E^2 <= that / (1 - floor).
    with_floor = variance(rms, 0.1) + np.mean(a) ** 2
    assert np.mean(rms) ** 2 < with_floor < np.mean(rms) ** 2 / 0.9


# ---- profile ----


def test_profile_is_the_moments_of_each_bin():
    t = np.array([[0.0, 0.1, 0.24], [0.26, 0.74, 1.0]])
    losses = np.array([[1.0, 2.0, 6.0], [5.0, 3.0, 2.0]])
    measured = timestep.profile(t, jnp.asarray(losses), 4)
    np.testing.assert_array_equal(measured.draws, [3, 1, 1, 1])
    np.testing.assert_allclose(measured.mean, [3.0, 5.0, 3.0, 2.0], rtol=1e-7)
    np.testing.assert_allclose(measured.rms, [np.sqrt(41 / 3), 5.0, 3.0, 2.0], rtol=1e-7)


def test_empty_bins_are_interpolated_between_their_neighbours():
    measured = timestep.profile([0.15, 0.45, 0.44], [2.0, -8.0, -8.0], 10)
    np.testing.assert_array_equal(np.nonzero(measured.draws)[0], [1, 4])
    np.testing.assert_allclose(measured.rms, [2, 2, 4, 6, 8, 8, 8, 8, 8, 8])
    np.testing.assert_allclose(measured.mean[:5], [2, 2, 2 - 10 / 3, 2 - 20 / 3, -8])


def test_weights_undo_a_proposal_of_other_bins(x64):
    q = timestep.proposal([1.0, 9.0, 2.0])
    t, weight = q.at((jnp.arange(100_000) + 0.5) / 100_000)
    measured = timestep.profile(t, t**2, 2, weight)
    np.testing.assert_allclose(measured.mean, [1 / 12, 7 / 12], rtol=1e-4)
    np.testing.assert_allclose(measured.rms**2, [1 / 80, 31 / 80], rtol=1e-4)
    unweighted = timestep.profile(t, t**2, 2)
    assert np.all(np.abs(unweighted.mean / measured.mean - 1) > 0.05)


# ---- in the bound ----

VAR = 0.3
IMAGES = np.arange(12).reshape(6, 2) % 4
GAMMA = schedule.cosine(-8.0, 6.0)


def optimal(z, gamma_t):
    """The noise predicted by the optimal denoiser for independent x ~ N(0, VAR)."""
    g = process.expand(gamma_t, z)
    return jnp.sqrt(jax.nn.sigmoid(g)) * z / (VAR * jax.nn.sigmoid(-g) + jax.nn.sigmoid(g))


@functools.cache
def compiled_elbo(num_steps):
    return jax.jit(
        jax.vmap(
            lambda key, q: loss.elbo(
                key, IMAGES, optimal, GAMMA, 4, num_steps, timesteps="uniform", proposal=q
            ),
            in_axes=(0, None),
        )
    )


@pytest.mark.parametrize("num_steps", [None, 10])
def test_elbo_with_a_measured_proposal_is_unbiased_and_varies_less(num_steps):
    keys = jax.random.split(jax.random.key(0), 8000)
    x = pixels.encode(np.tile(IMAGES, (2000, 1)), 4)
    t = jax.random.uniform(jax.random.key(1), x.shape[:1])
    eps = jax.random.normal(jax.random.key(2), x.shape)
    losses = jax.jit(lambda: loss.diffusion(x, eps, t, optimal, GAMMA, num_steps))()
    measured = timestep.profile(t, losses, 20)
    tempered, plain = (
        compiled_elbo(num_steps)(keys, q) for q in (timestep.proposal(measured.rms), None)
    )
    chex.assert_trees_all_equal(tempered[:2], plain[:2])
    # The exact expectation: over eps by cubature, over t by quadrature or over the grid.
    times, shares = (
        gauss_legendre(64, 8)
        if num_steps is None
        else ((np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps))
    )
    expected = []
    for row in np.asarray(pixels.encode(IMAGES, 4)):
        noise = np.tile(cubature(2), (len(times), 1))
        values = loss.diffusion(
            np.broadcast_to(row, noise.shape), noise, np.repeat(times, 4), optimal, GAMMA, num_steps
        )
        expected.append(np.repeat(shares, 4) / 4 @ np.asarray(values))
    for estimate in (tempered.diffusion, plain.diffusion):
        error = estimate.std(0) / np.sqrt(len(keys))
        assert np.all(np.abs(estimate.mean(0) - np.array(expected)) < 4 * error)
    ratio = tempered.diffusion.var(0).mean() / plain.diffusion.var(0).mean()
    assert ratio < 0.15, ratio  # 0.09 and 0.06


def test_proposal_keeps_the_strata_of_antithetic_times():
    q = timestep.proposal(PROFILES["steep"])
    t, _ = q.at(timestep.antithetic(jax.random.key(0), 16))
    mass = np.interp(np.asarray(t), np.linspace(0, 1, 65), np.asarray(q.cdf))
    np.testing.assert_array_equal(np.bincount(np.floor(16 * mass).astype(int), minlength=16), 1)


def test_times_of_a_proposal_have_its_density():
    q = timestep.proposal(PROFILES["gaps"])
    t, _ = q.at(timestep.uniform(jax.random.key(0), 20_000))

    def distribution(t):
        return np.interp(t, np.linspace(0, 1, len(q.cdf)), np.asarray(q.cdf))

    assert stats.kstest(np.asarray(t), distribution).pvalue > 1e-3


def test_weight_multiplies_the_diffusion_term_alone():
    eps_0, eps = (jax.random.normal(jax.random.key(i), IMAGES.shape) for i in (0, 1))
    t, weight = jnp.linspace(0.1, 0.9, 6), jnp.arange(6.0)
    plain = loss.elbo_given(IMAGES, eps_0, eps, t, optimal, GAMMA, 4)
    weighted = loss.elbo_given(IMAGES, eps_0, eps, t, optimal, GAMMA, 4, weight=weight)
    chex.assert_trees_all_equal(weighted[:2], plain[:2])
    np.testing.assert_allclose(weighted.diffusion, weight * plain.diffusion)
    with pytest.raises(ValueError, match=r"weight must be \[6\], one per example, got \(6, 1\)"):
        loss.elbo_given(IMAGES, eps_0, eps, t, optimal, GAMMA, 4, weight=weight[:, None])


# ---- errors ----


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([], r"one value per bin, got shape \(0,\)"),
        (3.0, r"one value per bin, got shape \(\)"),
        ([[1.0, 2.0]], r"one value per bin, got shape \(1, 2\)"),
        ([1.0, -2.0], r"nonnegative, got profile\[1\] = -2.0"),
        ([1.0, 2.0, np.nan], r"nonnegative, got profile\[2\] = nan"),
        ([np.inf, 2.0], r"finite and nonnegative, got profile\[0\] = inf"),
        ([0.0, 0.0], r"profile is zero in every bin"),
    ],
)
def test_bad_profiles_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        timestep.proposal(values)


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.1, np.nan])
def test_a_floor_outside_of_its_range_is_refused(floor):
    with pytest.raises(ValueError, match=r"floor must lie in \(0, 1\], .* got"):
        timestep.proposal([1.0, 2.0], floor)


def test_a_floor_that_the_type_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="lost in the rounding of float32; raise it"):
        timestep.proposal([1.0, 0.0, 1.0], 1e-9)


@pytest.mark.parametrize(
    ("t", "losses", "options", "match"),
    [
        ([0.1, 0.2], [1.0], {}, r"t \(2,\), losses \(1,\) and weights \(2,\) must be of one shape"),
        ([], [], {}, "at least one draw"),
        ([0.1, 1.2], [1.0, 1.0], {}, r"t must lie in \[0, 1\], which 1 of 2 do not"),
        ([0.1, 0.2], [1.0, np.nan], {}, "losses must be finite, which 1 of 2 do not"),
        ([0.1], [1.0], {"weights": [0.0]}, "weights must be finite and positive"),
        ([0.1], [1.0], {"num_bins": 0}, "num_bins must be an integer of at least 1, got 0"),
        ([0.1], [1.0], {"num_bins": 2.0}, "num_bins must be an integer of at least 1, got 2.0"),
    ],
)
def test_measurements_that_make_no_profile_are_refused(t, losses, options, match):
    with pytest.raises(ValueError, match=match):
        timestep.profile(t, losses, **({"num_bins": 4} | options))
