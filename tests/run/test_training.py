"""A run: what it leaves, what is refused and told, and its memory."""

import json
import shutil
import signal

import numpy as np
import pytest
import tiny
from PIL import Image

from vdm_jax.errors import UserError
from vdm_jax.run import defaults, distributed, training
from vdm_jax.train import memory
from vdm_jax.train.interrupts import Stopped
from vdm_jax.train.logging import read_metrics


def test_a_run_leaves_metrics_pictures_checkpoints_and_a_result(digits_run):
    result = tiny.strict_json(digits_run / "result.json")
    assert (result["split"], result["num_images"], result["step"]) == ("test", 360, 60)
    assert 0 < result["bpd_standard_error"] < 1 < result["bpd"] < 5
    parts = result["reconstruction"] + result["prior"] + result["diffusion"]
    assert result["bpd"] == pytest.approx(parts)
    lines = read_metrics(digits_run / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [(60, "train"), (60, "test")]
    assert lines[1]["bpd"] == result["bpd"] and lines[0]["steps_per_second"] > 0
    with Image.open(digits_run / "samples" / "00000060.png") as picture:
        assert np.asarray(picture).std() > 1
    assert Image.open(digits_run / "loss.png").size[0] > 300
    assert list((digits_run / "tensorboard").iterdir())
    config = tiny.strict_json(digits_run / "config.json")
    assert config["config"]["train"]["steps"] == 60 and len(config["data"]["fingerprint"]) == 64
    assert config["data"]["event_shape"] == [8, 8, 1] and config["data"]["levels"] == 17


@pytest.mark.usefixtures("compiled_once")
def test_a_finished_run_is_only_evaluated_again(digits_run, tmp_path, capsys):
    """That a stopped one ends with the same bits: tests/thorough/test_restarts.py, test_fit."""
    others = shutil.ignore_patterns("evaluation", "sampling")
    workdir = shutil.copytree(digits_run, tmp_path / "w", ignore=others)
    training.train(tiny.config_of(digits_run), workdir)
    out = capsys.readouterr().out
    assert "going on from step 60" in out and "\nfinal evaluation: 360 images, " in out
    left = "checkpoints, config.json, loss.png, metrics.jsonl, result.json, samples, tensorboard"
    assert out.splitlines()[-1] == f"{workdir} holds {left}"
    tiny.assert_same_run(digits_run, workdir)


def test_short_runs_tell_how_far_the_average_of_the_parameters_lags():
    assert "(EMA), which lags about 500 steps behind, in a run of 400" in training._lag(0.998, 400)
    assert training._lag(0.998, 5000) == training._lag(0.0, 10) == ""


def test_a_run_says_what_its_weighted_loss_bounds():
    config = defaults.get_config()
    assert training._weighted(config) == ""
    config.model.weighting = "simple"
    said = training._weighted(config)
    assert "bounds nothing" in said and said.endswith("what is shown and evaluated is the bound")


def test_other_settings_on_the_same_workdir_are_refused_by_name(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run, tmp_path / "w")
    with tiny.one_device(), pytest.raises(UserError, match=r"\(config.optimizer.b1: 0.9 -> 0.8\)"):
        training.train(tiny.config_of(digits_run, optimizer__b1=0.8), workdir)
    assert json.loads((workdir / "config.json").read_text())["config"]["optimizer"]["b1"] == 0.9


def test_a_run_is_not_made_shorter_than_it_is(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    with pytest.raises(UserError, match=r"steps is 50, but .*run holds a run that is at step 60"):
        training.train(tiny.config_of(workdir, train__steps=50), workdir)
    assert (workdir / "result.json").exists()


def test_processes_must_be_started_with_the_same_flags(tmp_path, monkeypatch):
    other = {"--init_from": True, "--hang_timeout": 5.0}  # the latter may differ
    gathered = lambda mine: [mine, [mine[0] | other, "HOST"]]  # noqa: E731
    monkeypatch.setattr(distributed, "_gather", gathered)
    said = r"process 1 on HOST differs from process 0 \(--init_from: False -> True there\)"
    with tiny.one_device(), pytest.raises(UserError, match=said):
        training.train(tiny.config(), tmp_path / "run")


def test_what_may_differ_is_in_every_configuration():
    parts = (name.split(".")[1:] for name in training.MAY_DIFFER)
    assert all(name in defaults.DEFAULTS[part] for part, name in parts)


def test_a_signal_outside_the_loop_ends_the_run_and_says_where_it_goes_on(digits_run, tmp_path):
    folder, again = digits_run / "checkpoints", "the same command goes on at 60"
    with pytest.raises(Stopped, match=again) as found, training._stopping(folder):
        signal.raise_signal(signal.SIGTERM)
    assert found.value.number == signal.SIGTERM
    anew = "the same command starts anew: there is no checkpoint yet"
    with pytest.raises(Stopped, match=anew) as found, training._stopping(tmp_path):
        raise KeyboardInterrupt
    assert found.value.number == signal.SIGINT


@pytest.mark.parametrize(
    ("free", "most", "out", "warned"),
    [
        (2, 2, "needs about 2.0 GiB per device of 2.0 GiB\n", False),
        (1, 2, "needs about 2.0 GiB per device of 1.0 GiB\n", True),
        (None, None, "needs about 2.0 GiB per device\n", False),
    ],
)
def test_what_a_step_needs_is_said_before_the_first(free, most, out, warned, monkeypatch, capsys):
    room = None if free is None else memory.Room(free * 2**30, most * 2**30)
    monkeypatch.setattr(memory, "need", lambda compiled, device: 2 * 2**30)
    monkeypatch.setattr(memory, "room", lambda device: room)
    config = defaults.get_config()
    training._check_room(config, None)
    said = capsys.readouterr().out
    assert said.startswith(out) and ("warning" in said) == warned == ("remat=blocks" in said)
    config.model.network = "mlp"
    monkeypatch.setattr(memory, "room", lambda device: memory.Room(2**30, 2**31 - 1))
    out = "out of memory: a step needs about 2.0 GiB per device of 1.0 GiB. Less is needed with a l"
    with pytest.raises(UserError, match=out):
        training._check_room(config, None)
