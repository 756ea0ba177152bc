"""Distances of samples against the closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.evaluation import sample_distances
from vdm_jax.evaluation.sample_distances import mmd, sliced_wasserstein


def normal(seed, n, d, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(n, d))


def test_mmd_of_gaussians_is_its_closed_form_and_zero_on_average_of_one_distribution():
    """Of N(0, I) and N(shift, I): E k is a Gaussian of the difference, N(., 2 I)."""
    shift, scales, both = np.array([0.5, 0.0, -0.3]), np.array([0.7, 2.0]), jax.jit(mmd)
    same = (scales**2 / (scales**2 + 2)) ** 1.5
    exact = np.sum(2 * same * (1 - np.exp(-(shift @ shift) / (2 * (scales**2 + 2)))))
    x, y = (np.stack([normal(2 * i + k, n, 3) for i in range(60)]) for k, n in ((0, 60), (1, 80)))
    for moved, known in ((y + shift, exact), (y, 0.0)):
        values = np.array([both(*pair, scales) for pair in zip(x, moved, strict=True)])
        assert abs(values.mean() - known) < 4 * values.std(ddof=1) / 60**0.5
    assert 0.3 < np.mean(values < 0) < 0.8


def test_mmd_is_the_mean_over_pairs_point_by_point(x64):
    x, y, scale = normal(0, 5, 2), normal(1, 4, 2), 1.3

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * scale**2))

    of_x = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    of_y = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected = of_x + of_y - 2 * np.mean([[k(a, b) for b in y] for a in x])
    np.testing.assert_allclose(mmd(x, y, scale), expected, rtol=1e-10)


def test_sliced_wasserstein_of_a_shift_is_its_square_over_the_dimensions():
    # Every projection of the points is shifted by its share of the shift: exact, not on average.
    x, shift = normal(0, 40, 5), np.array([1.0, -2.0, 0.5, 0.0, 0.3])
    along = sample_distances.directions(jax.random.key(0), 4000, 5)
    found = float(sliced_wasserstein(x, x[::-1] + shift, along))
    np.testing.assert_allclose(found, np.mean((along @ shift) ** 2), rtol=1e-5)
    spread = np.std((along @ shift) ** 2) / np.sqrt(4000)
    assert abs(found - shift @ shift / 5) < 4 * spread
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(along.T @ along / 4000, np.eye(5) / 5, atol=0.02)


def test_in_one_dimension_it_is_w2_of_the_quantiles_also_for_unequal_numbers(x64):
    # Each of the n = 3 and m = 2 points repeated so that both have six.
    x, y = normal(0, 3, 1), normal(1, 2, 1)
    repeated = np.sort(np.repeat(x, 2, 0), 0) - np.sort(np.repeat(y, 3, 0), 0)
    found = sliced_wasserstein(x, y, jnp.ones((1, 1)))
    np.testing.assert_allclose(found, np.mean(repeated**2), rtol=1e-12)


def test_rotations_and_shifts_of_both_change_nothing_also_in_float32():
    x, y = normal(0, 30, 4), normal(1, 25, 4, mean=0.3)
    turn = np.linalg.qr(normal(2, 4, 4))[0]
    along = sample_distances.directions(jax.random.key(0), 10, 4)
    far = [np.float32(points @ turn + 100) for points in (x, y)]
    np.testing.assert_allclose(mmd(*far, 1.5), mmd(x, y, 1.5), atol=1e-4)
    turned = sliced_wasserstein(x @ turn + 5, y @ turn + 5, along @ turn)
    np.testing.assert_allclose(turned, sliced_wasserstein(x, y, along), rtol=1e-4)
    np.testing.assert_allclose(sliced_wasserstein(x, x[::-1], along), 0, atol=1e-12)


def test_median_distance_of_known_points():
    found = sample_distances.median_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found, np.sqrt(9 + 9), rtol=1e-6)
    # Nine of ten points are one: the scale is that of those which differ, whatever rounding does.
    blank = np.concatenate([np.full((90, 7), 0.7), 0.7 + np.eye(10, 7)])
    found = sample_distances.median_distance(blank)
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    assert float(sample_distances.median_distance(np.full((9, 7), 0.7))) == 0.0
    with pytest.raises(ValueError, match=r"points \[n, \*event\], got \(4, 2\) and \(4, 3\)"):
        mmd(np.ones((4, 2)), np.ones((4, 3)), 1.0)


def test_permutations_hold_the_level_under_one_distribution_and_see_a_shift():
    def of(a, b):
        return mmd(a, b, 1.5)

    @jax.jit
    def p_value(key, x, y):
        return (jnp.sum(sample_distances.permuted(key, x, y, of, 99) >= of(x, y)) + 1) / 100

    def shifted(seed, by):
        return p_value(jax.random.key(seed), normal(seed, 30, 2), normal(seed + 999, 20, 2) + by)

    p = np.array([shifted(seed, 0.0) for seed in range(40)])
    assert abs(p.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 40)
    assert np.isclose(shifted(0, 2.0), 0.01)
