"""Rows of an evaluation against closed forms of eps_hat = 0, and their profile."""

import json
import math

import jax
import numpy as np
import pytest
import toy_vdm
from toy_vdm import DIMS, EXACT, GAMMA_0, GAMMA_1, IMAGES, LEVELS

from vdm_jax.errors import UserError
from vdm_jax.evaluation import likelihood
from vdm_jax.evaluation.likelihood import Settings
from vdm_jax.ode import Solver
from vdm_jax.pixels import encode

BITS = 1.0 / (DIMS * math.log(2.0))
SUBJECT = toy_vdm.subject(batch_size=32, source={"test": np.arange(60) // 2})
ASKED = Settings(
    8, (5, None), chains=3, chain_steps=5, chain_images=24, ode_images=40,
    dequantizations=("uniform", "truncated_normal"), solver=Solver(rtol=1e-4, atol=1e-4),
)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    said = []
    found = likelihood.measure(SUBJECT, ASKED, said.append)
    assert said == found["rows"]
    return found


def ode_nats(variance: float) -> tuple[np.ndarray, float]:
    """-log N(z_0; 0, s^2) of each image, E over a uniform z_0 or one of q's; and s^2.

    Of eps_hat = 0 the flow is dz / dgamma = -sigma^2 z / 2: z_0 is N(0, s^2) with log s^2 the
    integral of sigma^2, in both cases z_0 = alpha_0 (x + noise of that variance).
    """
    log_s2 = np.logaddexp(0.0, GAMMA_1) - np.logaddexp(0.0, GAMMA_0)
    square = (np.asarray(encode(IMAGES.test[:40], LEVELS)) ** 2 + variance).sum(axis=(1, 2, 3))
    alpha2 = 1.0 / (1.0 + np.exp(GAMMA_0))
    return 0.5 * (alpha2 * square / np.exp(log_s2) + DIMS * (np.log(2 * np.pi) + log_s2)), alpha2


def test_the_rows_are_what_was_asked_for_with_the_bound_on_the_same_images(found):
    rows = found["rows"]
    assert [row["quantity"] for row in rows] == [
        "bound, T = 5", "bound, continuous time", "bound, T = 5, first 24 images",
        "bound of 3 chain(s), T = 5", "bound, continuous time, first 40 images",
        "ODE, uniform dequantisation", "ODE, truncated-normal dequantisation",
    ]  # fmt: skip
    assert [row["num_images"] for row in rows] == [60, 60, 24, 24, 40, 40, 40]
    assert [row["draws"] for row in rows] == [8, 8, 8, 2, 8, 2, 2]
    assert [row["network_calls"] for row in rows[:4]] == [480, 480, 192, 24 * 2 * 15]
    assert found["groups"] == 12 and found["failed"] is None and found["pilot_calls"] == 0
    json.dumps(found)


def test_the_bound_of_t_steps_is_its_closed_form_and_the_rest_does_not_depend_on_t(found):
    """Of eps_hat = 0 and T steps: T / 2 expm1((gamma_1 - gamma_0) / T) E ||eps||^2."""
    discrete, continuous = found["rows"][:2]
    for row, nats in ((discrete, 2.5 * math.expm1(2.0) * DIMS), (continuous, EXACT)):
        term = row["terms"]["diffusion"]
        assert abs(term["mean"] - nats * BITS) < 4 * term["monte_carlo"] < 0.2 * term["mean"]
        parts = sum(term["mean"] for term in row["terms"].values())
        assert row["bpd"] == pytest.approx(parts, rel=1e-6)
        whole = row["monte_carlo_error"] ** 2 + row["between_images_error"] ** 2
        assert row["standard_error"] ** 2 == pytest.approx(whole)
    for term in ("reconstruction", "prior"):
        assert discrete["terms"][term] == continuous["terms"][term]


def test_one_chain_is_the_bound_and_several_are_below(found):
    own, chains = found["rows"][2:4]
    assert (chains["kind"], chains["chains"]) == ("importance-weighted bound, K = 3", 3)
    assert chains["num_steps"] == 5
    error = math.hypot(own["standard_error"], chains["standard_error"])
    assert 0.2 * own["bpd"] < chains["bpd"] < own["bpd"] + 4 * error
    row = likelihood.chains(SUBJECT, 1, 5, jax.random.key(0))
    few = likelihood.measure(SUBJECT, Settings(8, (5,)), lambda row: None)["rows"][0]
    error = math.hypot(row["standard_error"], few["standard_error"])
    assert abs(row["bpd"] - few["bpd"]) < 4 * error < 0.2 * few["bpd"]


def test_the_ode_s_likelihood_is_its_closed_form(found):
    uniform, normal = found["rows"][5:]
    nats, alpha2 = ode_nats((2.0 / LEVELS) ** 2 / 12)
    log_q = -DIMS * math.log(2 * math.sqrt(alpha2) / LEVELS)
    exact = (nats.mean() + log_q) * BITS
    assert abs(uniform["bpd"] - exact) < 4 * uniform["monte_carlo_error"] < 0.2
    # q(z_0|x) is far narrower than a bin: nothing of it is cut off.
    nats, _ = ode_nats(math.exp(GAMMA_0))
    log_q = -0.5 * DIMS * (math.log(2 * math.pi * math.exp(GAMMA_0) * alpha2) + 1.0)
    exact = (nats.mean() + log_q) * BITS
    assert abs(normal["bpd"] - exact) < 4 * normal["monte_carlo_error"] + 1e-3 < 0.5
    for row in (uniform, normal):
        assert (row["trace"], row["probes"], row["tolerance"]) == ("exact", None, 1e-4)
        assert row["function_evaluations"] > 5 and row["ode_samples"] == 1
        assert row["network_calls"] == round(80 * row["function_evaluations"])


def test_what_the_ode_fails_at_is_told_after_what_was_found():
    asked = Settings(2, ode_images=4, solver=Solver("hutchinson", max_steps=2))
    found = likelihood.measure(SUBJECT.first(4), asked, lambda row: None)
    assert found["failed"].startswith("the ODE's solver gave up at --tolerance=1e-05")
    assert len(found["rows"]) == 1
    with pytest.raises(UserError, match="more than 1000000 draws"):
        likelihood.measure(SUBJECT, Settings(2, monte_carlo_error=1e-6), lambda row: None)


def test_the_profile_is_the_loss_at_each_noise_level(found):
    """Of eps_hat = 0 the loss has one mean, and one mean square, at each time."""
    profile = found["profile"]
    mean, rms = np.asarray(profile["mean"]), np.asarray(profile["rms"])
    assert profile["unit"] == "bits per dim" and len(mean) == 50
    diffusion = found["rows"][1]["terms"]["diffusion"]["mean"]
    np.testing.assert_allclose(mean.mean(), diffusion, rtol=0.05)
    np.testing.assert_allclose(np.sqrt(np.mean(rms**2)), EXACT * BITS * 1.5**0.5, rtol=0.1)
    middle = GAMMA_0 + (GAMMA_1 - GAMMA_0) * (np.arange(50) + 0.5) / 50
    np.testing.assert_allclose(profile["t"], (np.arange(50) + 0.5) / 50)
    np.testing.assert_allclose(profile["gamma"], middle, atol=1e-4)


def test_a_row_that_takes_too_much_memory_does_not_take_the_others_along(monkeypatch):
    def too_large(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 bytes")

    monkeypatch.setattr(likelihood, "chains", too_large)
    found = likelihood.measure(SUBJECT.first(4), Settings(2, chains=2, chain_images=4), print)
    assert found["failed"] == "out of memory (5 bytes): lower --batch_size, now 32"
    assert len(found["rows"]) == 2


def test_importance_and_control_variates_leave_bound_and_profile_their_closed_form():
    """Of eps_hat = f(gamma) with f^2 = exp(gamma): E ||eps - f||^2 = d (1 + exp(gamma))."""
    train = np.random.default_rng(0).integers(0, LEVELS, (2000, *toy_vdm.SHAPE), np.uint8)
    subject = toy_vdm.subject(toy_vdm.steep, 60, train=train)
    asked = Settings(32, (5, None), importance=True, control_variates=True)
    found = likelihood.measure(subject, asked, lambda row: None)
    assert found["pilot_calls"] > 0
    at_steps = np.exp(np.arange(-4.0, 5.0, 2.0)).mean()
    nats = (
        2.5 * math.expm1(2.0) * DIMS * (1 + at_steps),
        EXACT * (1 + (math.exp(GAMMA_1) - math.exp(GAMMA_0)) / (GAMMA_1 - GAMMA_0)),
    )
    for row, expected in zip(found["rows"], nats, strict=True):
        term = row["terms"]["diffusion"]
        assert abs(term["mean"] - expected * BITS) < 4 * term["monte_carlo"] < 0.1 * term["mean"]
    profile = found["profile"]
    exact = EXACT * BITS * (1 + np.exp(profile["gamma"]))
    np.testing.assert_allclose(np.mean(profile["mean"]), exact.mean(), rtol=0.1)
    np.testing.assert_allclose(np.median(profile["mean"] / exact), 1.0, atol=0.1)
