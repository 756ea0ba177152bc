"""Runs that go on: past a damaged checkpoint, with other settings, after a full disk."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from commands import ROOT, environment, refused, run

from vdm_jax.errors import UserError
from vdm_jax.run import compilation_cache, training
from vdm_jax.run.cli import Options

FALLBACK, CHANGE = Options(allow_fallback=True), Options(allow_config_change=True)
SAME = tiny.flags(tiny.config())


def same_state(a, b, step=60):
    states = [tiny.state_of(workdir, step) for workdir in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture(autouse=True)
def one_device():
    with tiny.one_device():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run, with the checkpoints of steps 20, 40 and 60; all share their programs."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch, tiny.jax_settings(), tiny.one_device():
        patch.setenv("VDM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        compilation_cache.switch_on()
        training.train(tiny.config(), workdir)
        yield workdir


@pytest.fixture
def stopped(undisturbed, tmp_path):
    """The same, as it was at step 40."""
    shutil.copytree(undisturbed, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "60")
    return tmp_path / "w"


def test_a_run_stopped_in_the_middle_of_a_call_and_lengthened_is_the_same(
    undisturbed, tmp_path, capsys
):
    """33 is no multiple of steps_per_call."""
    short = tiny.config_of(undisturbed, train__steps=33, eval__every=33)
    training.train(short, tmp_path)
    training.train(tiny.config(), tmp_path)
    assert "going on from step 33" in capsys.readouterr().out
    tiny.assert_same_run(undisturbed, tmp_path)


def test_a_training_starts_from_the_parameters_of_a_run(undisturbed, tmp_path, capsys):
    config = tiny.config_of(
        undisturbed, optimizer__learning_rate=1e-12, optimizer__weight_decay=0.0, train__steps=10
    )
    training.train(config, tmp_path, Options(init_from=str(undisturbed)))
    assert f"starting from the parameters of {undisturbed}, step 60" in capsys.readouterr().out
    found, wanted = (tiny.state_of(workdir)["ema_params"] for workdir in (tmp_path, undisturbed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), found, wanted)


def test_a_damaged_newest_checkpoint_is_passed_over_only_when_told_to(stopped, undisturbed, capsys):
    newest = stopped / "checkpoints" / "40"
    files = (file for file in newest.rglob("*") if file.is_file())
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4  # which Orbax restores without a word
    largest.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*others there: 20\. .*--allow_f"):
        training.train(tiny.config(), stopped)
    assert newest.is_dir() and not (stopped / "damaged").exists()
    capsys.readouterr()
    training.train(tiny.config(), stopped, FALLBACK)
    lines = capsys.readouterr().out.splitlines()
    [said] = [line for line in lines if line.startswith(f"the checkpoint {newest} is damaged (")]
    assert said.endswith(f"Moved to {stopped / 'damaged' / '40'}; going on from step 20.")
    for step in (40, 60):  # bit for bit the run that nothing happened to
        same_state(stopped, undisturbed, step)
    results = [json.loads((w / "result.json").read_text()) for w in (stopped, undisturbed)]
    assert results[0] == results[1]


def changed(**settings):
    config = tiny.config()
    with config.ignore_type():
        config.update_from_flattened_dict(settings)
    return config


def test_a_run_goes_on_with_other_settings_when_told_to(stopped, undisturbed, capsys):
    """Those that are changed after a divergence, one of which is a part of the optimiser."""
    other = {"optimizer.learning_rate": 1e-4, "optimizer.clip_norm": None}
    training.train(changed(**other), stopped, CHANGE)
    lines = capsys.readouterr().out.splitlines()
    assert "  config.optimizer.clip_norm: 1.0 -> None" in lines
    assert "  config.optimizer.learning_rate: 0.002 -> 0.0001" in lines
    assert "going on from step 40" in lines
    there, then = (tiny.state_of(workdir, 60)["params"] for workdir in (stopped, undisturbed))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), there, then)
    assert max(jax.tree.leaves(moved)) > 1e-4  # it has gone another way
    saved = json.loads((stopped / "config.json").read_text())["config"]["optimizer"]
    assert (saved["clip_norm"], saved["learning_rate"]) == (None, 1e-4)
    training.train(changed(**other), stopped)  # from here on they are the run's own
    [row] = tiny.evaluate(stopped)["rows"]
    result = json.loads((stopped / "result.json").read_text())
    assert row["bpd"] == pytest.approx(result["bpd"], abs=5 * result["bpd_standard_error"])


# ---- a full disk ----

FULL = "error: {} can't be written to: {}; "


def without_room(kib, *arguments):
    """The line in which the command ends."""
    code = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kib << 10}, {kib << 10}))\n"
        "del sys.argv[0]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__')"
    )
    words = [sys.executable, "-c", code, f"experiments.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kib", [1, 45])
def test_a_run_without_room_ends_in_one_line(kib, stopped, undisturbed):
    """With files of at most 1 KiB config.json doesn't fit; with 45 a checkpoint's largest array.

    (That array takes 60, and all of them 400, in files of as many as chance has it.)
    """
    line = without_room(kib, "digits", f"--workdir={stopped}", *SAME)
    assert line.startswith(FULL.format(stopped, os.strerror(27))) and "MiB are free" in line
    assert "The newest complete checkpoint is of step 40; make space there" in line
    if kib == 45:  # with room it goes on
        assert list((stopped / "checkpoints").glob("60*tmp*"))
        training.train(tiny.config(), stopped)
        assert not list((stopped / "checkpoints").glob("*tmp*"))
        same_state(stopped, undisturbed)


def test_an_evaluation_and_samples_without_room(stopped):
    for name, arguments, files in (
        ("evaluate", ["--images=8", "--repeats=1"], "evaluation"),
        ("sample", ["--num_steps=2", "--n=4"], "sampling"),
    ):
        line = without_room(0, name, f"--workdir={stopped}", *arguments)
        assert line.startswith(f"error: {stopped / files}/step-") and os.strerror(27) in line
        assert "make space there" in line


# ---- kept programs, no device, no network ----


def test_a_run_is_the_same_bit_for_bit_with_kept_programs_new_ones_and_none(tmp_path):
    kept = tmp_path / "kept"
    for name, where in (("none", "off"), ("new", str(kept)), ("kept", str(kept))):
        before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*/*-cache")}
        done = run("digits", f"--workdir={tmp_path / name}", *SAME, VDM_JAX_CACHE=where)
        assert done.returncode == 0, done.stderr
        after = {file.name: file.stat().st_mtime_ns for file in kept.glob("*/*-cache")}
        reused = before.items() <= after.items()  # what took longer this time may be kept as well
        assert {"none": not after, "new": after and not before, "kept": before and reused}[name]
        same_state(tmp_path / name, tmp_path / "none")


def test_a_platform_that_is_not_there_and_no_network_are_said_in_one_line(tmp_path):
    line = refused("digits", f"--workdir={tmp_path}", JAX_PLATFORMS="cuda")
    assert line.startswith("error: JAX finds no device")
    line = refused("cifar10", f"--workdir={tmp_path / 'w'}", f"--config.data.dir={tmp_path / 'd'}")
    assert "cifar-10-" in line and "sha256" in line
