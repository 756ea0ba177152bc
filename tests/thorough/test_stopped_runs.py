"""Runs of the command itself: that a stop changes nothing, one run a folder, divergence."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from commands import ROOT, TINY, command, environment, refused, run
from tiny import assert_same_run, last_state

from vdm_jax.run import build


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run("digits", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    return workdir


def life(workdir, number, after, *arguments, meanwhile=lambda: None):
    """Begin the run; once its checkpoint of step `after` appears, end it by a signal."""
    process = subprocess.Popen(
        command("digits", f"--workdir={workdir}", *TINY, *arguments),
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background, a shell has switched the signal off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 400
    while not list((workdir / "checkpoints").glob(f"{after}*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    meanwhile()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def test_a_run_that_is_stopped_by_each_signal_goes_on_as_if_nothing_had_happened(
    undisturbed, tmp_path
):
    """SIGKILL right after a checkpoint appears; SIGTERM and Ctrl-C save at the step they find."""
    workdir = tmp_path / "stopped"
    assert life(workdir, signal.SIGKILL, 10)[0] == -signal.SIGKILL

    code, out, err = life(workdir, signal.SIGTERM, 20)
    assert code == 0 and "error" not in err, err
    assert "SIGTERM: saving and stopping" in out
    last = out.splitlines()[-1]
    saved = last_state(workdir)[0]
    assert last == f"terminated (SIGTERM); the same command goes on at {saved}"
    assert saved >= 20

    code, out, err = life(workdir, signal.SIGINT, 40)
    assert code == 130
    saved = last_state(workdir)[0]
    assert err == f"error: interrupted; the same command goes on at {saved}\n" and saved >= 40
    assert "press Ctrl-C again to stop at once" in out

    assert not (workdir / "result.json").exists()
    done = run("digits", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"going on from step {saved}" in done.stdout
    assert_same_run(undisturbed, workdir)
    lines = [(w / "metrics.jsonl").read_text().splitlines() for w in (undisturbed, workdir)]
    ends = [json.loads(x[-1]) for x in lines]
    assert ends[0] == ends[1] and ends[0]["split"] == "test"


def test_a_folder_holds_one_run_at_a_time(tmp_path):
    refusals = []

    def second():
        refusals.append(refused("digits", f"--workdir={tmp_path}", *TINY))

    long = ("--config.train.steps=1000000", "--config.eval.every=1000000")
    code, out, _ = life(
        tmp_path, signal.SIGHUP, 20, *long, "--config.sample.every=1000000", meanwhile=second
    )
    assert code == 0, out
    saved = last_state(tmp_path)[0]
    assert out.splitlines()[-1] == f"terminated (SIGHUP); the same command goes on at {saved}"
    assert f"--workdir={tmp_path} is in use by another run (process " in refusals[0]
    assert refusals[0].rstrip().endswith("stop it, or give another")
    with build.owned(tmp_path):  # the system let it go with the process
        pass


def test_a_diverging_run_stops_before_its_first_bad_step(tmp_path):
    line = refused(
        "digits", f"--workdir={tmp_path}", *TINY, "--config.optimizer.learning_rate=1e30",
        "--config.train.max_skipped=3", "--config.train.log_every=1",
    )  # fmt: skip
    assert "from step 2 on, 3 steps in a row" in line and "learning_rate" in line
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["split"] == "skipped"]
    assert [line["step"] for line in skipped] == [2, 3, 4]
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert found["step"] == 2 and found["key"] == skipped[0]["key"] and found["in_a_row"] == 3
    step, state = last_state(tmp_path)
    assert step == 2 and int(state["step"]) == 2 and int(state["skipped"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
