"""Trains again and again below one folder, with one fault each time, and goes on after it.

`python faulty_runs.py FOLDER CONTROL PART PARTS`, under `faults.c`: this process imports JAX and
starts no backend, so that it can fork. The training is a real one, `run.training.train`, but for
the arithmetic, which NumPy does at once. A line of JSON says what there is without a fault, and one
for each PARTS-th point from PART on what became of it.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import traceback
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import tiny

from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.evaluation.estimate import Estimate
from vdm_jax.run import build, cli, experiment, training
from vdm_jax.train import plots
from vdm_jax.train.load_checkpoint import complete_steps
from vdm_jax.train.logging import read_metrics
from vdm_jax.train.step import TrainState

MODES = ("", "kill", "fail", "full")
STEPS, CALLS = 4, 4096
FORM = struct.Struct(f"lll512s{CALLS}s")  # of `struct control`


def config():
    config = tiny.config()
    config.train.update(steps=STEPS, steps_per_call=2, log_every=2, checkpoint_every=2)
    config.train.keep_checkpoints, config.optimizer.warmup_steps = 1, 1
    config.eval.every = config.sample.every = 2
    return config


def start(*_):
    leaves = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    params = {"a": leaves[0], "b": leaves[1]}
    zero = np.array(0, np.int32)
    return TrainState(zero, params, params, {"mu": leaves[0]}, zero)


def step(state, chunk, first, last):
    count = np.int32(last - first)
    params = {name: leaf * np.float32(0.9) + 1 for name, leaf in state.params.items()}
    ema = {name: leaf - params[name] for name, leaf in state.ema_params.items()}
    bpd = np.float32(params["a"].mean())
    metrics = dict.fromkeys(("bpd", "reconstruction", "prior", "diffusion"), bpd)
    state = state._replace(step=state.step + count, params=params, ema_params=ema)
    return state, metrics | {"skipped": np.zeros(2, np.int32)}


def evaluate(state, last):
    return Evaluation(*[Estimate(float(state.ema_params["b"].mean()), 0.1)] * 4, 4, 1)


def sample(state):
    return np.resize(state.params["a"].view(np.uint8), (8, 8, 1))


def without_arithmetic():
    images, model = build.load(config()), Mock()
    model.facts.return_value.configure_mock(words="NumPy's", note="")
    build.load = lambda *_: images
    training.make_model = lambda *_: model
    training.step.abstract_state = training.step.start = start
    training._check_room = lambda *_: None
    experiment.keys_of = lambda *_: dict.fromkeys(("init", "train", "eval", "sample"))
    experiment.compiled_step = lambda *_: step
    experiment.chunks = lambda *_: lambda first: contextlib.nullcontext(iter([{}] * STEPS))
    experiment.evaluator = lambda *_: evaluate
    experiment.sampler = lambda *_: sample
    plots.plot_losses = lambda metrics, path, _: plots.write_image(
        path, np.zeros((len(metrics), 1, 1), np.uint8)
    )


def outcome(workdir):
    """What a run leaves: the state, and each file but for rates and what names a process."""
    steps = complete_steps(workdir / "checkpoints")
    settings = training._settings(config(), build.load())
    checkpoints = training.Checkpoints(workdir / "checkpoints", settings)
    leaves = jax.tree.leaves(checkpoints.restore(start()))
    checkpoints.close()
    lines = read_metrics(workdir / "metrics.jsonl")
    assert len(lines) == len((workdir / "metrics.jsonl").read_bytes().splitlines())
    found = {
        "state": [hashlib.sha256(np.asarray(leaf)).hexdigest() for leaf in leaves],
        "steps": steps,
        "metrics": [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines],
    }
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        # metrics.1.jsonl: of a start that was ended before its first checkpoint.
        if path.is_file() and not name.match("metrics.*.jsonl") and name.parts[0] not in (
            "checkpoints", "tensorboard", "metrics.jsonl", ".lock", ".holder",
        ):  # fmt: skip
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Control:
    """The memory that is shared with the processes under `faults.c`."""

    def __init__(self, path):
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def set(self, mode="", at=0):
        self._memory[: FORM.size] = FORM.pack(MODES.index(mode), at, 0, b"", b"")

    def read(self):
        """How many calls there were, the one that was struck, and whether each takes room."""
        _, _, count, call, room = FORM.unpack(self._memory[: FORM.size])
        return {"count": count, "call": call.split(b"\0")[0].decode(), "room": list(room[:count])}


def run(workdir, control, mode="", at=0):
    """One run in a process of its own: how it ended, what it said and, if it ended well, left."""
    said = workdir.parents[1] / "said"
    control.set(mode, at)
    process = os.fork()
    if process == 0:
        try:
            signal.alarm(120)  # a run that hangs ends, and not as wanted
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            cli.guard(lambda: training.train(config(), workdir))
            ended = control.read()
            control.set()
            print(json.dumps(ended | {"left": outcome(workdir)}), flush=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    lines = said.read_text().splitlines()
    ended = json.loads(lines.pop()) if code == 0 else control.read()
    return {"code": code, "said": lines, **ended}


def main():
    folder, control = Path(sys.argv[1]), Control(sys.argv[2])
    without_arithmetic()
    alone = run(folder / "alone", control)
    room = dict(enumerate(alone.pop("room"), 1))
    points = [(at, mode) for at in room for mode in MODES[1:] if mode != "full" or room[at]]
    print(json.dumps({**alone, "points": len(points)}), flush=True)
    for at, mode in points[int(sys.argv[3]) :: int(sys.argv[4])]:
        workdir = folder / f"{at}-{mode}"
        first, then = run(workdir, control, mode, at), run(workdir, control)
        print(json.dumps({"mode": mode, "first": first, "then": then}), flush=True)
        control.set()
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
