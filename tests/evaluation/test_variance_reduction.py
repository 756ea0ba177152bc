"""Evaluations that need fewer calls of the network: the same bound, the error asked for."""

import math

import jax
import numpy as np
import pytest
import toy_vdm
from toy_vdm import EXACT

from vdm_jax.errors import UserError
from vdm_jax.evaluation import variance_reduction as reduction
from vdm_jax.evaluation.bound import PLAIN, Draws, summarise
from vdm_jax.loss import ElboTerms


def test_importance_is_in_proportion_to_the_noise_at_each_time():
    """Of eps_hat = f(t): the loss ||eps - f||^2 has standard deviation sqrt(2 d + 4 d f^2)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4, (3000, *toy_vdm.SHAPE), np.uint8)
    plan = reduction.plan(toy_vdm.subject(toy_vdm.steep, 1024, train=images), True, False)
    assert plan.calls == 4 * 1024 and plan.coefficients is None and plan.linear is None
    gamma = -6.0 + 10.0 * (np.arange(50) + 0.5) / 50
    spread = np.sqrt(2 + 4 * np.exp(gamma))
    expected = 0.9 * spread / spread.mean() + 0.1
    of_five = [np.mean(np.reshape(of, (10, 5)), 1) for of in (plan.proposal.density, expected)]
    np.testing.assert_allclose(*of_five, rtol=0.15)


def test_control_variates_take_out_the_noise_of_a_loss_that_is_one():
    """eps_hat = 0: fitted on training images, they leave the test images' mean alone, and exact."""
    subject = toy_vdm.subject(toy_vdm.nothing)
    plan = reduction.plan(subject, False, True)
    assert plan.calls == 4 * 200 and plan.proposal is None
    np.testing.assert_allclose(plan.coefficients[:10, 0], 1.0, atol=0.02)
    draws, controlled = reduction.Evaluator(plan, jax.random.key(1), 4).draw(subject)
    assert draws.terms.diffusion.std() > 5.0
    assert controlled.terms.diffusion.std() < 0.25 * draws.terms.diffusion.std()
    np.testing.assert_allclose(controlled.terms.diffusion.mean(), EXACT, rtol=0.02)
    assert reduction.plan(subject, False, False) == PLAIN


def test_the_error_asked_for_is_reached_with_the_draws_it_takes():
    subject = toy_vdm.subject(toy_vdm.curved)
    plan = reduction.plan(subject, True, True)
    evaluator = reduction.Evaluator(plan, jax.random.key(0), 1, wanted=0.025)
    _, controlled = evaluator.draw(subject)
    found = summarise(controlled, subject.bound)
    assert 0.1 * 0.025 < found.total.monte_carlo <= 0.025 and found.repeats > 4
    assert evaluator.pilot_calls == plan.calls + 60 * reduction.PILOT_REPEATS
    _, plain = reduction.Evaluator(PLAIN, jax.random.key(0), found.repeats).draw(subject)
    plain = summarise(plain, subject.bound)
    error = math.hypot(found.total.monte_carlo, plain.total.monte_carlo)
    assert abs(found.total.mean - plain.total.mean) < 4 * error
    assert found.total.monte_carlo < 0.6 * plain.total.monte_carlo


def draws_of(sd: float, repeats: int, images: int, seed: int) -> Draws:
    """Independent draws of diffusion terms with a known deviation, in bits per dim."""
    rng = np.random.default_rng(seed)
    nats = 4 * math.log(2.0) * (2.0 + rng.normal(0.0, sd, (repeats, images)))
    none = np.zeros((repeats, images))
    t = np.mod(np.arange(images) * 0.618034 + np.arange(repeats)[:, None] / repeats, 1.0)
    return Draws(ElboTerms(none, none, nats), t, none + 1.0)


def test_enough_is_the_number_that_the_known_deviation_calls_for():
    bound = toy_vdm.subject().bound
    numbers = [reduction.enough(draws_of(0.3, 16, 400, seed), bound, 0.002) for seed in range(30)]
    known = 0.3**2 / (400 * 0.002**2)  # 56
    margin = reduction.MARGIN * (1 + 2 * math.sqrt(2 / 400))
    np.testing.assert_allclose(np.mean(numbers), margin * known, rtol=0.05)
    # So many draws have the error, seldom a little more.
    errors = [
        summarise(draws_of(0.3, n, 400, 100 + i), bound).total.monte_carlo
        for i, n in enumerate(numbers)
    ]
    assert np.mean(np.array(errors) < 0.002) > 0.6 and max(errors) < 1.15 * 0.002
    assert reduction.enough(draws_of(0.3, 16, 400, 0), bound, 10.0) == 2
    with pytest.raises(UserError, match=r"1e-05 would take more than 1000000 draws .* least 2e-05"):
        reduction.enough(draws_of(0.3, 16, 400, 0), bound, 1e-5)


def test_losses_that_are_no_numbers_are_told_before_times_are_drawn_by_them():
    broken = toy_vdm.subject(lambda z, gamma: z * np.nan, 8)
    with pytest.raises(UserError, match=r"losses of training images, .* are not all finite"):
        reduction.plan(broken, True, False)
