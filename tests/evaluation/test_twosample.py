"""Distances of samples against the closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import twosample


def normal(seed, n, d, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(n, d))


def exact_mmd(shift: np.ndarray, scales: np.ndarray) -> float:
    """Squared MMD of N(0, I) and N(shift, I): E k is a Gaussian of the difference, N(., 2 I)."""
    d, total = len(shift), 0.0
    for s in scales:
        same = (s**2 / (s**2 + 2)) ** (d / 2)
        total += 2 * same * (1 - np.exp(-(shift @ shift) / (2 * (s**2 + 2))))
    return total


def test_mmd_of_shifted_gaussians_is_its_closed_form_and_its_error_is_right(x64):
    shift, scales = np.array([0.5, 0.0, -0.3]), np.array([0.7, 2.0])
    found = [
        twosample.mmd(normal(2 * i, 150, 3), normal(2 * i + 1, 200, 3) + shift, scales)
        for i in range(60)
    ]
    values = np.array([float(f.square) for f in found])
    errors = np.array([float(f.standard_error) for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact_mmd(shift, scales)) < 4 * spread / np.sqrt(60)
    # Of 60 values the spread itself is known to 9 percent.
    assert abs(errors.mean() / spread - 1) < 0.3


def test_mmd_of_one_distribution_is_zero_on_average_and_often_negative(x64):
    found = [twosample.mmd(normal(2 * i, 60, 4), normal(2 * i + 1, 50, 4), 2.0) for i in range(100)]
    values = np.array([float(f.square) for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 4 * spread / 10
    assert 0.3 < np.mean(values < 0) < 0.8
    errors = np.mean([float(f.standard_error) for f in found])
    assert 0.8 < errors / spread < 1.7  # up to a root of two too large, and a little chance


def test_mmd_is_the_mean_over_pairs_point_by_point(x64):
    x, y, scale = normal(0, 5, 2), normal(1, 4, 2), 1.3

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * scale**2))

    def square(x, y):
        of_x = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        of_y = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        return of_x + of_y - 2 * np.mean([[k(a, b) for b in y] for a in x])

    found = twosample.mmd(x, y, scale)
    np.testing.assert_allclose(found.square, square(x, y), rtol=1e-10)
    less_x = [square(np.delete(x, i, 0), y) for i in range(5)]
    less_y = [square(x, np.delete(y, i, 0)) for i in range(4)]
    jackknife = 4 * np.var(less_x) + 3 * np.var(less_y)
    np.testing.assert_allclose(found.standard_error, np.sqrt(jackknife), rtol=1e-9)


def test_sliced_wasserstein_of_a_shift_is_its_square_over_the_dimensions(x64):
    # Every projection of the points is shifted by its share of the shift: exact, not on average.
    x, shift = normal(0, 40, 5), np.array([1.0, -2.0, 0.5, 0.0, 0.3])
    along = twosample.directions(jax.random.key(0), 20_000, 5)
    found = float(twosample.sliced_wasserstein(x, x[::-1] + shift, along))
    np.testing.assert_allclose(found, np.mean((along @ shift) ** 2), rtol=1e-10)
    of_sphere = shift @ shift / 5
    spread = np.std((along @ shift) ** 2) / np.sqrt(20_000)
    assert abs(found - of_sphere) < 4 * spread


def test_in_one_dimension_it_is_w2_of_the_quantiles_also_for_unequal_numbers(x64):
    # Each of the n = 3 and m = 2 points repeated so that both have six.
    x, y = normal(0, 3, 1), normal(1, 2, 1)
    repeated = np.sort(np.repeat(x, 2, 0), 0) - np.sort(np.repeat(y, 3, 0), 0)
    found = twosample.sliced_wasserstein(x, y, jnp.ones((1, 1)))
    np.testing.assert_allclose(found, np.mean(repeated**2), rtol=1e-12)


def test_it_tends_to_the_distance_of_scaled_gaussians_in_one_dimension(x64):
    x, y = normal(0, 40_000, 1), normal(1, 30_000, 1, mean=0.5, scale=2.0)
    found = float(twosample.sliced_wasserstein(x, y, jnp.ones((1, 1))))
    moments = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert abs(found - moments) < 5e-3 and abs(moments - (0.5**2 + (2.0 - 1.0) ** 2)) < 0.1


def test_rotations_and_shifts_of_both_change_nothing(x64):
    x, y = normal(0, 30, 4), normal(1, 25, 4, mean=0.3)
    turn = np.linalg.qr(normal(2, 4, 4))[0]
    along = twosample.directions(jax.random.key(0), 10, 4)
    here = twosample.mmd(x, y, 1.5), twosample.sliced_wasserstein(x, y, along)
    there = twosample.mmd(x @ turn + 100, y @ turn + 100, 1.5)
    np.testing.assert_allclose(there, here[0], rtol=1e-8)
    turned = twosample.sliced_wasserstein(x @ turn + 5, y @ turn + 5, along @ turn)
    np.testing.assert_allclose(turned, here[1], rtol=1e-10)
    np.testing.assert_allclose(twosample.sliced_wasserstein(x, x[::-1], along), 0, atol=1e-25)


def test_far_from_the_origin_float32_keeps_the_distances():
    x, y = normal(0, 30, 4), normal(1, 25, 4, mean=0.3)
    near = twosample.mmd(x.astype(np.float32), y.astype(np.float32), 1.5).square
    far = twosample.mmd((x + 100).astype(np.float32), (y + 100).astype(np.float32), 1.5).square
    np.testing.assert_allclose(far, near, atol=1e-4)


def test_median_distance_of_known_points():
    assert float(twosample.median_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))) == (
        pytest.approx(np.sqrt(9 + 9))
    )


def test_permutations_hold_the_level_under_one_distribution_and_see_a_shift(x64):
    def of(a, b):
        return twosample.mmd(a, b, 1.5).square

    @jax.jit
    def both(key, x, y):
        return twosample.permuted(key, x, y, of, 99), of(x, y)

    def shifted(seed, by):
        x, y = normal(seed, 30, 2), normal(seed + 1000, 20, 2) + by
        chance, found = both(jax.random.key(seed), x, y)
        return (np.sum(np.asarray(chance) >= float(found)) + 1) / 100

    p = np.array([shifted(seed, 0.0) for seed in range(40)])
    assert abs(p.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 40)
    assert shifted(0, 2.0) == 0.01


def test_directions_are_unit_vectors_of_no_preference():
    along = np.asarray(twosample.directions(jax.random.key(0), 20_000, 3))
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(along.T @ along / 20_000, np.eye(3) / 3, atol=4 * 0.3 / 141)


def test_points_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"x and y must be points of one shape, got \(4, 2\) and"):
        twosample.mmd(np.ones((4, 2)), np.ones((4, 3)), 1.0)
    with pytest.raises(ValueError, match=r"x must be points \[n, \*event\], at least 3 of them"):
        twosample.mmd(np.ones((2, 2)), np.ones((4, 2)), 1.0)
    with pytest.raises(
        ValueError, match=r"along must be \[num, 2\], num at least 1, got shape \(5, 3\)"
    ):
        twosample.sliced_wasserstein(np.ones((4, 2)), np.ones((4, 2)), jnp.ones((5, 3)))
