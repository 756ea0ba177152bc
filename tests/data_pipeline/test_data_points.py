"""The points, their density and their entropy agree with each other."""

import numpy as np
import pytest
from scipy import stats

from vdm_jax.data import points


def cells(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram2d(x[:, 1], x[:, 0], bins=[edges, edges])[0]


@pytest.mark.parametrize("name", ["swirl", "moons"])
def test_points_are_distributed_as_their_density_says(name, monkeypatch):
    # Chi-square over a grid of cells, their probabilities by a finer sum over the density.
    count, bins, fine = 20_000, 26, 4
    edges, width = np.linspace(-1.3, 1.3, bins + 1), 2.6 / (bins * fine)
    axis = -1.3 + (np.arange(bins * fine) + 0.5) * width
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(points.log_prob(name, grid)).reshape(bins, fine, bins, fine)
    probability = density.sum(axis=(1, 3)) * width**2
    assert abs(probability.sum() - 1.0) < 1e-6
    x = points.draw(name, count, 3)
    observed, expected = cells(x, edges), count * probability
    many = expected > 20.0
    assert many.sum() > 50 and expected[many].sum() > 0.9 * count
    square = np.sum((observed - expected)[many] ** 2 / expected[many])
    rest = (observed[~many].sum() - expected[~many].sum()) ** 2 / expected[~many].sum()
    assert 1e-6 < stats.chi2(many.sum()).sf(square + rest) < 1.0 - 1e-6
    coarse = points.log_prob(name, x[:200])
    monkeypatch.setattr(points, "_NODES", 10 * points._NODES)  # of the quadrature along the curve
    np.testing.assert_allclose(coarse, points.log_prob(name, x[:200]), rtol=0, atol=1e-4)


def test_the_curves_lie_where_they_should():
    # The ends and the middle of the roll; of the upper moon, and of the lower one.
    swirl = [[0.0, -0.3], [-0.6, 0.0], [0.0, 0.9]]
    moons = [[0.3, -0.15], [-0.3, 0.45], [-0.9, -0.15], [-0.3, 0.15], [0.3, -0.45], [0.9, 0.15]]
    for name, on_it in (("swirl", swirl), ("moons", moons)):
        assert np.all(points.log_prob(name, np.array(on_it)) > -1.0)
        assert points.log_prob(name, np.array([[0.7, 0.85]])) < -5.0


def test_checkerboard_is_uniform_on_every_other_square():
    x = points.draw("checkerboard", 80_000, 0)
    counts = cells(x, np.linspace(-1.0, 1.0, 5))
    dark = (np.arange(4)[:, None] + np.arange(4)) % 2 == 0
    assert np.all(counts[~dark] == 0) and counts.sum() == 80_000
    assert stats.chisquare(counts[dark]).pvalue > 1e-6
    for side in ((x + 1.0) % 0.5 / 0.5).T:
        assert stats.kstest(side, "uniform").pvalue > 1e-6
    np.testing.assert_array_equal(points.log_prob("checkerboard", x), -np.log(2.0))
    light = np.array([[0.25, -0.25], [1.2, 0.1], [-1.01, -1.01]])
    np.testing.assert_array_equal(points.log_prob("checkerboard", light), -np.inf)


@pytest.mark.parametrize("name", points.NAMES)
def test_entropy_is_the_mean_of_the_log_density_of_points_about_the_unit_square(name):
    x = points.draw(name, 10_000, 5)
    values = -points.log_prob(name, x)
    assert abs(values.mean() - points.entropy(name)) < 5 * values.std() / 100.0 + 1e-12
    assert x.dtype == np.float32 and 0.8 < np.abs(x).max() < 1.3
    np.testing.assert_array_equal(x, points.draw(name, 10_000, 5))
    assert not np.any(np.isin(x[:2000], points.draw(name, 2000, 8)).all(axis=1))


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("must be one of swirl, moons, checkerboard, got 'rings'", lambda: points.entropy("rings")),
        ("count must be an integer of at least 0, got -1", lambda: points.draw("moons", -1, 0)),
        ("seed must be an integer of at least 0, got 0.5", lambda: points.draw("moons", 1, 0.5)),
        (r"points must be \[n, 2\], got shape \(2,\)", lambda: points.log_prob("moons", [0.0, 0])),
    ],
)
def test_what_cannot_be_drawn_is_refused(match, call):
    with pytest.raises(ValueError, match=match):
        call()
