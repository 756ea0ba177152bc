"""`experiments.evaluate` on tiny runs: its numbers agree with one another and with the core."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from vdm_jax import loss
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.run import build as setup
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("plain")
    run.train(tiny.config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("labelled")
    run.train(tiny.config(class_labels=True), workdir)
    return workdir


@pytest.fixture(scope="module")
def sweep(plain):
    """The bound for three T, and the folder it was written to."""
    found = tiny.evaluate(plain, "--num_steps=10,100,inf")
    return found, tiny.newest(plain)


def bound(workdir: Path, *arguments: object):
    """The only row of an evaluation."""
    (row,) = tiny.evaluate(workdir, *arguments)["rows"]
    return row


def combined(*rows, name="monte_carlo_error"):
    return math.hypot(*(row[name] for row in rows))


def test_the_sweep_agrees_with_the_run_s_own_result(plain, sweep):
    found, _ = sweep
    result = json.loads((plain / "result.json").read_text())
    last = found["rows"][-1]
    assert found["model"]["step"] == result["step"] == 60
    assert found["data"]["fingerprint"] == result["data"]["fingerprint"]
    assert (last["num_images"], last["draws"]) == (result["num_images"], result["repeats"])
    assert (last["num_images"], last["draws"]) == (360, 4)
    # Other draws of the same bound; the prior has none.
    error = math.hypot(last["monte_carlo_error"], result["bpd_monte_carlo_error"])
    assert abs(last["bpd"] - result["bpd"]) < 5 * error < 0.2
    assert last["terms"]["prior"]["mean"] == pytest.approx(result["prior"], rel=1e-5)


def test_terms_and_errors_add_up(sweep):
    found, _ = sweep
    for row in found["rows"]:
        parts = sum(term["mean"] for term in row["terms"].values())
        assert row["bpd"] == pytest.approx(parts, rel=1e-6)
        total, draws = row["standard_error"], row["monte_carlo_error"]
        between = row["between_images_error"]
        if between > 0:
            assert total**2 == pytest.approx(draws**2 + between**2)
        else:
            assert total <= draws


def test_more_steps_give_a_lower_bound_on_the_same_draws(sweep):
    found, _ = sweep
    rows = found["rows"]
    assert [row["num_steps"] for row in rows] == [10, 100, None]
    assert rows[0]["bpd"] > rows[1]["bpd"] > rows[2]["bpd"]
    # T touches the diffusion alone: with the same draws the rest is the same number.
    for term in ("reconstruction", "prior"):
        assert rows[0]["terms"][term] == rows[1]["terms"][term] == rows[2]["terms"][term]


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_is_what_the_core_computes(plain, sweep, row):
    """Against `loss.elbo`, with its own draws, over the whole test set."""
    found, _ = sweep
    row = found["rows"][row]
    of = trained.from_workdir(plain, None, {}, setup.make_mesh())
    params = jax.device_put(jax.device_get(of.params), jax.devices()[0])
    denoise, gamma = of.model.bind(params, jnp.zeros(len(of.images.test)), None)
    kind, levels, num_steps = of.model.kind, of.model.levels, row["num_steps"]

    @jax.jit
    def nats(key):
        terms = loss.elbo(key, of.images.test, denoise, gamma, levels, num_steps, kind)
        return terms.total.mean()

    draws = [float(nats(key)) for key in jax.random.split(jax.random.key(123), 8)]
    bits = np.asarray(loss.bits_per_dim(np.array(draws), (8, 8, 1)))
    error = math.hypot(bits.std(ddof=1) / math.sqrt(len(bits)), row["monte_carlo_error"])
    assert abs(bits.mean() - row["bpd"]) < 5 * error < 0.1 * row["bpd"]


def test_the_file_is_what_was_returned_and_the_table_has_each_row(sweep):
    found, folder = sweep
    assert tiny.strict_json(folder / "result.json") == json.loads(json.dumps(found))
    text = (folder / "result.md").read_text()
    assert found["command"] in text and "--num_steps=10,100,inf" in found["command"]
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| bound")]
    assert len(lines) == 3
    for cells, row in zip(lines, found["rows"], strict=True):
        assert cells[0] == f"| {row['quantity']}"
        assert cells[2] == f"{row['bpd']:.4f}"
        assert cells[6:9] == [f"{term['mean']:.4f}" for term in row["terms"].values()]
        assert cells[9:] == ["360", "4", f"{360 * 4} |"]


def test_the_profile_s_area_is_the_diffusion_term(sweep):
    found, folder = sweep
    profile = found["profile"]
    assert np.mean(profile["mean"]) == pytest.approx(
        found["rows"][-1]["terms"]["diffusion"]["mean"], rel=0.02
    )
    assert np.all(np.asarray(profile["rms"]) >= np.asarray(profile["mean"]))
    # The run's schedule is fixed and linear, from -8 to 5.
    np.testing.assert_allclose(profile["gamma"], -8 + 13 * np.asarray(profile["t"]), atol=1e-4)
    with Image.open(folder / "diffusion_loss.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_repeats_images_and_seed_choose_the_draws(plain, sweep):
    before = sorted((plain / "evaluation").iterdir())
    kept = [(folder / "result.json").read_bytes() for folder in before]
    once = bound(plain, "--repeats=1", "--images=100")
    assert (once["num_images"], once["draws"]) == (100, 1)
    # One draw doesn't tell its error: no number, and none in the file.
    saved = tiny.strict_json(tiny.newest(plain) / "result.json")
    assert math.isnan(once["monte_carlo_error"])
    assert saved["rows"][0]["monte_carlo_error"] is None
    assert saved["rows"][0]["bpd"] == once["bpd"]
    # The same command gives the same numbers, in another folder; another seed others.
    assert bound(plain, "--repeats=1", "--images=100")["bpd"] == once["bpd"]
    assert bound(plain, "--repeats=1", "--images=100", "--seed=1")["bpd"] != once["bpd"]
    assert [(folder / "result.json").read_bytes() for folder in before] == kept
    assert len(list((plain / "evaluation").iterdir())) == len(before) + 3
    # The draws of an image don't depend on how many there are, nor on the batches.
    batches = bound(plain, "--repeats=1", "--images=100", "--batch_size=64")
    assert batches["bpd"] == pytest.approx(once["bpd"], rel=1e-5)


def test_a_checkpoint_is_chosen_by_step_or_by_path(plain):
    few = ("--repeats=1", "--images=40", "--batch_size=40")
    rows = {step: bound(plain, *few, f"--checkpoint={step}") for step in (20, 40, 60)}
    assert rows[20]["bpd"] > rows[40]["bpd"] > rows[60]["bpd"]  # it learns
    by_path = bound(plain, *few, f"--checkpoint={plain / 'checkpoints' / '20'}")
    assert by_path["bpd"] == rows[20]["bpd"]
    assert bound(plain, *few)["bpd"] == rows[60]["bpd"]  # the newest
    assert {"step-20", "step-20-2", "step-40"} <= {p.name for p in (plain / "evaluation").iterdir()}


def test_times_by_importance_estimate_the_same_bound_with_a_smaller_error(plain):
    rows = [bound(plain, "--repeats=8", flag) for flag in ("--noimportance", "--importance")]
    uniform, importance = rows
    assert abs(uniform["bpd"] - importance["bpd"]) < 5 * combined(*rows) < 0.2
    assert importance["monte_carlo_error"] < 0.9 * uniform["monte_carlo_error"]
    for term in ("reconstruction", "prior"):  # without t, the same draws
        assert importance["terms"][term]["mean"] == uniform["terms"][term]["mean"]


def test_chains_and_the_ode_stand_beside_the_bound(plain):
    found = tiny.evaluate(
        plain, "--images=16", "--num_steps=5", "--chains=4", "--chain_steps=5", "--chain_images=8",
        "--ode_images=4", "--dequantization=both", "--tolerance=1e-2", "--repeats=16",
        "--batch_size=16", "--trace=hutchinson",
    )  # fmt: skip
    _, own, chains, beside, *odes = found["rows"]
    # Each of the others has the bound on its very images above it.
    assert (own["num_images"], own["num_steps"]) == (8, 5)
    assert (beside["num_images"], beside["num_steps"]) == (4, None)
    assert chains["kind"] == "importance-weighted bound, K = 4"
    assert (chains["num_images"], chains["chains"], chains["num_steps"]) == (8, 4, 5)
    assert own["kind"] == "variational bound" and own["num_steps"] == 5
    # Never above the bound of one chain in expectation.
    error = math.hypot(own["standard_error"], chains["standard_error"])
    assert chains["bpd"] < own["bpd"] + 5 * error
    assert [row["quantity"] for row in odes] == [
        "ODE, uniform dequantisation", "ODE, truncated-normal dequantisation",
    ]  # fmt: skip
    text = (tiny.newest(plain) / "result.md").read_text()
    for row in odes:
        assert (row["kind"], row["num_images"]) == ("density of the ODE", 4)
        assert (row["trace"], row["probes"]) == ("hutchinson", "1 rademacher")
        assert row["function_evaluations"] > 5 and row["tolerance"] == 1e-2
        assert 0 < row["bpd"] < math.log2(17) + 2
        assert f"\n{row['quantity']}: tolerance 0.01" in text


# ---- class labels ----


def test_a_run_with_classes_samples_and_finishes_again(plain, labelled):
    result = json.loads((labelled / "result.json").read_text())
    assert 0 < result["bpd"] < math.log2(17) and result["data"]["classes"] == 10
    with Image.open(labelled / "samples" / "00000060.png") as picture:
        assert np.asarray(picture).std() > 10
    mesh = setup.make_mesh()
    without, given = (trained.from_workdir(w, None, {}, mesh).params for w in (plain, labelled))
    shapes = [p["score_model"]["embed"]["kernel"].shape for p in (without, given)]
    assert shapes[1] == (shapes[0][0] + 10, shapes[0][1])
    run.train(tiny.config(class_labels=True), labelled)  # only evaluated again
    assert json.loads((labelled / "result.json").read_text()) == result


def test_evaluation_gives_the_class_and_the_network_uses_it(labelled):
    found = tiny.evaluate(labelled, "--repeats=1", "--images=40")
    assert found["data"]["given_class"] is True and found["data"]["classes"] == 10
    assert "given the class of each image" in (tiny.newest(labelled) / "result.md").read_text()
    mesh = setup.make_mesh()
    of = trained.from_workdir(labelled, None, {}, mesh)
    step = evaluation.make_eval_step(of.model, mesh)

    def diffusion(labels):
        images = of.images
        batch = {
            "images": images.test[:40], "conditioning": np.stack([np.zeros(40), labels], 1),
            "index": np.arange(40), "mask": np.ones(40),
        }  # fmt: skip
        draws = evaluation.collect(step, of.params, lambda: [batch], mesh, jax.random.key(0))
        return loss.bits_per_dim(draws.terms.diffusion, (8, 8, 1))[0]

    true = of.images.labels["test"][:40].astype(np.float32)
    right, wrong = diffusion(true), diffusion((true + 1) % 10)
    assert right.mean() == pytest.approx(found["rows"][0]["terms"]["diffusion"]["mean"], rel=1e-5)
    assert np.mean(right != wrong) > 0.9  # each image's own label counts
    assert np.abs(right - wrong).max() > 1e-3
