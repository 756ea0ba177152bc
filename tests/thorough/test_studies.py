"""The trainings of `experiments.toy2d`, and whole runs of the studies and the benchmark."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_collectives import (  # on four devices too
    test_parameters_are_gathered_once_and_gradients_summed_once_a_step,  # noqa: F401
)

from experiments import ladder, paper_tables, tables, toy2d, toy_figure, trainings
from experiments.benchmarks import speed
from vdm_jax.data import points
from vdm_jax.run import training

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def small(monkeypatch):
    """Fewer points than a user gets."""
    monkeypatch.setattr(toy2d, "TEST", 400)
    monkeypatch.setattr(toy2d, "DRAWS", 8)
    monkeypatch.setattr(toy2d, "TRAIN", 20_000)
    monkeypatch.setattr(toy_figure, "GRID", 40)
    monkeypatch.setattr(toy_figure, "SHOWN", 300)


def of_gaussian(name):
    """What the Gaussian of the data's mean and covariance costs, in nats."""
    cov = np.cov(points.draw(name, 100_000, 0).T)
    return 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * cov)[1]


def check(found, lowest):
    truth, ode = found["truth"], found["ode"]
    assert abs(truth["nats"] - points.entropy(found["data"])) < 5 * truth["standard_error"] + 1e-9
    assert ode["nats"] < lowest
    # A density can't be better than the data's own but for the noise of these points.
    assert ode["excess"]["nats"] > -5 * ode["excess"]["standard_error"]


def test_a_vdm_of_the_swirl_is_soon_better_than_a_gaussian(small, tmp_path):
    found = toy2d.toy2d(["toy2d", f"--workdir={tmp_path}", "--steps=300"])
    check(found, of_gaussian("swirl") - 0.2)
    bound = found["bound"]
    assert bound["nats"] < of_gaussian("swirl")
    assert bound["excess"]["nats"] > -5 * bound["excess"]["standard_error"]
    assert bound["standard_error"] < 0.3


def test_a_flow_of_the_checkerboard_learns_and_keeps_its_mass(small, tmp_path, monkeypatch):
    kept, train = [], toy2d.MODELS["cnf"]
    monkeypatch.setitem(toy2d.MODELS, "cnf", lambda *given: kept.append(train(*given)) or kept[0])
    arguments = ["toy2d", f"--workdir={tmp_path}", "--model=cnf", "--data=checkerboard"]
    found = toy2d.toy2d([*arguments, "--steps=20"])
    # Untrained it is the standard normal, which costs log(2 pi) + E||x||^2 / 2.
    square = np.mean(points.draw("checkerboard", 100_000, 0) ** 2)
    check(found, np.log(2.0 * np.pi) + square - 0.2)
    assert found["bound"] is None
    axis = np.linspace(-6.0, 6.0, 40)  # as many points as the figure's grid: compiled already
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    density = np.exp(kept[0].log_prob(jnp.asarray(grid), 1e-3))
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1.0) < 0.01


@pytest.mark.parametrize(
    ("command", "name"), [(ladder.ladder, "ladder"), (paper_tables.reproduce, "results")]
)
def test_a_study_of_a_few_steps_fills_its_page(small, tmp_path, monkeypatch, command, name):
    shutil.copy(DOCS / f"{name}.md", tmp_path)
    kept = (ladder.FOUR, ladder.LAST, "x", "Bernoulli VAE", "learned, T = 10", "posterior, T = 10")
    fewer = {
        group: {run: of for run, of in runs.items() if run in kept}
        for group, runs in ladder.RUNS.items()
    }
    monkeypatch.setattr(ladder, "RUNS", fewer)
    monkeypatch.setattr(ladder, "STEPS", (10,))
    monkeypatch.setattr(paper_tables, "SWEEP", (10, None))
    monkeypatch.setattr(paper_tables, "FORMS", (4,))
    monkeypatch.setattr(trainings, "REPEATS", 2)
    arguments = ["study", f"--workdir={tmp_path}/w", f"--out={tmp_path}", "--scale=0.001"]
    with tiny.one_device():
        found = command(arguments)
        page = (tmp_path / f"{name}.md").read_text()
        assert page != (DOCS / f"{name}.md").read_text()
        monkeypatch.setattr(training, "train", None)
        again = command(arguments)
    rows = [row for rows in found.values() if isinstance(rows, list) for row in rows]
    for row in rows:
        assert "bpd" not in row or tables.estimate(row) in page
    written = json.loads((tmp_path / "w" / f"{name}.json").read_text())
    assert written == json.loads(json.dumps(again))  # with lists for tuples
    assert found["minutes"] == again["minutes"] > 0
    assert (tmp_path / f"{name}.md").read_text() == page
    pictures = {file.name for file in (DOCS / name).iterdir()}
    assert {file.name for file in (tmp_path / name).iterdir()} == pictures


def test_a_small_benchmark_fills_its_page(tmp_path, monkeypatch):
    shutil.copy(DOCS / "benchmarks.md", tmp_path)
    monkeypatch.setattr(speed, "MODES", dict(list(speed.MODES.items())[:2]))
    arguments = ["--channels=64", "--num_blocks=1", "--batch_size=1", "--rounds=1", "--noquality"]
    with tiny.jax_settings():
        found = speed.bench(["bench", f"--workdir={tmp_path}/w", f"--out={tmp_path}", *arguments])
    page = (tmp_path / "benchmarks.md").read_text()
    assert [row["name"] for row in found["steps"]] == list(speed.MODES)
    for row in found["steps"]:
        assert row["step"] > 0 and row["sample"] > 0 and np.isfinite(row["tflops"])
        assert row["need"] > row["temporaries"] > 0
        assert f"| {row['name']} | {row['compile']:.1f}" in page
    assert found["loader"] > 100
    assert "| ancestral | 1000 |" in page  # what wasn't measured stays
    assert json.loads((tmp_path / "w" / "bench.json").read_text()) == found
