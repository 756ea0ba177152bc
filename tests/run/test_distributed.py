"""Several processes: the flags that can't be, and what one alone does of all that they do."""

import re
import socket

import jax
import pytest
import several
from absl import flags

from vdm_jax.errors import UserError
from vdm_jax.run import distributed
from vdm_jax.train.checkpoint import CheckpointError


def start(**given):
    values = flags.FlagValues()
    distributed.define_flags(values)
    values(["", *(f"--{name}={value}" for name, value in given.items())])
    distributed.start(values)


TWO = {"num_processes": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "n1:8000", **TWO}, "--process_id is missing: --coordinator=HOST:PORT"),
        (TWO, "--coordinator is missing"),
        ({"process_id": 0, "coordinator": "n1:80"}, "--num_processes is missing"),
        ({"distributed": True, "process_id": 0}, "--process_id and --distributed exclude each"),
        ({"peer_timeout": 9}, "--peer_timeout needs --distributed"),
        ({"coordinator": "n1", "process_id": 0, **TWO}, "=n1 is no HOST:PORT"),
        ({"coordinator": "n1:65536", "process_id": 0, **TWO}, "=n1:65536 is no HOST:PORT"),
        ({"coordinator": "n1:80", "process_id": 2, **TWO}, "--process_id=2 must lie in [0, 2)"),
        ({"coordinator": "no.invalid:80", "process_id": 1, **TWO}, "there is no host no.invalid"),
        ({"coordinator": "127.0.0.1:TAKEN", "process_id": 0, **TWO}, "can't listen there"),
    ],
)  # fmt: skip
def test_flags_that_can_not_be(given, message):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = {name: str(value).replace("TAKEN", port) for name, value in given.items()}
        with pytest.raises(UserError, match=re.escape(message)):
            start(**given)


def test_a_process_0_that_does_not_listen_is_waited_for_as_long_as_said():
    with pytest.raises(UserError, match=r"could not be reached for 0 s .* is process 0 running"):
        distributed._reach(f"127.0.0.1:{several.free_port()}", 2, 1, 0)
    with socket.create_server(("127.0.0.1", 0)) as there:
        distributed._reach(f"127.0.0.1:{there.getsockname()[1]}", 2, 1, 0)


def test_a_number_that_runs_already_on_this_machine_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "_held", [])
    name = f"vdm_jax test {several.free_port()}"
    distributed._hold(name, "n1:80", 1)
    with pytest.raises(UserError, match="--process_id=1 of --coordinator=n1:80 runs already on"):
        distributed._hold(name, "n1:80", 1)
    distributed._held.pop().close()
    distributed._hold(name, "n1:80", 1)


def test_without_a_flag_nothing_is_started_and_one_process_agrees_with_itself(tmp_path):
    start()
    assert not distributed.joined() and not jax.distributed.is_initialized()
    distributed.agree({"a": 1})
    assert distributed.of_first([1, None]) == [1, None]
    assert distributed.in_turn(lambda: 5) == 5
    distributed.check_shared(tmp_path, "workdir")
    distributed.finish()
    distributed.part()
    assert list(tmp_path.iterdir()) == []


def test_what_may_come_of_a_lost_process_and_what_may_not(monkeypatch):
    monkeypatch.setattr(distributed, "_again", distributed._again)
    gone = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    wrapped = CheckpointError("the checkpoint can't be restored (Gloo ...)")
    assert distributed.lost(wrapped) is None
    assert distributed.lost(KeyError("steps")) is None
    distributed.if_lost(lambda: "go on at 5")
    wrapped.__cause__ = gone
    assert distributed.lost(gone) == distributed.lost(wrapped)
    assert distributed.lost(gone).endswith("Connection reset by peer); go on at 5")
    download = UserError("cifar10 can't be downloaded")
    download.__cause__ = ConnectionError("Connection refused")
    assert distributed.lost(download) is None
