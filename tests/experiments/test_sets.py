"""`experiments.sets`: the ranks of theta, and a mean per coordinate."""

import numpy as np
import pytest

from experiments import sets


def test_ranks_are_the_posterior_s_distribution_function():
    theta = np.array([-1.0, -0.25, 0.5, 1.0])
    flat, one_cell = np.zeros((4, 4)), np.full((4, 4), -1e9)
    one_cell[2] = 0.0  # theta in [0, 0.5]
    np.testing.assert_allclose(sets.ranks(flat, theta), [0.0, 0.375, 0.75, 1.0])
    np.testing.assert_allclose(
        sets.ranks(one_cell, np.array([-0.1, 0.0, 0.25, 0.6])), [0, 0, 0.5, 1]
    )


def test_a_mean_per_coordinate_is_of_sums_and_its_error_that_of_a_ratio():
    rng = np.random.default_rng(0)
    of = rng.integers(1, 9, (400, 500))
    values = 0.3 * of + rng.normal(size=of.shape) * np.sqrt(of)
    found = [sets._mean(*row) for row in zip(values, of, strict=True)]
    means = np.array([each["mean"] for each in found])
    np.testing.assert_allclose(means, values.sum(axis=1) / of.sum(axis=1))
    assert means.std() == pytest.approx(np.mean([each["error"] for each in found]), rel=0.15)
