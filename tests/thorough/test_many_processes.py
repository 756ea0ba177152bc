"""Several processes are one run: the same numbers as one process, and none outlives another."""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import several
from commands import ROOT, environment, run
from several import EVERY, QUICK, config_of, processes

from vdm_jax.train import hang, sharding
from vdm_jax.train.load_checkpoint import complete_steps

SEVERAL = Path(several.__file__)


def _state(workdir: Path, step: int, devices: int = 1) -> Any:
    """The whole state of a checkpoint, over so many devices of this process."""
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    folder = (workdir / "checkpoints").absolute()
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            manager.item_metadata(step)["state"].tree,
        )
        mesh = sharding.make_mesh(jax.devices()[:devices], devices)
        args = ocp.args.StandardRestore(sharding.placed(mesh, shapes))
        state = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    return jax.device_get(state)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two processes train until one is killed; both one process and two go on from there."""
    folder = tmp_path_factory.mktemp("several")
    two, one, from_start = folder / "two", folder / "one", folder / "from_start"
    variables = {"VDM_JAX_CACHE": str(folder / "cache")}
    command = several.command(config_of(4000), two)
    with processes(folder / "t", command, **variables) as asked:
        asked.until(two / "checkpoints" / str(EVERY))
        asked.running[1].send_signal(signal.SIGUSR1)
        asked_codes = asked.wait()
    stopped = complete_steps(two / "checkpoints")[-1]
    with processes(folder / "a", command, timeout=30, **variables) as killed:
        killed.until(two / "checkpoints" / str((stopped // EVERY + 2) * EVERY))
        killed.running[1].kill()
        began = time.monotonic()
        killed.running[0].wait(120)
        seconds = time.monotonic() - began
    step = complete_steps(two / "checkpoints")[-1]
    shutil.copytree(two, one)
    end = config_of(step + EVERY, shard_params=2)
    with processes(folder / "b", several.command(end, two), **variables) as restarted:
        codes = restarted.wait()
    alone = subprocess.run(
        [sys.executable, SEVERAL, "alone", folder, str(step)], cwd=ROOT, timeout=900, check=False,
        env=environment() | {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=8"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    with processes(folder / "d", several.command(end, from_start), **variables) as taken_over:
        taken_over_codes = taken_over.wait()
    return SimpleNamespace(**locals())


def test_sigusr1_to_one_process_saves_and_ends_both(story):
    assert story.asked_codes == [0, 0], story.asked.errors(0) + story.asked.errors(1)
    said = story.asked.output(0).splitlines()[-1]
    assert said == f"terminated (SIGUSR1); the same command goes on at {story.stopped}"
    assert f"going on from step {story.stopped}" in story.killed.output(0)


def test_a_killed_process_ends_the_other_and_the_message_says_where_the_run_goes_on(story):
    assert story.killed.running[0].returncode == 3
    assert story.seconds < 30  # --peer_timeout
    line = story.killed.last_error(0)
    assert line.startswith("error: another process has ended or can't be reached (")
    assert f"the same command, in all processes, goes on at {story.step}" in line


def test_only_the_first_process_speaks(story):
    assert story.codes == [0, 0], story.restarted.errors(0) + story.restarted.errors(1)
    assert "on 2 cpu device(s)" in story.restarted.output(0)
    assert f"going on from step {story.step}" in story.restarted.output(0)
    assert story.restarted.output(1) == ""
    lines = [json.loads(line) for line in (story.two / "metrics.jsonl").read_text().splitlines()]
    train = [line["step"] for line in lines if line["split"] == "train"]
    assert train == list(range(EVERY, story.step + EVERY + 1, EVERY))  # each once
    assert len(list((story.two / "samples").iterdir())) == 1


def test_two_processes_train_as_one_with_two_devices_and_go_on_in_either(story):
    """Bit for bit: the sum of two devices' gradients has but one order."""
    last = story.step + EVERY
    assert story.taken_over_codes == [0, 0], story.taken_over.errors(0)
    one = _state(story.one, last)
    for state, wanted in (
        (_state(story.two, story.step), _state(story.from_start, story.step)),
        (_state(story.two, last, devices=2), one),  # two that share the parameters
        (_state(story.from_start, last), one),  # two that go on with what one has saved
    ):
        jax.tree.map(np.testing.assert_array_equal, state, wanted)
    # Some parameters lay on both, each half of them, or this would show nothing of it.
    assert any(leaf.size >= sharding.SMALL for leaf in jax.tree.leaves(one["params"]))


def test_evaluation_and_samples_are_the_same(story):
    with processes(story.folder / "c", [SEVERAL, "act", story.two]) as acting:
        assert acting.wait() == [0, 0], acting.errors(0) + acting.errors(1)
    picture, found = f"samples/{story.step + EVERY:08d}.png", []
    for at in (story.two, story.one):
        (evaluated,), (sampled,) = (at / "evaluation").iterdir(), (at / "sampling").iterdir()
        result = json.loads((evaluated / "result.json").read_text())
        files = [(at / name).read_bytes() for name in ("result.json", picture)]
        images = np.load(sampled / "samples.npz")["images"].tolist()
        found.append((result["rows"], result["profile"], files, images))
    assert found[0] == found[1]


def test_where_no_collective_fails_jax_ends_the_survivor_in_time(tmp_path):
    with processes(tmp_path, [SEVERAL, "wait", tmp_path], timeout=5) as running:
        running.until(tmp_path / "going")
        running.running[0].kill()
        began = time.monotonic()
        assert running.running[1].wait(60) == -signal.SIGABRT
        assert time.monotonic() - began < 15
        assert "Terminating process because the JAX distributed" in running.errors(1)


def test_a_second_job_is_refused_and_one_that_hangs_ends_and_goes_on(tmp_path):
    """A job at the same port, told to be either process, leaves the run alone.

    Then a stopped process is a hung one: JAX's own service would notice it after five minutes.
    """
    workdir = tmp_path / "run"
    command = several.command(config_of(10**5), workdir)
    checkpoints, limit = workdir / "checkpoints", "--hang_timeout=5"
    with processes(tmp_path / "t", [*command, limit], timeout=300) as hung:
        hung.until(checkpoints / str(EVERY))
        for number in (1, 0):
            flags = several.flags_of(hung.port, 2, number)
            done = run("digits", f"--workdir={tmp_path / 'other'}", *flags)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert f"--process_id={number} of --coordinator" in done.stderr
        hung.until(checkpoints / str(complete_steps(checkpoints)[-1] + 2 * EVERY))
        hung.running[1].send_signal(signal.SIGSTOP)
        assert hung.running[0].wait(30) == hang.EXIT_CODE
        step = complete_steps(checkpoints)[-1]
        assert "longer than 5 s (--hang_timeout)" in hung.last_error(0)
        assert hung.last_error(0).endswith(
            f"{workdir}/hang-0.txt; the same command goes on at {step}"
        )
    assert "loop.py" in (workdir / "hang-0.txt").read_text()
    command = several.command(config_of(step + EVERY), workdir)
    with processes(tmp_path / "r", command) as again:
        assert again.wait() == [0, 0], again.errors(0) + again.errors(1)
        assert f"going on from step {step}" in again.output(0)


@pytest.mark.parametrize(
    ("what", "messages", "codes"),
    [
        (["differ", "bug"], ("another process has ended or can't be", "KeyError: 'a bug'"), [3, 1]),
        (["differ", "turn"], ("process 1 on HOST: no such data", "error: no such data"), [2, 2]),
        (["differ", "run"], ("must lie on a disk that all share",) * 2, [2, 2]),
    ],
)  # fmt: skip
def test_an_error_in_one_process_ends_both(tmp_path, what, messages, codes):
    what = [str(tmp_path / word) if word == "run" else word for word in what]
    with processes(tmp_path, [SEVERAL, *what]) as running:
        assert running.wait() == codes, running.errors(0) + running.errors(1)
        for number, message in enumerate(messages):
            assert message.replace("HOST", platform.node()) in running.last_error(number)


def test_a_process_that_does_not_come_is_not_waited_for_for_ever(tmp_path):
    flags = several.flags_of(several.free_port(), 2, 0)
    done = run("digits", f"--workdir={tmp_path}", *flags, "--peer_timeout=5")
    assert done.returncode == -signal.SIGABRT and "DEADLINE_EXCEEDED" in done.stderr
    assert "waiting at most 5 s for the other processes; if one doesn't come, JAX" in done.stdout


def test_two_processes_meet_take_turns_and_must_agree(tmp_path):
    """They find each other's values, work one after the other, and are told how they differ."""
    with several.processes(tmp_path / "t", [SEVERAL, "meet", tmp_path]) as running:
        assert running.wait(240) == [2, 2], running.errors(0) + running.errors(1)
        said = f"error: process 1 on {platform.node()} differs from process 0 (a.b: 0 -> 1 there);"
        for number in (0, 1):
            assert running.last_error(number).startswith(said)
        assert "met" in running.output(0).splitlines() and running.output(1) == ""
    assert (tmp_path / "turns").read_text() == "0 1 "
    assert list((tmp_path / "run").iterdir()) == []
