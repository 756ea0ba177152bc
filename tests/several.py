"""Runs commands in several processes on this machine, and is such a process itself.

python several.py WHAT [ARGUMENTS] --coordinator=… --num_processes=… --process_id=…
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands import ROOT, environment

EVERY = 20
"""Steps between the checkpoints of a run."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiles in half the time; the programs are the same ones."""
FLAGS = ("--coordinator", "--num_processes", "--process_id", "--peer_timeout")


class Processes:
    """So many of one command, told of each other; what they write goes to files in `folder`."""

    def __init__(
        self, folder: Path, words: list[Any], count: int = 2, timeout: int = 60, **variables: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = [folder / f"{i}.err" for i in range(count)]
        self._outputs = [folder / f"{i}.out" for i in range(count)]
        port = free_port()
        self.running = []
        for i in range(count):
            flags = (f"127.0.0.1:{port}", count, i, timeout)
            given = [f"{name}={value}" for name, value in zip(FLAGS, flags, strict=True)]
            with self._outputs[i].open("w") as out, self._errors[i].open("w") as err:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, words), *given], cwd=ROOT, stdout=out,
                        stderr=err, env=environment() | {"XLA_FLAGS": QUICK} | variables,
                    )
                )  # fmt: skip

    def wait(self, limit: float = 900.0) -> list[int]:
        """The exit codes."""
        until = time.monotonic() + limit
        return [process.wait(max(until - time.monotonic(), 0.1)) for process in self.running]

    def kill(self, number: int) -> None:
        """As a machine does that goes down."""
        self.running[number].send_signal(signal.SIGKILL)

    def until(self, path: Path, limit: float = 900.0) -> None:
        """Wait for a file that they make."""
        end = time.monotonic() + limit
        while not path.exists():
            assert time.monotonic() < end, self.errors(0) + self.errors(1)
            assert all(process.poll() is None for process in self.running), self.errors(0)
            time.sleep(0.05)

    def errors(self, number: int) -> str:
        """What a process wrote to its standard error."""
        return self._errors[number].read_text()

    def last_error(self, number: int) -> str:
        """The one line with which a process ended, after a few of JAX's at most."""
        text = self.errors(number)
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert lines, text
        assert text.strip().splitlines()[-1] == lines[-1], text
        return lines[-1]

    def output(self, number: int) -> str:
        """What a process wrote to its standard output, but for Gloo's word at the start."""
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# ---- what such a process does ----


def _collectives(folder: str) -> None:
    """Add numbers with the others, for a few minutes."""
    import numpy as np
    from jax.experimental import multihost_utils

    Path(folder).mkdir(exist_ok=True)
    end = time.monotonic() + 300.0
    while time.monotonic() < end:
        multihost_utils.process_allgather(np.ones(3, np.float32))
        (Path(folder) / "going").touch()


def _mistake(_: str) -> None:
    """Process 1 fails, while process 0 waits for it."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_index():
        raise KeyError("a bug")
    multihost_utils.sync_global_devices("never")


def _differ(where: str) -> None:
    import jax

    from vdm_jax.run import build as setup
    from vdm_jax.run import distributed as cluster

    i = jax.process_index()
    if where == "settings":
        cluster.agree({"config": {"train": {"batch_size": 32 + i, "steps": 9}, "dir": i}},
                      ("config.dir",))  # fmt: skip
    else:
        setup.make_workdir(Path(f"{where}-{i}"))
    cluster.finish()


def config_of(steps: int, shard_params: int = 1) -> Any:
    """Of a tiny run, some of whose parameters can be split."""
    import tiny

    config = tiny.config()
    config.model.update(network="mlp", channels=128, num_blocks=1)
    config.optimizer.update(decay="none")
    config.train.update(steps=steps, log_every=EVERY, checkpoint_every=EVERY, batch_size=32)
    config.train.update(shard_params=shard_params, keep_checkpoints=1000)
    config.eval.update(every=10**6, final_repeats=2)
    config.sample.update(every=10**6, num_steps=2)
    return config


class _EnoughError(Exception):
    pass


def _alone(folder: str, step: str) -> None:
    """What one process makes of the run in FOLDER/one, and of one from the start."""
    import jax

    from vdm_jax.evaluation import bound as evaluation
    from vdm_jax.run import build as setup
    from vdm_jax.run import training as run
    from vdm_jax.train import sharding

    # Two devices of eight, as JAX starts a thread for each: with two it may wait for a third.
    setup.make_mesh = lambda parts=1, *_: sharding.make_mesh(jax.devices()[:2], parts)
    run.train(config_of(int(step) + EVERY, shard_params=2), Path(folder) / "one")
    _act(str(Path(folder) / "one"))

    def enough(*_: object) -> None:
        raise _EnoughError

    evaluation.evaluate = enough  # it comes after the state is saved
    with contextlib.suppress(_EnoughError):
        run.train(config_of(int(step)), Path(folder) / "from_start")


def _act(workdir: str) -> None:
    """Evaluate the run, and draw from it."""
    from experiments import evaluate, sample

    evaluate.evaluate(["", f"--workdir={workdir}", "--repeats=2"])
    sample.sample(["", f"--workdir={workdir}", "--n=5", "--num_steps=4", "--sampler=ancestral"])


def _main(what: str, argument: str, *flags_: str) -> None:
    from absl import flags

    from vdm_jax.run import distributed as cluster
    from vdm_jax.run import rendezvous

    values = flags.FlagValues()
    rendezvous.define_flags(values)
    values(["", *flags_])
    cluster.start(values)
    acts = {"collectives": _collectives, "mistake": _mistake, "differ": _differ, "act": _act}
    acts[what](argument)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from vdm_jax.run import cli

    if sys.argv[1] == "alone":
        _alone(*sys.argv[2:])
    else:
        cli.guard(lambda: _main(*sys.argv[1:]))
