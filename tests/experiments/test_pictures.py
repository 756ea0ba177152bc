"""`experiments.pictures`: what is plotted. (The learned schedule: thorough/test_studies.py.)"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracles import GaussianData
from PIL import Image

from experiments import pictures
from vdm_jax import schedule
from vdm_jax.errors import UserError
from vdm_jax.vdm import VDM

ENDS = -8.0, 5.0
DATA = GaussianData(np.float32([0.1, -0.3]), np.float32([[0.3, 0.1], [0.1, 0.1]]))
MODEL = VDM(DATA.denoise, schedule.linear(*ENDS), (2,), None, "x")


def test_both_chains_have_the_marginals_of_the_process():
    drawn = np.random.default_rng(0).multivariate_normal(DATA.mean, DATA.cov, 4000)
    gammas = jnp.asarray([-8.0, -3.0, 0.0, 2.0, 5.0])
    run = jax.jit(partial(pictures.chains, MODEL))
    up, down = map(np.asarray, run(jax.random.key(2), jnp.asarray(drawn, jnp.float32), gammas))
    np.testing.assert_array_equal(down[0], up[-1])
    shown, levels = np.concatenate([up, down]), np.concatenate([gammas, gammas[::-1]])
    for z, gamma in zip(shown, levels, strict=True):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))
        np.testing.assert_allclose(z.mean(axis=0), alpha * DATA.mean, atol=0.06)
        exact = alpha**2 * DATA.cov + sigma**2 * np.eye(2)
        np.testing.assert_allclose(np.cov(z.T), exact, atol=0.08)
    # What comes back is no copy of what went: z_1 holds next to nothing of it.
    assert abs(np.corrcoef(up[0, :, 0], down[-1, :, 0])[0, 1]) < 0.12


def test_the_command_draws_a_trained_model(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "learn_schedule", lambda *_: schedule.linear(*ENDS))
    with tiny.one_device():
        rows = pictures.pictures(["pictures", str(digits_run), f"--out={tmp_path}"])
    for name in ("noise_and_back", "noise_levels", "learned_schedule", "samples"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400
    result = json.loads((digits_run / "result.json").read_text())
    assert [row["schedule"] for row in rows] == ["linear in t", "learned"]
    for row in rows:
        assert abs(row["bpd"] - result["bpd"]) < 2 * result["bpd_standard_error"] < 0.3


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="nothing is neither a model's file nor one of the pack"):
        pictures.pictures(["pictures", f"--out={tmp_path}", "nothing"])
