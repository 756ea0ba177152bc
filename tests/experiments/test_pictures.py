"""`experiments.pictures`: what is plotted is what the mathematics says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracles import GaussianData
from PIL import Image
from vdm_jax.data.digits import load_digits

from experiments import pictures
from vdm_jax import loss, schedule
from vdm_jax.errors import UserError
from vdm_jax.evaluation.estimate import Estimate
from vdm_jax.rule import Rule
from vdm_jax.run import build, restore
from vdm_jax.vdm import VDM

ENDS = -8.0, 5.0
DATA = GaussianData(np.float32([0.1, -0.3]), np.float32([[0.3, 0.1], [0.1, 0.1]]))
MODEL = VDM(DATA.denoise, schedule.linear(*ENDS), (2,), None, "x")


def points(count):
    drawn = np.random.default_rng(0).multivariate_normal(DATA.mean, DATA.cov, count)
    return jnp.asarray(drawn, jnp.float32)


def test_the_area_is_the_diffusion_term_in_closed_form():
    x = points(20_000)
    eps = jax.random.normal(jax.random.key(1), x.shape)
    gammas = ENDS[0] + (ENDS[1] - ENDS[0]) * (np.arange(50) + 0.5) / 50
    bits = np.stack([pictures.cost(MODEL, x, eps, gamma) for gamma in gammas])
    error = bits.std(axis=1) / np.sqrt(len(x))
    exact = DATA.eps_error(gammas) / (2 * 2 * np.log(2))
    assert np.all(np.abs(bits.mean(axis=1) - exact) < 5 * error)
    areas = bits.mean(axis=0) * (ENDS[1] - ENDS[0])
    term = DATA.diffusion_continuous(*ENDS) / (2 * np.log(2))
    assert abs(areas.mean() - term) < 4 * areas.std() / np.sqrt(len(x)) < 0.05 * term


def test_both_chains_have_the_marginals_of_the_process():
    x, rule = points(4000), Rule("ancestral", 200, "angle")
    run = jax.jit(partial(pictures.chains, MODEL, rule=rule))
    up, down = map(np.asarray, run(jax.random.key(2), x))
    np.testing.assert_array_equal(down[0], up[-1])
    gammas = np.asarray(rule.gammas(MODEL.gamma))
    shown = np.concatenate([up[::50], down[::50]])
    for z, gamma in zip(shown, [*gammas[::-50], *gammas[::50]], strict=True):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))
        np.testing.assert_allclose(z.mean(axis=0), alpha * DATA.mean, atol=0.06)
        exact = alpha**2 * DATA.cov + sigma**2 * np.eye(2)
        np.testing.assert_allclose(np.cov(z.T), exact, atol=0.08)
    # What comes back is no copy of what went: z_1 holds next to nothing of it.
    assert abs(np.corrcoef(up[0, :, 0], down[-1, :, 0])[0, 1]) < 0.12


def test_a_schedule_that_spreads_the_loss_evenly_has_the_least_mean_square():
    gammas = np.linspace(*ENDS, 401)
    rms = 0.1 + np.exp(-np.square(gammas + 4.0) / 4.0)
    costs = pictures.Costs(gammas, np.stack([rms, -rms], axis=1), Estimate(0.0, 0.0, 0.0))
    t = np.append(0.0, np.cumsum(0.5 * (rms[1:] + rms[:-1])))
    times = np.linspace(0.0, 1.0, 201)
    even, least = pictures.spread(costs, np.interp(times, t / t[-1], gammas), times)
    np.testing.assert_allclose(even[1:-1], least, rtol=0.02)
    line, same = pictures.spread(costs, np.linspace(*ENDS, 201), times)
    np.testing.assert_allclose(line[::2], 13.0 * rms[::4], rtol=1e-6)
    assert same == least and np.mean(line**2) > 1.5 * least**2


def test_the_command_draws_a_trained_model(digits_run, tmp_path, monkeypatch):
    # The schedule's training is in tests/thorough.
    monkeypatch.setattr(pictures, "learn_schedule", lambda *_: schedule.linear(*ENDS))
    monkeypatch.setattr(pictures, "IMAGES", 360)
    command = ["pictures", f"--workdir={digits_run}", f"--out={tmp_path}", "--beside="]
    with tiny.one_device():
        costs = pictures.pictures(command)
        vdm = restore.from_workdir(digits_run, build.make_mesh()).vdm
    for name in ("noise_and_back", "noise_levels", "learned_schedule"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400
    images = load_digits().test
    draws = jax.jit(jax.vmap(lambda key: vdm.elbo(key, images).diffusion))
    terms = np.asarray(loss.bits_per_dim(draws(jax.random.split(jax.random.key(5), 16)), (8, 8, 1)))
    areas = costs.bits.mean(axis=0) * (ENDS[1] - ENDS[0])
    difference = areas - terms.mean(axis=0)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(360) < 0.1 * areas.mean()
    assert costs.area.mean == pytest.approx(areas.mean(), rel=1e-5)


def test_refusals(tmp_path):
    out = f"--out={tmp_path}"
    with pytest.raises(UserError, match="--workdir and --pretrained exclude each other"):
        pictures.pictures(["pictures", out, "--workdir=a", "--pretrained=b"])
    with pytest.raises(UserError, match="nothing is neither a model's file nor one of the pack"):
        pictures.pictures(["pictures", out, "--pretrained=nothing"])
