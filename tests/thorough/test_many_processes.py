"""Several processes are one run: the same numbers as one process, and none outlives another."""

import json
import re
import shutil
import signal
import socket
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
from absl import flags
from commands import ROOT, environment, refused
from ml_collections import ConfigDict
from several import EVERY, QUICK, config_of, processes

from vdm_jax.errors import UserError
from vdm_jax.run import rendezvous
from vdm_jax.run.distributed import _of_communication
from vdm_jax.train import sharding

SEVERAL = Path(several.__file__)


def _command(config: ConfigDict, workdir: Path) -> list[Any]:
    """The command line of digits with these settings."""
    from experiments.configs import digits

    plain = digits.get_config()
    words = ["-m", "experiments.digits", f"--workdir={workdir}"]
    for part, settings in config.items():
        if isinstance(settings, ConfigDict):
            words += [
                f"--config.{part}.{name}={value}"
                for name, value in settings.items()
                if value != plain[part][name]
            ]
    return words


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


def _newest(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two processes train until one is killed; both one process and two go on from there."""
    folder = tmp_path_factory.mktemp("several")
    two, one, from_start = folder / "two", folder / "one", folder / "from_start"
    variables = {"VDM_JAX_CACHE": str(folder / "cache")}
    with processes(folder / "t", _command(config_of(4000), two), **variables) as asked:
        asked.until(two / "checkpoints" / str(EVERY))
        asked.running[1].send_signal(signal.SIGTERM)
        asked_codes = asked.wait()
    stopped = _newest(two)
    with processes(folder / "a", _command(config_of(4000), two), timeout=30, **variables) as killed:
        killed.until(two / "checkpoints" / str((stopped // EVERY + 2) * EVERY))
        killed.kill(1)
        began = time.monotonic()
        killed.running[0].wait(120)
        seconds = time.monotonic() - began
    step = _newest(two)
    shutil.copytree(two, one)
    end = config_of(step + EVERY, shard_params=2)
    with processes(folder / "b", _command(end, two), **variables) as restarted:
        codes = restarted.wait()
    alone = subprocess.run(
        [sys.executable, SEVERAL, "alone", folder, str(step)], cwd=ROOT, timeout=900, check=False,
        env=environment() | {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=8"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    with processes(folder / "d", _command(end, from_start), **variables) as taken_over:
        taken_over_codes = taken_over.wait()
    return SimpleNamespace(**locals())


def test_sigterm_to_one_process_saves_and_ends_both(story):
    assert story.asked_codes == [0, 0], story.asked.errors(0) + story.asked.errors(1)
    said = story.asked.output(0).splitlines()[-1]
    assert said == f"terminated (SIGTERM); the same command goes on at {story.stopped}"
    assert f"going on from step {story.stopped}" in story.killed.output(0)


def test_a_killed_process_ends_the_other_and_the_message_says_where_the_run_goes_on(story):
    assert story.killed.running[0].returncode == 3
    assert story.seconds < 60  # 30, and a busy machine; JAX alone takes 77
    # The latter where the machine is so busy that JAX is first to see it.
    told = ("error: process 1 on ", "error: another process was lost")
    assert story.killed.last_error(0).startswith(told)
    assert f"the same command, in all processes, goes on at {story.step}" in (
        story.killed.last_error(0)
    )


def test_only_the_first_process_speaks(story):
    assert story.codes == [0, 0], story.restarted.errors(0) + story.restarted.errors(1)
    assert "on 2 cpu device(s)" in story.restarted.output(0)
    assert f"going on from step {story.step}" in story.restarted.output(0)
    assert story.restarted.output(1) == ""
    lines = [json.loads(line) for line in (story.two / "metrics.jsonl").read_text().splitlines()]
    train = [line["step"] for line in lines if line["split"] == "train"]
    assert train == list(range(EVERY, story.step + EVERY + 1, EVERY))  # each once
    assert len(list((story.two / "samples").iterdir())) == 1


def test_two_processes_train_as_one_with_two_devices_does(story):
    """Bit for bit: the sum of two devices' gradients has but one order."""
    jax.tree.map(
        np.testing.assert_array_equal,
        _state(story.two, story.step),
        _state(story.from_start, story.step),
    )


def test_a_run_goes_on_alike_in_one_process_and_in_two_that_share_the_parameters(story):
    last = story.step + EVERY
    two, one = _state(story.two, last, devices=4), _state(story.one, last)
    jax.tree.map(np.testing.assert_array_equal, two, one)
    # Some parameters lay on both, each half of them, or this would show nothing of it.
    assert any(leaf.size >= sharding.SMALL for leaf in jax.tree.leaves(two["params"]))


def test_two_processes_go_on_with_what_one_has_saved(story):
    assert story.taken_over_codes == [0, 0], story.taken_over.errors(0)
    last = story.step + EVERY
    two, one = _state(story.from_start, last), _state(story.one, last)
    jax.tree.map(np.testing.assert_array_equal, two, one)


def test_the_evaluation_is_the_same(story):
    results = [(at / "result.json").read_text() for at in (story.two, story.one)]
    assert results[0] == results[1]
    name = f"{story.step + EVERY:08d}.png"
    pictures = [(at / "samples" / name).read_bytes() for at in (story.two, story.one)]
    assert pictures[0] == pictures[1]


def test_evaluate_and_sample_in_two_processes(story):
    with processes(story.folder / "c", [SEVERAL, "act", story.two]) as acting:
        assert acting.wait() == [0, 0], acting.errors(0) + acting.errors(1)
    both = (story.two, story.one)
    results, images = [], []
    for at in both:
        (evaluated,), (sampled,) = (at / "evaluation").iterdir(), (at / "sampling").iterdir()
        results.append(json.loads((evaluated / "result.json").read_text()))
        images.append(np.load(sampled / "samples.npz")["images"])
    assert results[0]["rows"] == results[1]["rows"]
    assert results[0]["profile"] == results[1]["profile"]
    np.testing.assert_array_equal(*images)


def test_the_end_of_the_coordinator_is_said_too(tmp_path):
    with processes(tmp_path, [SEVERAL, "collectives", tmp_path]) as running:
        running.until(tmp_path / "going")
        running.kill(0)
        began = time.monotonic()
        assert running.running[1].wait(120) == 3
        assert time.monotonic() - began < 45
        assert "error: process 0, which the others hang on, was lost" in running.last_error(1)


def test_an_error_in_one_process_ends_both_at_once(tmp_path):
    with processes(tmp_path, [SEVERAL, "mistake", "-"]) as running:
        assert running.wait() == [3, 1]
        assert "error: process 1 stopped: KeyError: 'a bug'" in running.last_error(0)
        assert running.last_error(1) == "error: KeyError: 'a bug'"
        assert "Traceback" in running.errors(1)
        assert "Traceback" not in running.errors(0)


def test_settings_that_differ_are_named(tmp_path):
    with processes(tmp_path, [SEVERAL, "differ", "settings"]) as running:
        assert running.wait() == [3, 2]
        assert "differs from process 0 (config.train.batch_size: 32 -> 33 here)" in (
            running.last_error(1)
        )


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    with processes(tmp_path, [SEVERAL, "differ", tmp_path / "run"]) as running:
        assert running.wait() == [3, 2]
        assert "must lie on a disk that all share" in running.last_error(1)
    assert not list((tmp_path / "run-1").iterdir())


def test_a_process_that_does_not_come_is_not_waited_for_for_ever(tmp_path):
    port = several.free_port()
    flags = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--peer_timeout=5")
    line = refused("digits", f"--workdir={tmp_path}", *flags, "--process_id=0")
    assert "process 0 of 2 found not all others within 5 s" in line


def test_no_cluster_is_found_where_there_is_none(tmp_path):
    line = refused("evaluate", f"--workdir={tmp_path}", "--distributed", "--peer_timeout=5")
    assert "--distributed finds no cluster" in line


def _join(**flags_: object) -> None:
    values = flags.FlagValues()
    rendezvous.define_flags(values)
    values(["", *(f"--{name}={value}" for name, value in flags_.items())])
    assert rendezvous.join(values) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "n1:8000", "num_processes": 2}, "--process_id is missing"),
        ({"num_processes": 2}, "--coordinator is missing"),
        ({"distributed": True, "process_id": 0}, "--process_id and --distributed exclude each"),
        ({"peer_timeout": 9}, "--peer_timeout is for several processes"),
        ({"coordinator": "n1", "num_processes": 2, "process_id": 0}, "=n1 is no HOST:PORT"),
        ({"coordinator": "n1:0", "num_processes": 2, "process_id": 0}, "=n1:0 is no HOST:PORT"),
        ({"coordinator": "n1:80", "num_processes": 2, "process_id": 2}, "must lie in [0, 2)"),
        ({"coordinator": "no.invalid:80", "num_processes": 2, "process_id": 1}, "there is no host"),
        (
            {"coordinator": "127.0.0.1:PORT", "num_processes": 2, "process_id": 1},
            "could not be reached for 5 s",
        ),
    ],
)
def test_flags_that_can_not_be(given, message):
    if "PORT" in str(given.get("coordinator")):
        at = given["coordinator"].replace("PORT", str(several.free_port()))
        given = given | {"coordinator": at, "peer_timeout": 5}
    with pytest.raises(UserError, match=re.escape(message)):
        _join(**given)


def test_a_port_in_use():
    with socket.create_server(("", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{at}: process 0 can't listen at that port"):
            _join(coordinator=at, num_processes=2, process_id=0)


def test_without_a_flag_nothing_is_started():
    _join()
    assert not jax.distributed.is_initialized()


def test_what_may_come_of_a_lost_process_and_what_may_not():
    lost = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    wrapped = UserError("the checkpoint can't be restored (Gloo ...)")
    assert not _of_communication(wrapped)
    wrapped.__cause__ = lost
    assert _of_communication(lost)
    assert _of_communication(wrapped)
    assert not _of_communication(KeyError("steps"))
