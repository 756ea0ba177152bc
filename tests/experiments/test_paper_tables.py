"""The report of `experiments.reproduce`: each number in its row; its runs can be built."""

import math

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import paper_tables as reproduce
from experiments import study
from vdm_jax.run import config as check
from vdm_jax.run.models import make_model


def row(bpd, **more):
    terms = {n: {"mean": bpd * f} for n, f in (("reconstruction", 0.1), ("prior", 0.2))}
    terms["diffusion"] = {"mean": bpd * 0.7}
    return {
        "quantity": f"quantity {bpd}", "kind": "variational bound", "bpd": bpd, "num_images": 12,
        "standard_error": 0.01, "monte_carlo_error": 0.002, "terms": terms, "draws": 4,
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def found():
    t = np.linspace(0.01, 0.99, 50)
    profile = {"t": t.tolist(), "gamma": (18 * t - 13).tolist(), "rms": (1 + t).tolist()}
    sweep = [row(5.0, trained=10, num_steps=10), row(3.0, trained=100, num_steps=100)]
    for n, num_steps in enumerate(reproduce.SWEEP):
        sweep.append(row(4.0 - n / 8, trained=None, num_steps=num_steps))
    variances = {"learned": 0.25, "linear log-SNR": 2.0, "cosine": 9.0, "beta-linear": 9.5}
    networks = {"eps": 2.5, "eps, Fourier features": 2.375, "x": 2.75, "v": 2.625}
    forms = [
        {"num_steps": n, "matching": {"mean": 2.0, "error": 0.1, "variance": 0.5},
         "consistency": {"mean": 2.125, "error": 0.1, "variance": 0.5 * n}}
        for n in reproduce.FORMS
    ]  # fmt: skip
    ode = {"function_evaluations": 123.0, "tolerance": 1e-3}
    return {
        "images": 12, "minutes": 3.4, "scale": 1.0, "sweep": sweep, "networks": [
            row(bpd, network=name) for name, bpd in networks.items()
        ],
        "steps": {name: run["train.steps"] for name, run in reproduce.RUNS.items()},
        "variance": [
            row(2.0, schedule=name, variance=value, profile=profile)
            for name, value in variances.items()
        ],
        "forms": forms, "likelihoods": {"rows": [row(2.0), row(1.9375), row(1.875, **ode)]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(found, tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    study.write(out, found)
    return out


@pytest.fixture(scope="module")
def cells(report):
    """{section's first word: {the first cells of a row: the rest}}."""
    sections = {}
    for part in (report / "results.md").read_text().split("\n## ")[1:]:
        lines = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        sections[part.split()[0]] = lines[2:]
    return sections


def test_our_sweep_stands_beside_the_paper_s_table_2(cells):
    rows = {tuple(line[:2]): line[2:] for line in cells["Number"]}
    assert rows["10", "10"] == ["5.0000 ± 0.0100", "0.0020", "4.31"]
    assert rows["100", "100"] == ["3.0000 ± 0.0100", "0.0020", "2.84"]
    paper = ("7.54", "2.90", "2.74", "2.69", "2.67", "2.65", "2.65")
    evaluated = ("10", "100", "250", "500", "1000", "10000", "continuous")
    for n, (steps, wanted) in enumerate(zip(evaluated, paper, strict=True)):
        ours = f"{4 - n / 8:.4f} ± 0.0100"
        assert rows["continuous", steps] == [ours, "0.0020", wanted]
    assert len(rows) == 9


def test_variances_stand_beside_the_paper_s_figure_4b(cells, report):
    assert {line[0]: line[1:3] for line in cells["Variance"]} == {
        "learned": ["0.25", "0.53"],
        "linear log-SNR": ["2.00", "6.35"],
        "cosine": ["9.00", "31.10"],
        "beta-linear": ["9.50", "31.60"],
    }
    text = " ".join((report / "results.md").read_text().split())
    assert "is 8.0 times below the linear one's here, 12.0 times in the paper" in text


def test_networks_forms_and_likelihoods_have_their_rows(cells, report, found):
    text = " ".join((report / "results.md").read_text().split())
    assert "lower the bound by 0.125 here" in text  # 2.5 - 2.375
    networks = {line[0]: line[1:] for line in cells["What"]}
    assert networks["x"] == ["2.7500 ± 0.0100", "0.2750", "0.5500", "1.9250"]
    assert len(networks) == 4
    forms = {line[0]: line[1:] for line in cells["Two"]}
    assert forms["64"] == ["2.0000 ± 0.1000", "2.1250 ± 0.1000", "0.5", "32"]
    assert list(forms) == [str(n) for n in reproduce.FORMS]
    rows = [line[2:] for line in cells["Bound,"]]
    assert [line[0] for line in rows] == [f"{b:.4f} ± 0.0100" for b in (2.0, 1.9375, 1.875)]
    assert [line[2] for line in rows] == ["-", "-", "123"]
    worse = dict(found, networks=[r | {"bpd": -r["bpd"]} for r in found["networks"]])
    assert "raise the bound by\n0.125" in study._networks(worse)


def test_three_plots_that_the_report_links_to(report):
    files = sorted((report / "results").iterdir())
    assert [file.name for file in files] == ["forms.png", "schedules.png", "steps.png"]
    text = (report / "results.md").read_text()
    for file in files:
        assert f"](results/{file.name})" in text
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_the_sweep_of_the_runs_is_that_of_the_paper():
    evaluated = {(None, num_steps) for num_steps in reproduce.SWEEP} | {(10, 10), (100, 100)}
    assert set(study.PAPER_SWEEP) == evaluated
    for steps in (10, 100):
        assert reproduce.RUNS[f"T={steps}"] == {"train.steps": 5000, "model.num_steps": steps}


@pytest.mark.parametrize("name", reproduce.RUNS)
@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_every_run_has_a_configuration_that_can_be_built(name, scale):
    changes = reproduce.RUNS[name]
    config = reproduce.make_config(changes, scale)
    check.config(config)
    assert config.train.steps == max(round(changes["train.steps"] * scale), 10)
    assert 0 < config.optimizer.warmup_steps < config.train.steps
    for key, value in changes.items():
        part, setting = key.split(".")
        assert key == "train.steps" or config[part][setting] == value
    model = make_model(config, (8, 8, 1), 17)
    assert model.num_steps == changes.get("model.num_steps")
    kinds = {"eps": "eps", "eps, Fourier features": "eps", "v": "v"}
    assert model.kind == kinds.get(name, "x")
    assert (model.end_points is not None) == (name == "learned")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert 0.3e6 < count < 0.4e6  # what the report says
