"""docs/results.md: each number stands in its row beside the paper's; its runs can be built."""

import math
import shutil
from pathlib import Path

import jax

from experiments import paper_report, paper_tables, trainings
from experiments.configs import digits
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model

DOCS = Path(__file__).parents[2] / "docs"


def row(bpd, **more):
    terms = {name: {"mean": bpd / 2} for name in ("reconstruction", "prior", "diffusion")}
    return {
        "quantity": "Q", "kind": "K", "bpd": bpd, "standard_error": 0.01,
        "monte_carlo_error": 0.002, "terms": terms,
    } | more  # fmt: skip


def test_each_number_stands_in_its_row_beside_the_paper_s(tmp_path):
    profile = {"t": [0.25, 0.75], "gamma": [-8.0, 2.0], "rms": [1.0, 2.0]}
    forms = {"matching": {"mean": 2.0, "error": 0.1, "variance": 0.5},
             "consistency": {"mean": 2.125, "error": 0.1, "variance": 32.0}}  # fmt: skip
    found = {
        "sweep": [row(bpd, trained=T[0], num_steps=T[1]) for bpd, T in enumerate(SWEEP, 1)],
        "networks": [row(2.75, network="x")],
        "variance": [
            row(2.0, schedule=name, variance=value, profile=profile)
            for value, name in enumerate(("learned", "linear log-SNR", "cosine", "beta-linear"))
        ],
        "forms": [{"num_steps": 64} | forms],
        "likelihoods": [row(2.0), row(1.875, function_evaluations=123.0)],
    }
    shutil.copy(DOCS / "results.md", tmp_path)
    (tmp_path / "results").mkdir()
    paper_report.write(tmp_path / "results.md", found)
    lines = (tmp_path / "results.md").read_text().splitlines()
    for line in (
        "| learned | 0.00 | 0.53 | 2.0000 ± 0.0100 |",
        "| cosine | 2.00 | 31.10 | 2.0000 ± 0.0100 |",
        "| 10 | 10 | 1.0000 ± 0.0100 | 0.0020 | 4.31 |",
        "| continuous | continuous | 9.0000 ± 0.0100 | 0.0020 | 2.65 |",
        "| x | 2.7500 ± 0.0100 | 1.3750 | 1.3750 | 1.3750 |",
        "| 64 | 2.0000 ± 0.1000 | 2.1250 ± 0.1000 | 0.5 | 32 |",
        "| Q | K | 1.8750 ± 0.0100 | 0.0020 | 123 |",
    ):
        assert line in lines, line
    plots = {file.name for file in (tmp_path / "results").iterdir()}
    assert plots == {"steps.png", "schedules.png", "forms.png"}


SWEEP = [(10, 10), (100, 100), *((None, num_steps) for num_steps in paper_tables.SWEEP)]


def test_every_run_can_be_built_and_is_what_the_page_says():
    assert set(paper_report.PAPER_SWEEP) == set(SWEEP)
    kinds = {"eps": "eps", "eps, Fourier features": "eps", "v": "v"}
    for name, changes in paper_tables.RUNS.items():
        config = trainings.make_config(digits.get_config(), changes, 0.01)
        check_config(config)
        assert config.train.steps == changes["train.steps"] // 100
        assert config.optimizer.warmup_steps == config.train.steps // 2
        for key, value in changes.items():
            part, setting = key.split(".")
            assert key == "train.steps" or config[part][setting] == value
        model = make_model(config, (8, 8, 1), 17)
        bound = model.facts()
        assert bound.num_steps == {"T=10": 10, "T=100": 100}.get(name)
        assert bound.kind == kinds.get(name, "x")
        assert (model.end_points is not None) == (name == "learned")
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        assert 0.3e6 < sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) < 0.4e6
