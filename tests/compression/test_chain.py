"""Tables and factors of the chain against the core's Gaussians and their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import pixels, process, schedule
from vdm_jax.compression import chain, steps, tables
from vdm_jax.compression.ans import TOTAL
from vdm_jax.compression.chain import EPS_GRID
from vdm_jax.compression.tables import FRACTIONS
from vdm_jax.parameterization import to_x

GAMMA = schedule.linear(-7.0, 4.0)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


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
    # And each count is that of the cumulative distribution.
    edges = np.append(numbers - 0.5, table.span + 0.5) - fractions[:, None]
    exact = np.diff(stats.norm.cdf(edges / np.sqrt(wide - 1 / 12)[:, None]))
    np.testing.assert_allclose(probs[:, 1:-1], exact[:, 1:-1], atol=4 / TOTAL + 1e-6)


@pytest.mark.parametrize(("gamma_0", "levels"), [(-13.3, 256), (3.0, 2)])
def test_pixel_counts_are_those_of_the_decoder(gamma_0, levels):
    grid = 0.4 * np.exp(0.5 * gamma_0)
    table = tables.of_pixels(gamma_0, levels, grid)
    rows = np.random.default_rng(1).integers(0, len(table.counts), 300)
    rows[:2] = 0, len(table.counts) - 1
    z_0 = (table.first + rows) * grid
    expected = np.exp(pixels.decode_log_probs(jnp.asarray(z_0), gamma_0, levels))
    probs = np.diff(table.counts[rows].astype(float), axis=1) / TOTAL
    window = table.levels[rows, None] + np.arange(probs.shape[1] - 1)
    within = np.take_along_axis(expected, window, axis=1)
    np.testing.assert_allclose(probs[:, :-1], within, atol=2e-5)
    assert within.sum(axis=1).min() > 1.0 - 1e-5
    assert len(table.counts) == 1 - 2 * table.first and z_0[1] == -z_0[0] >= 1.0
    assert np.all(table.counts[:, -1] == TOTAL)
    assert np.diff(table.counts.astype(np.int64), axis=1).min() >= 1


@pytest.mark.parametrize("reverse_var", ["posterior", "transition"])
def test_factors_are_those_of_the_core(reverse_var):
    num_steps, grid = 7, 2
    found = chain.make(steps.equal(GAMMA, num_steps, reverse_var), 17, grid)
    np.testing.assert_allclose(found.values, pixels.level_values(17), rtol=1e-6)
    rng = np.random.default_rng(2)
    x, z, eps = rng.uniform(-1, 1, 5), rng.normal(size=5), jnp.asarray(rng.normal(size=5))
    first = process.marginal(jnp.asarray(x), found.gammas[0])
    np.testing.assert_allclose(found.forward[0] * x * found.grids[0], first.mean, rtol=1e-6)
    for i in range(1, num_steps + 1):
        s, t = found.gammas[i - 1], found.gammas[i]
        step = process.transition(jnp.asarray(z), s, t)
        mean = found.forward[i] * (z / found.grids[i - 1]) * found.grids[i]
        np.testing.assert_allclose(mean, step.mean, rtol=1e-6)
        x_hat = to_x(eps, jnp.asarray(z), t, "eps")
        back = process.reverse(jnp.asarray(z), x_hat, s, t, float(reverse_var == "transition"))
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


def test_the_digest_tells_chains_apart_and_not_the_last_bits_of_a_machine():
    made = lambda gamma, grid, *kind: chain.make(steps.equal(gamma, 4, *kind), 17, grid)  # noqa: E731
    base = made(GAMMA, 2).digest
    near = lambda t: GAMMA(t) * (1 + 3e-16 * jnp.sin(1e5 * t))  # noqa: E731
    assert made(near, 2).digest == base
    others = [made(GAMMA, 3), made(GAMMA, 2, "transition")]
    assert len({base, *(other.digest for other in others)}) == 3


def test_schedules_without_tables_are_refused():
    for gamma, num_steps, grid, said in (
        (lambda t: 0.0 * t, 4, 2, "must rise in each of the 4 steps"),
        (lambda t: jnp.where(t > 0.5, jnp.nan, t), 4, 2, "must rise in each of the 4 steps"),
        (lambda t: t**24, 4, 60, "smaller grid, fewer steps, or a gamma that rises evenly"),
        (GAMMA, 4096, 9, "num_steps times grid is 36864, may be 32768 at most"),
        (schedule.linear(-40.0, 5.0), 2, 2, "too many: gamma_0 = -40"),
    ):
        with pytest.raises(ValueError, match=said):
            chain.make(steps.equal(gamma, num_steps), 17, grid)
