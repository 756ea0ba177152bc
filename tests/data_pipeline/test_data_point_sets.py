"""The sets' densities integrate to 1, and the sets that are drawn have them."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from vdm_jax.data import point_sets

THETAS = [("mixture", 0.6), ("mixture", -1.0), ("repulsion", -0.3), ("repulsion", 1.0)]


def independent(name, n, count):
    """Sets of n points of N(0, 1.2^2 I) by another generator, and their log density."""
    rng = np.random.default_rng(17 + n)
    points = np.full((count, point_sets.MOST[name], 2), np.nan)
    points[:, :n] = 1.2 * rng.normal(size=(count, n, 2))
    mask = np.broadcast_to((np.arange(points.shape[1]) < n)[:, None], (*points.shape[:2], 1))
    log_q = stats.norm(scale=1.2).logpdf(points[:, :n]).sum(axis=(1, 2))
    return points, mask, log_q


def spread(points, mask):
    """Statistics [count, 4] of sets: mean of x, of y, of x^2, and the mean exp(-distance^2)."""
    n = mask.sum(axis=1)
    x = np.where(mask, points, 0.0)
    between = np.sum((x[:, :, None] - x[:, None]) ** 2, axis=-1)
    pairs = (mask * mask.transpose(0, 2, 1)) * (1.0 - np.eye(mask.shape[1]))
    near = np.sum(pairs * np.exp(-between), axis=(1, 2))[:, None] / np.maximum(n * (n - 1), 1)
    return np.concatenate([x.sum(axis=1) / n, (x[..., :1] ** 2).sum(axis=1) / n, near], axis=1)


@pytest.mark.parametrize(("name", "theta"), THETAS)
def test_the_density_of_n_points_integrates_to_the_probability_of_n(name, theta):
    """By importance sampling, for each N; what draws of N points are is what the density says."""
    number = np.exp(point_sets.number_log_prob(name, [theta]))[0]
    assert number.sum() == pytest.approx(1.0, abs=1e-12)
    points, mask = point_sets.draw(name, 20_000, theta, seed=4)
    drawn = mask.sum(axis=(1, 2)).astype(int)
    observed = np.bincount(drawn, minlength=len(number))
    assert stats.chisquare(observed, number * len(drawn)).pvalue > 1e-4
    for n in (1, 2) if name == "mixture" else (1, 2, 4):
        x, there, log_q = independent(name, n, 100_000)
        weights = np.exp(point_sets.log_prob(name, x, there, theta) - log_q)
        error = weights.std() / math.sqrt(len(x))
        assert abs(weights.mean() - number[n]) < 4.5 * error < 0.1 * number[n]
        own = spread(points[drawn == n], mask[drawn == n])
        other = spread(x, there)
        mean = np.average(other, axis=0, weights=weights)
        of_mean = weights[:, None] * (other - mean) / weights.mean()
        error = np.hypot(own.std(axis=0) / len(own) ** 0.5, of_mean.std(axis=0) / len(x) ** 0.5)
        assert np.all(np.abs(own.mean(axis=0) - mean) < 4.5 * error + 1e-12)


def test_the_integral_of_two_repelling_points_is_that_over_their_distance():
    """Their difference is N(0, 2 I): of its square s = |x - y|^2 / 4 exponential, E over that."""
    for theta in (-1.0, 0.2):
        number = np.exp(point_sets.number_log_prob("repulsion", [theta]))[0]
        two_r_2 = 2.0 * (0.5 * math.exp(theta)) ** 2
        rate = 1.0 + 4.0 / two_r_2
        lost, _ = integrate.quad(lambda s, a: 0.9 * math.exp(-a * s), 0.0, np.inf, (rate,))
        assert number[2] / number[1] == pytest.approx(1.5 * (1.0 - lost), rel=1e-6)


def test_the_entropy_is_the_mean_of_the_log_density():
    """Of independent points: that of their number, and E[N] times that of one, by a sum."""
    theta, spacing = 0.5, 0.05
    number = np.exp(point_sets.number_log_prob("mixture", [theta]))[0]
    axis = np.arange(-4.0, 4.0, spacing)
    x = np.zeros((len(axis) ** 2, 10, 2))
    x[:, 0] = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mask = np.zeros((len(x), 10, 1))
    mask[:, 0] = 1
    each = point_sets.log_prob("mixture", x, mask, theta) - math.log(number[1])
    assert np.sum(np.exp(each)) * spacing**2 == pytest.approx(1.0, abs=1e-6)
    of_one = -np.sum(np.exp(each) * each) * spacing**2
    entropy = -np.sum(number * np.log(number)) + np.arange(11) @ number * of_one
    found = -point_sets.log_prob("mixture", *point_sets.draw("mixture", 20_000, theta, 1), theta)
    assert abs(found.mean() - entropy) < 4.5 * found.std() / math.sqrt(20_000) < 0.2


@pytest.mark.parametrize("name", point_sets.NAMES)
def test_each_set_has_its_own_theta_and_draws_are_repeated_by_their_seed(name):
    theta = np.linspace(-1.0, 1.0, 6)
    points, mask = point_sets.draw(name, 6, theta, 3)
    again = point_sets.draw(name, 6, theta, 3)
    np.testing.assert_array_equal(points, again[0])
    assert np.any(points != point_sets.draw(name, 6, theta, 4)[0])
    assert np.all(points[mask[..., 0] == 0] == 0.0) and points.dtype == mask.dtype == np.float32
    together = point_sets.log_prob(name, points, mask, theta)
    for i in range(6):
        alone = point_sets.log_prob(name, points[i : i + 1], mask[i : i + 1], theta[i])
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-12)
    # The order of the points says nothing.
    order = np.random.default_rng(0).permutation(points.shape[1])
    other = point_sets.log_prob(name, points[:, order], mask[:, order], theta)
    np.testing.assert_allclose(other, together, rtol=1e-12)


def test_what_cannot_be_drawn_is_refused():
    for theta, got in ((1.5, r"shape \(\), 1.5 to 1.5"), ([0.0, 0.1], r"shape \(2,\), 0.0 to 0.1")):
        with pytest.raises(ValueError, match=rf"theta must be in \[-1, 1\].*\[3\], got {got}"):
            point_sets.draw("mixture", 3, theta, 0)
