"""Tables and factors of the chain against the core's Gaussians and their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from vdm_jax.compression.ladder import EPS_GRID

from vdm_jax import pixels, process, schedule
from vdm_jax.compression import ladder, tables
from vdm_jax.compression.ans import TOTAL
from vdm_jax.compression.tables import FRACTIONS
from vdm_jax.parameterization import to_x


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


GAMMA = schedule.linear(-7.0, 4.0)


@pytest.mark.parametrize("escape", [False, True])
def test_gaussian_counts_have_the_moments_of_the_gaussian(escape):
    stds = np.array([1.0, 2.0, 2.3, 5.0])
    table = tables.gaussian(stds, escape)
    counts = table.counts.astype(float)
    assert np.all(table.counts[:, 0] == 0) and np.all(table.counts[:, -1] == TOTAL)
    probs = np.diff(counts, axis=1)[:, : 2 * table.span + 1] / TOTAL
    assert probs.min() >= 1 / TOTAL  # no symbol is impossible
    numbers = np.arange(2 * table.span + 1) - table.span
    mean = probs @ numbers
    var = probs @ numbers**2 - mean**2
    fractions = np.tile(np.arange(FRACTIONS) / FRACTIONS, len(stds))
    np.testing.assert_allclose(mean, fractions, atol=2e-4)
    # Of the number itself, bin and all: the variance is that of the chain, at any grid.
    wide = np.repeat(stds, FRACTIONS) ** 2
    np.testing.assert_allclose(var, wide, rtol=3e-3 if escape else 2e-3)
    np.testing.assert_allclose(var[FRACTIONS:], wide[FRACTIONS:], rtol=1e-3)


def test_gaussian_counts_are_those_of_the_cumulative_distribution():
    std = 3.0
    table = tables.gaussian(np.array([std]), True)
    row = 37
    edges = np.arange(2 * table.span + 2) - table.span - 0.5 - row / FRACTIONS
    probs = np.diff(stats.norm.cdf(edges / np.sqrt(std**2 - 1 / 12)))
    found = np.diff(table.counts[row].astype(float))[:-1] / TOTAL
    np.testing.assert_allclose(found, probs, atol=2.5 / TOTAL + 1e-6 * probs.max())


def test_split_rounds_means_to_fractions():
    mean = np.random.default_rng(0).uniform(-1e4, 1e4, 1000)
    whole, row = tables.split(mean)
    assert row.min() >= 0 and row.max() < FRACTIONS
    np.testing.assert_allclose(whole + row / FRACTIONS, mean, atol=0.5 / FRACTIONS)


@pytest.mark.parametrize(("gamma_0", "levels"), [(-13.3, 256), (-4.0, 256), (-2.0, 17), (3.0, 2)])
def test_pixel_counts_are_those_of_the_decoder(gamma_0, levels):
    grid = 0.4 * np.exp(0.5 * gamma_0)
    table = tables.of_pixels(gamma_0, levels, grid)
    z_0 = np.random.default_rng(1).integers(table.first, -table.first, 300)
    z_0 = np.append(z_0, [table.first - 1000, -table.first + 1000])
    rows = table.rows(z_0)
    expected = np.exp(pixels.decode_log_probs(jnp.asarray(z_0[:300] * grid), gamma_0, levels))
    probs = np.diff(table.counts[rows].astype(float), axis=1) / TOTAL
    lost = 0.0
    for i in range(300):
        window = slice(table.levels[rows[i]], table.levels[rows[i]] + probs.shape[1] - 1)
        np.testing.assert_allclose(probs[i, :-1], expected[i, window], atol=2e-5)
        lost = max(lost, 1.0 - expected[i, window].sum())
    assert lost < 1e-5
    assert np.all(table.counts[:, -1] == TOTAL)
    assert np.diff(table.counts.astype(np.int64), axis=1).min() >= 1
    # Beyond the table's ends p(x|z_0) is that of the ends.
    assert rows[300] == 0 and rows[301] == len(table.counts) - 1


@pytest.mark.parametrize("reverse_var", ["posterior", "transition"])
def test_factors_are_those_of_the_core(reverse_var):
    num_steps, grid = 7, 2
    found = ladder.make(GAMMA, num_steps, 17, grid, reverse_var)
    rng = np.random.default_rng(2)
    x, eps = rng.uniform(-1, 1, 5), rng.normal(size=5)
    first = process.marginal(jnp.asarray(x), found.gammas[0])
    np.testing.assert_allclose(found.forward[0] * x * found.grids[0], first.mean, rtol=1e-6)
    for i in range(1, num_steps + 1):
        s, t = found.gammas[i - 1], found.gammas[i]
        z = rng.normal(size=5)
        step = process.transition(jnp.asarray(z), s, t)
        np.testing.assert_allclose(
            found.forward[i] * (z / found.grids[i - 1]) * found.grids[i], step.mean, rtol=1e-6
        )
        share = float(reverse_var == "transition")
        x_hat = to_x(jnp.asarray(eps), jnp.asarray(z), t, "eps")
        back = process.reverse(jnp.asarray(z), x_hat, s, t, share)
        mean = found.of_z[i - 1] * (z / found.grids[i]) + found.of_eps[i - 1] * (eps / EPS_GRID)
        np.testing.assert_allclose(mean * found.grids[i - 1], back.mean, rtol=1e-5, atol=1e-6)
        for table, std, width in (
            (found.encoders[i], np.sqrt(step.var), found.grids[i]),
            (found.decoders[i - 1], np.sqrt(back.var), found.grids[i - 1]),
        ):
            probs = np.diff(table.counts[0].astype(float))[: 2 * table.span + 1] / TOTAL
            var = probs @ (np.arange(len(probs)) - table.span) ** 2
            np.testing.assert_allclose(np.sqrt(var) * width, std, rtol=1e-3)
            assert np.max(std) / width > grid * (1 - 1e-6)  # no std is less than `grid` parts


def test_a_learned_variance_lies_between_its_two_ends():
    found = ladder.make(GAMMA, 3, 17, 2, "learned")
    for i in range(3):
        narrow = ladder.make(GAMMA, 3, 17, 2, "posterior").decoders[i]
        counts = found.decoders[i].counts[::FRACTIONS].astype(float)
        assert len(counts) == found.shares[i] > 1
        span = found.decoders[i].span
        probs = np.diff(counts, axis=1)[:, :-1] / TOTAL
        var = probs @ (np.arange(2 * span + 1) - span) ** 2 * found.grids[i] ** 2
        s, t = found.gammas[i], found.gammas[i + 1]
        one = jnp.ones(1)
        ends = [float(process.reverse(one, one, s, t, share).var[0]) for share in (0.0, 1.0)]
        np.testing.assert_allclose(var[[0, -1]], ends, rtol=1e-2)
        np.testing.assert_allclose(np.diff(np.log(var)), np.log(var[1] / var[0]), rtol=0.05)
        assert narrow.counts.shape[0] == FRACTIONS


def test_the_digest_tells_ladders_apart_and_nothing_else():
    base = ladder.make(GAMMA, 4, 17, 2).digest
    assert ladder.make(schedule.linear(-7.0, 4.0), 4, 17, 2).digest == base
    others = [
        ladder.make(schedule.linear(-7.0, 4.001), 4, 17, 2),
        ladder.make(GAMMA, 5, 17, 2),
        ladder.make(GAMMA, 4, 16, 2),
        ladder.make(GAMMA, 4, 17, 3),
        ladder.make(GAMMA, 4, 17, 2, "transition"),
        ladder.make(GAMMA, 4, 17, 2, "learned"),
    ]
    assert len({base, *(other.digest for other in others)}) == 7


def test_float64_noise_in_the_schedule_changes_no_table():
    """What another machine's exp and log may differ by."""
    other = ladder.make(lambda t: GAMMA(t) * (1 + 3e-16 * jnp.sin(1e5 * t)), 50, 17, 2)
    assert other.digest == ladder.make(GAMMA, 50, 17, 2).digest


def test_a_schedule_that_does_not_rise_is_refused():
    for gamma in (lambda t: 0.0 * t, lambda t: -t, lambda t: jnp.where(t > 0.5, jnp.nan, t)):
        with pytest.raises(ValueError, match="must rise in each of the 4 steps"):
            ladder.make(gamma, 4, 17, 2)
