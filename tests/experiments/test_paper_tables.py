"""docs/results.md: each number stands in its row beside the paper's; its runs can be built."""

import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import paper_report, paper_tables, trainings
from experiments.configs import digits
from vdm_jax.run import config as check
from vdm_jax.run.models import make_model

DOCS = Path(__file__).parents[2] / "docs"


def row(bpd, **more):
    terms = {"reconstruction": bpd * 0.1, "prior": bpd * 0.2, "diffusion": bpd * 0.7}
    return {
        "quantity": f"quantity {bpd}", "kind": "bound", "bpd": bpd, "standard_error": 0.01,
        "monte_carlo_error": 0.002, "terms": {name: {"mean": mean} for name, mean in terms.items()},
    } | more  # fmt: skip


def made_up():
    t = np.linspace(0.01, 0.99, 50)
    profile = {"t": t.tolist(), "gamma": (18 * t - 13).tolist(), "rms": (1 + t).tolist()}
    sweep = [row(5.0, trained=10, num_steps=10), row(3.0, trained=100, num_steps=100)]
    sweep += [
        row(4.0 - n / 8, trained=None, num_steps=num_steps)
        for n, num_steps in enumerate(paper_tables.SWEEP)
    ]
    variances = {"learned": 0.25, "linear log-SNR": 2.0, "cosine": 9.0, "beta-linear": 9.5}
    forms = [
        {"num_steps": n, "matching": {"mean": 2.0, "error": 0.1, "variance": 0.5},
         "consistency": {"mean": 2.125, "error": 0.1, "variance": 0.5 * n}}
        for n in paper_tables.FORMS
    ]  # fmt: skip
    return {
        "sweep": sweep,
        "networks": [row(2.5, network="eps"), row(2.75, network="x")],
        "variance": [
            row(2.0, schedule=name, variance=value, profile=profile)
            for name, value in variances.items()
        ],
        "forms": forms,
        "likelihoods": [row(2.0), row(1.875, function_evaluations=123.0)],
    }


def test_each_number_stands_in_its_row_beside_the_paper_s(tmp_path):
    page = tmp_path / "results.md"
    shutil.copy(DOCS / "results.md", page)
    (tmp_path / "results").mkdir()
    paper_report.write(page, made_up())
    lines = page.read_text().splitlines()
    for line in (
        "| learned | 0.25 | 0.53 | 2.0000 ± 0.0100 |",
        "| linear log-SNR | 2.00 | 6.35 | 2.0000 ± 0.0100 |",
        "| cosine | 9.00 | 31.10 | 2.0000 ± 0.0100 |",
        "| beta-linear | 9.50 | 31.60 | 2.0000 ± 0.0100 |",
        "| 10 | 10 | 5.0000 ± 0.0100 | 0.0020 | 4.31 |",
        "| 100 | 100 | 3.0000 ± 0.0100 | 0.0020 | 2.84 |",
        "| continuous | 10 | 4.0000 ± 0.0100 | 0.0020 | 7.54 |",
        "| continuous | 10000 | 3.3750 ± 0.0100 | 0.0020 | 2.65 |",
        "| continuous | continuous | 3.2500 ± 0.0100 | 0.0020 | 2.65 |",
        "| x | 2.7500 ± 0.0100 | 0.2750 | 0.5500 | 1.9250 |",
        "| 64 | 2.0000 ± 0.1000 | 2.1250 ± 0.1000 | 0.5 | 32 |",
        "| quantity 2.0 | bound | 2.0000 ± 0.0100 | 0.0020 | - |",
        "| quantity 1.875 | bound | 1.8750 ± 0.0100 | 0.0020 | 123 |",
    ):
        assert line in lines, line
    plots = {file.name for file in (tmp_path / "results").iterdir()}
    assert plots == {"steps.png", "schedules.png", "forms.png"}


def test_the_sweep_of_the_runs_is_that_of_the_paper():
    evaluated = {(None, num_steps) for num_steps in paper_tables.SWEEP} | {(10, 10), (100, 100)}
    assert set(paper_report.PAPER_SWEEP) == evaluated
    for steps in (10, 100):
        assert paper_tables.RUNS[f"T={steps}"] == {"train.steps": 5000, "model.num_steps": steps}


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_every_run_has_a_configuration_that_can_be_built(scale):
    kinds = {"eps": "eps", "eps, Fourier features": "eps", "v": "v"}
    for name, changes in paper_tables.RUNS.items():
        config = trainings.make_config(digits.get_config(), changes, scale)
        check.config(config)
        assert config.train.steps == max(round(changes["train.steps"] * scale), 10)
        assert 0 < config.optimizer.warmup_steps < config.train.steps
        for key, value in changes.items():
            part, setting = key.split(".")
            assert key == "train.steps" or config[part][setting] == value
        model = make_model(config, (8, 8, 1), 17)
        bound = model.facts()
        assert bound.num_steps == changes.get("model.num_steps")
        assert bound.kind == kinds.get(name, "x")
        assert (model.end_points is not None) == (name == "learned")
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        assert 0.3e6 < count < 0.4e6  # what the page says
