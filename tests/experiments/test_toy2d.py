"""`experiments.toy2d`, in this process: what it finds, what it leaves, what it refuses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData
from PIL import Image

from experiments import toy2d, toy_figure, toy_models
from vdm_jax import loss, schedule
from vdm_jax.data import points
from vdm_jax.run import cli
from vdm_jax.run.cli import UserError


@pytest.fixture
def small(monkeypatch):
    """Fewer points than a user gets."""
    monkeypatch.setattr(toy2d, "TEST", 400)
    monkeypatch.setattr(toy2d, "DRAWS", 8)
    monkeypatch.setattr(toy2d, "TRAIN", 20_000)
    monkeypatch.setattr(toy_figure, "GRID", 40)
    monkeypatch.setattr(toy_figure, "SHOWN", 300)


def of_gaussian(name: str) -> float:
    """What the Gaussian of the data's mean and covariance costs, in nats."""
    cov = np.cov(points.draw(name, 100_000, 0).T)
    return 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * cov)[1]


def test_the_bound_with_its_noise_taken_out_is_still_the_bound():
    n, ends = 40_000, (-12.0, 6.0)
    data = GaussianData(np.float32([0.1, -0.3]), np.float32([[0.1, 0.05], [0.05, 0.04]]))
    x = np.random.default_rng(0).multivariate_normal(data.mean, data.cov, n).astype(np.float32)
    gamma, key = schedule.linear(*ends), jax.random.key(0)
    got = np.asarray(toy_models.bound(key, x, data.denoise, gamma, "x"), np.float64)
    reconstruction = np.log(2.0 * np.pi * np.e) + ends[0]
    exact = reconstruction + data.prior(ends[1]) + data.diffusion_continuous(*ends)
    assert 0.0 < exact - data.entropy() < 0.01
    assert abs(got.mean() - exact) < 5 * got.std() / np.sqrt(n)
    plain = loss.elbo(key, x, data.denoise, gamma, levels=None, kind="x").total
    assert got.std() < 0.7 * plain.std()


def check(found: dict, folder, name: str, lowest: float) -> None:
    truth, ode = found["truth"], found["ode"]
    assert abs(truth["nats"] - points.entropy(found["data"])) < 5 * truth["standard_error"] + 1e-9
    assert ode["nats"] < lowest
    # A density can't be better than the data's own but for the noise of these points.
    assert ode["excess"]["nats"] > -5 * ode["excess"]["standard_error"]
    assert abs(ode["nats"] - truth["nats"] - ode["excess"]["nats"]) < 1e-9
    assert json.loads((folder / f"{name}.json").read_text()) == found
    colours = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 200


def test_a_vdm_of_the_swirl_is_soon_better_than_a_gaussian(small, tmp_path, capsys):
    found = toy2d.toy2d(["toy2d", f"--workdir={tmp_path}", "--steps=300"])
    check(found, tmp_path, "swirl-vdm", of_gaussian("swirl") - 0.2)
    bound = found["bound"]
    assert bound["nats"] < of_gaussian("swirl")
    assert bound["excess"]["nats"] > -5 * bound["excess"]["standard_error"]
    assert bound["standard_error"] < 0.3
    out = capsys.readouterr().out
    assert f"{found['ode']['nats']:.4f} ± " in out and "bits" not in out


def test_a_flow_of_the_checkerboard_learns_and_keeps_its_mass(small, tmp_path, monkeypatch):
    kept = {}
    train = toy2d.MODELS["cnf"]

    def keep(*arguments):
        kept["fitted"] = train(*arguments)
        return kept["fitted"]

    monkeypatch.setitem(toy2d.MODELS, "cnf", keep)
    arguments = ["toy2d", f"--workdir={tmp_path}", "--model=cnf", "--data=checkerboard"]
    found = toy2d.toy2d([*arguments, "--steps=20"])
    # Untrained it is the standard normal, which costs log(2 pi) + E||x||^2 / 2.
    square = np.mean(points.draw("checkerboard", 100_000, 0) ** 2)
    check(found, tmp_path, "checkerboard-cnf", np.log(2.0 * np.pi) + square - 0.2)
    assert found["bound"] is None
    axis = np.linspace(-6.0, 6.0, 40)  # as many points as the figure's grid: compiled already
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    density = np.exp(kept["fitted"].log_prob(jnp.asarray(grid), 1e-3).log_prob)
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1.0) < 0.01
    # Files of other settings stay.
    with pytest.raises(UserError, match=r"checkerboard-cnf\.json is of steps=20; name another"):
        toy2d.toy2d([*arguments, "--steps=21"])


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "moons-vdm.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"moons-vdm\.json is no result of this command"):
        toy2d.toy2d(["toy2d", f"--workdir={tmp_path}", "--data=moons"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data=rings", "--data=rings: known are swirl, moons, checkerboard"),
        ("--model=gan", "--model=gan: known are vdm, cnf"),
        ("--steps=0", "--steps must be at least 1, got 0"),
        ("--steps=few", "wanted a whole number"),
        ("--seed=-1", r"--seed must lie in [0, 2^32), got -1"),
        ("--workdir=/dev/null", "--workdir=/dev/null is a file; name a folder"),
        ("swirl", "unexpected argument 'swirl'"),
        ("--colour=red", "colour"),
    ],
)
def test_mistakes_end_in_one_line(argument, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_leave", sys.exit)
    with pytest.raises(SystemExit) as end:
        cli.guard(lambda: toy2d.toy2d(["toy2d", f"--workdir={tmp_path}", argument]))
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
