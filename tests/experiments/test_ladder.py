"""The ladder: its runs can be built and are of one size; each number stands in its row."""

import shutil
from pathlib import Path

import jax
import numpy as np

from experiments import closed_forms, ladder, ladder_tables, trainings
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model

DOCS = Path(__file__).parents[2] / "docs"


def test_every_run_can_be_built_and_has_about_the_same_size():
    bounds, shapes, configs = {}, {}, {}
    for group, runs in ladder.RUNS.items():
        for name, (base, changes) in runs.items():
            configs[name] = config = trainings.make_config(base(), changes, 0.001)
            check_config(config)
            assert (config.train.steps, config.optimizer.warmup_steps) == (10, 5)
            model = make_model(config, (8, 8, 1), 2 if config.data.name == "digits_binary" else 17)
            shapes[name] = jax.eval_shape(model.init, jax.random.key(0))
            count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[name]))
            assert 0.34e6 < count < 0.42e6, name
            bounds[group, name] = model.facts()
            assert (bounds[group, name].levels is None) == (group == "density"), name
    rungs = [bounds["rung", name] for name in ladder.RUNS["rung"]]
    assert [len(rung.encoders) for rung in rungs[:4]] == [1, 2, 4, 8]
    assert [rung.num_steps for rung in rungs[4:]] == [10, 100, None]
    heads = ladder.RUNS["objective"]
    assert [bounds["objective", head].kind for head in heads] == ["x", "eps", "score", "v"]
    # Restrictions are turned on one after the other, up to the VDM's own network.
    restricted = [configs[name].hierarchy for name in [ladder.FOUR, *ladder.RUNS["restriction"]]]
    found = [(c.depth, c.data_size, c.fixed_encoder, c.ends_at_normal) for c in restricted[:4]]
    assert found == [(4, *[True] * k, *[False] * (3 - k)) for k in range(4)]
    *_, chain, one = ladder.RUNS["restriction"]
    assert jax.tree.structure(shapes[chain]) == jax.tree.structure(shapes[one])
    assert bounds["restriction", one].num_steps == 3


def test_the_histogram_is_its_definition():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 3, (50, 2, 2, 1)), rng.integers(0, 3, (7, 2, 2, 1))
    expected = []
    for image in test:
        bits = 0.0
        for at in np.ndindex(2, 2, 1):
            p = (np.sum(train[(slice(None), *at)] == image[at]) + 0.5) / (50 + 1.5)
            bits -= np.log2(p) / 4
        expected.append(bits)
    np.testing.assert_allclose(ladder.histogram(train, test, 3), expected, rtol=1e-6)


def test_differences_are_of_images_and_not_of_means():
    rng = np.random.default_rng(0)
    images = rng.normal(0.0, 5.0, 400)
    before, after = (images + rng.normal(shift, 0.1, (3, 400)) for shift in (1.0, 0.0))
    found = ladder.difference(before, after)
    assert abs(found["mean"] - 1.0) < 0.05
    np.testing.assert_allclose(found["standard_error"], 0.1 * (2 / 3 / 400) ** 0.5, rtol=0.2)


def row(bpd, key="bpd", **more):
    terms = {name: {"mean": bpd / 2} for name in ladder_tables.TERMS}
    return {
        "name": "N", "quantity": "Q", "kind": "K", key: bpd, "standard_error": 0.01, "gain": None,
        "terms": terms, "parameters": 380_000, "steps": 3000, "minutes": 1.5,
    } | more  # fmt: skip


def test_each_number_stands_in_its_row(tmp_path):
    gain = {"mean": -0.1, "standard_error": 0.02}
    swirl = {"nats": 0.5, "standard_error": 0.01, "excess": {"nats": 0.25, "standard_error": 0.02}}
    points = {"truth": {"nats": -0.4, "standard_error": 0.01}, "training_seconds": 17.2}
    found = {
        "histogram": {"bpd": 2.375, "standard_error": 0.01},
        "rungs": [row(3.0), row(2.5, name="a VDM", gain=gain)],
        "restrictions": [row(2.0), row(1.5, name="a VDM")],
        "variances": [row(2.75, num_steps=10, kind="learned", gain=gain)],
        "objectives": [row(2.25, name="score", curve=[(150, 4.0), (300, 2.25)])],
        "densities": [row(-1.5, "nats_per_dim")],
        "bits": [{"name": "histogram", "bpd": 0.5, "standard_error": 0.01}, row(0.25)],
        "flow": [row(0.125)],
        "forward": closed_forms.forgetting(),
        "priors": {"VDM": 0.002},
        "reverse": [{"step": 0.1, "kl": 1e-3}, {"step": 0.01, "kl": 1e-6}],
        "points": {
            "vdm": points | {"bound": swirl, "ode": swirl},
            "cnf": points | {"bound": None, "ode": swirl},
        },
    }
    shutil.copy(DOCS / "ladder.md", tmp_path)
    (tmp_path / "ladder").mkdir()
    ladder_tables.write(tmp_path / "ladder.md", found)
    lines = (tmp_path / "ladder.md").read_text().splitlines()
    for line in (
        "| no latents: each pixel by its own frequencies | 2.3750 ± 0.0100 |  |  |  |  |",
        "| N | 3.0000 ± 0.0100 |  | 380,000 | 3,000 | 1.5 |",
        "| a VDM | 2.5000 ± 0.0100 | -0.1000 ± 0.0200 | 380,000 | 3,000 | 1.5 |",
        "| N | 2.0000 ± 0.0100 | 1.0000 | 1.0000 | 1.0000 | 380,000 | 1.5 |",
        "| 10 | learned w | 2.7500 ± 0.0100 | -0.1000 ± 0.0200 |",
        "| the score | 2.2500 ± 0.0100 |",
        "| N | -1.5000 ± 0.0100 | -0.7500 | -0.7500 | -0.7500 |",
        "| histogram | 0.5000 ± 0.0100 |  |  |  |",
        "| VDM | 0.00289 |",  # nats / log 2
        "| the data's own density | -0.4000 ± 0.0100 |  |  |",
        "| VDM, density by the ODE | 0.5000 ± 0.0100 | +0.2500 ± 0.0200 | 17 |",
    ):
        assert line in lines, line
    assert not any(line.startswith("| flow") and "variational bound" in line for line in lines)
    plots = {file.name for file in (tmp_path / "ladder").iterdir()}
    assert plots == {"rungs.png", "objectives.png", "feller.png"}
