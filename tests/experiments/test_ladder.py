"""The ladder: its runs can be built and are of one size; each number stands in its row."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import closed_forms, ladder, ladder_tables, trainings
from vdm_jax.related.models import HierarchicalVAE
from vdm_jax.run import config as check
from vdm_jax.run.models import make_model
from vdm_jax.vdm import VDM

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def built():
    """{(group, name): (config, shapes of its parameters, its bound)}."""
    found = {}
    for group, runs in ladder.RUNS.items():
        for name, (base, changes) in runs.items():
            config = trainings.make_config(base(), changes, 0.001)
            check.config(config)
            levels = 2 if config.data.name == "digits_binary" else 17
            model = make_model(config, (8, 8, 1), levels)
            shapes = jax.eval_shape(model.init, jax.random.key(0))
            found[group, name] = config, shapes, model.facts()
    return found


def test_every_run_has_a_model_of_about_the_same_size(built):
    for (group, name), (config, shapes, bound) in built.items():
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        assert 0.34e6 < count < 0.42e6, name
        assert config.train.steps == 10
        assert config.optimizer.warmup_steps == 5
        assert (bound.levels is None) == (group == "density"), name


def test_the_ladder_has_the_rungs_that_it_says(built):
    bounds = [built["rung", name][2] for name in ladder.RUNS["rung"]]
    assert [len(b.encoders) for b in bounds if isinstance(b, HierarchicalVAE)] == [1, 2, 4, 8]
    assert [b.num_steps for b in bounds if isinstance(b, VDM)] == [10, 100, None]
    heads = ladder.RUNS["objective"]
    assert [built["objective", head][2].kind for head in heads] == ["x", "eps", "score", "v"]


def test_restrictions_are_turned_on_one_after_the_other(built):
    names = [("rung", ladder.FOUR), *(("restriction", name) for name in ladder.RUNS["restriction"])]
    configs = [built[name][0].hierarchy for name in names[:4]]
    found = [(c.data_size, c.fixed_encoder, c.ends_at_normal) for c in configs]
    assert found == [(False,) * 3, (True, False, False), (True, True, False), (True,) * 3]
    assert [c.depth for c in configs] == [4] * 4
    chain, one = (built[name] for name in names[3:])
    assert jax.tree.structure(chain[1]) == jax.tree.structure(one[1])
    assert one[2].num_steps == 3


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


# ---- the page ----


def row(bpd, key="bpd", **more):
    terms = {"reconstruction": bpd * 0.5, "prior": bpd * 0.25, "diffusion": bpd * 0.125}
    return {
        "quantity": f"quantity {bpd}", "kind": "bound", key: bpd, "standard_error": 0.01,
        "terms": {name: {"mean": mean} for name, mean in terms.items()},
        "parameters": 380_000, "steps": 3000, "minutes": 1.5,
    } | more  # fmt: skip


def made_up():
    gain = {"mean": -0.1, "standard_error": 0.02}
    bpd = iter(np.arange(3.0, 0.0, -1 / 64))
    runs = {
        group: [row(next(bpd), name=name, gain=gain) for name in names]
        for group, names in ladder.RUNS.items()
    }
    swirl = {"nats": 0.5, "standard_error": 0.01, "excess": {"nats": 0.25, "standard_error": 0.02}}
    points = {"truth": {"nats": -0.4, "standard_error": 0.01}, "training_seconds": 17.2}
    runs["rung"][0]["gain"] = None
    return {
        "histogram": {"bpd": 2.375, "standard_error": 0.01},
        "rungs": runs["rung"],
        "restrictions": runs["restriction"],
        "variances": [
            row(next(bpd), num_steps=t, kind=kind, gain=None if kind == "posterior" else gain)
            for t in ladder.STEPS for kind in ladder_tables.VARIANCES
        ],
        "objectives": [r | {"curve": [(150, 4.0), (300, r["bpd"])]} for r in runs["objective"]],
        "densities": [row(-1.5, "nats_per_dim", name="VAE")],
        "bits": [{"name": "histogram", "bpd": 0.5, "standard_error": 0.01}, *runs["bits"]],
        "flow": [row(0.25), row(0.125, quantity="ODE")],
        "forward": closed_forms.forgetting(),
        "priors": {"VDM": 0.002},
        "reverse": [{"step": 0.1, "kl": 1e-3}, {"step": 0.01, "kl": 1e-6}],
        "points": {
            "vdm": points | {"bound": swirl, "ode": swirl},
            "cnf": points | {"bound": None, "ode": swirl},
        },
    }  # fmt: skip


def test_each_number_stands_in_its_row(tmp_path):
    page, found = tmp_path / "ladder.md", made_up()
    shutil.copy(DOCS / "ladder.md", page)
    (tmp_path / "ladder").mkdir()
    ladder_tables.write(page, found)
    text = page.read_text()
    for line in (
        "| no latents: each pixel by its own frequencies | 2.3750 ± 0.0100 |  |  |  |  |",
        "| VAE | 3.0000 ± 0.0100 |  | 380,000 | 3,000 | 1.5 |",
        f"| {ladder.FOUR} | 2.9688 ± 0.0100 | -0.1000 ± 0.0200 | 380,000 | 3,000 | 1.5 |",
        f"| {ladder.LAST} | 2.9062 ± 0.0100 | 1.4531 | 0.7266 | 0.3633 |",
        "| 0.00 | -8.00 | 0.992 |",
        "| VDM | 0.00289 |",  # nats / log 2
        "| 0.01 | 1e-06 |",
        "| VAE | -1.5000 ± 0.0100 | -0.7500 | -0.3750 | -0.1875 |",
        "| histogram | 0.5000 ± 0.0100 |  |  |  |",
        "| quantity 0.25 | bound | 0.2500 ± 0.0100 |",
        "| the data's own density | -0.4000 ± 0.0100 |  |  |",
        "| VDM, density by the ODE | 0.5000 ± 0.0100 | +0.2500 ± 0.0200 | 17 |",
    ):
        assert line in text.splitlines(), line
    for of in found["variances"]:
        assert (
            f"| {of['num_steps']} | {ladder_tables.VARIANCES[of['kind']]} | {of['bpd']:.4f}" in text
        )
    for of in found["objectives"]:
        assert f"| {ladder_tables.PREDICTIONS[of['name']]} | {of['bpd']:.4f}" in text
    assert "flow trained by maximum likelihood, variational bound" not in text
    plots = {file.name for file in (tmp_path / "ladder").iterdir()}
    assert plots == {"rungs.png", "objectives.png", "feller.png"}
