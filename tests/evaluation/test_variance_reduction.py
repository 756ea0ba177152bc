"""Evaluations that need fewer calls of the network: the same bound, the error asked for."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny

from vdm_jax import data
from vdm_jax.evaluation import variance_reduction as pilot
from vdm_jax.evaluation.bound import Draws, summarise
from vdm_jax.loss import ElboTerms
from vdm_jax.run import build as setup
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError


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
def rows(plain):
    """The evaluation's only row, by name of what it was asked for."""
    flags = {
        "plain": ("--repeats=16",),
        "controls": ("--repeats=16", "--control_variates"),
        "both": ("--repeats=16", "--control_variates", "--importance"),
        "error": ("--monte_carlo_error=0.008", "--control_variates", "--importance"),
    }
    found = {name: tiny.evaluate(plain, *words) for name, words in flags.items()}
    text = (tiny.newest(plain) / "result.md").read_text()
    kept = {name: one["rows"][0] for name, one in found.items()}
    for name, row in kept.items():
        row["pilot_calls"] = found[name]["pilot_calls"]
    return kept | {"text": text}


@pytest.mark.parametrize("name", ["controls", "both", "error"])
def test_the_bound_is_the_same_with_a_smaller_error(rows, name):
    ours, theirs = rows[name], rows["plain"]
    error = math.hypot(ours["monte_carlo_error"], theirs["monte_carlo_error"])
    assert abs(ours["bpd"] - theirs["bpd"]) < 4 * error < 0.2
    per_call = [one["monte_carlo_error"] ** 2 * one["network_calls"] for one in (ours, theirs)]
    assert per_call[0] < 0.75 * per_call[1]
    for term in ("reconstruction", "prior"):  # of these nothing is drawn
        assert ours["terms"][term]["mean"] == pytest.approx(theirs["terms"][term]["mean"], rel=1e-9)
        assert ours["terms"][term]["monte_carlo"] < 1e-9


def test_the_error_asked_for_is_reached_with_the_draws_it_takes(rows):
    row = rows["error"]
    assert 0.8 * 0.008 < row["monte_carlo_error"] < 1.05 * 0.008
    assert row["network_calls"] == 360 * row["draws"] and row["draws"] > 4
    # Of training images, and of the test images for the number of draws.
    both = rows["both"]["pilot_calls"]
    assert both == 4 * 1024
    assert row["pilot_calls"] == both + 360 * pilot.PILOT_REPEATS
    assert rows["plain"]["pilot_calls"] == 0
    assert f"Before these, {row['pilot_calls']} network calls told how to draw" in rows["text"]
    assert rows["text"].count(f"| {row['draws']} | {row['network_calls']} |") == 1


def draws_of(sd: float, repeats: int, images: int, seed: int) -> Draws:
    """Independent draws of diffusion terms with a known deviation, in bits per dim of one pixel."""
    rng = np.random.default_rng(seed)
    nats = math.log(2.0) * (2.0 + rng.normal(0.0, sd, (repeats, images)))
    none = np.zeros((repeats, images))
    t = np.mod(np.arange(images) * 0.618034 + np.arange(repeats)[:, None] / repeats, 1.0)
    return Draws(ElboTerms(none, none, nats), t, none + 1.0)


def test_enough_is_the_number_that_the_known_deviation_calls_for(plain):
    model = trained.from_workdir(plain, None, {}, setup.make_mesh()).model
    model = dataclasses.replace(model, event_shape=(1,))
    numbers = [pilot.enough(draws_of(0.3, 16, 400, seed), model, 0.002) for seed in range(30)]
    known = 0.3**2 / (400 * 0.002**2)  # 56
    np.testing.assert_allclose(np.mean(numbers), pilot.MARGIN * known, rtol=0.05)
    # So many draws have the error, seldom a little more.
    errors = [
        summarise(draws_of(0.3, n, 400, 100 + i), (1,)).total.monte_carlo
        for i, n in enumerate(numbers)
    ]
    assert np.mean(np.array(errors) < 0.002) > 0.6 and max(errors) < 1.15 * 0.002


def test_errors_that_cannot_be_reached_are_refused(plain):
    model = trained.from_workdir(plain, None, {}, setup.make_mesh()).model
    with pytest.raises(UserError, match="more than 1000000 draws of each image; ask for at least"):
        pilot.enough(draws_of(0.3, 16, 400, 0), model, 1e-9)
    for words, message in (
        (("--monte_carlo_error=0",), "must be positive and finite, got 0"),
        (("--monte_carlo_error=nan",), "must be positive and finite, got nan"),
        (("--monte_carlo_error=0.01", "--repeats=4"), "--monte_carlo_error and --repeats exclude"),
    ):
        with pytest.raises(UserError, match=message):
            tiny.evaluate(plain, *words)


def test_images_too_large_for_a_full_covariance_are_refused():
    large = np.zeros((3, 40, 40, 3), np.uint8)
    images = data.ImageData(train=large, test=large, levels=256, name="large", fingerprint="")
    with pytest.raises(
        UserError, match=r"--control_variates: .* at most 4096 elements; x has 4800"
    ):
        pilot.linear(images)


def test_the_cost_of_each_method_is_measured(plain):
    mesh = setup.make_mesh()
    rows = pilot.evaluation_cost(
        trained.from_workdir(plain, None, {}, mesh), mesh, 360, repeats=8, seeds=3, wanted=0.01
    )
    assert rows[0]["times_fewer"] == 1.0
    fewer = [row["times_fewer"] for row in rows]
    assert 1.0 < fewer[1] < fewer[3] and fewer[2] < fewer[4] and fewer[4] == max(fewer)
    for row in rows:
        assert row["calls"] == math.ceil(row["variance"] / 0.01**2)
    json.dumps(rows)
