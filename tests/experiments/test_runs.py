"""Whole runs: what they leave behind, and that a stop changes nothing."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import ROOT, TINY, command, environment, refused, run
from PIL import Image


def last_state(workdir):
    """The arrays of the newest checkpoint."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "meta")) as manager:
        step = manager.latest_step()
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
        return step, jax.tree.map(np.asarray, restored["state"])


def assert_same_run(a, b):
    (step_a, state_a), (step_b, state_b) = last_state(a), last_state(b)
    assert step_a == step_b == 60
    assert jax.tree.structure(state_a) == jax.tree.structure(state_b)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    assert int(state_a["step"]) == 60
    results = [json.loads((w / "result.json").read_text()) for w in (a, b)]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run("digits", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_leaves_metrics_pictures_checkpoints_and_a_result(undisturbed):
    workdir, out = undisturbed
    result = json.loads((workdir / "result.json").read_text())
    assert result["split"] == "test" and result["num_images"] == 360 and result["step"] == 60
    assert 0 < result["bpd_standard_error"] < 1 < result["bpd"] < 5
    parts = result["reconstruction"] + result["prior"] + result["diffusion"]
    assert result["bpd"] == pytest.approx(parts)
    assert f"{result['bpd']:.4f} ± {result['bpd_standard_error']:.4f}" in out.splitlines()[-1]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "train"] == [10, 20, 30, 40, 50, 60]
    assert [x["step"] for x in lines if x["split"] == "test"] == [60]
    for line in lines:
        assert line["bpd"] == pytest.approx(
            line["reconstruction"] + line["prior"] + line["diffusion"], rel=1e-5
        )
    with Image.open(workdir / "samples" / "00000060.png") as picture:
        assert np.asarray(picture).std() > 10
    assert Image.open(workdir / "loss.png").size[0] > 300
    assert list((workdir / "tensorboard").iterdir())
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["train"]["steps"] == 60 and len(config["data"]["fingerprint"]) == 64
    assert "step 60/60" in out and "recon" in out


def test_a_killed_run_goes_on_as_if_nothing_had_happened(undisturbed, tmp_path):
    workdir = tmp_path / "killed"
    for attempt in range(2):  # SIGKILL twice, each time right after a new checkpoint appears
        process = subprocess.Popen(
            command("digits", f"--workdir={workdir}", *TINY),
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        wanted = 10 * (2 * attempt + 1)
        while not list((workdir / "checkpoints").glob(f"{wanted}*")):
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not (workdir / "result.json").exists()
    done = run("digits", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    assert_same_run(undisturbed[0], workdir)
    metrics = [(w / "metrics.jsonl").read_text().splitlines() for w in (undisturbed[0], workdir)]
    a, b = ([{k: v for k, v in json.loads(x).items() if k != "steps_per_second"} for x in lines]
            for lines in metrics)  # fmt: skip
    assert a == b


def test_a_run_stopped_in_the_middle_of_a_call_and_lengthened_is_the_same(undisturbed, tmp_path):
    """42 is no multiple of steps_per_call, and the learning rate follows decay_steps alone."""
    steps = [a for a in TINY if "train.steps=" not in a]
    keep = "--config.optimizer.decay_steps=60"
    first = run("digits", f"--workdir={tmp_path}", *steps, "--config.train.steps=42", keep)
    assert first.returncode == 0, first.stderr
    second = run("digits", f"--workdir={tmp_path}", *steps, "--config.train.steps=60", keep)
    assert second.returncode == 0, second.stderr
    assert "going on from step 42" in second.stdout
    assert_same_run(undisturbed[0], tmp_path)


def test_a_finished_run_is_only_evaluated_again(undisturbed):
    workdir, _ = undisturbed
    before = json.loads((workdir / "result.json").read_text())
    done = run("digits", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "result.json").read_text()) == before


def test_other_settings_on_the_same_workdir_are_refused_by_name(undisturbed):
    workdir, _ = undisturbed
    line = refused("digits", f"--workdir={workdir}", *TINY, "--config.optimizer.b1=0.8")
    assert "config.optimizer.b1 was 0.9, now is 0.8" in line
    line = refused("digits", f"--workdir={workdir}", *TINY, "--config.data.validation=100")
    assert "config.data.validation was 0, now is 100" in line and "more. Give the old" in line
    assert last_state(workdir)[0] == 60


def test_ctrl_c_ends_in_one_line_that_says_where_the_run_goes_on(tmp_path):
    long = ("--config.train.steps=1000000", "--config.eval.every=1000000")
    process = subprocess.Popen(
        command("digits", f"--workdir={tmp_path}", *TINY, *long, "--config.sample.every=1000000"),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background, a shell has switched the signal off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("20*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("error: interrupted; the same command goes on at ") and "Trace" not in err
    step, _ = last_state(tmp_path)
    assert err.split()[-1] == str(step)


def test_a_diverging_run_stops_with_one_line_and_keeps_its_checkpoints(tmp_path):
    line = refused(
        "digits", f"--workdir={tmp_path}", *TINY, "--config.optimizer.learning_rate=1e30",
    )  # fmt: skip
    assert "diverged" in line and "learning_rate" in line


def test_the_paper_s_network_trains_from_an_npz_file(tmp_path):
    """U-Net, monotone schedule, augmentation, accumulation, discrete time, other image sizes."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 6 * 6 * 2).reshape(1, 6, 6, 2)
    images = (ramp + rng.integers(0, 56, (60, 1, 1, 1))).astype(np.uint8)
    np.savez(tmp_path / "ramps.npz", train=images[:40], test=images[40:])
    done = run(
        "cifar10", f"--workdir={tmp_path / 'w'}", "--config=experiments/configs/cifar10.py:tiny",
        "--config.data.name=arrays", f"--config.data.path={tmp_path / 'ramps.npz'}",
        f"--config.data.dir={tmp_path / 'cache'}", "--config.data.augment=flip_rot90",
        "--config.model.gamma=monotone", "--config.model.num_blocks=1",
        "--config.model.num_steps=10", "--config.model.head=levels",
        "--config.train.steps=4", "--config.train.accumulate=2", "--config.train.batch_size=4",
        "--config.eval.batch_size=7", "--config.sample.num_steps=3", "--config.sample.count=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert result["num_images"] == 20 and result["data"]["event_shape"] == [6, 6, 2]
    assert 0 < result["bpd"] < 60
