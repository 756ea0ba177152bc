"""Runs commands in several processes on this machine, and is such a process itself.

python several.py WHAT [ARGUMENTS] --coordinator=… --num_processes=… --process_id=…
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import tiny
from absl import flags
from commands import ROOT, environment
from jax.experimental import multihost_utils

from experiments import sample
from vdm_jax.errors import UserError
from vdm_jax.run import build, cli, distributed, training
from vdm_jax.train import sharding

EVERY = 20  # steps between the checkpoints of a run
# Compiles in half the time; the programs are the same ones.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)


class Processes:
    """So many of one command, told of each other, which write to files in `folder`."""

    def __init__(
        self, folder: Path, words: list[Any], count: int = 2, timeout: int = 60, **variables: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = [folder / f"{i}.err" for i in range(count)]
        self._outputs = [folder / f"{i}.out" for i in range(count)]
        self.port, self.running = free_port(), []
        for i in range(count):
            given = [*flags_of(self.port, count, i), f"--peer_timeout={timeout}"]
            with self._outputs[i].open("w") as out, self._errors[i].open("w") as err:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, words), *given], cwd=ROOT, stdout=out,
                        stderr=err, env=environment() | {"XLA_FLAGS": QUICK} | variables,
                    )
                )  # fmt: skip

    def wait(self, limit: float = 900.0) -> list[int]:
        """Returns the exit codes."""
        until = time.monotonic() + limit
        return [process.wait(max(until - time.monotonic(), 0.1)) for process in self.running]

    def until(self, path: Path, limit: float = 900.0) -> None:
        """Waits for a file that they make."""
        end = time.monotonic() + limit
        while not path.exists():
            assert time.monotonic() < end, self.errors(0) + self.errors(1)
            assert all(process.poll() is None for process in self.running), self.errors(0)
            time.sleep(0.05)

    def errors(self, number: int) -> str:
        """Returns what a process wrote to its standard error."""
        return self._errors[number].read_text()

    def last_error(self, number: int) -> str:
        """Returns the one line with which a process ended, after a few of JAX's at most."""
        text = self.errors(number)
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert lines, text
        assert text.strip().splitlines()[-1] == lines[-1], text
        return lines[-1]

    def output(self, number: int) -> str:
        """Returns what a process wrote to its standard output, but for Gloo's word at the start."""
        lines = self._outputs[number].read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))


@contextlib.contextmanager
def processes(*arguments: Any, **settings: Any) -> Iterator[Processes]:
    """`Processes`, of which none outlives the block."""
    started = Processes(*arguments, **settings)
    try:
        yield started
    finally:
        for process in started.running:
            process.kill()
            process.wait()


def flags_of(port: int, count: int, number: int) -> tuple[str, ...]:
    """Returns the flags with which one of several processes finds the others."""
    at = f"--coordinator=127.0.0.1:{port}"
    return (at, f"--num_processes={count}", f"--process_id={number}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def config_of(steps: int, shard_params: int = 1) -> Any:
    """A tiny run, some of whose parameters can be split."""
    config = tiny.config()
    config.model.update(network="mlp", channels=128, num_blocks=1)
    config.optimizer.update(decay="none")
    config.train.update(steps=steps, log_every=EVERY, checkpoint_every=EVERY, batch_size=32)
    config.train.update(shard_params=shard_params, keep_checkpoints=1000)
    config.eval.update(every=10**6, final_repeats=2)
    config.sample.update(every=10**6, num_steps=2)
    return config


def command(config: Any, workdir: Path) -> list[Any]:
    return ["-m", "experiments.digits", f"--workdir={workdir}", *tiny.flags(config)]


# ---- what such a process does ----


def _meet(folder: str) -> None:
    """All that processes agree on, to where they differ."""
    me = jax.process_index()

    def turn() -> int:
        time.sleep(0.5 - 0.5 * me)
        with (Path(folder) / "turns").open("a") as file:
            file.write(f"{me} ")
        return me

    assert distributed.joined() and jax.device_count() == 2
    assert distributed.in_turn(turn) == me
    assert distributed.of_first({"me": me}) == {"me": 0}
    assert build.make_workdir(Path(folder) / "run") == Path(folder) / "run"
    distributed.agree({"a": {"b": 1}, "dir": me}, ("dir",))
    print("met")
    distributed.agree({"a": {"b": me}})


def _wait(folder: str) -> None:
    """All work for themselves, for a few minutes."""
    (Path(folder) / "going").touch()
    time.sleep(300.0)


def _differ(where: str) -> None:
    """Process 1 has a bug, can't do its turn, or has another folder; process 0 waits for it."""
    me = jax.process_index()

    def fail(error: Exception) -> None:
        if me:
            raise error

    if where == "bug":
        fail(KeyError("a bug"))
        multihost_utils.sync_global_devices("never")
    elif where == "turn":
        distributed.in_turn(lambda: fail(UserError("no such data")))
    else:
        build.make_workdir(Path(f"{where}-{me}"))


def _alone(folder: str, step: str) -> None:
    """What one process makes of the run in FOLDER/one, and of one from the start."""
    # Two devices of eight, as JAX starts a thread for each: with two it may wait for a third.
    build.make_mesh = lambda parts=1, *_: sharding.make_mesh(jax.devices()[:2], parts)
    training.train(config_of(int(step)), Path(folder) / "from_start")
    training.train(config_of(int(step) + EVERY, shard_params=2), Path(folder) / "one")
    _act(str(Path(folder) / "one"))


def _act(workdir: str) -> None:
    """Evaluate the run, and draw from it."""
    tiny.evaluate(Path(workdir), "--repeats=2")
    sample.sample(["", f"--workdir={workdir}", "--n=5", "--num_steps=4", "--sampler=ancestral"])


def _main(what: str, argument: str, *flags_: str) -> None:
    values = flags.FlagValues()
    distributed.define_flags(values)
    values(["", *flags_])
    distributed.start(values)
    {"differ": _differ, "act": _act, "wait": _wait, "meet": _meet}[what](argument)


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        _alone(*sys.argv[2:])
    else:
        cli.guard(lambda: _main(*sys.argv[1:]))
