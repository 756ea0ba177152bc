"""The ladder: its runs can be built and are of one size; each number stands in its row."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from vdm_jax.train.hierarchical import HierarchicalModel

from experiments import ladder, rungs, series
from vdm_jax.nn.vae import HierarchicalVAE
from vdm_jax.run import config as check
from vdm_jax.run.models import make_model
from vdm_jax.train.model import NATS, Model

ALL = {
    "rung": ladder.RUNGS,
    "restriction": ladder.RESTRICTIONS,
    "variance": ladder.VARIANCES,
    "objective": ladder.OBJECTIVES,
    "density": ladder.DENSITIES,
    "bits": ladder.BITS_RUNS,
}
RUNS = [(group, name) for group, runs in ALL.items() for name in runs]


def model_of(group, name):
    base, changes = ALL[group][name]
    config = series.make_config(base(), changes, 0.001)
    check.config(config)
    levels = 2 if config.data.name == "digits_binary" else 17
    return config, make_model(config, (8, 8, 1), levels)


@pytest.mark.parametrize(("group", "name"), RUNS)
def test_every_run_has_a_model_of_about_the_same_size(group, name):
    config, model = model_of(group, name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert 0.34e6 < count < 0.42e6
    assert config.train.steps == 10 and config.optimizer.warmup_steps == 5
    assert (model.unit is NATS) == (group == "density")


def test_the_ladder_has_the_rungs_that_it_says():
    models = {name: model_of("rung", name)[1] for name in ladder.RUNGS}
    depths = [m.depth for m in models.values() if isinstance(m, HierarchicalModel)]
    steps = [m.num_steps for m in models.values() if isinstance(m, Model)]
    assert depths == [1, 2, 4, 8] and steps == [10, 100, None]
    heads = [model_of("objective", head)[1].kind for head in ladder.OBJECTIVES]
    assert heads == ["x", "eps", "score", "v"]


def test_restrictions_are_turned_on_one_after_the_other():
    switches = ("data_size", "fixed_encoder", "ends_at_normal")
    found = []
    for group, name in [("rung", "hierarchical VAE, 4 latents")] + [
        ("restriction", name) for name in list(ladder.RESTRICTIONS)[:3]
    ]:
        config, model = model_of(group, name)
        assert model.depth == 4
        found.append(tuple(config.hierarchy[s] for s in switches))
    assert found == [(False,) * 3, (True, False, False), (True, True, False), (True,) * 3]
    (chain, one) = (model_of("restriction", name)[1] for name in list(ladder.RESTRICTIONS)[2:])
    trees = [jax.tree.structure(jax.eval_shape(m.init, jax.random.key(0))) for m in (chain, one)]
    assert trees[0] == trees[1] and one.num_steps == 3
    assert HierarchicalVAE.__name__ not in repr(chain.bind)  # a VDM's network, not perceptrons


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


def test_the_untrained_parts():
    steps = {row["step"]: row["kl"] for row in ladder.feller()}
    slope = np.log(steps[0.02] / steps[0.01]) / np.log(2.0)
    assert abs(slope - 3.0) < 0.02
    first, *_, last = ladder.forward()
    var = 0.09 / (1 + np.exp(-8)) + 1 / (1 + np.exp(8))
    mean2 = 0.49 / (1 + np.exp(-8))
    np.testing.assert_allclose(first["kl"], 0.5 * (var + mean2 - 1 - np.log(var)), rtol=1e-5)
    assert last["kl"] < 3e-3 < first["kl"]


def test_differences_are_of_images_and_not_of_means():
    rng = np.random.default_rng(0)
    images = rng.normal(0.0, 5.0, 400)
    before, after = (images + rng.normal(shift, 0.1, (3, 400)) for shift in (1.0, 0.0))
    found = ladder._difference(before, after)
    assert abs(found["mean"] - 1.0) < 0.05
    np.testing.assert_allclose(found["standard_error"], 0.1 * (2 / 3 / 400) ** 0.5, rtol=0.2)


# ---- the report ----


def row(bpd, key="bpd", unit="bits per dim", **more):
    terms = {n: {"mean": bpd * f} for n, f in (("reconstruction", 0.5), ("prior", 0.25))}
    terms["diffusion"] = {"mean": bpd * 0.125}
    return {
        "quantity": "bound", "kind": "variational bound", key: bpd, "unit": unit, "terms": terms,
        "standard_error": 0.01, "parameters": 380_000, "steps": 3000, "minutes": 1.5,
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def found():
    gains = [None, *({"mean": g, "standard_error": 0.02} for g in (0.1, -0.1, 0.01, 1, 1, 1))]
    bpd = iter(np.arange(3.0, 0.0, -1 / 64))
    swirl = {"nats": 0.5, "standard_error": 0.01, "excess": {"nats": 0.25, "standard_error": 0.02}}
    points = {"truth": {"nats": -0.4, "standard_error": 0.01}, "training_seconds": 17}
    return {
        "scale": 1.0, "minutes": 12.0, "train": 1437, "test": 360,
        "histogram": {"bpd": 2.375, "standard_error": 0.01},
        "rungs": [
            row(next(bpd), name=name, gain=gain)
            for name, gain in zip(ladder.RUNGS, gains, strict=True)
        ],
        "restrictions": [row(next(bpd), name=name) for name in ladder.RESTRICTIONS],
        "variances": [
            row(next(bpd), num_steps=t, kind=kind, gain=None if kind == "posterior" else gains[1])
            for t in ladder.STEPS for kind in ("posterior", "transition", "learned")
        ],
        "objectives": [
            row(next(bpd), name=h, curve=[(150, 4.0), (300, 3.0 + i)])
            for i, h in enumerate(ladder.HEADS)
        ],
        "densities": [
            row(next(bpd), "nats_per_dim", "nats per dim of a density", name=name)
            for name in ladder.DENSITIES
        ],
        "bits": [
            {"name": "Bernoulli histogram", "bpd": 0.5, "unit": "bits per dim",
             "standard_error": 0.01},
            *(row(next(bpd), name=name) for name in ladder.BITS_RUNS),
        ],
        "flow": [row(next(bpd)), row(next(bpd), quantity="ODE")],
        "forward": ladder.forward(), "priors": {"VDM": 0.002}, "feller": ladder.feller(),
        "points": {
            "vdm": points | {"bound": swirl, "ode": swirl},
            "cnf": points | {"bound": None, "ode": swirl},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(found, tmp_path_factory):
    out, workdir = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("runs")
    for kind in ("vdm", "cnf"):
        picture = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(picture).save(workdir / f"{kind}.png")
        found["points"][kind]["picture"] = str(workdir / f"{kind}.png")
    rungs.write(out, found)
    return out


def cells(text, *first):
    """The cells of the one table row that begins with `first`."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    (one,) = (r for r in rows if tuple(r[: len(first)]) == first)
    return one[len(first) :]


def test_each_number_stands_in_its_row(report, found):
    text = (report / "ladder.md").read_text()
    table = text.split("## ")[0]
    assert cells(table, "VAE") == ["3.0000 ± 0.0100", "", "380,000", "3,000", "1.5"]
    four = cells(table, "hierarchical VAE, 4 latents")
    assert four[:2] == ["2.9688 ± 0.0100", "-0.1000 ± 0.0200"]
    assert cells(table, "no latents: each pixel by its own frequencies")[0] == "2.3750 ± 0.0100"
    section = {part.split("\n")[0]: part for part in text.split("## ")[1:]}
    variances = section["Which variance for the decoder?"]
    for rows in found["variances"]:
        got = cells(variances, str(rows["num_steps"]), rungs._KINDS[rows["kind"]])
        assert got[0] == f"{rows['bpd']:.4f} ± 0.0100"
    density = section["Two kinds of numbers that must not be compared"]
    assert "nats per dim of a density" in density and "test bits per dim |" not in density
    assert cells(section["A side step: diffusion without Gaussians"], "Bernoulli histogram")[0]
    flow = section["The last rung: the flow"]
    assert cells(flow, "VDM, density by the ODE")[:2] == ["0.5000 ± 0.0100", "+0.2500 ± 0.0200"]
    assert cells(flow, "the data's own density")[0] == "-0.4000 ± 0.0100"


def test_the_verdict_is_that_of_the_numbers(report):
    words = " ".join((report / "ladder.md").read_text().split())
    assert "hierarchical VAE, 2 latents is better than VAE" in words  # +0.1 ± 0.02
    assert "hierarchical VAE, 4 latents is worse than hierarchical VAE, 2 latents" in words
    assert "8 latents can't be told apart from hierarchical VAE, 4 latents" in words


def test_every_picture_is_there_and_no_other(report):
    text = (report / "ladder.md").read_text()
    linked = set(re.findall(r"\]\(ladder/([\w.-]+)\)", text))
    assert linked == {file.name for file in (report / "ladder").iterdir()}
    for name in linked:
        with Image.open(report / "ladder" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_the_committed_report_is_of_these_runs():
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "ladder.md").read_text()
    assert "--scale=" not in text
    for name in ladder.RUNGS:
        assert f"| {name} |" in text
    for name in re.findall(r"\]\((ladder/[\w.-]+)\)", text):
        assert (docs / name).is_file()
