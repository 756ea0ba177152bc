"""`experiments.sets`: the ranks of theta, and a mean per coordinate."""

import numpy as np
import pytest

from experiments import sets


def test_the_posterior_is_bayes_rule_over_the_cells():
    theta = np.array([-1.0, -0.25, 0.5, 1.0])
    rank, log_density = sets.posterior(np.zeros((4, 4)), theta)
    np.testing.assert_allclose(rank, [0.0, 0.375, 0.75, 1.0])
    np.testing.assert_allclose(log_density, np.log(0.5))
    # Cells of 1/8, 1/8, 1/2 and 1/4; their width is 1/2.
    log_prob = np.log(np.array([1.0, 1.0, 4.0, 2.0]))[:, None] + np.array([-900.0, 0.0, 900.0])
    rank, log_density = sets.posterior(log_prob, np.array([-0.75, 0.25, 0.75]))
    np.testing.assert_allclose(rank, [1 / 16, 0.5, 7 / 8])
    np.testing.assert_allclose(np.exp(log_density), [0.25, 1.0, 0.5])


def test_a_mean_per_coordinate_is_of_sums_and_its_error_that_of_a_ratio():
    rng = np.random.default_rng(0)
    of = rng.integers(1, 9, (400, 500))
    values = 0.3 * of + rng.normal(size=of.shape) * np.sqrt(of)
    found = [sets._mean(*row) for row in zip(values, of, strict=True)]
    means = np.array([each["mean"] for each in found])
    np.testing.assert_allclose(means, values.sum(axis=1) / of.sum(axis=1))
    assert means.std() == pytest.approx(np.mean([each["error"] for each in found]), rel=0.15)
