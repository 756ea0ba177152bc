"""`experiments.toy2d`: its bound, what it measures, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from experiments import toy2d, toy_figure, toy_models
from vdm_jax import loss, schedule
from vdm_jax.data import points
from vdm_jax.errors import UserError
from vdm_jax.vdm import VDM


def test_the_bound_with_its_noise_taken_out_is_still_the_bound():
    n, ends = 40_000, (-12.0, 6.0)
    data = GaussianData(np.float32([0.1, -0.3]), np.float32([[0.1, 0.05], [0.05, 0.04]]))
    x = np.random.default_rng(0).multivariate_normal(data.mean, data.cov, n).astype(np.float32)
    vdm, key = VDM(data.denoise, schedule.linear(*ends), (2,), None, "x"), jax.random.key(0)
    got = np.asarray(toy_models.bound(key, x, vdm), np.float64)
    reconstruction = np.log(2.0 * np.pi * np.e) + ends[0]
    exact = reconstruction + data.prior(ends[1]) + data.diffusion_continuous(*ends)
    assert 0.0 < exact - data.entropy() < 0.01
    assert abs(got.mean() - exact) < 5 * got.std() / np.sqrt(n)
    plain = loss.elbo(key, x, vdm.denoise, vdm.gamma, levels=None, kind="x").total
    assert got.std() < 0.7 * plain.std()


def gaussian(calls):
    """N(0, I / 4) in place of a training."""

    def train(data, steps, seed):
        calls.append((len(data), steps, seed))
        return toy_models.Fitted(
            losses=[(steps, 1.25)],
            log_prob=lambda x, tolerance: np.log(2.0 / np.pi) - 2.0 * jnp.sum(x**2, axis=1),
            sample=lambda key, n: 0.5 * jax.random.normal(key, (n, 2)),
            paths=lambda z: jnp.linspace(1.0, 0.5, 5)[:, None, None] * z,
            bound=lambda key, x: jnp.sum(x**2, axis=1),
            gamma=schedule.linear(-12.0, 6.0),
        )

    return train


def test_densities_are_measured_against_the_data_s_own(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setitem(toy2d.MODELS, "vdm", gaussian(calls))
    monkeypatch.setattr(toy_figure, "GRID", 20)
    arguments = ["toy2d", f"--workdir={tmp_path}", "--data=checkerboard", "--steps=70"]
    found = toy2d.toy2d([*arguments, "--seed=3"])
    assert calls == [(toy2d.TRAIN, 70, 3)]
    x = points.draw("checkerboard", toy2d.TEST, toy2d.TEST_SEED).astype(np.float64)
    square, truth = np.sum(x**2, axis=1), np.log(2.0)
    error = square.std(ddof=1) / np.sqrt(len(x))
    assert found["truth"] == pytest.approx({"nats": truth, "standard_error": 0.0})
    nats = np.log(np.pi / 2.0) + 2.0 * square.mean()
    ode, bound = found["ode"], found["bound"]
    assert [ode["nats"], ode["standard_error"]] == pytest.approx([nats, 2 * error], rel=1e-5)
    assert ode["excess"]["nats"] == pytest.approx(nats - truth, rel=1e-5)
    assert [bound["nats"], bound["standard_error"]] == pytest.approx([square.mean(), error])
    out = capsys.readouterr().out
    assert f"{nats:.4f} ± " in out and "bits" not in out
    assert json.loads((tmp_path / "checkerboard-vdm-70-3.json").read_text()) == found
    assert (tmp_path / "checkerboard-vdm-70-3.png").is_file()
    with pytest.raises(UserError, match="--workdir=/dev/null can't be made or written: File exi"):
        toy2d.toy2d(["toy2d", "--workdir=/dev/null"])
