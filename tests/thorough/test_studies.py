"""The trainings of `experiments.toy2d`, and whole runs of the studies and the benchmark."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy_vdm
from ml_collections import ConfigDict
from test_collectives import (  # on four devices too
    test_parameters_are_gathered_once_and_gradients_summed_once_a_step,  # noqa: F401
)

from experiments import (
    ladder,
    paper_tables,
    pictures,
    toy2d,
    toy_figure,
    trainings,
    which_bpd,
)
from experiments.benchmarks import speed
from vdm_jax import schedule
from vdm_jax.data import points
from vdm_jax.evaluation import report
from vdm_jax.run import build, training

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


@pytest.fixture
def few(small, monkeypatch):
    """One or two runs a table, of tiny networks and ten steps."""
    kept = (ladder.FOUR, ladder.LAST, "x", "Bernoulli VAE", "learned, T = 10", "posterior, T = 10")
    tiny_network = {"model.channels": 16, "model.num_blocks": 1}
    for group, runs in ladder.RUNS.items():
        last = list(runs)[-1] if group == "restriction" else None
        fewer = {
            name: (base, changes | tiny_network)
            for name, (base, changes) in runs.items()
            if name in (*kept, last)
        }
        monkeypatch.setitem(ladder.RUNS, group, fewer)
    for name, changes in paper_tables.RUNS.items():
        monkeypatch.setitem(paper_tables.RUNS, name, changes | tiny_network)
    monkeypatch.setattr(ladder, "STEPS", (10,))
    monkeypatch.setattr(paper_tables, "SWEEP", (10, None))
    monkeypatch.setattr(paper_tables, "FORMS", (4,))
    monkeypatch.setattr(trainings, "REPEATS", 2)


def check_ladder(found):
    """What any training leaves true of the ladder's numbers."""
    first, last = found["rungs"]
    assert last["gain"]["mean"] == pytest.approx(first["bpd"] - last["bpd"], abs=1e-4)
    for row in (*found["rungs"], *found["restrictions"]):
        assert row["bpd"] == pytest.approx(sum(term["mean"] for term in row["terms"].values()))
        assert all(term["mean"] > -1e-6 for term in row["terms"].values())
    for rows in (found["reverse"], found["forward"]):  # smaller steps and more noise forget more
        kl = [row["kl"] for row in rows]
        assert kl == sorted(kl, reverse=True) and kl[-1] > 0
    assert found["priors"]["cosine from -13.3 to 5"] > found["priors"]["VP-SDE"] > 0
    for model in found["points"].values():  # no density is better than the data's own
        for row in filter(None, (model["bound"], model["ode"])):
            assert row["excess"]["nats"] > -5 * row["excess"]["standard_error"]


def check_results(found):
    """What any training leaves true of the numbers of the paper's tables."""
    coarse, limit = (row for row in found["sweep"] if row["trained"] is None)
    assert coarse["bpd"] > limit["bpd"]  # fewer steps cost more
    own, *_, ode = found["likelihoods"]
    chains = next(row for row in found["likelihoods"] if row.get("chains"))
    beside = next(row for row in found["likelihoods"] if row["num_steps"] == 20)
    assert chains["bpd"] < beside["bpd"] + 5 * beside["standard_error"]
    assert ode["bpd"] > 0 and own["kind"] == "variational bound"
    for row in found["forms"]:  # two forms of one bound
        matching, consistency = row["matching"], row["consistency"]
        error = np.hypot(matching["error"], consistency["error"])
        assert abs(matching["mean"] - consistency["mean"]) < 5 * error
        assert consistency["variance"] > matching["variance"] > 0


@pytest.mark.parametrize(
    ("command", "name", "check_numbers"),
    [
        (ladder.ladder, "ladder", check_ladder),
        (paper_tables.reproduce, "results", check_results),
    ],
)
def test_a_study_of_a_few_steps_fills_its_page(
    few, tmp_path, monkeypatch, command, name, check_numbers
):
    shutil.copy(DOCS / f"{name}.md", tmp_path)
    arguments = ["study", f"--workdir={tmp_path}/w", f"--out={tmp_path}", "--scale=0.001"]
    with tiny.one_device():
        found = command(arguments)
    check_numbers(found)
    page = (tmp_path / f"{name}.md").read_text()
    rows = [row for rows in found.values() if isinstance(rows, list) for row in rows]
    for row in rows:
        assert "bpd" not in row or report.estimate(row) in page
    old = (DOCS / f"{name}.md").read_text()
    place = r"<!-- table: \w+ -->\n(.*?)<!-- end -->"
    theirs, ours = (re.findall(place, text, re.DOTALL) for text in (old, page))
    assert re.sub(place, "", old, flags=re.DOTALL) == re.sub(place, "", page, flags=re.DOTALL)
    changed = [one != other for one, other in zip(theirs, ours, strict=True)]
    closed = ("forgetting", "priors", "reverse")  # no network is trained for these
    names = re.findall(r"<!-- table: (\w+) -->", page)
    assert all(new or table in closed for new, table in zip(changed, names, strict=True))
    written = json.loads((tmp_path / "w" / f"{name}.json").read_text())
    assert written == json.loads(json.dumps(found))  # with lists for tuples
    assert found["minutes"] > 0
    pictures = {file.name for file in (DOCS / name).iterdir()}
    assert {file.name for file in (tmp_path / name).iterdir()} == pictures
    monkeypatch.setattr(training, "train", None)  # a finished run is not trained again
    notes = [*(tmp_path / "w").glob("*/minutes.json")]
    assert notes
    for note in notes:
        trainings.train(
            ConfigDict(json.loads(note.read_text())["config"]), note.parent, build.make_mesh()
        )


def test_a_small_benchmark_fills_its_page(tmp_path, monkeypatch):
    shutil.copy(DOCS / "benchmarks.md", tmp_path)
    monkeypatch.setattr(speed, "MODES", dict(list(speed.MODES.items())[:2]))
    arguments = ["--channels=64", "--num_blocks=1", "--batch_size=1", "--rounds=1"]
    with tiny.jax_settings():
        found = speed.bench(["bench", f"--workdir={tmp_path}/w", f"--out={tmp_path}", *arguments])
    page = (tmp_path / "benchmarks.md").read_text()
    assert [row["name"] for row in found["steps"]] == list(speed.MODES)
    for row in found["steps"]:
        assert row["step"] > 0 and row["sample"] > 0 and np.isfinite(row["tflops"])
        assert row["need"] > row["temporaries"] > 0
        assert f"| {row['name']} | {row['compile']:.1f}" in page
    assert found["loader"] > 100
    assert json.loads((tmp_path / "w" / "bench.json").read_text()) == found


def test_costs_are_those_of_the_closed_form_and_a_learned_schedule_nears_the_least_square():
    """Of `steep` a unit of gamma costs half the mean of (eps - e^(gamma / 2))^2 in each dimension.

    No schedule between two end points has a smaller mean square of a draw than one for which it is
    the same at every t, (int rms dgamma)^2 with the root mean square of what a unit costs.
    """
    many = np.tile(toy_vdm.IMAGES.test, (40, 1, 1, 1))
    of = toy_vdm.subject(toy_vdm.steep, 2400, test=many)
    ends = toy_vdm.GAMMA_0, toy_vdm.GAMMA_1
    learned = pictures.learn_schedule(of)
    schedules = {"line": {"gamma": schedule.linear(*ends)}, "learned": {"gamma": learned}}
    rows = paper_tables.measure_schedules(of, schedules, 10)
    line, mean = pictures.cost(rows[0])
    np.testing.assert_allclose(mean, (1.0 + np.exp(line)) / (2.0 * np.log(2.0)), rtol=0.15)
    np.testing.assert_allclose(np.asarray(learned(jnp.array([0.0, 1.0]))), ends, rtol=1e-5)
    before, after = (np.asarray(row["profile"]["rms"]) for row in rows)
    least, (square, found) = before.mean() ** 2, ((of**2).mean() for of in (before, after))
    assert square > 3.0 * least and found < 1.1 * least


def test_which_bits_per_dim_fills_its_page_and_the_densities_are_off_as_told(tmp_path, monkeypatch):
    """All figures, of the table in the place of the models in the box too."""
    shutil.copy(DOCS / "which_bpd.md", tmp_path)
    few = which_bpd.known()._replace(repeats=64, copies=4, given_low=None)
    monkeypatch.setattr(which_bpd, "boxed", lambda *_: few)
    with tiny.one_device():
        found = which_bpd.which_bpd(["study", f"--workdir={tmp_path}/w", f"--out={tmp_path}"])
    page = (tmp_path / "which_bpd.md").read_text()
    for name, row in found["table"].items():
        assert f"| {name} |" in page and np.isfinite(row["bpd"])
        assert "true" in row or f"{row['bpd']:.4f} ({row['off']:+.4f})" in page
    rows, normal = found["table"], "ODE, truncated_normal"
    assert rows["ODE, uniform"]["off"] > rows[normal]["off"] > -0.01
    assert rows[which_bpd.FILE]["off"] > 0.0
    # log p(x) of a spike at each state, of the width of the noise, which the flow ends with.
    width = 0.5 * (np.log(2.0 * np.pi) + which_bpd.ENDS[0]) + np.log(0.5 * which_bpd.LEVELS)
    assert rows[which_bpd.UNDEQUANTISED]["off"] == pytest.approx(width / np.log(2.0), abs=0.02)
    resizes = [row for name, row in found["photos"].items() if name.startswith("another resize")]
    assert len(resizes) == len(which_bpd.FILTERS) and not any(row["off"] for row in resizes)
    written = json.loads((tmp_path / "w" / "which_bpd.json").read_text())
    assert written == json.loads(json.dumps(found))
