"""Sets of points: what the ODE says of a centred network, and the study of known densities."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sets
from vdm_jax import VDM, schedule
from vdm_jax.data import point_sets
from vdm_jax.nn.counts import Categorical
from vdm_jax.nn.sets import SetTransformer


@pytest.mark.parametrize(
    ("head", "variance"), [("eps", 1.0 + np.exp(3.0)), ("v", 1.0 + np.exp(-6.0))]
)
def test_the_density_of_the_centre_of_mass_of_a_centred_model(head, variance):
    """Of three points u = sum over sqrt(3) is N(0, variance) in each coordinate."""
    network = SetTransformer(
        -6.0, 3.0, width=16, num_blocks=1, num_heads=2, head=head, centred=True
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 2)).astype(np.float32) + np.float32([[[0.0]], [[3.0]]])
    of = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))["params"]
    params = jax.tree.map(lambda p: 0.4 * rng.normal(size=p.shape).astype(np.float32), of)

    def denoise(z_t, gamma_t):
        return network.apply({"params": params}, z_t, gamma_t)

    vdm = VDM(denoise, schedule.linear(-6.0, 3.0), (3, 2), levels=None, kind=head)
    one, other = vdm.log_prob(jax.random.key(0), jnp.asarray(x), rtol=1e-4, atol=1e-4)
    squares = x.sum(axis=1) ** 2 / 3.0
    want = -0.5 * (squares[1] - squares[0]).sum() / variance
    assert abs(want) > 0.5 and other - one == pytest.approx(want, abs=3e-3)


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

    return sets.SetModel(points, number)


@pytest.fixture
def short(monkeypatch):
    numbers = {
        "TEST": 300,
        "BY_ODE": 20,
        "RANKED": 200,
        "SAMPLES": 150,
        "PERMUTED": 400,
        "TOGETHER": 2,
    }
    for name, value in numbers.items():
        monkeypatch.setattr(sets, name, value)
    monkeypatch.setattr(sets, "DRAWS", (4, 12))
    monkeypatch.setitem(sets.SOLVER, "ode", {"rtol": 1e-3, "atol": 1e-3})


def test_the_exact_model_passes_and_a_shifted_one_does_not(short):
    found, wrong = (sets.measure("mixture", known(shift)) for shift in (0.0, -0.5))
    for name in ("bound", "ode", "number", "posterior"):
        assert abs(found[name]["mean"]) < 4 * found[name]["error"] + 0.01
    assert wrong["posterior"]["mean"] > 0.1
    assert wrong["ode"]["mean"] > 0.05 and wrong["number"]["mean"] > 0.02
    assert found["exact"] == wrong["exact"]
    assert found["model"]["p"] > 0.01 > 1e-6 > wrong["model"]["p"]
    assert min(found["mmd"], found["sliced_wasserstein"]) > 0.005
    assert max(wrong["mmd"], wrong["sliced_wasserstein"]) < 0.005


def test_the_command_trains_and_writes_table_figure_and_numbers(short, tmp_path, monkeypatch):
    for name, value in {"TEST": 60, "BY_ODE": 4, "RANKED": 40, "SAMPLES": 40, "CELLS": 6}.items():
        monkeypatch.setattr(sets, name, value)
    page = shutil.copy(Path(__file__).parents[2] / "docs" / "sets.md", tmp_path)
    arguments = ["sets", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path}", "--scale=0.01"]
    found = sets.main(arguments)
    assert [each["name"] for each in found] == list(point_sets.NAMES)
    assert found == json.loads((tmp_path / "runs" / "sets.json").read_text())
    for bound in (each["bound"] for each in found):  # of a network hardly trained
        assert -4.0 * bound["error"] < bound["mean"] < 1.0
    text = Path(page).read_text()
    assert f"| mixture | {found[0]['bound']['mean']:+.4f} ± " in text
    assert (tmp_path / "sets" / "profiles.png").is_file()
