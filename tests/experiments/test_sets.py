"""`experiments.sets`: what it measures of the exact model of the mixture, and of a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sets
from vdm_jax import VDM, schedule
from vdm_jax.data import point_sets
from vdm_jax.nn.counts import Categorical


def known(shift=0.0):
    """The mixture's own denoiser E[x|z_t] and number of points, at theta + shift."""

    def points(theta, mask):
        theta = jnp.asarray(theta)[:, None, None] + shift
        centre = jnp.concatenate([jnp.cos(theta), jnp.sin(theta)], axis=-1)

        def x_hat(z_t, gamma_t):
            alpha, sigma = (of(gamma_t)[:, None, None] for of in (schedule.alpha, schedule.sigma))
            means, logs = [], []
            for sign, deviation in ((1.0, 0.3), (-1.0, 0.6)):
                var = (alpha * deviation) ** 2 + sigma**2
                away = z_t - alpha * sign * centre
                means.append(sign * centre + alpha * deviation**2 / var * away)
                square = jnp.sum(away**2, axis=-1, keepdims=True)
                logs.append(
                    jax.nn.log_sigmoid(sign * 2.0 * theta) - jnp.log(var) - square / (2 * var)
                )
            first = jax.nn.sigmoid(logs[0] - logs[1])
            return first * means[0] + (1.0 - first) * means[1]

        return VDM(x_hat, schedule.linear(*sets.ENDS), (10, 2), None, "x", mask=mask)

    def number(theta):
        clipped = np.clip(np.asarray(theta, np.float64) + shift, -1.0, 1.0)
        return Categorical(jnp.asarray(point_sets.number_log_prob("mixture", clipped)))

    return sets.Fitted(points, number)


@pytest.fixture
def short(monkeypatch):
    numbers = {"TEST": 300, "BY_ODE": 20, "RANKED": 200, "SAMPLES": 150, "PERMUTED": 100}
    for name, value in numbers.items():
        monkeypatch.setattr(sets, name, value)
    monkeypatch.setattr(sets, "DRAWS", (4, 12))
    monkeypatch.setattr(sets, "SOLVER", {"rtol": 1e-3, "atol": 1e-3})


def test_the_exact_model_passes_and_a_shifted_one_does_not(short):
    found, wrong = (sets.measure("mixture", known(shift)) for shift in (0.0, -0.5))
    for name in ("bound", "ode", "number"):
        assert abs(found[name]["mean"]) < 4 * found[name]["error"] + 0.01
    assert wrong["ode"]["mean"] > 0.05 and wrong["number"]["mean"] > 0.02
    assert found["exact"] == wrong["exact"]
    assert found["model"]["p"] > 0.01 > 1e-6 > wrong["model"]["p"]
    assert min(found["mmd"], found["sliced_wasserstein"]) > 0.02
    assert max(wrong["mmd"], wrong["sliced_wasserstein"]) < 0.02


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
