"""`experiments.which_bpd`: what each figure is off by, where that is known. (All: test_studies.)"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import which_bpd
from vdm_jax import flow, schedule
from vdm_jax.ode import Solver
from vdm_jax.run import vdmz
from vdm_jax.vdm import VDM

CASE = which_bpd.known()._replace(repeats=512)
DIMS = 4


def entropy(values):
    """Entropy of rows that are as likely as they are frequent, in bits per dimension of CASE."""
    counts = np.unique(values, axis=0, return_counts=True)[1]
    share = counts / counts.sum()
    return -np.sum(share * np.log2(share)) / DIMS


@pytest.fixture(scope="module")
def found():
    """All figures of the table but the ODE's and the file's, each of which here has 0 nats."""
    with pytest.MonkeyPatch.context() as patch:
        zero = lambda vdm, key, images, *_, **__: flow.DequantizedNats(jnp.zeros(len(images)), 0)  # noqa: E731
        patch.setattr(flow, "dequantized_nats", zero)
        patch.setattr(which_bpd, "file_bits", lambda case: 0.0)
        return which_bpd.measure(CASE)


def row(found, words, without="nothing"):
    (only,) = (row for name, row in found.items() if words in name and without not in name)
    return only


def test_the_bound_of_the_exact_denoiser_is_the_entropy_and_what_its_decoder_costs(found):
    truth, bound = row(found, "true entropy"), row(found, "continuous")
    assert truth["bpd"] == pytest.approx(entropy(CASE.images.reshape(-1, DIMS)), rel=1e-6)
    # The decoder takes the levels for equally likely, and the prior is N(0, I).
    assert -5 * bound["error"] < bound["off"] < 0.01 + 5 * bound["error"]
    assert bound["error"] < 0.02


def test_steps_cost_and_chains_mend_a_part_of_it(found):
    steps, weighted = row(found, "bound, T"), row(found, "importance")
    assert steps["off"] > weighted["off"] > 0.0


def test_what_is_forgotten_is_missing_to_the_digit(found):
    weighted = row(found, "importance")
    forgotten = row(found, "log K forgotten")
    assert forgotten["bpd"] - weighted["bpd"] == pytest.approx(-math.log2(8) / DIMS)
    assert row(found, "no dequantisation")["bpd"] == pytest.approx(math.log2(which_bpd.LEVELS / 2))


def test_averages_and_differences_lack_the_determinant():
    """Of Gaussian data the density of y = A x + A u is known, and its mean over the noise u too."""
    rng, low, levels = np.random.default_rng(0), -9.0, which_bpd.LEVELS
    mean, root = rng.normal(0.0, 0.3, DIMS), np.tril(rng.normal(0.0, 0.3, (DIMS, DIMS)))
    cov, width = root @ root.T + 0.2 * np.eye(DIMS), 2.0 / levels

    def denoise(z, gamma_t):  # E[x|z_t]
        a, s = (of(gamma_t)[:, None, None] for of in (schedule.alpha, schedule.sigma))
        of_z = a**2 * cov + s**2 * np.eye(DIMS)
        flat = z.reshape(len(z), DIMS) - a[:, 0] * mean
        solved = jnp.linalg.solve(of_z, flat[..., None])[..., 0]
        return (mean + a[:, 0] * solved @ cov).reshape(z.shape)

    model = VDM(denoise, schedule.linear(low, 12.0), (2, 2, 1), levels, "x")
    images = np.repeat(rng.integers(0, levels, (20, 2, 2, 1)), 50, axis=0)
    exact = Solver(rtol=1e-4, atol=1e-4)
    source = vdmz.Source(lambda _: model, (), {})
    found = which_bpd.flows(which_bpd.Case(source, images, solver=exact))

    a = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 4.0
    noisy = a @ (cov + np.exp(low) * np.eye(DIMS)) @ a.T  # of y, at gamma(0)
    away = (width * (images.reshape(-1, DIMS) + 0.5) - 1.0 - mean) @ a.T
    squares = np.sum(away * np.linalg.solve(noisy, away.T).T, axis=1)
    squares += width**2 / 12.0 * np.trace(a.T @ np.linalg.solve(noisy, a))
    density = 0.5 * (squares + np.linalg.slogdet(2.0 * np.pi * noisy)[1])
    expected = (density.mean() - DIMS * np.log(width)) / DIMS / np.log(2.0)
    assert found[which_bpd.AVERAGES]["bpd"] == pytest.approx(expected, abs=0.02)
    right, uniform = row(found, "ODE of averages", "wrong"), row(found, "ODE, uniform")
    determinant = np.linalg.slogdet(a)[1] / DIMS / np.log(2.0)
    assert right["bpd"] == pytest.approx(expected - determinant, abs=0.02)
    assert right["bpd"] == pytest.approx(uniform["bpd"], abs=0.02)


def test_what_nobody_paid_is_the_entropy_of_the_low_pass_image(found):
    low = row(found, "nobody paid")
    unpaid = entropy(CASE.images.reshape(-1, DIMS).sum(axis=1, dtype=int)[:, None])
    assert abs(low["off"] + unpaid) < 0.01 + 5 * low["error"]


def test_without_a_decoder_what_the_least_noisy_image_says_of_the_data_is_left(found):
    """Of the exact denoiser, half the integral of its squared errors is I(x; z) (Guo 2005)."""
    states, counts = np.unique(CASE.images.reshape(-1, DIMS), axis=0, return_counts=True)
    rng, width = np.random.default_rng(0), 2.0 / which_bpd.LEVELS
    x = states * width
    logs = np.log(counts / counts.sum())
    drawn = np.repeat(x, 20 * counts, axis=0)  # noise of one level's width
    error = drawn + width * rng.standard_normal(drawn.shape)
    log_joint = logs - 0.5 * np.sum((error[:, None] - x) ** 2, axis=2) / width**2
    log_own = -0.5 * np.sum((error - drawn) ** 2, axis=1) / width**2
    information = np.mean(log_own - np.logaddexp.reduce(log_joint, axis=1)) / np.log(2.0) / DIMS
    cut = row(found, "no decoder")
    assert abs(cut["bpd"] - information) < 0.01 + 5 * cut["error"]


@pytest.fixture(scope="module")
def blind():
    """Draws of a model that predicts no noise: of any t its loss is half of gamma' a dimension."""
    model = VDM(lambda z, gamma: 0.0 * z, schedule.linear(-4.0, 6.0), (4, 4, 1), 4)
    images = np.zeros((64, 4, 4, 1), int)
    return which_bpd.grid(lambda params: model, (), images, 256)


def test_the_low_pass_image_has_a_quarter_of_white_noise(blind):
    t, gamma, low, terms = blind
    np.testing.assert_allclose(gamma, 10.0 * t - 4.0, rtol=1e-5, atol=1e-5)
    assert np.all(np.diff(t[:, 0]) > 0.0)
    total = 5.0 / math.log(2.0)
    assert terms.diffusion.mean() == pytest.approx(total, rel=0.01)
    assert low.mean() == pytest.approx(total / 4, rel=0.02)


def test_times_make_no_difference_to_a_loss_that_is_the_same_at_each(blind):
    found = which_bpd.wrong(4, *blind)
    terms = blind[-1]
    diffusion, rest = terms.diffusion.mean(), (terms.prior + terms.reconstruction).mean()
    assert row(found, "logit-normal")["bpd"] == pytest.approx(diffusion + rest, rel=0.02)
    beta = 0.1 * which_bpd.FIRST + 9.95 * which_bpd.FIRST**2  # integrated up to the first time
    drawn = (6.0 - math.log(math.expm1(beta))) / 10.0 / (1.0 - which_bpd.FIRST)
    assert row(found, "times from")["bpd"] == pytest.approx(drawn * diffusion + rest, rel=0.02)
    assert row(found, "quarter")["bpd"] == pytest.approx(0.8125 * diffusion + rest, rel=0.02)
    seen = 1.0 - (2.0 * math.log(2.0 / 4.0) + 4.0) / 10.0  # the share above noise of one level
    assert row(found, "no decoder")["bpd"] == pytest.approx(
        seen * diffusion + terms.prior.mean(), rel=0.02
    )
    shared = row(found, "one t")
    assert shared["true"] == pytest.approx(shared["claimed"], rel=0.2)


def test_an_error_over_images_of_one_time_is_far_too_small(found):
    shared = row(found, "one t")
    assert shared["true"] > 5 * shared["claimed"] > 0.0
